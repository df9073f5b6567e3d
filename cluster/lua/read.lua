-- read: read some tasks of one shard.
--
-- KEYS[1]  {sNN}:never                guard: a moving slot answers TRYAGAIN before anything is read
-- KEYS[2]  {sNN}:sessions             set   sessions with something in flight in this shard
-- KEYS[3]  {sNN}:scheduled            zset  ids by due time, ms
-- ARGV[1]  bucket prefix              {sNN}:tasks:
-- ARGV[2]  ready prefix               {sNN}:ready:
-- ARGV[3]  inflight prefix            {sNN}:inflight:
-- ARGV[4]  whole                      "1" to read data, results, errors and progress of any size, and the history;
--                                     "0" for a list's row: what was stored and the state, in which all is small
-- ARGV[5…] ids                        at most 256
-- Touches  {sNN}:tasks:<bucket>, {sNN}:ready:<queue>, {sNN}:inflight:<session>   same slot
-- Uses     include/bucket.lua
-- Uses     include/stored.lua
-- Uses     include/spec.lua
-- Uses     include/token.lua
-- Uses     include/state.lua
--
-- Returns  {{stored, state or "", session that runs it or "", token or "", score or "", data, end, progress,
--          history} or {} if there is no such task, …}; the score is that in its queue before it first
--          ran, and its due time if it waits for that; `data` and `end` are "" if they stand in line
-- Keeps    reads only
-- Late     harmless: it reads
-- Repeat   harmless

local prefix, is_whole = ARGV[1], ARGV[4] == '1'
local ids = {unpack(ARGV, 5)}
local names = is_whole and {'', '.', '.data', '.end', '.progress', '.history'} or {'', '.'}
local fields = fields_of(prefix, ids, names)
local out = {}
for i, id in ipairs(ids) do
  local at = (i - 1) * #names
  local stored, text = fields[at + 1], fields[at + 2]
  if stored then
    local session, token, score
    local name = text and string.match(text, '^%S+')
    if not TERMINAL[name] then
      session, token = holder(KEYS[2], ARGV[3], id)
      if not session and (name == 'scheduled' or name == 'retrying') then
        score = redis.call('ZSCORE', KEYS[3], id)
      elseif not session and not text then -- queued for the first time: its score tells since when
        local is_read, spec = pcall(spec_of, stored)
        score = is_read and type(spec) == 'table' and redis.call('ZSCORE', ARGV[2] .. spec[QUEUE], id)
      end
    end
    out[i] = {stored, text or '', session or '', token or '', score or ''}
    if is_whole then
      for f = 3, 6 do out[i][3 + f] = fields[at + f] or '' end
    end
  else
    out[i] = {}
  end
end
return out
