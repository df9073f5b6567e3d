-- tell: append events to the cluster's timeline, and publish them to the nodes that listen.
--
-- Every node tells what it saw or did first-hand. No leader stands between: people ask most about the seconds around a
-- leader's own death.
--
-- KEYS[1]  {timeline}:events  list    JSON of the last events, oldest first
-- KEYS[2]  {timeline}:never   –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  channel                    {timeline}:told
-- ARGV[2]  keep                       how many events the list keeps
-- ARGV[3]  ttl_ms                     how long the list outlives its last event
-- ARGV[4…] events                     JSON, at most 50
--
-- Returns  how many subscribers heard it
-- Keeps    at most `keep` events
-- Late     harmless: readers go by the time in an event, and skip an id that they know
-- Repeat   nearly harmless: an event stands there twice, and readers skip an id that they know

redis.call('RPUSH', KEYS[1], unpack(ARGV, 4))
redis.call('LTRIM', KEYS[1], -ARGV[2], -1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('PUBLISH', ARGV[1], '{"events":[' .. table.concat(ARGV, ',', 4) .. ']}')
