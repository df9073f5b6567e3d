-- snapshot: keep the leader's member table, unless a later leader came after it.
--
-- KEYS[1]  {leader}:snapshot  string  JSON
-- KEYS[2]  {leader}:epoch     string  highest epoch given out by this Redis
-- KEYS[3]  {leader}:never     –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  epoch              the writing leader's
-- ARGV[2]  table              JSON
-- ARGV[3]  ttl_ms             how long the table is kept
-- Uses     include/epoch.lua
--
-- Returns  1 written, 0 refused: a higher epoch was given out
-- Keeps    the table of a later leader is never overwritten by an earlier one's
-- Late     harmless: an older table of the same leader stands there until its next one; nobody decides by it
-- Repeat   harmless
if highest(KEYS[2]) > tonumber(ARGV[1]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
