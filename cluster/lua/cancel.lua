-- cancel: move one task from wherever it is, in flight too, to cancelled. Cancelling is a commit.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:task:<id>            hash  the task
-- KEYS[3]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[4]  {sNN}:waiting              zset  ids that wait for other tasks
-- KEYS[5]  {sNN}:cancelled            zset  cancelled ids by the time when they may be dropped, ms
-- KEYS[6]  {sNN}:sessions             set   sessions with something in flight in this shard
-- ARGV[1]  id                         of the task
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  inflight prefix            {sNN}:inflight:
-- ARGV[4]  retention ms               of a task without a retention of its own
-- ARGV[5]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[6]  least ms                   the shortest time that a task stays, whatever its own retention
-- Touches  {sNN}:ready:<queue>, {sNN}:inflight:<session>   same slot
-- Uses     include/history.lua
-- Uses     include/flight.lua
-- Uses     include/spec.lua
--
-- Returns  {the state that it was in ("" if there is no such task), the session that ran it or "", its delivery}; the
--          task is cancelled now unless that state is terminal
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Repeat   harmless: the answer then is "cancelled"

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local id = ARGV[1]
local was = redis.call('HMGET', KEYS[2], 'state', 'session', 'delivery', 'spec')
local state = was[1]
if not state then return {'', '', 0} end
if state == 'succeeded' or state == 'dead' or state == 'cancelled' then return {state, '', 0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
remember(KEYS[2], 'cancelled', now, '', 'it was ' .. state)
redis.call('HSET', KEYS[2], 'state', 'cancelled', 'finished_at', now)
local spec = spec_of(was[4])
local own = spec[RETENTION_S]
redis.call('ZADD', KEYS[5], now + (own and math.max(math.floor(own * 1000), ARGV[6]) or ARGV[4]), id)
local session = ''
if state == 'queued' then
  redis.call('ZREM', ARGV[2] .. spec[QUEUE], id)
elseif state == 'running' then
  session = was[2] or ''
  out_of_flight(ARGV[3] .. session, KEYS[6], session, {id})
elseif state == 'waiting' then
  redis.call('ZREM', KEYS[4], id)
else
  redis.call('ZREM', KEYS[3], id)
end
redis.call('PUBLISH', ARGV[5], id)
return {state, session, tonumber(was[3] or 0)}
