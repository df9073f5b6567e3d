-- mark: note in the plan of a keyed batch which of its tasks are stored, so that no repeat stores them again.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:batch:<key>          string  the plan, which begins with its first id
-- ARGV[1]  first id                   names the plan that is meant: another may stand there by now
-- ARGV[2…] per run of places, 2 each: offset in the plan, the marks
--
-- Returns  1 marked, 0 that plan is gone: its lifetime is over
-- Keeps    a mark is only ever set; the plan keeps its length and its lifetime
-- Late     harmless: what was stored stays stored, and it names the plan that it means
-- Repeat   harmless

if redis.call('GETRANGE', KEYS[2], 0, #ARGV[1] - 1) ~= ARGV[1] then return 0 end
for at = 2, #ARGV, 2 do redis.call('SETRANGE', KEYS[2], ARGV[at], ARGV[at + 1]) end
return 1
