-- plan: keep the plan of a batch under an Idempotency-Key, unless one stands there; whoever comes first fixes all ids.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:batch:<key>          string  the plan: the first id, a mark per place, what this script never reads
-- KEYS[3]  {sNN}:idem:<key>           string  what the key stands for, for submissions of other kinds (see reserve.lua)
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  plan                       the caller's proposal
-- ARGV[3]  lifetime                   of the plan, ms
-- ARGV[4]  note                       <first id> <word that stands for a batch>
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
--
-- Returns  the plan that stood there before, '' if the proposal stands now, {note} if the key stands for something else
-- Keeps    a plan is written once; from then on only its marks change
-- Late     refused: it would stand for a key whose lifetime is over
-- Repeat   harmless: it answers with the plan that the first call wrote

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
local stands = redis.call('GET', KEYS[2])
if stands then return stands end
local other = redis.call('GET', KEYS[3])
if other and string.match(other, ' (.*)$') ~= string.match(ARGV[4], ' (.*)$') then return {other} end
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return ''
