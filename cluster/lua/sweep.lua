-- sweep: keep house in one shard: drop tasks past their retention, queue tasks that are due, report what is there.
--
-- It also keeps {sNN}:queues: a script that queues a task adds the queue's name in the same step, and this one takes out
-- names of queues in which nothing is queued. Names of queues that the caller serves stay out of it or in it, as they are.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[3]  {sNN}:done                 zset  succeeded ids by the time when they may be dropped, ms
-- KEYS[4]  {sNN}:dead                 zset  dead ids, by the same
-- KEYS[5]  {sNN}:cancelled            zset  cancelled ids, by the same
-- KEYS[6]  {sNN}:buckets              zset  names of the buckets, at score 0
-- KEYS[7]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[8]  {sNN}:queues               set   names of the queues in which something is queued
-- KEYS[9]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  ready prefix               {sNN}:ready:
-- ARGV[4]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[5]  limit                      tasks to promote, and to drop of each state, 1 to 256
-- ARGV[6]  age ms                     while memory is short: drop succeeded and cancelled tasks that ended so long ago
--                                     before their time; else -1
-- ARGV[7]  names                      queues to look at; where there are more, others at each call
-- ARGV[8…] queues                     that the caller serves: it looks at these in any case
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>   same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/bucket_write.lua
-- Uses     include/bucket_drop.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/heads.lua
--
-- Returns  {now ms, promoted, dropped, next due ms or 0, {session, …}, {queue, count, head score, …}, 1 if these are all
--          queues in which something is queued, else 0}; `dropped` is the most of one state. Call again at once if promoted
--          or dropped reached the limit
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled
-- Late     refused: memory may be short no longer. The rest of it goes by Redis's clock alone
-- Repeat   harmless

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local ODD_MAX = 4 -- retrying ids to check at each sweep
local age = tonumber(ARGV[6])

local function ended_before(key, at_ms)
  local ids, times, old = {}, {}, {}
  local first = redis.call('ZRANGE', key, 0, ARGV[5] - 1, 'WITHSCORES')
  for i = 1, #first / 2 do ids[i], times[i] = first[2 * i - 1], tonumber(first[2 * i]) end
  local texts = fields_of(ARGV[2], ids, {'.'})
  for i, id in ipairs(ids) do
    if times[i] <= now or not texts[i] or ended_ms(state_of(id, texts[i])) <= at_ms then old[#old + 1] = id end
  end
  return old
end

-- Drop first: promoting needs memory, dropping gives it back.
local dropped = 0
for k = 3, 5 do
  local old
  if age < 0 or k == 4 then -- dead tasks keep their time: somebody has to look at them
    old = redis.call('ZRANGEBYSCORE', KEYS[k], '-inf', now, 'LIMIT', 0, ARGV[5])
  else
    old = ended_before(KEYS[k], now - age)
  end
  if #old > 0 then
    drop(ARGV[2], KEYS[6], old)
    redis.call('ZREM', KEYS[k], unpack(old))
    dropped = math.max(dropped, #old)
  end
end

local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[5])
local fields = fields_of(ARGV[2], due, {'', '.'})
local put, flush = writer(ARGV[2])
local ready, names = {}, {}
for i, id in ipairs(due) do
  local is_read, spec = pcall(spec_of, fields[2 * i - 1])
  if is_read and type(spec) == 'table' then
    local state = state_of(id, fields[2 * i])
    state.wait = state.wait and state.queued + state.wait - now -- the last start stays what it was
    state.state, state.queued, state.ran = 'queued', now, nil
    put(id, '.', state_text(state))
    local queue = spec[QUEUE]
    if not ready[queue] then ready[queue], names[#names + 1] = {}, queue end
    local list = ready[queue]
    list[#list + 1], list[#list + 2] = string.format('%.0f', now - spec[LEVEL] * ARGV[4]), id
  end
end
flush()
for _, queue in ipairs(names) do
  redis.call('ZADD', ARGV[3] .. queue, unpack(ready[queue]))
  redis.call('SADD', KEYS[8], queue)
end
if #due > 0 then
  redis.call('ZREM', KEYS[2], unpack(due))
  redis.call('SREM', KEYS[9], unpack(due))
end
local retrying = redis.call('SRANDMEMBER', KEYS[9], ODD_MAX)
for _, id in ipairs(retrying) do -- an older version's scripts do not know this set
  if not redis.call('ZSCORE', KEYS[2], id) then redis.call('SREM', KEYS[9], id) end
end

local queues, is_known, is_served = redis.call('SRANDMEMBER', KEYS[8], ARGV[7]), {}, {}
local is_all = redis.call('SCARD', KEYS[8]) == #queues
for _, queue in ipairs(queues) do is_known[queue] = true end
for i = 8, #ARGV do
  is_served[ARGV[i]] = true
  if not is_known[ARGV[i]] then queues[#queues + 1] = ARGV[i] end
end
local heads, empty = heads_of(ARGV[3], queues), {}
for i = 1, #heads, 3 do
  local queue, count = heads[i], heads[i + 1]
  if count == 0 and not is_served[queue] then
    empty[#empty + 1] = queue
  elseif count > 0 and not is_known[queue] then -- an older version's script queued it
    redis.call('SADD', KEYS[8], queue)
  end
end
if #empty > 0 then redis.call('SREM', KEYS[8], unpack(empty)) end

local next_due = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
return {now, #due, dropped, tonumber(next_due or 0), redis.call('SMEMBERS', KEYS[7]), heads, is_all and 1 or 0}
