-- add_counts: add one node's counters of one step of time to the sums of the whole cluster.
--
-- KEYS[1]  {timeline}:sum:<step>  hash  counter -> how many
-- KEYS[2]  {timeline}:never       –     guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  ttl_ms                       how long the sums are kept
-- ARGV[2…] counters                     name, how many, name, how many, …; at most 200 pairs
--
-- Returns  1
-- Keeps    a step holds the sums over the nodes that lived then
-- Late     harmless: a chart of the past shows a little more; the sums expire as ever
-- Repeat   not harmless: it counts twice. Charts alone use the sums; nobody decides by them

for n = 2, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
