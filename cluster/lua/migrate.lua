-- migrate: bring tasks of one shard from the form of schema 1 (a hash for each task, named in an index) into buckets.
--
-- Call it again until nothing is left, before a node of this version serves. Ids and all sets stay as they are.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:index                zset  ids of the tasks in the old form
-- KEYS[3]  {sNN}:buckets              zset  names of the buckets, at score 0
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  old prefix                 {sNN}:task:
-- ARGV[3]  inflight prefix            {sNN}:inflight:
-- ARGV[4]  limit                      tasks, 1 to 256; bounds the time that Redis is held
-- Touches  {sNN}:tasks:<bucket>, {sNN}:task:<id>, {sNN}:inflight:<session>   same slot
-- Uses     include/bucket.lua
-- Uses     include/bucket_write.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
--
-- Returns  tasks that are left in the old form
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     harmless: what is left in the old form is still to be moved
-- Repeat   harmless

local prefix, old_prefix = ARGV[1], ARGV[2]
local ids = redis.call('ZRANGE', KEYS[2], 0, ARGV[4] - 1)
local put, flush = writer(prefix)

local function with_head(spec, level, data)
  local high = math.floor(#spec / 256) + (#data > APART_BYTES and APART or 0)
  return string.char(#spec % 256, high, level) .. spec
end

-- Put down a result or an error: in line, or in a field of its own.
local function payload(id, text)
  if not text or text == 'null' then return '' end
  if #text <= APART_BYTES then return text end
  put(id, '.end', text)
  return '+'
end

local function take_over(id, task)
  local is_read, spec = pcall(cmsgpack.unpack, task.spec)
  if not is_read or type(spec) ~= 'table' or not task.data then return end
  local head = with_head(task.spec, spec[LEVEL], task.data)
  if #task.data > APART_BYTES then
    put(id, '', head)
    put(id, '.data', task.data)
  else
    put(id, '', head .. task.data)
  end
  if task.progress then put(id, '.progress', task.progress) end
  if task.history then put(id, '.history', task.history) end
  local queued, started, ended = tonumber(task.queued_at), tonumber(task.started_at), tonumber(task.finished_at)
  local state = {state = task.state, attempt = tonumber(task.attempt) or 0, delivery = tonumber(task.delivery) or 0,
    lost = tonumber(task.lost) or 0, queued = queued, settled = tonumber(task.settled),
    node = task.session and node_of(task.session) or '-'}
  state.wait = started and started - (queued or 0)
  state.ran = ended and ended - (queued or 0) - (state.wait or 0)
  state.payload = payload(id, task.state == 'succeeded' and task.result or task.state ~= 'succeeded' and task.error)
  if task.state == 'running' then
    local inflight = ARGV[3] .. (task.session or '')
    local token = table.concat({number(state.attempt), number(state.delivery), number(state.lost),
      number(queued or started or 0), number(queued and state.wait or 0)}, ' ')
    if redis.call('HEXISTS', inflight, id) == 1 then redis.call('HSET', inflight, id, token) end
    state.state, state.attempt, state.delivery = 'queued', state.attempt - 1, state.delivery - 1
  end
  put(id, '.', state_text(state))
end

local old = {}
for i, id in ipairs(ids) do
  old[i] = old_prefix .. id
  local flat, task = redis.pcall('HGETALL', old[i]), {}
  for f = 1, #flat, 2 do task[flat[f]] = flat[f + 1] end
  take_over(id, task)
end
local names = {}
for i, of in ipairs(flush(true)) do names[2 * i - 1], names[2 * i] = '0', of end
if #names > 0 then redis.call('ZADD', KEYS[3], unpack(names)) end
if #ids > 0 then
  redis.call('UNLINK', unpack(old))
  redis.call('ZREM', KEYS[2], unpack(ids))
end
return redis.call('ZCARD', KEYS[2])
