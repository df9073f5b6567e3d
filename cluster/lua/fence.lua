-- fence: end a session for good by writing its tombstone, if the second witness agrees that it is dead.
--
-- KEYS[1]  {<session>}:heartbeat  string  the session's counter, or its tombstone
-- KEYS[2]  {<session>}:wake       –       the session's channel (a name, not a key): same slot
-- KEYS[3]  {<session>}:never      –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  path                   the condition to check: 'fast' its channel has no subscriber (its process is gone);
--                                 'slow' its counter has not moved from ARGV[2]; 'own' none, the session ends itself
-- ARGV[2]  seen                   the counter that the fencer watched, '' for none; for 'slow' alone
-- ARGV[3]  cause                  one word, kept in the tombstone
-- ARGV[4]  ttl_ms                 how long the tombstone is kept
-- ARGV[5]  by                     node_id of the fencer, kept in the tombstone
--
-- Returns  {1, tombstone} written now; {2, tombstone} it stood there before; {0, counter or ''} Redis does not agree
-- Keeps    a tombstone is never overwritten; it is written only when Redis and the caller agree that the session ended
-- Late     harmless: 'slow' names a counter that moves with each beat, 'own' a session that has ended itself. A 'fast' one
--          may fence a session that lost its subscription for a moment, as it may in time
-- Repeat   harmless: fencing a fenced session succeeds
redis.call('DEL', KEYS[3]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local value = redis.call('GET', KEYS[1])
if value and string.sub(value, 1, 7) == 'fenced ' then
  return {2, value}
end
local agrees = ARGV[1] == 'own'
if ARGV[1] == 'fast' then
  local count = redis.call('PUBSUB', 'NUMSUB', KEYS[2])[2]
  agrees = tonumber(count) == 0
elseif ARGV[1] == 'slow' then
  agrees = (value or '') == ARGV[2]
end
if not agrees then
  return {0, value or ''}
end
local time = redis.call('TIME')
local at_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local tombstone = 'fenced ' .. ARGV[3] .. ' ' .. at_ms .. ' ' .. ARGV[5]
redis.call('SET', KEYS[1], tombstone, 'PX', ARGV[4])
return {1, tombstone}
