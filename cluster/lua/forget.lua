-- forget: take a dead session's node off the member list and the list of keys, unless another session of it stands there.
--
-- KEYS[1]  {leader}:members  hash  node_id -> msgpack [session, host, port]
-- KEYS[2]  {leader}:never    –     guard: a moving slot answers TRYAGAIN before anything is written
-- KEYS[3]  {leader}:keys     hash  node_id -> fingerprints of its gossip keys
-- ARGV[1]  node_id           whose row
-- ARGV[2]  session           the session that ended
--
-- Returns  1 the row names another session of the node, 0 the node has no row any more
-- Keeps    a row that names another session stays
-- Late     harmless: it names a session that has ended, and a session never comes back
-- Repeat   harmless
local row = redis.call('HGET', KEYS[1], ARGV[1])
if not row then
  return 0
end
local ok, record = pcall(cmsgpack.unpack, row)
if ok and type(record) == 'table' and record[1] ~= ARGV[2] then
  return 1
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 0
