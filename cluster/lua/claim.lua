-- claim: move up to `limit` queued tasks of one queue of one shard into a session's in-flight set.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:ready:<queue>        zset  queued ids, lowest score first
-- KEYS[3]  {sNN}:inflight:<session>   hash  id -> delivery of each task that the session runs: the right to settle
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  session                    the claimant
-- ARGV[3]  limit                      tasks, 1 to 256; bounds the time that Redis is held
-- ARGV[4]  highest score              the worst score to take ("+inf": any)
-- ARGV[5]  bytes                      of data that the answer may hold; the first task is taken whatever its size
-- Touches  {sNN}:task:<id>            one per claimed id, same slot
-- Uses     include/flight.lua
--
-- Returns  {now ms, count left, head score left,
--          {id, delivery, attempt, spec, data, queued-at ms or "", workers lost, …}}
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; an attempt is
--          counted before its handler can start
-- Repeat   not harmless: it claims more. A lost reply leaves ids in flight; the session finds them when it compares

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[4], 'LIMIT', 0, ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, session, bytes = ARGV[1], ARGV[2], tonumber(ARGV[5])
local out, flight, taken = {}, {}, {}
for _, id in ipairs(ids) do
  local key = prefix .. id
  local was = redis.pcall('HMGET', key, 'spec', 'data', 'attempt', 'delivery', 'queued_at', 'lost')
  if was[1] and was[2] then
    bytes = bytes - #was[2]
    if bytes < 0 and #flight > 0 then break end
    local attempt, delivery = (was[3] or 0) + 1, (was[4] or 0) + 1
    redis.call('HSET', key, 'state', 'running', 'attempt', attempt, 'delivery', delivery, 'started_at', now,
      'session', session)
    flight[#flight + 1] = id
    flight[#flight + 1] = delivery
    local n = #out
    out[n + 1], out[n + 2], out[n + 3], out[n + 4], out[n + 5], out[n + 6], out[n + 7] =
      id, delivery, attempt, was[1], was[2], was[5] or '', was[6] or 0
  end
  taken[#taken + 1] = id
end
into_flight(KEYS[3], KEYS[4], session, flight)
if #taken > 0 then redis.call('ZREM', KEYS[2], unpack(taken)) end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {now, redis.call('ZCARD', KEYS[2]), first[2] or '0', out}
