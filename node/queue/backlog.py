"""The backlog: what this node knows to be queued, by queue and shard, and where to claim next. Pure.

The best head is claimed first. A claim leaves in its shard what is clearly worse than the next shard's head, so that a
high task in one shard does not wait behind normal ones in another. Within `SLACK_MS` tasks count as equally old, so
that a backlog drains in large claims.

Does not know: Redis, ownership, slots. Its figures are hints: the answer to every claim corrects them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from cluster.shards.answers import QueueHead
from cluster.shards.calls import BATCH_MAX

SLACK_MS = 1_000  # difference of two scores within which both tasks count as equally old


@dataclass(frozen=True, slots=True)
class Pick:
    """One claim to make. `highest` is the worst score to take, None for any."""

    shard: int
    limit: int
    highest: int | None


class Backlog:
    """How many tasks are queued and the best score, by queue and shard, as this node last heard."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[int, tuple[int, int]]] = {}  # queue -> shard -> (head score, count)

    def heard(self, shard: int, heads: Iterable[QueueHead]) -> None:
        """Take over what a script or a wake-up said of a shard."""
        for head in heads:
            self.set(head.queue, shard, head.count, head.score)

    def set(self, queue: str, shard: int, count: int, score: int) -> None:
        """Take over the figures of one queue of one shard."""
        if count > 0:
            self._queues.setdefault(queue, {})[shard] = (score, count)
        elif queue in self._queues:
            self._queues[queue].pop(shard, None)

    def keep_only(self, shards: Iterable[int]) -> None:
        """Forget all other shards: other nodes own them now."""
        owned = frozenset(shards)
        for queue, heads in self._queues.items():
            self._queues[queue] = {shard: head for shard, head in heads.items() if shard in owned}

    def is_empty(self, queue: str) -> bool:
        """Whether this node knows of no task in that queue."""
        return not self._queues.get(queue)

    def queued(self, queue: str, shards: Iterable[int]) -> tuple[int, int, int]:
        """(count, bitmap of shards with work, best score or 0) over these shards."""
        heads = self._queues.get(queue)
        if not heads:
            return 0, 0, 0
        count = bitmap = best = 0
        for shard in shards:
            if shard in heads:
                score, n = heads[shard]
                count += n
                bitmap |= 1 << shard
                best = score if not best or score < best else best
        return count, bitmap, best

    def heads(self, queue: str, shards: Iterable[int]) -> list[tuple[int, int, int]]:
        """(score, shard, count) of each of these shards that has tasks of this queue, best first."""
        heads = self._queues.get(queue, {})
        return sorted((heads[shard][0], shard, heads[shard][1]) for shard in shards if shard in heads)

    def queues(self) -> list[str]:
        """Queues in which tasks are queued."""
        return [queue for queue, shards in self._queues.items() if shards]

    def plan(self, queue: str, free: int, lane: Container[int]) -> list[Pick]:
        """Claims that fill up to `free` slots from the shards of one lane, best head first.

        It leaves a head that is clearly worse than another lane's best one: the other lane is to claim first.
        """
        by_shard = self._queues.get(queue)
        if not by_shard or free <= 0:
            return []
        heads = sorted((score, shard, count) for shard, (score, count) in by_shard.items())
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
