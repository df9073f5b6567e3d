-- replay: queue dead or cancelled tasks of one shard again, their attempts reset, their delivery not.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[3]  {sNN}:cancelled            zset  cancelled ids by the time when they may be dropped, ms
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[5]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  ready prefix               {sNN}:ready:
-- ARGV[4]  inflight prefix            {sNN}:inflight:
-- ARGV[5]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[6…] ids                        at most 256
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>, {sNN}:inflight:<session>   same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/history.lua
-- Uses     include/heads.lua
--
-- Returns  {{code per id: "1" queued, "" no such task, else its state}, {queue, count, head score, …}}
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     refused: it would revive a task that was cancelled, or replay one that died, after the caller gave up
-- Repeat   harmless: a task that is queued again is left alone

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
local codes, queues, order = {}, {}, {}
for i = 6, #ARGV do
  local id = ARGV[i]
  local bucket = ARGV[2] .. bucket_of(id)
  local fields = redis.call('HMGET', bucket, id, id .. '.')
  local state = state_of(id, fields[2])
  local was = state.state
  if not fields[1] then
    codes[#codes + 1] = ''
  elseif was == 'dead' or was == 'cancelled' then
    local spec = spec_of(fields[1])
    remember(bucket, id, 'replayed', now, state, state.node ~= '-' and state.node or '', '', 'it was ' .. was)
    state.state, state.attempt, state.lost, state.queued = 'queued', 0, 0, now
    state.wait, state.ran, state.node, state.payload = nil, nil, '-', ''
    redis.call('HSET', bucket, id .. '.', state_text(state))
    redis.call('HDEL', bucket, id .. '.end', id .. '.progress')
    local queue = spec[QUEUE]
    redis.call('ZADD', ARGV[3] .. queue, now - spec[LEVEL] * ARGV[5], id)
    if not queues[queue] then
      queues[queue] = true
      order[#order + 1] = queue
      redis.call('SADD', KEYS[5], queue)
    end
    redis.call('ZREM', was == 'dead' and KEYS[2] or KEYS[3], id)
    codes[#codes + 1] = '1'
  else
    codes[#codes + 1] = not TERMINAL[was] and holder(KEYS[4], ARGV[4], id) and 'running' or was
  end
end
return {codes, heads_of(ARGV[3], order)}
