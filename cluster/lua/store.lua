-- store: keep a batch of new tasks in one shard, and claim some of them for the caller in the same step.
--
-- It claims no task before one that is more urgent, or as urgent and older: neither before what is queued here already nor
-- before what this call queues. Such a task is queued, although the caller has a slot for it.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:buckets              zset  names of the buckets, at score 0
-- KEYS[3]  {sNN}:scheduled            zset  ids by due time, ms
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[5]  {sNN}:inflight:<session>   hash  id -> token of each task that the session runs: the right to settle
-- KEYS[6]  {sNN}:queues               set   names of the queues in which something is queued (see sweep.lua)
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  ready prefix               {sNN}:ready:
-- ARGV[4]  idempotency prefix         {sNN}:idem:
-- ARGV[5]  session                    the claimant of the tasks that are claimed at once
-- ARGV[6]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[7]  queue limit                tasks that may be ready in one queue of one shard
-- ARGV[8…] runs of tasks that are stored alike: queue, level, due (0 now, < 0 in that many ms, > 0 at that ms), kind,
--          count, then the words of each task. The kind's letters say which words: always id, stored (see stored.lua);
--          "d" data too, as it has a field of its own; "k" idempotency key, lifetime of the key in ms, fingerprint of
--          the submission too; "c" claims the tasks if they are next, "q" does not.
--          If a submission has a unique name too, the lifetime is "<ms of the key> <ms of the name> <unique name>"; a
--          unique name alone stands as the key
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>, {sNN}:idem:<key>   same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/bucket_write.lua
-- Uses     include/heads.lua
-- Uses     include/flight.lua
--
-- Returns  {now ms, codes, {queue, count, head score, …}}; codes: one for each task, or one string if all have the same:
--          "q" queued, "s" scheduled, "c" claimed, "x" this id was stored before, "i<id>" repeat of that task (same key
--          or same unique name), "m<id>" the key stands for that task, which has another body, "f" queue full
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; a mapping and
--          its task are written together
-- Late     refused: it would store a task again that was stored by a repeat, ran and was dropped meanwhile
-- Repeat   harmless: an id whose task is there is not stored again

local HEAD = 5 -- words before a run's tasks
local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
local prefix, ready_prefix, idem_prefix, session = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local aging, limit = tonumber(ARGV[6]), tonumber(ARGV[7])

