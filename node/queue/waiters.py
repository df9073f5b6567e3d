"""Waiters: callers that wait for a task to become terminal. This node's own settles wake them, or Redis's channel.

A waiter reads its task at once, and again when Redis has confirmed the subscription to the channel. The second read
shows a task that ended before the confirmation; of one that ends later, the channel tells. After a reconnection Redis
confirms again, and the waiter reads again. A subscription can go deaf without an error: as a net, every waiter also
reads once a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import redis.asyncio
import structlog

from cluster import keys
from cluster.scripts import UNANSWERED

LOOK_INTERVAL_S = 1.0  # between two reads of a waiter that hears nothing

log = structlog.get_logger("rumor.waiting")


class Waiters:
    """This node's waiters, each with an event, by the task they wait for."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._of_task: dict[str, set[asyncio.Event]] = {}
        self._of_channel: dict[str, set[asyncio.Event]] = {}  # those that wait for a task in the channel's shard
        self._pubsub: redis.asyncio.client.PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    def finished(self, ids: Iterable[str]) -> None:
        """Wake the waiters for these tasks, which are terminal now."""
        if self._of_task:
            for task_id in ids:
                for event in self._of_task.get(task_id, ()):
                    event.set()

    @asynccontextmanager
    async def event_for(self, task_id: str, shard: int) -> AsyncIterator[asyncio.Event]:
        """An event that is set when the task may have become terminal. Read the task once you have entered."""
        event = asyncio.Event()
        channel = keys.finished_channel(shard)
        self._of_task.setdefault(task_id, set()).add(event)
        self._of_channel.setdefault(channel, set()).add(event)
        try:
            if len(self._of_channel[channel]) == 1:
                await self._subscribe(channel)
            yield event
        finally:
            _discard(self._of_task, task_id, event)
            _discard(self._of_channel, channel, event)
            if channel not in self._of_channel:
                await self._unsubscribe(channel)

    async def close(self) -> None:
        """Wake every waiter for a last read, and end."""
        for events in self._of_task.values():
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
                for event in self._of_channel.get(message["channel"].decode(), ()):
                    event.set()


def _discard(events: dict[str, set[asyncio.Event]], name: str, event: asyncio.Event) -> None:
    events[name].discard(event)
    if not events[name]:
        del events[name]
