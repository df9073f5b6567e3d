-- settle: commit the outcomes of a batch of deliveries of one session in one shard.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:inflight:<session>   hash  id -> delivery: an outcome counts only while its id and delivery stand here
-- KEYS[3]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[4]  {sNN}:done                 zset  succeeded ids by the time when they may be dropped, ms
-- KEYS[5]  {sNN}:dead                 zset  dead ids by the time when they may be dropped, ms
-- KEYS[6]  {sNN}:scheduled            zset  ids by due time, ms
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  session                    the one that claimed the deliveries
-- ARGV[4]  aging_ms                   milliseconds of waiting that count as much as one level
-- ARGV[5]  channel                    {sNN}:finished, where terminal ids are published
-- ARGV[6…] per outcome, 5 each: id, delivery, kind, payload, ms. Kinds: "s" succeeded (payload result, ms retention),
--          "d" dead (payload error, ms retention), "r" retrying (payload error, ms until due),
--          "g" handed back, the attempt not counted (payload "", ms until due, 0 at once)
-- Touches  {sNN}:task:<id>, {sNN}:ready:<queue>   same slot
-- Uses     include/history.lua
-- Uses     include/flight.lua
-- Uses     include/spec.lua
--
-- Returns  {code per outcome, …}: "1" committed, "y" this very delivery was committed before, else the reason of the
--          refusal: "gone" (no such task) or the state that the task is in
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; one commit
--          for each delivery, and only by the session that holds it
-- Repeat   harmless: the code then is "y"

redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local STRIDE = 5
local REPORTED = {s = 'a success', d = 'its last failure', r = 'a failure', g = 'that it was given back'}
local n = (#ARGV - 5) / STRIDE
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local prefix, ready_prefix, aging = ARGV[1], ARGV[2], tonumber(ARGV[4])

local ids = {}
for i = 1, n do ids[i] = ARGV[6 + (i - 1) * STRIDE] end
local held = redis.call('HMGET', KEYS[2], unpack(ids))

local codes, gone, done, dead, due, finished = {}, {}, {}, {}, {}, {}
local taken = {} -- ids committed by this call: a delivery that stands twice in one batch commits once
for i = 1, n do
  local at = 5 + (i - 1) * STRIDE
  local id, delivery, kind, payload, ms = ids[i], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], tonumber(ARGV[at + 5])
  local key = prefix .. id
  if held[i] ~= delivery or taken[id] then
    local was = redis.call('HMGET', key, 'state', 'settled')
    if not was[1] then codes[i] = 'gone'
    elseif was[2] == delivery then codes[i] = 'y'
    else
      codes[i] = was[1]
      remember(key, 'refused', now, '', 'reported ' .. REPORTED[kind] .. ' when the task was ' .. was[1], delivery,
        ARGV[3])
    end
  else
    if kind == 's' then
      redis.call('HSET', key, 'state', 'succeeded', 'finished_at', now, 'result', payload, 'settled', delivery)
      done[#done + 1] = now + ms
      done[#done + 1] = id
      finished[#finished + 1] = id
    elseif kind == 'd' then
      remember(key, 'dead', now, reason(payload))
      redis.call('HSET', key, 'state', 'dead', 'finished_at', now, 'error', payload, 'settled', delivery)
      dead[#dead + 1] = now + ms
      dead[#dead + 1] = id
      finished[#finished + 1] = id
    elseif kind == 'r' then
      remember(key, 'retrying', now, reason(payload))
      redis.call('HSET', key, 'state', 'retrying', 'error', payload, 'due', now + ms, 'settled', delivery)
      due[#due + 1] = now + ms
      due[#due + 1] = id
    else
      local was = redis.call('HMGET', key, 'spec', 'queued_at')
      remember(key, 'released', now, '', '')
      redis.call('HINCRBY', key, 'attempt', -1)
      if ms > 0 then
        redis.call('HSET', key, 'state', 'retrying', 'due', now + ms, 'settled', delivery)
        due[#due + 1] = now + ms
        due[#due + 1] = id
      else
        local spec = spec_of(was[1])
        redis.call('HSET', key, 'state', 'queued', 'settled', delivery)
        redis.call('ZADD', ready_prefix .. spec[QUEUE], (was[2] or now) - spec[LEVEL] * aging, id)
      end
    end
    gone[#gone + 1] = id
    taken[id] = true
    codes[i] = '1'
  end
end
if #done > 0 then redis.call('ZADD', KEYS[4], unpack(done)) end
if #dead > 0 then redis.call('ZADD', KEYS[5], unpack(dead)) end
if #due > 0 then redis.call('ZADD', KEYS[6], unpack(due)) end
if #gone > 0 then out_of_flight(KEYS[2], KEYS[3], ARGV[3], gone) end
if #finished > 0 then redis.call('PUBLISH', ARGV[5], table.concat(finished, ' ')) end
return codes
