-- bucket: read the fields of tasks in their buckets.
--
-- A bucket is a hash, {sNN}:tasks:<bucket>, with the tasks whose ids begin with these BUCKET_CHARS characters: those that
-- were made within some 32 ms. So one command reads, and one writes, all tasks that came together. Its fields, by task:
--   <id>            what was submitted (see stored.lua)
--   <id>.           the state (see state.lua); absent while the task is queued, or runs, for the first time
--   <id>.data       the data, if it is larger than APART_BYTES
--   <id>.end        the result or the last error, if it is larger than APART_BYTES
--   <id>.progress   JSON, as the handler reported it
--   <id>.history    see history.lua
-- {sNN}:buckets is a zset with the names of all buckets at score 0, so that Redis lists them in the order of time.
--
-- bucket_of(id)                    the name of the task's bucket
-- fields_of(prefix, ids, names)    those fields of all these tasks, one after another; false where there is none
--
-- Keeps    reads only
-- Repeat   harmless

local BUCKET_CHARS = 9

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

