-- vote: say one word on whether a silent session is gone, and end it if nobody who might know better objects.
--
-- KEYS[1]   {<session>}:heartbeat  string  the session's heartbeat, or its tombstone
-- KEYS[2]   {<session>}:words      hash    voter -> '<word> <said_ms> <alibi_ms> <heartbeat>', PX: the words on it
-- KEYS[3]   {<session>}:wake       –       the session's channel (a name, not a key): same slot
-- KEYS[4]   {<session>}:never      –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]   voter                  a session: whose word this is
-- ARGV[2]   word                   'veto', 'abstains', 'dead', 'refused', or 'both' (dead and refused); see words.py
-- ARGV[3]   said_ms                when the voter's look ended, by Redis's clock: a word is as old as its look
-- ARGV[4]   seen                   '=' and the heartbeat that the word is about, or '*': the one that stands there now
-- ARGV[5]   alibi_for_ms           how long the voter's testimony that the session lives outlasts the voter; 0: none
-- ARGV[6]   ways                   letters of the ways to a fence that the voter itself may go; '' to count words only:
--                                  f(ast) its own subscription stands; s(low) it watched the heartbeat stand still for
--                                  heartbeat_stale_s; u(nseen) it did so for stalled_s
-- ARGV[7]   stands_ms              how long a word counts
-- ARGV[8]   fresh_ms               how long a word counts as one of this moment, for the fast way
-- ARGV[9]   words_ttl_ms           how long the hash stays without another call
-- ARGV[10]  cause                  one word, kept in the tombstone
-- ARGV[11]  ttl_ms                 how long the tombstone is kept
-- ARGV[12]  by                     node_id of the voter, kept in the tombstone
-- ARGV[13…] jury                   the other sessions that have to be heard, as the voter knows them
-- Uses      include/clock.lua
-- Uses      include/bury.lua
--
-- Returns   {1, tombstone} written now; {2, tombstone} it stood there before; else
--           {0, heartbeat or '', subscribers, words in the hash before this call, jurors without a word (at most
--           MISSING_MAX), voters whose alibi stands}
-- Keeps     a tombstone is never overwritten; none is written while a juror's word is missing, too old, or about another
--           heartbeat, or while the alibi of a session outside the jury stands
-- Late     harmless: it finds its own word too old, and changes nothing
-- Repeat    harmless
redis.call('DEL', KEYS[4]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local MISSING_MAX = 100
local value = redis.call('GET', KEYS[1])
if is_buried(value) then
  return {2, value}
end
local heartbeat, at, stands_ms = value or '', now_ms(), tonumber(ARGV[7])
local voter, word, said = ARGV[1], ARGV[2], math.min(tonumber(ARGV[3]), at)
local subscribers = tonumber(redis.call('PUBSUB', 'NUMSUB', KEYS[3])[2])
local words = redis.call('HLEN', KEYS[2])
local undecided = {0, heartbeat, subscribers, words, {}, {}}
if said < at - stands_ms then
  return undecided
end
if word ~= 'abstains' and ARGV[4] ~= '*' and ARGV[4] ~= '=' .. heartbeat then
  word = 'veto' -- it beat since
end
local alibi = tonumber(ARGV[5])
if alibi > 0 then alibi = at + alibi end
if word == 'veto' and alibi == 0 then
  redis.call('HDEL', KEYS[2], voter)
else
  redis.call('HSET', KEYS[2], voter, string.format('%s %d %d %s', word, said, alibi, heartbeat))
  redis.call('PEXPIRE', KEYS[2], ARGV[9])
end
if ARGV[6] == '' then
  return undecided
end

local stands, alibis = {}, {}
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local its, its_ms, good_till, about = string.match(all[i + 1], '^(%a+) (%d+) (%d+) (.*)$')
  if its ~= 'veto' and tonumber(its_ms) >= at - stands_ms and (its == 'abstains' or about == heartbeat) then
    stands[all[i]] = {its, tonumber(its_ms)}
  end
  if tonumber(good_till) > at then
    alibis[all[i]] = true
  end
end
local is_dead, is_refused, is_bare, oldest = false, false, false, at
local missing = undecided[5]
local function hear(juror)
  local said_by = stands[juror]
  alibis[juror] = nil -- a juror's word is newer than its alibi
  if not said_by then
    if #missing < MISSING_MAX then missing[#missing + 1] = juror end
    return
  end
  is_dead = is_dead or said_by[1] == 'dead' or said_by[1] == 'both'
  is_refused = is_refused or said_by[1] == 'refused' or said_by[1] == 'both'
  is_bare = is_bare or said_by[1] == 'refused'
  oldest = math.min(oldest, said_by[2])
end
hear(voter)
for i = 13, #ARGV do hear(ARGV[i]) end
for holder in pairs(alibis) do undecided[6][#undecided[6] + 1] = holder end
if #missing > 0 or #undecided[6] > 0 then
  return undecided
end
local may = function(way) return string.find(ARGV[6], way, 1, true) end
local fast = may('f') and is_refused and subscribers == 0 and oldest >= at - tonumber(ARGV[8])
local slow = may('s') and is_dead and not is_bare
local unseen = may('u') and not is_bare
if not (fast or slow or unseen) then
  return undecided
end
redis.call('DEL', KEYS[2])
return {1, bury(KEYS[1], at, ARGV[10], ARGV[12], ARGV[11])}
