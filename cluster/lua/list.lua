-- list: read one shard's ids for a page of a listing, newest first, filtered.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is read
-- KEYS[2]  {sNN}:buckets              zset  names of the buckets: listed in the order of ids
-- KEYS[3]  {sNN}:dead (or another)    zset  the set of one state, listed by score; unused when ARGV[4] is "ids"
-- KEYS[4]  {sNN}:sessions             set   sessions with something in flight in this shard
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  inflight prefix            {sNN}:inflight:
-- ARGV[3]  before                     the place to go on after: an id (ids), "<score> <id>" (scored), "" at the start
-- ARGV[4]  source                     "ids" or "scored"
-- ARGV[5]  limit                      ids to return, 1 to 500
-- ARGV[6]  scan                       most ids to look at; bounds the time that Redis is held
-- ARGV[7]  state                      keep only this state; "" any
-- ARGV[8]  type                       keep only this type; "" any
-- ARGV[9]  key                        keep only this key; "" any
-- Touches  {sNN}:tasks:<bucket>, {sNN}:inflight:<session>   same slot
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
--
-- Returns  {last place looked at ("" when the shard has no more), ids looked at, {place, id, …}}; places sort as the
--          listing does
-- Keeps    reads only
-- Late     harmless: it reads
-- Repeat   harmless

local FIELDS_MAX = 2000 -- names of fields after which no further bucket is read, once there are ids
local ID_CHARS = 29
local prefix, is_scored, before = ARGV[1], ARGV[4] == 'scored', ARGV[3]
local limit, scan = tonumber(ARGV[5]), tonumber(ARGV[6])
local wanted, kind, key = ARGV[7], ARGV[8], ARGV[9]
local places, ids = {}, {}
local is_all = false -- whether the shard has no more than these ids

if is_scored then
  local top, last = string.match(before, '^(%S+) (.*)$')
  local first = 0
  -- Go on after that place, even if its task is gone. Many tasks may share a score (one `run_at`): search by halves.
  if last then
    first = redis.call('ZCOUNT', KEYS[3], '(' .. top, '+inf')
    local past = redis.call('ZCOUNT', KEYS[3], top, '+inf')
    while first < past do
      local middle = math.floor((first + past) / 2)
      if redis.call('ZREVRANGE', KEYS[3], middle, middle)[1] >= last then first = middle + 1 else past = middle end
    end
  end
  local rows = redis.call('ZREVRANGE', KEYS[3], first, first + scan - 1, 'WITHSCORES')
  for i = 1, #rows / 2 do
    ids[i] = rows[2 * i - 1]
    places[i] = string.format('%.0f', rows[2 * i]) .. ' ' .. ids[i]
  end
  is_all = #ids < scan
else
  local from, read = before == '' and '+' or '[' .. bucket_of(before), 0
  while #ids < scan and not is_all and (read < FIELDS_MAX or #ids == 0) do
    local of = redis.call('ZREVRANGEBYLEX', KEYS[2], from, '-', 'LIMIT', 0, 1)[1]
    if of then
      -- A batch makes a bucket of thousands: keep the newest that are wanted, and sort few at a time.
      local here, want, least = {}, scan - #ids, nil
      local names = redis.pcall('HKEYS', prefix .. of) -- no names, if it is a key of another type
      for _, name in ipairs(names) do
        if #name == ID_CHARS and (before == '' or name < before) and (not least or name > least) then
          here[#here + 1] = name
          if #here >= 4 * want then
            table.sort(here, function(one, other) return one > other end)
            for i = #here, want + 1, -1 do here[i] = nil end
            least = here[want]
          end
        end
      end
      table.sort(here, function(one, other) return one > other end)
      for i = 1, math.min(#here, want) do
        ids[#ids + 1] = here[i]
      end
      read = read + #names
      from = '(' .. of
    else
      is_all = true
    end
  end
  places = ids
end

local running = {}
if wanted == 'queued' or wanted == 'running' then
  for _, session in ipairs(redis.call('SMEMBERS', KEYS[4])) do
    for _, id in ipairs(redis.call('HKEYS', ARGV[2] .. session)) do running[id] = true end
  end
end

local function is_wanted(id, stored, text)
  if not stored then return false end
  if wanted ~= '' then
    local state = text and string.match(text, '^%S+') or 'queued'
    if running[id] then state = 'running' end
    if state ~= wanted then return false end
  end
  if kind == '' and key == '' then return true end
  local is_read, spec = pcall(spec_of, stored)
  return is_read and type(spec) == 'table' and (kind == '' or spec[TYPE] == kind) and (key == '' or spec[KEY] == key)
end

local is_filtered = wanted ~= '' or kind ~= '' or key ~= ''
local fields = is_filtered and fields_of(prefix, ids, {'', '.'})
local out = {}
for i, id in ipairs(ids) do
  if not is_filtered or is_wanted(id, fields[2 * i - 1], fields[2 * i]) then
    out[#out + 1] = places[i]
    out[#out + 1] = id
    if #out == limit * 2 then
      return {i == #ids and is_all and '' or places[i], i, out}
    end
  end
end
return {is_all and '' or places[#ids] or before, #ids, out}
