-- add_counts: add what a node counted in one step of time to what the whole cluster did in it.
--
-- KEYS[1]  {timeline}:sum:<step>  hash  counter -> how many
-- KEYS[2]  {timeline}:never       –     guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  ttl_ms                       how long the step is kept
-- ARGV[2…] counters                     name, how many, name, how many, …; at most 200 pairs
--
-- Returns  1
-- Keeps    a step is the sum of what the nodes that lived then counted
-- Repeat   not harmless: it counts twice. It is for charts; nothing is decided by it

for n = 2, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
