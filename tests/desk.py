"""A worker without a node: deliveries are put on its desk, and what it reports is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.config import Config
from cluster.shards.task import Backoff, Claimed, Outcome, Spec
from node.tasks import Registry
from node.work.worker import Worker

LIMIT_S = 20.0


def claim(
    type_: str, data: Any = None, *, id_: str = "A", delivery: int = 1, timeout_s: float = 60.0, queue: str = "default"
) -> Claimed:
    """A delivery of a task's first attempt."""
    spec = Spec(type_, queue, 5, 5, timeout_s, Backoff(1.0, 2.0, 300.0))
    return Claimed(id_, 0, delivery, 1, spec, msgspec.json.encode(data))


class Desk:
    """A worker and what it reported."""

    def __init__(self, registry: Registry, queues: str, **settings: Any) -> None:
        self.outcomes: list[Outcome] = []
        self.progress: list[Any] = []
        self._changed = asyncio.Event()
        self.worker = Worker(Config(queues=queues, **settings), registry, "n1", self._ended, self._progressed)

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._changed.set()

    def _progressed(self, claimed: Claimed, value: bytes) -> None:
        self.progress.append(msgspec.json.decode(value))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that an outcome or progress brings about."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def outcome_of(self, claimed: Claimed) -> Outcome:
        self.worker.start([claimed])
        return await self.next()

    async def next(self) -> Outcome:
        await self.until(lambda: bool(self.outcomes))
        return self.outcomes.pop(0)
