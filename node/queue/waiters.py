"""Waiters: callers that wait for a task to become terminal, and what wakes them.

This node's own settles wake them, and so does Redis's channel of a shard, to which a waiter subscribes on demand. After
a reconnection Redis confirms a subscription again, and that wakes the waiters too. A subscription can go deaf without
an error: as a net, a waiter reads at least once every LOOK_INTERVAL_S.

Does not know: how a task is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Iterable
from contextlib import asynccontextmanager
from functools import partial

import redis.asyncio
import structlog

from cluster import keys
from cluster.kept_tasks import Nursery
from cluster.scripts import UNANSWERED
from cluster.shards.answers import TaskFields

LOOK_INTERVAL_S = 1.0  # between two reads of a waiter that hears nothing

log = structlog.get_logger("rumor.waiting")


class Waiter:
    """One caller that waits for a task."""

    __slots__ = ("read", "wake")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake  # says that the task may have become terminal
        self.read: TaskFields | None = None  # the task as this node read it behind its settle


class Waiters:
    """This node's waiters, by the task they wait for."""

    def __init__(self, client: redis.asyncio.Redis, kept: Nursery, database: int) -> None:
        self._client = client
        self._kept = kept
        self._database = database
        self._of_task: dict[str, set[Waiter]] = {}
        self._of_channel: dict[str, set[Waiter]] = {}  # those that wait for a task in the channel's shard
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._is_reading = False
        self._changing = asyncio.Lock()
        self.awaited: Container[str] = self._of_task.keys()  # the tasks that somebody waits for; false when none is

    def finished(self, ids: Iterable[str]) -> None:
        """Wake the waiters for these tasks, which are terminal now."""
        if self._of_task:
            for task_id in ids:
                for waiter in self._of_task.get(task_id, ()):
                    waiter.wake()

    def settled(self, task_id: str, fields: TaskFields | Exception | None) -> None:
        """Hand the task, as it was read behind this node's settle, to its waiters. After an error they read it anew."""
        if isinstance(fields, TaskFields):
            for waiter in self._of_task.get(task_id, ()):
                waiter.read = fields
                waiter.wake()

    def add(self, task_id: str, wake: Callable[[], None]) -> Waiter:
        """A waiter that this node's own settles wake, once or several times; `discard` it in the end."""
        waiter = Waiter(wake)
        self._of_task.setdefault(task_id, set()).add(waiter)
        return waiter

    def discard(self, task_id: str, waiter: Waiter) -> None:
        """This waiter waits no longer."""
        _discard(self._of_task, task_id, waiter)

    @asynccontextmanager
    async def subscribed(self, waiter: Waiter, shard: int) -> AsyncIterator[None]:
        """Wake the waiter when its task ends on any node, and as soon as that is sure. Read the task then."""
        channel = keys.finished_channel(shard, self._database)
        self._of_channel.setdefault(channel, set()).add(waiter)
        try:
            if len(self._of_channel[channel]) == 1:
                await self._subscribe(channel)  # Its confirmation wakes the waiter.
            else:
                waiter.wake()  # That confirmation may have come.
            yield
        finally:
            _discard(self._of_channel, channel, waiter)
            if channel not in self._of_channel:
                await self._unsubscribe(channel)

    async def close(self) -> None:
        """Wake every waiter for a last read, and end."""
        for waiters in self._of_task.values():
            for waiter in waiters:
                waiter.wake()
        if self._pubsub is not None:
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _subscribe(self, channel: str) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is None:
                    self._pubsub = self._client.pubsub()
                await self._pubsub.subscribe(channel)
                if not self._is_reading:
                    self._is_reading = True
                    self._kept.keep("waiters", partial(self._read, self._pubsub))
        except UNANSWERED as error:
            log.warning("subscribe_failed", channel=channel, error=str(error))  # waiters still read once a second

    async def _unsubscribe(self, channel: str) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is not None and channel not in self._of_channel:
                    await self._pubsub.unsubscribe(channel)
        except UNANSWERED as error:
            log.debug("unsubscribe_failed", channel=channel, error=str(error))

    async def _read(self, pubsub: redis.asyncio.client.PubSub) -> None:
        while True:
            try:
                message = await pubsub.get_message(timeout=LOOK_INTERVAL_S)
            except UNANSWERED as error:
                log.info("subscription_ended", error=str(error))
                await asyncio.sleep(LOOK_INTERVAL_S)
                continue
            if message is None:
                continue
            if message["type"] == "message":
                self.finished(message["data"].decode().split(" "))
            elif message["type"] == "subscribe":
                for waiter in self._of_channel.get(message["channel"].decode(), ()):
                    waiter.wake()


def _discard(waiters: dict[str, set[Waiter]], name: str, waiter: Waiter) -> None:
    others = waiters.get(name)
    if others is not None:
        others.discard(waiter)
        if not others:
            del waiters[name]


class Held:
    """The answer about a task that began here, held back until the task ends, or for a short time."""

    def __init__(self, waiters: Waiters, task_id: str, for_s: float, let_go: Callable[[], None]) -> None:
        self.task_id = task_id
        self._waiters = waiters
        self._let_go: Callable[[], None] | None = let_go
        self.waiter = waiters.add(task_id, self._woken)
        # It ends here also if the caller gives up meanwhile.
        self._timer = asyncio.get_running_loop().call_later(for_s, self.close)

    def close(self) -> None:
        """Hold it no longer."""
        self._timer.cancel()
        self._waiters.discard(self.task_id, self.waiter)
        self._woken()

    def _woken(self) -> None:
        if self._let_go is not None:
            let_go, self._let_go = self._let_go, None
            let_go()
