-- cancel: move one task from wherever it is, in flight too, to cancelled. Cancelling is a commit.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[3]  {sNN}:waiting              zset  ids that wait for other tasks
-- KEYS[4]  {sNN}:cancelled            zset  cancelled ids by the time when they may be dropped, ms
-- KEYS[5]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[6]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  id                         of the task
-- ARGV[3]  bucket prefix              {sNN}:tasks:
-- ARGV[4]  ready prefix               {sNN}:ready:
-- ARGV[5]  inflight prefix            {sNN}:inflight:
-- ARGV[6]  retention ms               of a task without a retention of its own
-- ARGV[7]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[8]  least ms                   the shortest time that a task stays, whatever its own retention
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>, {sNN}:ready:@<queue>@<type>, {sNN}:inflight:<session>   same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/history.lua
-- Uses     include/flight.lua
--
-- Returns  {the state that it was in ("" if there is no such task), the session that ran it or "", its delivery}; the
--          task is cancelled now unless that state is terminal
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     refused: it would cancel a task that was replayed after the caller gave up
-- Repeat   harmless: the answer then is "cancelled"

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local id = ARGV[2]
local bucket = ARGV[3] .. bucket_of(id)
local fields = redis.call('HMGET', bucket, id, id .. '.')
if not fields[1] then return {'', '', 0} end
local state = state_of(id, fields[2])
local was = state.state
if TERMINAL[was] then return {was, '', 0} end
local spec = spec_of(fields[1])
local session, token = holder(KEYS[5], ARGV[5], id)
if session then
  local run = token_of(token)
  was, state.node = 'running', node_of(session)
  state.attempt, state.delivery, state.lost, state.queued, state.wait =
    run.attempt, run.delivery, run.lost, run.queued, run.wait
end
remember(bucket, id, 'cancelled', now, state, session or (state.node ~= '-' and state.node or ''), '', 'it was ' .. was)
state.state, state.ran = 'cancelled', nil
state.ran = now - ended_ms(state)
redis.call('HSET', bucket, id .. '.', state_text(state))
local own = spec[RETENTION_S]
redis.call('ZADD', KEYS[4], now + (own and math.max(math.floor(own * 1000), ARGV[8]) or ARGV[6]), id)
if session then
  out_of_flight(ARGV[5] .. session, KEYS[5], session, {id})
elseif was == 'queued' then
  if redis.call('ZREM', ARGV[4] .. spec[QUEUE], id) == 0 then redis.call('ZREM', ARGV[4] .. parked_queue(spec), id) end
elseif was == 'waiting' then
  redis.call('ZREM', KEYS[3], id)
else
  redis.call('ZREM', KEYS[2], id)
  redis.call('SREM', KEYS[6], id)
end
redis.call('PUBLISH', ARGV[7], id)
return {was, session or '', state.delivery}
