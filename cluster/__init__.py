"""The cluster layer: membership, the second witness, the leader lease, the shards in Redis. Knows nothing of node."""

__version__ = "0.1.0"
