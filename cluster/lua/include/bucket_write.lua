-- bucket_write: write the fields of tasks in their buckets. Needs bucket.lua.
--
-- A bucket that began with many tasks has a note in the field NOTE. It is longer than Redis's own limit for the values of
-- a compact hash: in a compact hash of that many tasks each read would search from the beginning.
--
-- writer(prefix)    two functions: put(id, name, value) takes a write, and flush(is_new) makes all writes and returns the
--                   names of the buckets written to; `is_new`: the tasks are new
--
-- Keeps    whoever writes to a new bucket adds its name to {sNN}:buckets
-- Repeat   harmless

local APART_BYTES = 512 -- largest data or result that stands in line: lists read what stands in line, and no more
local NOTE, NOTE_FROM = '?', 16 -- the field, and the number of fields from which a new bucket gets it
local NOTE_TEXT = 'A bucket of tasks. For each: <id> what was submitted, <id>. its state (cluster/lua/include/bucket.lua)'

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

