-- claim: move up to `limit` queued tasks of one queue of one shard into a session's in-flight set.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[2]  {sNN}:ready:<queue>        zset  queued ids, lowest score first
-- KEYS[3]  {sNN}:inflight:<session>   hash  id -> token of each task that the session runs: the right to settle
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- ARGV[1]  not after                  ms of Redis's clock; see include/not_after.lua
-- ARGV[2]  bucket prefix              {sNN}:tasks:
-- ARGV[3]  session                    the claimant
-- ARGV[4]  limit                      tasks, 1 to 256; bounds the time that Redis is held
-- ARGV[5]  highest score              the worst score to take ("+inf": any)
-- ARGV[6]  bytes                      of data that the answer may hold; the first task is taken whatever its size
-- ARGV[7]  aging_ms                   milliseconds of waiting that count as much as one level
-- Touches  {sNN}:tasks:<bucket>       same slot
-- Uses     include/clock.lua
-- Uses     include/not_after.lua
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/flight.lua
--
-- Returns  {now ms, count left, head score left, {id, …}, {token, how many in a row have it, …}, {stored, …}}; what was
--          stored has its data at the end, also if that has a field of its own
-- Keeps    an id is in exactly one of ready, scheduled, waiting, one inflight set, done, dead, cancelled; an attempt is
--          counted before its handler can start
-- Late     refused: nobody would run what it claims until its session compares, or is reaped
-- Repeat   not harmless: it claims more. A lost reply leaves ids in flight; the session finds them when it compares

local now = now_ms()
if now > tonumber(ARGV[1]) then return late(now) end
redis.call('DEL', KEYS[1]) -- a write that needs no memory: after it, a full Redis refuses no other write of this script
local all = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[5], 'LIMIT', 0, ARGV[4])
local prefix, session, bytes, aging = ARGV[2], ARGV[3], tonumber(ARGV[6]), tonumber(ARGV[7])
local scores -- only if they differ: Redis takes long to write a number
local score = #all > 0 and redis.call('ZSCORE', KEYS[2], all[1])
if #all > 1 and redis.call('ZSCORE', KEYS[2], all[#all]) ~= score then
  scores = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[5], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
end

local fields = fields_of(prefix, all, {'', '.'})
local ids, tokens, bodies, flight = {}, {}, {}, {}
local n, taken = 0, 0
local last_score, last_level, fresh, last_token -- tasks that came together get one token together
for i = 1, #all do
  local id, stored, text = all[i], fields[2 * i - 1], fields[2 * i]
  if stored then
    if is_apart(stored) then stored = stored .. (redis.call('HGET', prefix .. bucket_of(id), id .. '.data') or '') end
    bytes = bytes - #stored
    if bytes < 0 and n > 0 then break end
    local token
    if text then -- see state.lua
      local attempt, delivery, lost, queued = string.match(text, '^%S+ (%d+) (%d+) (%d+) (%d+)')
      queued = queued or now
      token = string.format('%.0f %.0f %s %.0f %.0f', (attempt or 0) + 1, (delivery or 0) + 1, lost or '0', queued,
        now - queued)
    else
      local level = level_of(stored)
      if scores then score = scores[2 * i] end
      if score ~= last_score or level ~= last_level then
        last_score, last_level = score, level
        local queued = math.min(now, score + level * aging) -- aging may have been less when it was queued
        fresh = string.format('1 1 0 %.0f %.0f', queued, now - queued)
      end
      token = fresh
    end
    n = n + 1
    ids[n], bodies[n] = id, stored
    flight[2 * n - 1], flight[2 * n] = id, token
    if token == last_token then
      tokens[#tokens] = tokens[#tokens] + 1
    else
      last_token = token
      tokens[#tokens + 1], tokens[#tokens + 2] = token, 1
    end
  end
  taken = i
end
into_flight(KEYS[3], KEYS[4], session, flight)
if taken > 0 then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, taken - 1) end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {now, redis.call('ZCARD', KEYS[2]), first[2] or '0', ids, tokens, bodies}
