-- heartbeat: write that a session lives, unless it was fenced, and let it test its own channel.
--
-- KEYS[1]  {<session>}:heartbeat  string  the session's counter, or its tombstone
-- KEYS[2]  {<session>}:wake       –       the session's channel (a name, not a key): same slot
-- KEYS[3]  {<session>}:never      –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  value                  a counter, which rises with every call of this session, and that the session votes
-- ARGV[2]  ttl_ms                 how long the counter stays without another beat
-- ARGV[3]  echo                   published to the channel: a subscriber that gets it knows that the channel works
-- Uses     include/clock.lua
-- Uses     include/bury.lua
--
-- Returns  {'ok' or the tombstone, subscribers of the channel, Redis's time in ms}
-- Keeps    a tombstone is never overwritten: a fenced session cannot come back
-- Late     harmless: behind a tombstone it writes nothing. Otherwise a session that ended looks alive for one more
--          `heartbeat_stale_s` to who watches it, and its counter expires; nobody claims by a heartbeat
-- Repeat   harmless
redis.call('DEL', KEYS[3]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local value = redis.call('GET', KEYS[1])
local count = redis.call('PUBSUB', 'NUMSUB', KEYS[2])[2]
if is_buried(value) then
  return {value, count, now_ms()}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', KEYS[2], ARGV[3])
return {'ok', count, now_ms()}
