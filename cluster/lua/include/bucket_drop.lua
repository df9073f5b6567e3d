-- bucket_drop: remove tasks from their buckets. Needs bucket.lua and bucket_write.lua.
--
-- drop(prefix, buckets, ids)    remove these tasks, with all their fields, and the names of buckets left empty
--
-- Keeps    a bucket's name stands in {sNN}:buckets while the bucket exists
-- Repeat   harmless

local FIELDS = {'', '.', '.data', '.end', '.progress', '.history'}

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

