"""What this node knows to be queued, by queue and shard, and from where to claim next.

Pure. Claims go to the best head first. One claim takes from a shard only what is not clearly worse than the next
shard's head, so that a high task in one shard does not wait behind normal ones in another; within `SLACK_MS` tasks
count as equally old, so that a backlog drains in large claims.

Does not know: Redis, ownership, slots. What it holds is a hint: every claim's answer corrects it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from cluster.shards.answers import QueueHead
from cluster.shards.calls import BATCH_MAX

SLACK_MS = 1_000


@dataclass(frozen=True, slots=True)
class Pick:
    """One claim to make; `highest` is the worst score to take, None for any."""

    shard: int
    limit: int
    highest: int | None


class Backlog:
    """Counts and best scores of what is queued, as last heard."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[int, tuple[int, int]]] = {}  # queue -> shard -> (head score, count)

    def heard(self, shard: int, heads: Iterable[QueueHead]) -> None:
        """What a script or a wake-up said of a shard."""
        for head in heads:
            self.set(head.queue, shard, head.count, head.score)

    def set(self, queue: str, shard: int, count: int, score: int) -> None:
        """One queue of one shard, as of now."""
        if count > 0:
            self._queues.setdefault(queue, {})[shard] = (score, count)
        elif queue in self._queues:
            self._queues[queue].pop(shard, None)

    def keep_only(self, shards: Iterable[int]) -> None:
        """Forget what was heard of other shards: they are somebody else's now."""
        kept = frozenset(shards)
        for queue, known in self._queues.items():
            self._queues[queue] = {shard: head for shard, head in known.items() if shard in kept}

    def is_empty(self, queue: str) -> bool:
        """Whether nothing is known to be queued there."""
        return not self._queues.get(queue)

    def queued(self, queue: str, shards: Iterable[int]) -> tuple[int, int, int]:
        """(count, bitmap of shards with work, best score or 0) over these shards."""
        known = self._queues.get(queue)
        if not known:
            return 0, 0, 0
        count = bitmap = best = 0
        for shard in shards:
            if shard in known:
                score, n = known[shard]
                count += n
                bitmap |= 1 << shard
                best = score if not best or score < best else best
        return count, bitmap, best

    def heads(self, queue: str, shards: Iterable[int]) -> list[tuple[int, int, int]]:
        """(score, shard, count) of what is queued in these shards, best first."""
        known = self._queues.get(queue, {})
        return sorted((known[shard][0], shard, known[shard][1]) for shard in shards if shard in known)

    def queues(self) -> list[str]:
        """Queues with something queued."""
        return [queue for queue, shards in self._queues.items() if shards]

    def plan(self, queue: str, free: int, lane: Container[int]) -> list[Pick]:
        """Claims that fill up to `free` slots from the shards of one lane, best head first.

        A head that is clearly worse than another lane's best head is left: the other lane claims first.
        """
        known = self._queues.get(queue)
        if not known or free <= 0:
            return []
        heads = sorted((score, shard, count) for shard, (score, count) in known.items())
        others = next((score for score, shard, _ in heads if shard not in lane), None)
        mine = [head for head in heads if head[1] in lane]
        picks: list[Pick] = []
        for n, (score, shard, count) in enumerate(mine):
            if others is not None and score > others + SLACK_MS:
                break
            limit = min(free, count, BATCH_MAX)
            rivals = [rival for rival in (others, mine[n + 1][0] if n + 1 < len(mine) else None) if rival is not None]
            picks.append(Pick(shard, limit, min(rivals) + SLACK_MS if rivals else None))
            free -= limit
            if free <= 0:
                break
        return picks
