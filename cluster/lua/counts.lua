-- counts: count the tasks of one shard in each state, and those that each session runs; how long the oldest ones wait.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is read
-- KEYS[2]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- KEYS[3]  {sNN}:scheduled            zset  scheduled and retrying ids
-- KEYS[4]  {sNN}:waiting              zset  ids that wait for other tasks
-- KEYS[5]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[6]  {sNN}:done                 zset  succeeded ids
-- KEYS[7]  {sNN}:dead                 zset  dead ids
-- KEYS[8]  {sNN}:cancelled            zset  cancelled ids
-- KEYS[9]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  ready prefix               {sNN}:ready:
-- ARGV[2]  inflight prefix            {sNN}:inflight:
-- ARGV[3]  ids                        "1" to return the ids in flight, "0" for their number alone
-- ARGV[4]  bucket prefix              {sNN}:tasks:
-- ARGV[5]  aging_ms                   milliseconds of waiting that count as much as one level
-- Touches  {sNN}:ready:<queue>, {sNN}:inflight:<session>, {sNN}:tasks:<bucket>   same slot
-- Uses     include/clock.lua
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
--
-- Returns  {scheduled, retrying, waiting, succeeded, dead, cancelled, {queue, count, ms that the oldest waits, …},
--          {session, count or {id, …}, …}}. The oldest is that of the first FIRST: of tasks of one level, of all
-- Keeps    reads only
-- Late     harmless: it reads
-- Repeat   harmless

local FIRST = 8
local now = now_ms()

local function oldest_of(queue)
  local rows = redis.call('ZRANGE', ARGV[1] .. queue, 0, FIRST - 1, 'WITHSCORES')
  local ids, oldest = {}, now
  for i = 1, #rows, 2 do ids[#ids + 1] = rows[i] end
  for i, stored in ipairs(fields_of(ARGV[4], ids, {''})) do
    if stored then oldest = math.min(oldest, rows[2 * i] + level_of(stored) * ARGV[5]) end
  end
  return now - oldest
end

local queues, flights = {}, {}
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local n = #queues
  queues[n + 1], queues[n + 2], queues[n + 3] = queue, redis.call('ZCARD', ARGV[1] .. queue), oldest_of(queue)
end
for _, session in ipairs(redis.call('SMEMBERS', KEYS[5])) do
  flights[#flights + 1] = session
  flights[#flights + 1] = redis.call(ARGV[3] == '1' and 'HKEYS' or 'HLEN', ARGV[2] .. session)
end
local retrying = redis.call('SCARD', KEYS[9])
return {
  math.max(0, redis.call('ZCARD', KEYS[3]) - retrying), retrying, redis.call('ZCARD', KEYS[4]),
  redis.call('ZCARD', KEYS[6]), redis.call('ZCARD', KEYS[7]), redis.call('ZCARD', KEYS[8]), queues, flights,
}
