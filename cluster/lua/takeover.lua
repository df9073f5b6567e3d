-- takeover: replace a leader whose session both witnesses hold dead, without waiting for its lease.
--
-- KEYS[1]  {leader}:lease  string  <session>|<epoch> of the leader
-- KEYS[2]  {leader}:epoch  string  highest epoch given out by this Redis
-- KEYS[3]  {leader}:never  –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  session         the caller's
-- ARGV[2]  dead            the fenced session
-- ARGV[3]  ttl_ms          length of the lease
-- ARGV[4]  heard           highest epoch that gossip carries
-- Uses     include/epoch.lua
--
-- Returns  {1, session, epoch} the caller leads; {0, session, epoch} somebody else does; {0, '', 0} nobody does now
-- Keeps    only the dead session loses its lease: of many callers, one succeeds
-- Late     harmless: it replaces a session that was fenced, and that stays fenced; else as lease
-- Repeat   harmless: the second call finds the new holder
redis.call('DEL', KEYS[3]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local owner, term = holder_of(KEYS[1])
if owner ~= ARGV[2] then
  return {0, owner, term}
end
local known = math.max(highest(KEYS[2]), tonumber(ARGV[4]), term)
local epoch = string.format('%d', known + 1)
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. epoch, 'PX', ARGV[3])
return {1, ARGV[1], tonumber(epoch)}
