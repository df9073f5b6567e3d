-- settle: commit the outcomes of a batch of deliveries of one session in one shard.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> token: an outcome counts only while its id and delivery stand here
-- KEYS[3]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[4]  {sNN}:done                 zset  succeeded ids by the time when they may be dropped, ms
-- KEYS[5]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[6]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[7]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- KEYS[8]  {sNN}:retrying             set   ids of {sNN}:scheduled that wait for a retry; counted, never read by id
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  inflight prefix            {sNN}:inflight:
-- ARGV[4]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[5]  session                    the one that claimed the deliveries
-- ARGV[6]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[7…] runs of outcomes that are alike: kind, delivery, ms, count, then id and payload of each. Kinds:
--          "s" succeeded (payload result, "" for null; ms retention), "d" dead (payload error, ms retention),
--          "r" retrying (payload error, ms until due), "g" handed back, the attempt not counted (payload "", ms until
--          due, 0 at once), "p" parked: handed back in the same way, to wait for a handler of its type
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>, {sNN}:inflight:<session>   same slot
-- Uses     include/bucket.lua
-- Uses     include/bucket_write.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
-- Uses     include/history.lua
-- Uses     include/flight.lua
--
-- Returns  {code per outcome, …}, or the number of outcomes if all were committed. Codes: "1" committed, "y" this very
--          delivery was committed before, else the reason of the refusal: "gone" (no such task) or the task's state
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; one commit
--          for each delivery, and only by the session that holds it
-- Late     harmless: it names (id, delivery), which no other run has; a repeat has committed it, or it commits now
-- Repeat   harmless: the code then is "y"

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local HEAD = 4 -- words before a run's outcomes
local REPORTED = {s = 'a success', d = 'its last failure', r = 'a failure', g = 'that it was given back', p = 'that it was given back'}
local STATES = {s = 'succeeded', d = 'dead', r = 'retrying'}
local OUTCOMES = {d = 'dead', r = 'retrying', g = 'released', p = 'released'}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, ready_prefix, session, aging = ARGV[1], ARGV[2], ARGV[5], tonumber(ARGV[6])
local node = node_of(session)

local put, flush = writer(prefix)
local refused, gone, finished, done, dead, due, queued = {}, {}, {}, {}, {}, {}, {}
local taken = {} -- id -> delivery, committed by this call: one that stands twice in a batch commits once
local became = {} -- id -> state, of those that did not succeed
local n, ended, is_refused = 0, 0, false

local function refuse(id, delivery, kind)
  local bucket = prefix .. bucket_of(id)
  local was = redis.call('HMGET', bucket, id, id .. '.')
  if not was[1] then return 'gone' end
  local state = state_of(id, was[2])
  local name, settled = state.state, state.settled
  if taken[id] then
    name, settled = became[id] or 'succeeded', tonumber(taken[id])
  elseif not TERMINAL[name] and holder(KEYS[3], ARGV[3], id) then
    name = 'running'
  end
  if settled == tonumber(delivery) then return 'y' end
  remember(bucket, id, 'refused', now, {delivery = tonumber(delivery), attempt = 0}, session, '',
    'reported ' .. REPORTED[kind] .. ' when the task was ' .. name)
  return name
end

-- Commit an outcome that is no plain success: those are rare.
local function commit(id, kind, run, ms, payload)
  local bucket = prefix .. bucket_of(id)
  local was = redis.call('HMGET', bucket, id, id .. '.')
  local state = state_of(id, was[2])
  local error_type, message = '', ''
  if kind == 'd' or kind == 'r' then error_type, message = reason(payload) end
  remember(bucket, id, OUTCOMES[kind], now, run, session, error_type, message)
  local at = string.format('%.0f', now + ms)
  state.state, state.node = STATES[kind], node
  state.attempt, state.delivery, state.lost, state.queued, state.wait =
    run.attempt, run.delivery, run.lost, run.queued, run.wait
  state.ran, state.settled = nil, run.delivery
  if kind == 'g' or kind == 'p' then
    state.attempt = state.attempt - 1
    state.state = kind == 'g' and ms > 0 and 'retrying' or 'queued'
  elseif #payload > APART_BYTES then
    put(id, '.end', payload)
    state.payload = '+'
  else
    state.payload = payload
  end
  if kind == 'd' then
    state.ran = now - run.queued - run.wait
    dead[#dead + 1], dead[#dead + 2] = at, id
    ended = ended + 1
    finished[ended] = id
  elseif state.state == 'retrying' then
    due[#due + 1], due[#due + 2] = at, id
    redis.call('SADD', KEYS[8], id)
  elseif kind == 'p' then
    queued[#queued + 1] = {parked_queue(spec_of(was[1])), string.format('%.0f', now), id}
  else
    local spec = spec_of(was[1])
    queued[#queued + 1] = {spec[QUEUE], string.format('%.0f', state.queued - spec[LEVEL] * aging), id}
  end
  became[id] = state.state
  put(id, '.', state_text(state))
end

local at, succeeded = 7, 0
while at <= #ARGV do
  local kind, delivery, ms, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  at = at + HEAD
  local ids = {}
  for i = 1, count do ids[i] = ARGV[at + 2 * (i - 1)] end
  local held = redis.call('HMGET', KEYS[2], unpack(ids))
  local till = string.format('%.0f', now + ms)
  local last, is_held, head, alike -- tasks that were claimed together have one token
  for i = 1, count do
    local id, token, payload = ids[i], held[i], ARGV[at + 2 * i - 1]
    if token and token ~= last then
      local held_delivery, queued, wait = string.match(token, '^%S+ (%S+) %S+ (%S+) (%S+)$')
      last, is_held = token, held_delivery == delivery
      head = 'succeeded ' .. token .. ' ' .. string.format('%.0f', now - queued - wait) .. ' ' .. delivery .. ' ' .. node
      alike = head .. ' '
    end
    n = n + 1
    if not token or not is_held or taken[id] then
      refused[n] = refuse(id, delivery, kind)
      is_refused = true
    else
      if kind == 's' then
        if payload == '' then
          payload = head
        elseif #payload > APART_BYTES then
          put(id, '.end', payload)
          payload = alike .. '+'
        else
          payload = alike .. payload
        end
        put(id, '.', payload)
        ended = ended + 1
        finished[ended] = id
        succeeded = succeeded + 2
        done[succeeded - 1], done[succeeded] = till, id
      else
        commit(id, kind, token_of(token), ms, payload)
      end
      gone[n] = id
      taken[id] = delivery
    end
  end
  at = at + 2 * count
end

flush()
if #done > 0 then redis.call('ZADD', KEYS[4], unpack(done)) end
if #dead > 0 then redis.call('ZADD', KEYS[5], unpack(dead)) end
if #due > 0 then redis.call('ZADD', KEYS[6], unpack(due)) end
for _, row in ipairs(queued) do
  redis.call('SADD', KEYS[7], row[1])
  redis.call('ZADD', ready_prefix .. row[1], row[2], row[3])
end
if is_refused then -- close the gaps that the refused ones left
  local committed, codes = {}, {}
  for i = 1, n do
    codes[i] = refused[i] or '1'
    if gone[i] then committed[#committed + 1] = gone[i] end
  end
  gone, n = committed, codes
end
if #gone > 0 then out_of_flight(KEYS[2], KEYS[3], session, gone) end
if ended > 0 then redis.call('PUBLISH', ARGV[4], table.concat(finished, ' ')) end
return n
