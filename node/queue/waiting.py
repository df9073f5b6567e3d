"""Waiting: from a call that waits for a task to its answer. Decides who reads the task, and when.

The waiter reads the task at once. If the task goes on, it subscribes to the channel of the shard and reads again when
Redis has confirmed that. The second read shows a task that ended before the confirmation; of one that ends later, the
channel tells.

Where the task ends on this node, the dispatcher has read it behind the settle, in the same group: the end of the task
and the answer to the call then cost one round trip.
"""

from __future__ import annotations

import asyncio

from cluster.shards.task import TERMINAL
from node.queue.queries import Queries
from node.queue.waiters import LOOK_INTERVAL_S, Waiter, Waiters
from node.schema import TaskJson


class Waiting:
    """This node's calls that wait."""

    def __init__(self, queries: Queries, waiters: Waiters) -> None:
        self._queries = queries
        self._waiters = waiters
        self.is_over = False  # the node stops: every wait ends with a last read

    async def wait(self, task_id: str, wait_s: float) -> TaskJson:
        """One task, with its history: as soon as it is terminal, or as it is after `wait_s`. Raises NotFound."""
        shard = self._queries.shard(task_id)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        woken = asyncio.Event()
        waiter = self._waiters.add(task_id, woken.set)
        try:
            task = await self._queries.get(task_id, with_history=True)
            if self._is_last(task, until_s):
                return task
            async with self._waiters.subscribed(waiter, shard):
                while not self._is_last(task, until_s):
                    timer = loop.call_later(min(until_s - loop.time(), LOOK_INTERVAL_S), woken.set)
                    try:
                        await woken.wait()
                    finally:
                        timer.cancel()
                    woken.clear()  # Before the read: a wake-up during it may tell of something newer.
                    task = await self._read(task_id, waiter)
                return task
        finally:
            self._waiters.discard(task_id, waiter)

    async def _read(self, task_id: str, waiter: Waiter) -> TaskJson:
        if waiter.read is not None:
            task = self._queries.shown(task_id, waiter.read)
            if task.state in TERMINAL:
                return task
        return await self._queries.get(task_id, with_history=True)

    def _is_last(self, task: TaskJson, until_s: float) -> bool:
        """Whether this is the answer."""
        return task.state in TERMINAL or self.is_over or asyncio.get_running_loop().time() >= until_s
