-- plan: keep the plan of a batch under an Idempotency-Key, unless one stands there; whoever comes first fixes all ids.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:batch:<key>          string  the plan: the first id, a mark per place, then what this script never reads
-- ARGV[1]  plan                       the caller's proposal
-- ARGV[2]  lifetime                   of the plan, ms
--
-- Returns  the plan that stood there before, '' if the proposal stands now
-- Keeps    a plan is written once; from then on only its marks change
-- Repeat   harmless: it answers with the plan that the first call wrote

local stands = redis.call('GET', KEYS[2])
if stands then return stands end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return ''
