"""The watch ring: who holds a connection open to whom, so that a dying process's kernel says goodbye to its watchers.

Live members stand on a ring in the order of a hash of their names, and each watches the next few. The order needs no
agreement: a node whose view differs watches a few other members for a moment.

Does not know: connections, states, time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=8192)
def place(node_id: str) -> bytes:
    """Where a member stands on the ring. A hash, so that nodes of one host or rack have other watchers too."""
    return hashlib.blake2b(node_id.encode(), digest_size=8).digest()


def successors(node_ids: Iterable[str], of: str, count: int) -> tuple[str, ...]:
    """The next `count` members on the ring after `of`: those that it watches."""
    return tuple(ring_after(node_ids, of)[:count])


def predecessors(node_ids: Iterable[str], of: str, count: int) -> tuple[str, ...]:
    """The `count` members before `of` on the ring: those that watch it, the nearest first."""
    return tuple(reversed(ring_after(node_ids, of)))[:count]


def ring_after(node_ids: Iterable[str], of: str) -> list[str]:
    """The others in ring order, beginning after `of`. `of` itself may be missing from `node_ids`."""
    ring = sorted((node_id for node_id in node_ids if node_id != of), key=lambda node_id: (place(node_id), node_id))
    here = (place(of), of)
    first = next((i for i, node_id in enumerate(ring) if (place(node_id), node_id) > here), 0)
    return ring[first:] + ring[:first]
