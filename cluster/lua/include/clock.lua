-- clock: Redis's own time.
--
-- now_ms()  milliseconds
--
-- Keeps    reads only
-- Repeat   harmless

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

