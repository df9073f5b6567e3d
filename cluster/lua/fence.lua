-- fence: end a session for good by writing its tombstone: its own, or one whose lease has run out.
--
-- KEYS[1]  {<session>}:heartbeat  string  the session's counter, or its tombstone
-- KEYS[2]  {<session>}:never      –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  path                   the condition to check: 'lease' its heartbeat is still what ARGV[2] says;
--                                 'own' none, the session ends itself
-- ARGV[2]  seen                   the heartbeat that the fencer watched, '' for none; for 'lease' alone
-- ARGV[3]  cause                  one word, kept in the tombstone
-- ARGV[4]  ttl_ms                 how long the tombstone is kept
-- ARGV[5]  by                     node_id of the fencer, kept in the tombstone
-- Uses     include/clock.lua
-- Uses     include/bury.lua
--
-- Returns  {1, tombstone} written now; {2, tombstone} it stood there before; {0, heartbeat or ''} it has moved
-- Keeps    a tombstone is never overwritten. Whether a silent session is gone before its lease is over: see vote.lua
-- Late     harmless: 'lease' names a heartbeat that moves with each beat, 'own' a session that has ended itself
-- Repeat   harmless: fencing a fenced session succeeds
redis.call('DEL', KEYS[2]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local value = redis.call('GET', KEYS[1])
if is_buried(value) then
  return {2, value}
end
if ARGV[1] ~= 'own' and (value or '') ~= ARGV[2] then
  return {0, value or ''}
end
return {1, bury(KEYS[1], now_ms(), ARGV[3], ARGV[5], ARGV[4])}
