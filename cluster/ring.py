"""Who owns which shard: weighted rendezvous hashing over the members that are able. Pure.

Ownership steers work: who looks where first, who keeps house. It never guards correctness: two nodes that both believe
they own a shard are safe, because every claim and every commit is one atomic script in Redis.

Does not know: what makes a member able.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache


def owners(weights: Mapping[str, int], shards: int) -> tuple[str, ...]:
    """The node_id of each shard's owner; `weights` are slots. All "" if no member is able.

    Rendezvous hashing with the logarithm method: a member that comes or goes moves only the shards that it gains or
    loses, and each member holds shards in proportion to its weight.
    """
    able = [(node, weight) for node, weight in sorted(weights.items()) if weight > 0]
    if not able:
        return ("",) * shards
    return tuple(max(able, key=lambda member: _score(member[0], member[1], shard))[0] for shard in range(shards))


def _score(node_id: str, weight: int, shard: int) -> float:
    return -weight / math.log(_unit(node_id, shard))


@lru_cache(maxsize=65_536)
def _unit(node_id: str, shard: int) -> float:
    """A number in (0, 1), which the hash of the pair determines."""
    digest = hashlib.blake2b(f"{node_id}#{shard}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
