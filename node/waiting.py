"""Waiting for a task to become terminal: told by this node's own settles, by Redis's channel, and a read as the net.

The order is subscribe, then read: what ends between the two is in the read, what ends after is on the channel. A
subscription can go deaf without an error, so every waiter also looks once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import redis.asyncio
import structlog

from cluster import keys
from cluster.scripts import UNANSWERED

LOOK_INTERVAL_S = 1.0

log = structlog.get_logger("rumor.waiting")


class Waiting:
    """Who waits for which task on this node."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._events: dict[str, set[asyncio.Event]] = {}
        self._shards: dict[int, int] = {}  # waiters per shard
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    def finished(self, ids: Iterable[str]) -> None:
        """These tasks are terminal now."""
        if self._events:
            for task_id in ids:
                for event in self._events.get(task_id, ()):
                    event.set()

    @asynccontextmanager
    async def one(self, task_id: str, shard: int) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the task may have become terminal. Read the task after entering."""
        event = asyncio.Event()
        self._events.setdefault(task_id, set()).add(event)
        self._shards[shard] = self._shards.get(shard, 0) + 1
        try:
            if self._shards[shard] == 1:
                await self._subscribe(shard)
            yield event
        finally:
            waiters = self._events[task_id]
            waiters.discard(event)
            if not waiters:
                del self._events[task_id]
            self._shards[shard] -= 1
            if not self._shards[shard]:
                del self._shards[shard]
                await self._unsubscribe(shard)

    async def close(self) -> None:
        """Let everybody look a last time, and end."""
        for events in self._events.values():
            for event in events:
                event.set()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._pubsub is not None:
            await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _subscribe(self, shard: int) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is None:
                    self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
                await self._pubsub.subscribe(keys.finished_channel(shard))
                if self._reader is None or self._reader.done():
                    self._reader = asyncio.get_running_loop().create_task(self._read(self._pubsub))
        except UNANSWERED as error:
            log.warning("subscribe_failed", shard=shard, error=str(error))  # the looks go on

    async def _unsubscribe(self, shard: int) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is not None and shard not in self._shards:
                    await self._pubsub.unsubscribe(keys.finished_channel(shard))
        except UNANSWERED as error:
            log.debug("unsubscribe_failed", shard=shard, error=str(error))

    async def _read(self, pubsub: redis.asyncio.client.PubSub) -> None:
        while True:
            try:
                message = await pubsub.get_message(timeout=LOOK_INTERVAL_S)
            except UNANSWERED as error:
                log.info("subscription_ended", error=str(error))
                await asyncio.sleep(LOOK_INTERVAL_S)
                continue
            if message is not None and message["type"] == "message":
                self.finished(message["data"].decode().split(" "))
