-- reap: queue a fenced session's in-flight tasks of one shard again, a chunk at a time.
--
-- Call it only after the session's tombstone is written. The next call reaps what the session claims late.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> token
-- KEYS[3]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[4]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[5]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[6]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- KEYS[7]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  session                    the fenced one
-- ARGV[4]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[5]  limit                      tasks, 1 to 256; bounds the time that Redis is held
-- ARGV[6]  jitter                     0 to 1, drawn by the caller (Redis's own random repeats itself in every script)
-- ARGV[7]  retention ms               of a dead task without a retention of its own
-- ARGV[8]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[9]  least ms                   the shortest time that a task stays, whatever its own retention
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>   same slot
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
--          counted: a task that kills its workers ends in dead
-- Repeat   harmless

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local GROWTHS_MAX = 30 -- highest power of a backoff's factor: a higher one may be infinite, and 0 times it is no number
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, ready_prefix, session, aging = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local limit, jitter = tonumber(ARGV[5]), tonumber(ARGV[6])
local node = node_of(session)

local all = redis.call('HGETALL', KEYS[2])
local ids, tokens = {}, {}
for i = 1, math.min(#all / 2, limit) do ids[i], tokens[i] = all[2 * i - 1], all[2 * i] end
local fields = fields_of(prefix, ids, {'', '.'})
local finished, queues, order, traced = {}, {}, {}, {}
local queued, scheduled, dead = 0, 0, {}
for i, id in ipairs(ids) do
  local stored, run = fields[2 * i - 1], token_of(tokens[i])
  local is_read, spec = pcall(spec_of, stored)
  if is_read and type(spec) == 'table' then
    local bucket, state = prefix .. bucket_of(id), state_of(id, fields[2 * i])
    local lost = run.lost + 1
    state.state, state.attempt, state.delivery, state.lost = 'queued', run.attempt, run.delivery, lost
    state.queued, state.wait, state.ran, state.node = run.queued, run.wait, nil, node
    if run.attempt >= spec[MAX_ATTEMPTS] then
      local message = 'its worker died while running it; attempt ' .. run.attempt .. ' of ' .. spec[MAX_ATTEMPTS]
        .. ', worker lost ' .. lost .. (lost == 1 and ' time' or ' times')
      remember(bucket, id, 'dead', now, run, session, 'WorkerLost', message)
      state.state, state.ran = 'dead', now - run.queued - run.wait
      state.payload = cjson.encode({type = 'WorkerLost', message = message, session = session})
      local own = spec[RETENTION_S]
      redis.call('ZADD', KEYS[5], now + (own and math.max(math.floor(own * 1000), ARGV[9]) or ARGV[7]), id)
      finished[#finished + 1] = id
      dead[#dead + 1] = spec[TYPE]
    elseif lost == 1 then -- one lost worker may be chance: only from the second on the task backs off
      local queue = spec[QUEUE]
      remember(bucket, id, 'lost', now, run, session, '', '')
      redis.call('ZADD', ready_prefix .. queue, run.queued - spec[LEVEL] * aging, id)
      if not queues[queue] then
        queues[queue] = true
        order[#order + 1] = queue
        redis.call('SADD', KEYS[6], queue)
      end
      queued = queued + 1
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
    if spec[TRACE] then
      local n = #traced
      traced[n + 1], traced[n + 2], traced[n + 3], traced[n + 4], traced[n + 5], traced[n + 6] =
        id, run.delivery, run.attempt, now - run.queued - run.wait, stored, state.state
    end
  end
end
out_of_flight(KEYS[2], KEYS[3], session, ids)
if #finished > 0 then redis.call('PUBLISH', ARGV[8], table.concat(finished, ' ')) end
return {#all / 2 - #ids, queued, scheduled, dead, heads_of(ready_prefix, order), traced}
