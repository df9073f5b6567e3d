-- not_after: refuse a call that the network delivers late.
--
-- Whoever sent a call waits for its answer for a short time, and then acts as if nothing had happened: another node
-- stores the task, a client asks again. The bytes may still lie in a kernel or in the buffer of a proxy. So a call that
-- would do harm by then names the last moment, by Redis's clock, at which it may be carried out.
-- Python's lane (`cluster/shards/lane.py`) puts that moment before the arguments of each script that uses this file.
--
-- late(now)     the answer to a call that comes too late: an error that begins with LATE and names Redis's clock, by
--               which the sender corrects its estimate. The script has done nothing
--
-- Keeps    reads only
-- Repeat   harmless

local function late(now)
  return redis.error_reply(string.format('LATE %.0f', now))
end

