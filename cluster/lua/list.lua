-- list: read one shard's ids for a page of a listing, newest first, filtered.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is read
-- KEYS[2]  {sNN}:index                zset  every id at score 0: listed in the order of ids
-- KEYS[3]  {sNN}:dead (or another)    zset  the set of one state, listed by score; unused when ARGV[2] is "index"
-- ARGV[1]  task prefix                {sNN}:task:
-- ARGV[2]  source                     "index" or "scored"
-- ARGV[3]  before                     the place to go on after: an id (index), "<score> <id>" (scored), "" at the start
-- ARGV[4]  limit                      ids to return, 1 to 500
-- ARGV[5]  scan                       most ids to look at; bounds the time that Redis is held
-- ARGV[6]  state                      keep only this state; "" any
-- ARGV[7]  type                       keep only this type; "" any
-- ARGV[8]  key                        keep only this key; "" any
-- Touches  {sNN}:task:<id>            same slot
-- Uses     include/spec.lua
--
-- Returns  {last place looked at ("" when the shard has no more), {place, id, …}}; places sort as the listing does
-- Keeps    reads only
-- Repeat   harmless

local prefix, scored, before = ARGV[1], ARGV[2] == 'scored', ARGV[3]
local limit, scan = tonumber(ARGV[4]), tonumber(ARGV[5])
local rows = {}
if scored then
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
  local found = redis.call('ZREVRANGE', KEYS[3], first, first + scan - 1, 'WITHSCORES')
  for i = 1, #found, 2 do
    rows[#rows + 1] = {string.format('%.0f', found[i + 1]) .. ' ' .. found[i], found[i]}
  end
  if #found < scan * 2 then scan = #rows + 1 else scan = #rows end
else
  local found = redis.call('ZREVRANGEBYLEX', KEYS[2], before == '' and '+' or '(' .. before, '-', 'LIMIT', 0, scan)
  for i, id in ipairs(found) do rows[i] = {id, id} end
  if #rows < scan then scan = #rows + 1 end
end
local out, reached = {}, ''
for i, row in ipairs(rows) do
  local keep = true
  if ARGV[6] ~= '' or ARGV[7] ~= '' or ARGV[8] ~= '' then
    local was = redis.pcall('HMGET', prefix .. row[2], 'state', 'spec')
    keep = was[1] and (ARGV[6] == '' or was[1] == ARGV[6])
    if keep and (ARGV[7] ~= '' or ARGV[8] ~= '') then
      local spec = spec_of(was[2])
      keep = (ARGV[7] == '' or spec[TYPE] == ARGV[7]) and (ARGV[8] == '' or spec[KEY] == ARGV[8])
    end
  end
  if keep then
    out[#out + 1] = row[1]
    out[#out + 1] = row[2]
  end
  if #out == limit * 2 or i == scan then
    reached = row[1]
    break
  end
end
return {reached, out}
