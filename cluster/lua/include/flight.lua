-- flight: put tasks into a session's in-flight set of one shard, and take them out. Being in it is the right to settle.
--
-- into_flight(inflight, sessions, session, pairs)    {id, token, …} are the session's from now on
-- out_of_flight(inflight, sessions, session, ids)    {id, …} are the session's no longer
--
-- `inflight` and `sessions` are the keys {sNN}:inflight:<session> and {sNN}:sessions.
--
-- Keeps    a session is a member of `sessions` exactly while its in-flight hash exists: reaping finds it nowhere else
-- Repeat   harmless

local function into_flight(inflight, sessions, session, pairs)
  if #pairs == 0 then return end
  redis.call('HSET', inflight, unpack(pairs))
  redis.call('SADD', sessions, session)
end

local function out_of_flight(inflight, sessions, session, ids)
  if #ids > 0 then redis.call('HDEL', inflight, unpack(ids)) end
  if redis.call('EXISTS', inflight) == 0 then redis.call('SREM', sessions, session) end
end

