-- progress: keep the progress that a running task reports, while it may still settle.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> delivery
-- KEYS[3]  {sNN}:task:<id>            hash  the task
-- ARGV[1]  id                         of the task
-- ARGV[2]  delivery                   the one that reports
-- ARGV[3]  value                      JSON
--
-- Returns  1 kept, 0 that delivery is not in flight any more
-- Keeps    writes nothing for a task that is gone or that the session lost
-- Repeat   harmless

if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[3], 'progress', ARGV[3])
return 1
