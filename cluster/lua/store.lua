-- store: keep a batch of new tasks in one shard, and claim some of them for the caller in the same step.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:index                zset  every id of the shard
-- KEYS[3]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[5]  {sNN}:inflight:<session>   hash  id -> delivery: the right to settle
-- KEYS[6]  {sNN}:queues               set   names of the queues this shard ever held
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  idempotency prefix         {sNN}:idem:
-- ARGV[4]  session                    the claimant of the tasks whose claim is 1
-- ARGV[5]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[6]  queue limit                tasks that may be ready in one queue of one shard
-- ARGV[7…] per task, 10 each: id, queue, level, due (0 now, < 0 in that many ms, > 0 at that ms), spec, data,
--          claim (1 or 0), idempotency key or "", lifetime of the key in ms, fingerprint of the submission.
--          If a submission has a unique name too, the lifetime is "<ms of the key> <ms of the name> <unique name>"; a
--          unique name alone stands as the key
-- Touches  {sNN}:task:<id>, {sNN}:ready:<queue>, {sNN}:idem:<key>   same slot
-- Uses     include/heads.lua
-- Uses     include/flight.lua
--
-- Returns  {now ms, {code per task}, {queue, count, head score, …}}; codes: "q" queued, "s" scheduled, "c" claimed,
--          "x" this id was stored before, "i<id>" repeat of that task (same key or same unique name),
--          "m<id>" the key stands for that task, which has another body, "f" queue full
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; a mapping and
--          its task are written together
-- Repeat   harmless: an id whose task is there is not stored again

local STRIDE = 10
local n = (#ARGV - 6) / STRIDE
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, ready_prefix, idem_prefix, session = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local aging, limit = tonumber(ARGV[5]), tonumber(ARGV[6])

local ids, ready, order, room = {}, {}, {}, {}
local plain = true -- whether no task has a key and there is room for all: then no task can be refused
local members = {}
for i = 1, n do
  local at = 6 + (i - 1) * STRIDE
  local queue = ARGV[at + 2]
  ids[i] = ARGV[at + 1]
  members[2 * i - 1], members[2 * i] = 0, ids[i]
  if ARGV[at + 8] ~= '' then plain = false end
  if not ready[queue] then
    ready[queue] = {}
    order[#order + 1] = queue
    room[queue] = limit - redis.call('ZCARD', ready_prefix .. queue)
    if room[queue] < n then plain = false end
  end
end
-- If no task can be refused, adding all ids to the index at once also tells whether one of them was there before.
local known = {}
if not plain or redis.call('ZADD', KEYS[2], 'NX', unpack(members)) < n then
  for i = 1, n do known[ids[i]] = redis.call('EXISTS', prefix .. ids[i]) == 1 end
end

local codes, index, due_args, flight = {}, {}, {}, {}
for i = 1, n do
  local at = 6 + (i - 1) * STRIDE
  local id, queue, level, due = ids[i], ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local idem, keep, unique, unique_keep, code = ARGV[at + 8], ARGV[at + 9], nil, nil, nil
  if known[id] then
    code = 'x'
  elseif idem ~= '' then
    local mapped = redis.call('GET', idem_prefix .. idem)
    if mapped then
      local first, print = string.match(mapped, '^(%S+) (.*)$')
      code = (print == ARGV[at + 10] and 'i' or 'm') .. first
    else
      keep, unique_keep, unique = string.match(keep, '^(%d+) (%d+) (.*)$')
      keep = keep or ARGV[at + 9]
      mapped = unique and redis.call('GET', idem_prefix .. unique)
      if mapped then
        local first = string.match(mapped, '^%S+')
        redis.call('SET', idem_prefix .. idem, first .. ' ' .. ARGV[at + 10], 'PX', keep)
        code = 'i' .. first
      end
    end
  end
  if not code and due >= 0 and due <= now and ARGV[at + 7] ~= '1' and room[queue] <= 0 then code = 'f' end
  if not code then
    if due < 0 then due = now - due end
    if idem ~= '' then
      redis.call('SET', idem_prefix .. idem, id .. ' ' .. ARGV[at + 10], 'PX', keep)
      if unique then redis.call('SET', idem_prefix .. unique, id .. ' ', 'PX', unique_keep) end
    end
    if due > now then
      redis.call('HSET', prefix .. id, 'spec', ARGV[at + 5], 'data', ARGV[at + 6], 'state', 'scheduled', 'due', due)
      due_args[#due_args + 1] = due
      due_args[#due_args + 1] = id
      code = 's'
    elseif ARGV[at + 7] == '1' then
      redis.call('HSET', prefix .. id, 'spec', ARGV[at + 5], 'data', ARGV[at + 6], 'state', 'running', 'attempt', 1,
        'delivery', 1, 'queued_at', now, 'started_at', now, 'session', session)
      flight[#flight + 1] = id
      flight[#flight + 1] = 1
      code = 'c'
    else
      redis.call('HSET', prefix .. id, 'spec', ARGV[at + 5], 'data', ARGV[at + 6], 'state', 'queued', 'queued_at', now)
      local list = ready[queue]
      list[#list + 1] = now - level * aging
      list[#list + 1] = id
      room[queue] = room[queue] - 1
      code = 'q'
    end
    known[id] = true
    if not plain then
      index[#index + 1] = 0
      index[#index + 1] = id
    end
  end
  codes[i] = code
end

if #index > 0 then redis.call('ZADD', KEYS[2], unpack(index)) end
if #due_args > 0 then redis.call('ZADD', KEYS[3], unpack(due_args)) end
into_flight(KEYS[5], KEYS[4], session, flight)
if #order > 0 then redis.call('SADD', KEYS[6], unpack(order)) end
for _, queue in ipairs(order) do
  if #ready[queue] > 0 then redis.call('ZADD', ready_prefix .. queue, unpack(ready[queue])) end
end
return {now, codes, heads_of(ready_prefix, order)}
