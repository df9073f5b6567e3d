-- spec: read the fields of a task's spec by name. Python's `Spec` (cluster/shards/task.py) sets the positions; a test
-- compares them.
--
-- spec_of(stored)    the fields of the spec in what was submitted, by these positions; raises for anything else. Needs
--                    stored.lua
-- parked_queue(spec) the name of the queue in which such a task waits for a node with a handler (keys.parked)
--
-- Keeps    reads only
-- Repeat   harmless

local TYPE, QUEUE, LEVEL, MAX_ATTEMPTS, TIMEOUT_S, BACKOFF, KEY, RETENTION_S, TRACE = 1, 2, 3, 4, 5, 6, 7, 8, 9
local BASE_S, FACTOR, MAX_S = 1, 2, 3 -- positions in a backoff
local USUAL = {[MAX_ATTEMPTS] = 5, [TIMEOUT_S] = 3600, [BACKOFF] = {1, 2, 300}} -- left out at the end of a spec

local function spec_of(stored)
  local low, high = string.byte(stored, 1, 2)
  local spec = cmsgpack.unpack(string.sub(stored, HEAD_BYTES + 1, HEAD_BYTES + low + high % APART * 256))
  for field, value in pairs(USUAL) do
    if spec[field] == nil then spec[field] = value end
  end
  return spec
end

local function parked_queue(spec)
  return '@' .. spec[QUEUE] .. '@' .. spec[TYPE]
end
