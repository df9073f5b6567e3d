-- progress: keep what a running task says of its progress, while it may still settle.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> delivery
-- KEYS[3]  {sNN}:task:<id>            hash  the task
-- ARGV[1]  id                         of the task
-- ARGV[2]  delivery                   whose progress this is
-- ARGV[3]  value                      JSON
--
-- Returns  1 when kept, 0 when that delivery is not in flight any more
-- Keeps    writes nothing for a task that is gone or was taken away
-- Repeat   harmless

if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[3], 'progress', ARGV[3])
return 1
