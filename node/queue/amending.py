"""Amending: clients change tasks that are stored: they cancel, retry, replay and purge.

Each change is one call to the task's shard. This module also starts what follows on this node: a run stops, a shard has
work again. Other nodes get a message, which saves them work; nothing depends on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from cluster.config import Config
from cluster.errors import Conflict, NotFound
from cluster.shards.answers import QueueHead, Requeued
from cluster.shards.calls import BATCH_MAX
from cluster.shards.shards import Shards
from cluster.shards.task import TERMINAL, State
from node.observe.metrics import Metrics
from node.queue.queries import Queries
from node.queue.waiters import Waiters

REPLAY_PAGE = 500  # ids that one round of a replay reads and queues again


class Amending:
    """One node's changes of stored tasks."""

    def __init__(
        self,
        config: Config,
        shards: Shards,
        queries: Queries,
        waiters: Waiters,
        metrics: Metrics,
        on_heads: Callable[[int, Sequence[QueueHead]], None],
        on_cancelled: Callable[[str, str, int], None],
        on_expired: Callable[[int], None],
    ) -> None:
        self._config = config
        self._shards = shards
        self._queries = queries
        self._waiters = waiters
        self._metrics = metrics
        self._on_heads = on_heads
        self._on_cancelled = on_cancelled  # (session, id, delivery): that run must stop
        self._on_expired = on_expired  # (shard): it holds tasks that a sweep may drop now

    async def cancel(self, task_id: str) -> State:
        """Cancel a task wherever it is; returns its state before. Raises NotFound, Conflict if it ended otherwise."""
        shard = self._queries.shard(task_id)
        retention_ms = int(self._config.retention_s * 1000)
        cancel = partial(self._shards.calls.cancel, shard, task_id, retention_ms)
        answer = await self._shards.ask(cancel, may_repeat=True)
        if answer.was is None:
            raise _no_such(task_id)
        if answer.was in TERMINAL and answer.was != State.CANCELLED:
            raise Conflict(f"task {task_id} is {answer.was}: it has ended.", "Only unfinished tasks can be cancelled.")
        if answer.session:
            self._on_cancelled(answer.session, task_id, answer.delivery)
        if answer.was != State.CANCELLED:
            self._metrics.commits.add("cancelled")
        self._waiters.finished([task_id])
        return answer.was

    async def retry(self, task_id: str) -> None:
        """Queue a dead or cancelled task again. Raises NotFound, Conflict in any other state."""
        answer = await self._replay(self._queries.shard(task_id), [task_id])
        if answer.queued:
            return
        state = answer.refused[0]
        if state is None:
            raise _no_such(task_id)
        raise Conflict(f"task {task_id} is {state}.", "Only dead and cancelled tasks can be tried again.")

    async def replay(self, type: str | None, limit: int | None) -> int:
        """Queue dead tasks again, newest first; returns how many. Each is replayed once, even if it dies again."""
        replayed = 0
        cursor = None
        while limit is None or replayed < limit:
            page = REPLAY_PAGE if limit is None else min(REPLAY_PAGE, limit - replayed)
            ids, cursor = await self._queries.ids(State.DEAD, type, page, cursor)
            ids_of: dict[int, list[str]] = {}
            for task_id in ids:
                ids_of.setdefault(self._queries.shard(task_id), []).append(task_id)
            answers = await asyncio.gather(
                *(
                    self._replay(shard, shard_ids[n : n + BATCH_MAX])
                    for shard, shard_ids in ids_of.items()
                    for n in range(0, len(shard_ids), BATCH_MAX)
                )
            )
            replayed += sum(answer.queued for answer in answers)
            if cursor is None:
                break
        return replayed

    async def _replay(self, shard: int, ids: Sequence[str]) -> Requeued:
        # Not repeated when its connection drops: the answer to the second call would deny what the first one did.
        answer = await self._shards.ask(partial(self._shards.calls.replay, shard, ids))
        if answer.heads:
            self._on_heads(shard, answer.heads)
        return answer

    async def purge_dead(self) -> int:
        """Drop the whole dead letter queue; returns how many tasks it held."""
        purge = self._shards.calls.purge
        expired = await asyncio.gather(
            *(self._shards.ask(partial(purge, shard), may_repeat=True) for shard in range(self._config.shards))
        )
        for shard, count in enumerate(expired):
            if count:
                self._on_expired(shard)
        return sum(expired)


def _no_such(task_id: str) -> NotFound:
    return NotFound(f"there is no task {task_id!r}, or it is past its retention.", "GET /tasks lists them.")
