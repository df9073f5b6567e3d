-- reap: queue a fenced session's in-flight tasks of one shard again, a chunk at a time.
--
-- Call it only after the session's tombstone is written. The next call reaps what the session claims after that.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> token
-- KEYS[3]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[4]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[5]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[6]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- KEYS[7]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  ready prefix               {sNN}:ready:
-- ARGV[4]  session                    the fenced one
-- ARGV[5]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[6]  limit                      tasks, 1 to 256; bounds the time that Redis is held
-- ARGV[7]  jitter                     0 to 1, drawn by the caller (Redis's own random repeats itself in every script)
-- ARGV[8]  retention ms               of a dead task without a retention of its own
-- ARGV[9]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[10] least ms                   the shortest time that a task stays, whatever its own retention
-- ARGV[11] fenced ms                  when the tombstone was written, by Redis's clock
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>   same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/history.lua
-- Uses     include/heads.lua
-- Uses     include/flight.lua
--
-- Returns  {left in flight, queued, scheduled, {type of each dead task, …}, {queue, count, head score, …},
--          {id, delivery, attempt, ms since its claim, stored, outcome, … of tasks with a trace context}}
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; attempts stay
--          counted: a task that kills its workers ends in dead. What was claimed after the tombstone was written never
--          started, and gets that attempt back; its delivery stays counted
-- Late     refused: a failover may have taken the tombstone back, and the session may live
-- Repeat   harmless

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local GROWTHS_MAX = 30 -- highest power of a backoff's factor: a higher one may be infinite, and 0 times it is no number
local prefix, ready_prefix, session, aging = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local limit, jitter, fenced = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[11])
local node = node_of(session)

local all = redis.call('HGETALL', KEYS[2])
local ids, tokens = {}, {}
for i = 1, math.min(#all / 2, limit) do ids[i], tokens[i] = all[2 * i - 1], all[2 * i] end
local fields = fields_of(prefix, ids, {'', '.'})
local finished, queues, order, traced = {}, {}, {}, {}
local queued, scheduled, dead = 0, 0, {}

local function queue_again(id, spec, run)
  local queue = spec[QUEUE]
  redis.call('ZADD', ready_prefix .. queue, run.queued - spec[LEVEL] * aging, id)
  if not queues[queue] then
    queues[queue] = true
    order[#order + 1] = queue
    redis.call('SADD', KEYS[6], queue)
  end
  queued = queued + 1
end

for i, id in ipairs(ids) do
  local stored, run = fields[2 * i - 1], token_of(tokens[i])
  local is_read, spec = pcall(spec_of, stored)
  if is_read and type(spec) == 'table' then
    local bucket, state = prefix .. bucket_of(id), state_of(id, fields[2 * i])
    local is_late = (run.queued or 0) + (run.wait or 0) > fenced -- that sum is the time of its claim
    local lost = run.lost + (is_late and 0 or 1)
    state.state, state.attempt, state.delivery, state.lost = 'queued', run.attempt, run.delivery, lost
    state.queued, state.wait, state.ran, state.node = run.queued, run.wait, nil, node
    if is_late then
      remember(bucket, id, 'released', now, run, session, '', 'claimed after its session was fenced')
      state.attempt = run.attempt - 1
      queue_again(id, spec, run)
    elseif run.attempt >= spec[MAX_ATTEMPTS] then
      local message = 'its worker died while running it; attempt ' .. run.attempt .. ' of ' .. spec[MAX_ATTEMPTS]
        .. ', worker lost ' .. lost .. (lost == 1 and ' time' or ' times')
      remember(bucket, id, 'dead', now, run, session, 'WorkerLost', message)
      state.state, state.ran = 'dead', now - run.queued - run.wait
      state.payload = cjson.encode({type = 'WorkerLost', message = message, session = session})
      local own = spec[RETENTION_S]
      redis.call('ZADD', KEYS[5], now + (own and math.max(math.floor(own * 1000), ARGV[10]) or ARGV[8]), id)
      finished[#finished + 1] = id
      dead[#dead + 1] = spec[TYPE]
    elseif lost == 1 then -- one lost worker may be chance: only from the second on the task backs off
      remember(bucket, id, 'lost', now, run, session, '', '')
      queue_again(id, spec, run)
    else
      local backoff = spec[BACKOFF]
      jitter = (jitter + 0.618033988749895) % 1
      local ceiling = math.min(backoff[MAX_S], backoff[BASE_S] * backoff[FACTOR] ^ math.min(lost - 2, GROWTHS_MAX))
      remember(bucket, id, 'lost', now, run, session, '', '')
      state.state = 'retrying'
      redis.call('ZADD', KEYS[4], now + math.floor(1000 * jitter * ceiling), id)
      redis.call('SADD', KEYS[7], id)
      scheduled = scheduled + 1
    end
    redis.call('HSET', bucket, id .. '.', state_text(state))
    if spec[TRACE] and not is_late then
      local n = #traced
      traced[n + 1], traced[n + 2], traced[n + 3], traced[n + 4], traced[n + 5], traced[n + 6] =
        id, run.delivery, run.attempt, now - run.queued - run.wait, stored, state.state
    end
  end
end
out_of_flight(KEYS[2], KEYS[3], session, ids)
if #finished > 0 then redis.call('PUBLISH', ARGV[9], table.concat(finished, ' ')) end
return {#all / 2 - #ids, queued, scheduled, dead, heads_of(ready_prefix, order), traced}