local runs, ids, ready, order, room = {}, {}, {}, {}, {}
local count_of, head_of, highest = {}, {}, {} -- by queue: tasks and best score there; highest level that this call queues
local at = 8
while at <= #ARGV do
  local queue, level, due = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local kind, count = ARGV[at + 3], tonumber(ARGV[at + 4])
  if due < 0 then due = now - due end
  local has_data, has_key = string.find(kind, 'd', 1, true), string.find(kind, 'k', 1, true)
  local words = 2 + (has_data and 1 or 0) + (has_key and 3 or 0)
  local first = at + HEAD
  local is_claimed = string.sub(kind, 1, 1) == 'c'
  runs[#runs + 1] = {queue = queue, level = level, due = due, first = first, words = words, has_data = has_data,
    has_key = has_key, is_claimed = is_claimed, last = first + (count - 1) * words}
  for i = first, first + (count - 1) * words, words do ids[#ids + 1] = ARGV[i] end
  if not ready[queue] then
    ready[queue] = {}
    order[#order + 1] = queue
    count_of[queue], highest[queue] = redis.call('ZCARD', ready_prefix .. queue), -1
    room[queue] = limit - count_of[queue]
  end
  if due <= now and not is_claimed then highest[queue] = math.max(highest[queue], level) end
  at = first + count * words
end

-- Ids of a bucket that is not there are new, and most buckets are not: new ids begin with the time.
local known, is_there = {}, {}
for i = 1, #ids do
  local of = bucket_of(ids[i])
  if is_there[of] == nil then is_there[of] = redis.call('EXISTS', prefix .. of) == 1 and {} or false end
  if is_there[of] then table.insert(is_there[of], ids[i]) end
end
for _, there in pairs(is_there) do
  if there then
    local was = fields_of(prefix, there, {''})
    for i = 1, #there do known[there[i]] = was[i] and true or nil end
  end
end

-- The code of a task whose names stand for another one already, else nil; and then it gets its mappings.
local function named(id, key, keep, print)
  local mapped = redis.call('GET', idem_prefix .. key)
  if mapped then
    local first, was = string.match(mapped, '^(%S+) (.*)$')
    return (was == print and 'i' or 'm') .. first
  end
  local key_ms, unique_ms, unique = string.match(keep, '^(%d+) (%d+) (.*)$')
  keep = key_ms or keep
  mapped = unique and redis.call('GET', idem_prefix .. unique)
  if mapped then
    local first = string.match(mapped, '^%S+')
    redis.call('SET', idem_prefix .. key, first .. ' ' .. print, 'PX', keep)
    return 'i' .. first
  end
  return nil, keep, unique, unique_ms
end

-- Whether nothing in the queue goes before a new task of this level.
local function is_next(queue, level)
  if highest[queue] > level then return false end
  if count_of[queue] == 0 then return true end
  head_of[queue] = head_of[queue] or tonumber(redis.call('ZRANGE', ready_prefix .. queue, 0, 0, 'WITHSCORES')[2])
  return now - level * aging < head_of[queue]
end

local put, flush = writer(prefix)
local codes, due_args, flight = {}, {}, {}
local token = string.format('1 1 0 %.0f 0', now)
local n, is_alike = 0, true
for _, run in ipairs(runs) do
  local queue, due = run.queue, run.due
  local score = string.format('%.0f', now - run.level * aging)
  local list, is_claimed = ready[queue], run.is_claimed and is_next(queue, run.level)
  local is_queued = due <= now and not is_claimed
  for i = run.first, run.last, run.words do
    local id = ARGV[i]
    local code, keep, unique, unique_ms
    if known[id] then
      code = 'x'
    else
      local names = i + (run.has_data and 3 or 2)
      if run.has_key then code, keep, unique, unique_ms = named(id, ARGV[names], ARGV[names + 1], ARGV[names + 2]) end
      if not code and is_queued and room[queue] <= 0 then code = 'f' end
      if not code then
        if run.has_key then
          redis.call('SET', idem_prefix .. ARGV[names], id .. ' ' .. ARGV[names + 2], 'PX', keep)
          if unique then redis.call('SET', idem_prefix .. unique, id .. ' ', 'PX', unique_ms) end
        end
        known[id] = true
        put(id, '', ARGV[i + 1])
        if run.has_data then put(id, '.data', ARGV[i + 2]) end
        if is_queued then
          local m = #list
          list[m + 1], list[m + 2] = score, id
          room[queue] = room[queue] - 1
          code = 'q'
        elseif due > now then
          put(id, '.', 'scheduled 0 0 0 - - - - -')
          due_args[#due_args + 1] = string.format('%.0f', due)
          due_args[#due_args + 1] = id
          code = 's'
        else
          flight[#flight + 1] = id
          flight[#flight + 1] = token
          code = 'c'
        end
      end
    end
    n = n + 1
    codes[n] = code
    is_alike = is_alike and code == codes[1]
  end
end

local names = {}
for i, of in ipairs(flush(true)) do names[2 * i - 1], names[2 * i] = '0', of end
if #names > 0 then redis.call('ZADD', KEYS[2], unpack(names)) end
if #due_args > 0 then redis.call('ZADD', KEYS[3], unpack(due_args)) end
into_flight(KEYS[5], KEYS[4], session, flight)
for _, queue in ipairs(order) do
  if #ready[queue] > 0 then
    redis.call('SADD', KEYS[6], queue)
    redis.call('ZADD', ready_prefix .. queue, unpack(ready[queue]))
  end
end
return {now, is_alike and codes[1] or codes, heads_of(ready_prefix, order)}
