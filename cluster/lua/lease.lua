-- lease: take the leader's lease if nobody holds it, or renew the term that the caller names.
--
-- KEYS[1]  {leader}:lease  string  <session>|<epoch> of the leader
-- KEYS[2]  {leader}:epoch  string  highest epoch given out by this Redis
-- KEYS[3]  {leader}:never  –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  session         the caller's
-- ARGV[2]  epoch           the epoch of the term to renew, 0 to acquire a new term
-- ARGV[3]  ttl_ms          length of the lease
-- ARGV[4]  heard           epoch that a new term must exceed: after a failover Redis may know only a lower one. It has
--                          no part in a renewal: what Redis knows decides who leads
-- Uses     include/epoch.lua
--
-- Returns  {1, session, epoch} the caller leads; {0, session, epoch} another does; {0, '', epoch} the named term ended
-- Keeps    an epoch is given out once, and is higher than every epoch that Redis or the caller knew before
-- Late     harmless: it gives a session that gave up, or has ended, one lease, which runs out or is taken over; a term
--          that the same session got meanwhile ends, and it asks again
-- Repeat   harmless: if the reply to an acquisition is lost, nobody renews that term; it runs out, or the same session
--          asks again and gets a new epoch
redis.call('DEL', KEYS[3]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local owner, term = holder_of(KEYS[1])
local known = highest(KEYS[2])
if ARGV[2] ~= '0' then
  if owner ~= ARGV[1] or term ~= tonumber(ARGV[2]) or known > term then
    return {0, owner ~= ARGV[1] and owner or '', term}
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {1, owner, term}
end
if owner ~= '' and owner ~= ARGV[1] then
  return {0, owner, term}
end
local epoch = string.format('%d', math.max(known, term, tonumber(ARGV[4])) + 1)
redis.call('SET', KEYS[2], epoch)
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. epoch, 'PX', ARGV[3])
return {1, ARGV[1], tonumber(epoch)}
