-- unpark: queue again tasks of one shard that waited for a node with a handler, those first that waited longest.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:ready:@<queue>@<type>  zset  ids by the time at which they began to wait, ms
-- KEYS[3]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[4]  limit                      tasks to queue, 1 to 256
-- Touches  {sNN}:ready:<queue>        same slot
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/heads.lua
--
-- Returns  {how many still wait, {queue, count, head score, …} of the queues that they went to}
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     harmless: whoever claims them parks them again
-- Repeat   harmless

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local ids = redis.call('ZRANGE', KEYS[2], 0, ARGV[4] - 1)
local fields = fields_of(ARGV[1], ids, {'', '.'})
local ready, names = {}, {}
for i, id in ipairs(ids) do
  local is_read, spec = pcall(spec_of, fields[2 * i - 1])
  if is_read and type(spec) == 'table' then
    local queue = spec[QUEUE]
    if not ready[queue] then ready[queue], names[#names + 1] = {}, queue end
    local list, queued = ready[queue], state_of(id, fields[2 * i]).queued
    list[#list + 1], list[#list + 2] = string.format('%.0f', queued - spec[LEVEL] * ARGV[3]), id
  end
end
for _, queue in ipairs(names) do
  redis.call('ZADD', ARGV[2] .. queue, unpack(ready[queue]))
  redis.call('SADD', KEYS[3], queue)
end
if #ids > 0 then redis.call('ZREM', KEYS[2], unpack(ids)) end
return {redis.call('ZCARD', KEYS[2]), heads_of(ARGV[2], names)}
