-- resign: give the leader's lease back, if it is still for the term that the caller names.
--
-- KEYS[1]  {leader}:lease  string  <session>|<epoch> of the leader
-- KEYS[2]  {leader}:never  –       guard: a moving slot answers TRYAGAIN before anything is written
-- ARGV[1]  term            <session>|<epoch> of the term that ends
--
-- Returns  1 given back, 0 the lease is for another term or for none
-- Keeps    the lease of any other term stays
-- Late     harmless: it names its term, and a term that is over never comes back
-- Repeat   harmless
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
