-- counts: count the tasks of one shard in each state, and those that each session runs.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is read
-- KEYS[2]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- KEYS[3]  {sNN}:scheduled            zset  scheduled and retrying ids
-- KEYS[4]  {sNN}:waiting              zset  ids that wait for other tasks
-- KEYS[5]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[6]  {sNN}:done                 zset  succeeded ids
-- KEYS[7]  {sNN}:dead                 zset  dead ids
-- KEYS[8]  {sNN}:cancelled            zset  cancelled ids
-- ARGV[1]  ready prefix               {sNN}:ready:
-- ARGV[2]  inflight prefix            {sNN}:inflight:
-- ARGV[3]  ids                        "1" to return the ids in flight, "0" for their number alone
-- Touches  {sNN}:ready:<queue>, {sNN}:inflight:<session>   same slot
--
-- Returns  {scheduled, waiting, succeeded, dead, cancelled, {queue, count, …}, {session, count or {id, …}, …}}
-- Keeps    reads only
-- Repeat   harmless

local queues, flights = {}, {}
for _, queue in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  queues[#queues + 1] = queue
  queues[#queues + 1] = redis.call('ZCARD', ARGV[1] .. queue)
end
for _, session in ipairs(redis.call('SMEMBERS', KEYS[5])) do
  flights[#flights + 1] = session
  flights[#flights + 1] = redis.call(ARGV[3] == '1' and 'HKEYS' or 'HLEN', ARGV[2] .. session)
end
return {
  redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[4]), redis.call('ZCARD', KEYS[6]), redis.call('ZCARD', KEYS[7]),
  redis.call('ZCARD', KEYS[8]), queues, flights,
}
