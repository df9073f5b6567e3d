-- bury: write a session's tombstone.
--
-- is_buried(value)                     whether this value of a heartbeat is a tombstone
-- bury(key, now_ms, cause, by, ttl)    write it, for `ttl` ms; returns it
--
-- Keeps    the caller looks first: a tombstone is never overwritten
-- Repeat   the caller looks first

local function is_buried(value)
  return value and string.sub(value, 1, 7) == 'fenced '
end

local function bury(key, now_ms, cause, by, ttl)
  local tombstone = string.format('fenced %s %d %s', cause, now_ms, by)
  redis.call('SET', key, tombstone, 'PX', ttl)
  return tombstone
end

