-- reserve: note what an Idempotency-Key stands for, unless it stands for something; whoever comes first decides.
--
-- Needed where the task's shard is not the key's own. store.lua maps the key beside the task, in one step with it; this
-- note, in the key's own shard, lets every other submission under the key be found, wherever its task would go.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:idem:<key>           string  <task id> <fingerprint of the submission>
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  note                       <task id> <fingerprint>
-- ARGV[3]  lifetime                   of the note, ms
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
--
-- Returns  what stood there before, '' if the note stands now
-- Keeps    a note is written once
-- Late     refused: it would stand for a key whose lifetime is over
-- Repeat   harmless: it answers with the note that the first call wrote

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
local stands = redis.call('GET', KEYS[2])
if stands then return stands end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return ''
