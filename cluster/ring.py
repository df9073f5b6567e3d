"""Who owns which shard: weighted rendezvous hashing over the members that are able.

Pure. Ownership steers work (who looks where first, who keeps house); it never guards correctness: two nodes that both
believe they own a shard are safe, since every claim and commit is one atomic script in Redis.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache


def owners(weights: Mapping[str, int], shards: int) -> tuple[str, ...]:
    """The owner of each shard by node_id, weight = slots. All "" when nobody is able.

    Rendezvous hashing with the logarithm method: a member that comes or goes moves only the shards it gains or loses,
    and each holds shards in proportion to its weight.
    """
    able = [(node, weight) for node, weight in sorted(weights.items()) if weight > 0]
    if not able:
        return ("",) * shards
    return tuple(max(able, key=lambda one: _score(one[0], one[1], shard))[0] for shard in range(shards))


def _score(node_id: str, weight: int, shard: int) -> float:
    return -weight / math.log(_unit(node_id, shard))


@lru_cache(maxsize=65_536)
def _unit(node_id: str, shard: int) -> float:
    """A number in (0, 1) drawn by hash from the pair."""
    digest = hashlib.blake2b(f"{node_id}#{shard}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
