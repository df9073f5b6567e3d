"""The end of a drain: running tasks get their time, the rest is handed back, and every outcome is settled.

Does not know: how the other nodes hear that this one drains, what follows.
"""

from __future__ import annotations

import asyncio

from cluster.config import Config
from cluster.shards.shards import Shards
from node.queue.dispatch import Dispatcher
from node.work.worker import Worker

LOOK_S = 0.01  # time between two looks whether all is done


class Draining:
    """One node's drain."""

    def __init__(self, config: Config, worker: Worker, dispatch: Dispatcher, shards: Shards) -> None:
        self.hand_back_s = 2 * config.redis_timeout_s + 1.0  # time for the outcomes that are left then
        self._drain_s = config.drain_s
        self._worker = worker
        self._dispatch = dispatch
        self._shards = shards
        self._is_hurried = False

    def hurry(self) -> None:
        """Cut it short: hand back now what still runs."""
        self._is_hurried = True

    async def run(self) -> None:
        """Let running tasks finish for drain_s, hand back the rest, and settle every outcome."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._drain_s
        while self._worker.running and loop.time() < until_s and not self._is_hurried:
            await asyncio.sleep(LOOK_S)
        self._worker.release_all()
        until_s = loop.time() + self.hand_back_s
        while not self._is_at_rest() and loop.time() < until_s:
            await asyncio.sleep(LOOK_S)

    def _is_at_rest(self) -> bool:
        """Whether nothing runs, every outcome is answered, and all wake-ups for tasks handed back are sent."""
        return not self._worker.running and not self._dispatch.settling and self._shards.is_idle
