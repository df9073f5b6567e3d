-- replay: queue dead or cancelled tasks of one shard again, their attempts reset, their delivery not.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[3]  {sNN}:cancelled            zset  cancelled ids by the time when they may be dropped, ms
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[4…] ids                        at most 256
-- Touches  {sNN}:task:<id>, {sNN}:ready:<queue>   same slot
-- Uses     include/history.lua
-- Uses     include/heads.lua
-- Uses     include/spec.lua
--
-- Returns  {{code per id: "1" queued, "" no such task, else its state}, {queue, count, head score, …}}
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Repeat   harmless: a task that is queued again is left alone

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local codes, queues, order = {}, {}, {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local key = ARGV[1] .. id
  local was = redis.call('HMGET', key, 'state', 'spec')
  if was[1] == 'dead' or was[1] == 'cancelled' then
    local spec = spec_of(was[2])
    remember(key, 'replayed', now, '', 'it was ' .. was[1])
    redis.call('HSET', key, 'state', 'queued', 'attempt', 0, 'queued_at', now)
    redis.call('HDEL', key, 'lost', 'finished_at', 'started_at', 'session', 'error', 'result', 'progress')
    local queue = spec[QUEUE]
    redis.call('ZADD', ARGV[2] .. queue, now - spec[LEVEL] * ARGV[3], id)
    if not queues[queue] then
      queues[queue] = true
      order[#order + 1] = queue
    end
    redis.call('ZREM', was[1] == 'dead' and KEYS[2] or KEYS[3], id)
    codes[#codes + 1] = '1'
  else
    codes[#codes + 1] = was[1] or ''
  end
end
return {codes, heads_of(ARGV[2], order)}
