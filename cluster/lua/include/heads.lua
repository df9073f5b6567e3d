-- heads: count what is queued in some queues of a shard.
--
-- heads_of(ready_prefix, queues)   {queue, count, head score, …}; count and score are 0 if nothing is queued
--
-- Keeps    reads only
-- Repeat   harmless

local function heads_of(ready_prefix, queues)
  local heads = {}
  for _, queue in ipairs(queues) do
    local key, n = ready_prefix .. queue, #heads
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    heads[n + 1], heads[n + 2], heads[n + 3] = queue, redis.call('ZCARD', key), first[2] or '0'
  end
  return heads
end

