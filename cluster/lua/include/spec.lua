-- spec: read the fields of a task's spec by name. Python's `Spec` (cluster/shards/task.py) sets the positions; a test
-- compares them.
--
-- spec_of(packed)   the fields of a stored spec, by these positions; raises for anything but msgpack
--
-- Keeps    reads only
-- Repeat   harmless

local TYPE, QUEUE, LEVEL, MAX_ATTEMPTS, TIMEOUT_S, BACKOFF, KEY, RETENTION_S, TRACE = 1, 2, 3, 4, 5, 6, 7, 8, 9
local BASE_S, FACTOR, MAX_S = 1, 2, 3 -- positions in a backoff

local spec_of = cmsgpack.unpack

