"""Waiting for a task to become terminal: told by this node's own settles, by Redis's channel, and a read as the net.

A waiter reads at once, and again when Redis has confirmed that the channel is heard: what ends before that is in the
second reading, what ends after is on the channel. So it is after a reconnection, too. A subscription can go deaf
without an error, so every waiter also looks once a second.
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
        self._shards: dict[str, set[asyncio.Event]] = {}  # by channel: who waits for something in its shard
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
        channel = keys.finished_channel(shard)
        self._events.setdefault(task_id, set()).add(event)
        self._shards.setdefault(channel, set()).add(event)
        try:
            if len(self._shards[channel]) == 1:
                await self._subscribe(channel)
            yield event
        finally:
            _discard(self._events, task_id, event)
            _discard(self._shards, channel, event)
            if channel not in self._shards:
                await self._unsubscribe(channel)

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

    async def _subscribe(self, channel: str) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is None:
                    self._pubsub = self._client.pubsub()
                await self._pubsub.subscribe(channel)
                if self._reader is None or self._reader.done():
                    self._reader = asyncio.get_running_loop().create_task(self._read(self._pubsub))
        except UNANSWERED as error:
            log.warning("subscribe_failed", channel=channel, error=str(error))  # the looks go on

    async def _unsubscribe(self, channel: str) -> None:
        try:
            async with self._changing, asyncio.timeout(0.5):
                if self._pubsub is not None and channel not in self._shards:
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
                for event in self._shards.get(message["channel"].decode(), ()):
                    event.set()


def _discard(events: dict[str, set[asyncio.Event]], name: str, event: asyncio.Event) -> None:
    events[name].discard(event)
    if not events[name]:
        del events[name]
