-- purge: end the retention of every dead task of one shard, so that the next sweep drops it.
--
-- KEYS[1]  {sNN}:never    guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:dead     zset  dead ids by the time when they may be dropped, ms
-- ARGV[1]  not after      ms of Redis's clock; see include/not_after.lua
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
--
-- Returns  how many dead tasks there are
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     refused: it would drop tasks that died since
-- Repeat   harmless

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
return redis.call('ZUNIONSTORE', KEYS[2], 1, KEYS[2], 'WEIGHTS', 0)
