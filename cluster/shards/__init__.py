"""The queue in Redis, shard by shard: tasks, the calls that move them, and the lanes that carry the calls."""
