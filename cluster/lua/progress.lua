-- progress: keep the progress that a running task reports, while it may still settle.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> token
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  id                         of the task
-- ARGV[4]  delivery                   the one that reports
-- ARGV[5]  value                      JSON
-- Touches  {sNN}:tasks:<bucket>       same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/token.lua
--
-- Returns  1 kept, 0 that delivery is not in flight any more
-- Keeps    writes nothing for a task that is gone or that the session lost
-- Late     refused: it would overwrite what the same delivery reported since
-- Repeat   harmless

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
local token = redis.call('HGET', KEYS[2], ARGV[3])
if not token or token_of(token).delivery ~= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', ARGV[2] .. bucket_of(ARGV[3]), ARGV[3] .. '.progress', ARGV[5])
return 1
