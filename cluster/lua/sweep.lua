-- sweep: keep house in one shard: drop tasks past their retention, queue tasks that are due, report what is there.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[3]  {sNN}:done                 zset  succeeded ids by the time when they may be dropped, ms
-- KEYS[4]  {sNN}:dead                 zset  dead ids, by the same
-- KEYS[5]  {sNN}:cancelled            zset  cancelled ids, by the same
-- KEYS[6]  {sNN}:index                zset  every id of the shard
-- KEYS[7]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[8]  {sNN}:queues               set   names of the queues this shard ever held
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[4]  limit                      tasks to promote, and to drop of each state, 1 to 256
-- ARGV[5]  age ms                     while memory is short: drop succeeded and cancelled tasks that ended so long ago
--                                     before their time; else -1
-- Touches  {sNN}:task:<id>, {sNN}:ready:<queue>   same slot
-- Uses     include/heads.lua
-- Uses     include/spec.lua
--
-- Returns  {now ms, promoted, dropped, next due ms or 0, {session, …}, {queue, count, head score, …}}; `dropped` is the
--          most of one state. Call again at once if promoted or dropped reached the limit
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Repeat   harmless

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local age = tonumber(ARGV[5])

local function ended_before(key, at_ms)
  local old = {}
  local first = redis.call('ZRANGE', key, 0, ARGV[4] - 1, 'WITHSCORES')
  for i = 1, #first, 2 do
    local ended = redis.pcall('HGET', ARGV[1] .. first[i], 'finished_at')
    if tonumber(first[i + 1]) <= now or type(ended) ~= 'string' or tonumber(ended) <= at_ms then
      old[#old + 1] = first[i]
    end
  end
  return old
end

-- Drop first: promoting needs memory, dropping gives it back.
local dropped = 0
for k = 3, 5 do
  local old
  if age < 0 or k == 4 then -- dead tasks keep their time: somebody has to look at them
    old = redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', now, 'LIMIT', 0, ARGV[4])
  else
    old = ended_before(KEYS[k], now - age)
  end
  if #old > 0 then
    local keys = {}
    for i, id in ipairs(old) do keys[i] = ARGV[1] .. id end
    redis.call('UNLINK', unpack(keys))
    redis.call('ZREM', KEYS[6], unpack(old))
    redis.call('ZREM', KEYS[k], unpack(old))
    dropped = math.max(dropped, #old)
  end
end

local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[4])
for _, id in ipairs(due) do
  local key = ARGV[1] .. id
  local packed = redis.pcall('HGET', key, 'spec')
  if type(packed) == 'string' then
    local spec = spec_of(packed)
    redis.call('HSET', key, 'state', 'queued', 'queued_at', now)
    redis.call('ZADD', ARGV[2] .. spec[QUEUE], now - spec[LEVEL] * ARGV[3], id)
    redis.call('SADD', KEYS[8], spec[QUEUE])
  end
end
if #due > 0 then redis.call('ZREM', KEYS[2], unpack(due)) end

local heads = heads_of(ARGV[2], redis.call('SMEMBERS', KEYS[8]))
local next_due = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
return {now, #due, dropped, tonumber(next_due or 0), redis.call('SMEMBERS', KEYS[7]), heads}
