-- bucket: read and write the fields of tasks in their buckets.
--
-- A bucket is a hash, {sNN}:tasks:<bucket>, with the tasks whose ids begin with these BUCKET_CHARS characters: those that
-- were made within some 32 ms. So one command reads, and one writes, all tasks that came together. Its fields, by task:
--   <id>            what was submitted (see spec.lua)
--   <id>.           the state (see state.lua); absent while the task is queued, or runs, for the first time
--   <id>.data       the data, if it is larger than APART_BYTES
--   <id>.end        the result or the last error, if it is larger than APART_BYTES
--   <id>.progress   JSON, as the handler reported it
--   <id>.history    see history.lua
-- A bucket that began with many tasks has a note, too, in the field NOTE. It is longer than Redis's own limit for the
-- values of a compact hash: in a compact hash of that many tasks each read would search from the beginning.
-- {sNN}:buckets is a zset with the names of all buckets at score 0, so that Redis lists them in the order of time.
--
-- bucket_of(id)                    the name of the task's bucket
-- fields_of(prefix, ids, names)    those fields of all these tasks, one after another; false where there is none
-- writer(prefix)                   two functions: put(id, name, value) takes a write, and flush(is_new) makes all writes
--                                  and returns the names of the buckets written to; `is_new`: the tasks are new
-- drop(prefix, buckets, ids)       remove these tasks, with all their fields, and the names of buckets left empty
--
-- Keeps    a bucket's name stands in {sNN}:buckets while the bucket exists
-- Repeat   harmless

local BUCKET_CHARS = 9
local APART_BYTES = 512 -- largest data or result that stands in line: lists read what stands in line, and no more
local FIELDS = {'', '.', '.data', '.end', '.progress', '.history'}
local NOTE, NOTE_FROM = '?', 16 -- the field, and the number of fields from which a new bucket gets it
local NOTE_TEXT = 'A bucket of tasks. For each: <id> what was submitted, <id>. its state (cluster/lua/include/bucket.lua)'

local function bucket_of(id)
  return string.sub(id, 1, BUCKET_CHARS)
end

local function fields_of(prefix, ids, names)
  local out, at, count = {}, 0, #ids
  local i = 1
  while i <= count do
    local bucket = bucket_of(ids[i])
    local fields, n = {}, 0
    repeat
      for f = 1, #names do fields[n + f] = ids[i] .. names[f] end
      n = n + #names
      i = i + 1
    until i > count or bucket_of(ids[i]) ~= bucket
    local values = redis.pcall('HMGET', prefix .. bucket, unpack(fields))
    for f = 1, n do out[at + f] = values[f] or false end -- a key of another type has no fields
    at = at + n
  end
  return out
end

local function writer(prefix)
  local words, order, last, bucket, n = {}, {}, nil, nil, 0
  local function put(id, name, value)
    local of = string.sub(id, 1, BUCKET_CHARS)
    if of ~= last then
      last, bucket = of, words[of]
      if not bucket then
        bucket = {}
        words[of], order[#order + 1] = bucket, of
      end
      n = #bucket
    end
    n = n + 2
    bucket[n - 1], bucket[n] = id .. name, value
  end
  local function flush(is_new)
    for _, of in ipairs(order) do
      local fields = words[of]
      local n = #fields
      if is_new and n >= 2 * NOTE_FROM then fields[n + 1], fields[n + 2] = NOTE, NOTE_TEXT end
      redis.call('HSET', prefix .. of, unpack(fields))
    end
    return order
  end
  return put, flush
end

local function drop(prefix, buckets, ids)
  local fields, order = {}, {}
  for _, id in ipairs(ids) do
    local of = bucket_of(id)
    if not fields[of] then fields[of], order[#order + 1] = {}, of end
    local names = fields[of]
    for f = 1, #FIELDS do names[#names + 1] = id .. FIELDS[f] end
  end
  for _, of in ipairs(order) do
    redis.pcall('HDEL', prefix .. of, unpack(fields[of]))
    local left = redis.pcall('HLEN', prefix .. of)
    if left == 1 and redis.call('HDEL', prefix .. of, NOTE) == 1 then left = 0 end
    if left == 0 then redis.call('ZREM', buckets, of) end
  end
end

