-- progress: keep the progress that a running task reports, while it may still settle.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> token
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  id                         of the task
-- ARGV[3]  delivery                   the one that reports
-- ARGV[4]  value                      JSON
-- Touches  {sNN}:tasks:<bucket>       same slot
-- Uses     include/bucket.lua
-- Uses     include/token.lua
--
-- Returns  1 kept, 0 that delivery is not in flight any more
-- Keeps    writes nothing for a task that is gone or that the session lost
-- Repeat   harmless

local token = redis.call('HGET', KEYS[2], ARGV[2])
if not token or token_of(token).delivery ~= tonumber(ARGV[3]) then return 0 end
redis.call('HSET', ARGV[1] .. bucket_of(ARGV[2]), ARGV[2] .. '.progress', ARGV[4])
return 1
