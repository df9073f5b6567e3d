"""The backlog: what this node knows to be queued, by queue and shard, and where to claim next. Pure.

The best head is claimed first. A claim leaves in its shard what is clearly worse than the next shard's head, so that a
high task in one shard does not wait behind normal ones in another. Within `SLACK_MS` tasks count as equally old, so
that a backlog drains in large claims. Lanes whose heads are equally old share the slots: see `plan`.

Does not know: Redis, ownership, slots. Its figures are hints: the answer to every claim corrects them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cluster.shards.answers import QueueHead
from cluster.shards.calls import BATCH_MAX

SLACK_MS = 1_000  # difference of two scores within which both tasks count as equally old
SHARE_MIN = 8  # slots; groups of half of fewer cost Python and Redis more than their working at the same time gains

_NONE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pick:
    """One claim to make. `highest` is the worst score to take, None for any."""

    shard: int
    limit: int
    highest: int | None


class Backlog:
    """How many tasks are queued and the best score, by queue and shard, as this node last heard; and its claims."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[int, tuple[int, int]]] = {}  # queue -> shard -> (head score, count)
        self._asked: dict[str, dict[int, int]] = {}  # queue -> shard -> limit of the claim that is under way there

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
            if not self._queues[queue]:
                del self._queues[queue]  # names come and go: keep those alone that have tasks

    def keep_only(self, shards: Iterable[int]) -> None:
        """Forget all other shards: other nodes own them now."""
        owned = frozenset(shards)
        for queue, heads in list(self._queues.items()):
            for shard in [shard for shard in heads if shard not in owned]:
                self.set(queue, shard, 0, 0)

    def keep_queues(self, shard: int, queues: Container[str]) -> None:
        """Forget all other queues of this shard: nothing is queued in them."""
        for queue in [queue for queue in self._queues if queue not in queues]:
            self.set(queue, shard, 0, 0)

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
        """(score, shard, count) of each of these shards with tasks that no claim under way asks for, best first."""
        heads, asked = self._queues.get(queue, {}), self._asked.get(queue, _NONE)
        left = [(heads[shard][0], shard, heads[shard][1] - asked.get(shard, 0)) for shard in shards if shard in heads]
        return sorted(head for head in left if head[2] > 0)

    def queues(self) -> list[str]:
        """Queues in which tasks are queued."""
        return [queue for queue, shards in self._queues.items() if shards]

    # ---- claims

    def ask(self, queue: str, shard: int, limit: int) -> None:
        """Note that a claim of up to `limit` tasks is under way there."""
        self._asked.setdefault(queue, {})[shard] = limit

    def answered(self, queue: str, shard: int) -> None:
        """Note that the claim there is over."""
        del self._asked[queue][shard]
        if not self._asked[queue]:
            del self._asked[queue]

    def is_asking(self, queue: str, shard: int) -> bool:
        """Whether a claim is under way there."""
        return shard in self._asked.get(queue, _NONE)

    def plan(self, queue: str, free: int, mine: Container[int], theirs: Container[int]) -> list[Pick]:
        """Claims that fill up to `free` slots from `mine`, the shards of one lane, best head first.

        To the other lanes, whose shards are `theirs`, it leaves a head that is clearly worse than their best one, and
        slots while they have tasks for them: up to half of the slots that no task holds, so that Redis works at one
        lane's group while Python works at the other's. Tasks for which their claims are under way count as gone.
        """
        by_shard = self._queues.get(queue)
        if not by_shard or free <= 0:
            return []
        asked = self._asked.get(queue, _NONE)
        heads = self.heads(queue, by_shard)
        ours = [head for head in heads if head[1] in mine and head[1] not in asked]
        if not ours:
            return []
        rivals = [(score, count) for score, shard, count in heads if shard in theirs]
        free -= _left_to(rivals, ours[0][0], free, asked, theirs)
        best_rival = rivals[0][0] if rivals else None
        picks: list[Pick] = []
        for n, (score, shard, count) in enumerate(ours):
            if best_rival is not None and score > best_rival + SLACK_MS:
                break
            limit = min(free, count, BATCH_MAX)
            next_best = [
                rival for rival in (best_rival, ours[n + 1][0] if n + 1 < len(ours) else None) if rival is not None
            ]
            picks.append(Pick(shard, limit, min(next_best) + SLACK_MS if next_best else None))
            free -= limit
            if free <= 0:
                break
        return picks


def _left_to(
    rivals: Sequence[tuple[int, int]], best: int, free: int, asked: Mapping[int, int], theirs: Container[int]
) -> int:
    """Of `free` slots, how many a lane whose best head is `best` leaves to the others: they have (score, count).

    Never more than half of them: what this lane has just asked for, to steal it, is not shared.
    """
    promised = sum(limit for shard, limit in asked.items() if shard in theirs)
    pool = free + promised
    if not rivals or pool < SHARE_MIN:
        return 0
    wanted = sum(count for score, count in rivals if score <= best + SLACK_MS)
    return min(wanted, max(0, pool // 2 - promised))
