"""The cluster's timeline: what nodes tell each other of events and sums through Redis, for people who watch.

Two things go over one channel. First, events: each node tells what it saw or did first-hand. Redis keeps them in a
bounded list, so that a page that is opened later can show them. Second, sums of tasks: each node on which something
happened tells one a second. For charts Redis keeps only their counts by step, for some minutes. A step in which Redis
is away has a hole, and the counts of a node that ends are lost for that step.

Watching costs next to nothing while nobody watches: a node subscribes only while a client listens to it, and a node
whose sums nobody hears tells them rarely. While Redis is away a node keeps its own events, and tells them afterwards.
This module decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import redis.asyncio
import structlog
from redis.exceptions import RedisError

from cluster import keys
from cluster.clock import wall_ms
from cluster.errors import RumorError
from cluster.kept_tasks import Nursery
from cluster.shards.shards import Shards
from node.observe import task_rates
from node.observe.task_rates import Sum, Summing
from node.observe.timeline import EVENTS_MAX, Event, Listener, Timeline, is_first_hand

INTERVAL_S = 1.0  # time between two sums
UNTOLD_MAX = 200  # events that wait for Redis
TELL_MAX = 50  # events in one call
TTL_MS = 7 * 86_400_000  # lifetime of the list of events in Redis
STEP_TTL_MS = 1_000 * task_rates.STEP_S * (task_rates.STEPS_KEPT + 2)  # two steps more than any chart shows
UNHEARD_TICKS = 3  # sums that are left out after one that nobody heard
SUMS_MAX = 1_000  # sums in one interval, which has one from each node
MESSAGE_MAX_BYTES = 262_144  # size of a message on the channel; a larger one is passed over

log = structlog.get_logger("rumor.bulletin")


class _Message(msgspec.Struct):
    """A message on the channel."""

    events: list[dict[str, Any]] = []
    sum: Sum | None = None


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


class Bulletin:
    """One node's part in the cluster's timeline."""

    def __init__(
        self,
        me: str,
        shards: Shards,
        client: redis.asyncio.Redis,
        timeline: Timeline,
        counts: Callable[[], Awaitable[dict[str, Any]]],
        summing: Summing,
    ) -> None:
        self._me = me
        self._shards = shards
        self._client = client
        self._timeline = timeline
        self._counts = counts
        self._summing = summing
        self._untold: deque[bytes] = deque(maxlen=UNTOLD_MAX)
        self._is_telling = False
        self._unheard_ticks = 0
        self._sums: list[Sum] = []  # from other nodes, since the last tick
        self._step = 0
        self._counted: dict[str, int] = {}  # by this node in that step
        self._is_watched = asyncio.Event()  # a client listens to this node

    def start(self, kept: Nursery) -> None:
        """Begin; needs the running loop. It ends with `kept`."""
        kept.keep("timeline_tells", self._tick)
        kept.keep("timeline_hears", self._hear)
        self._read()

    def note(self, event: Event) -> None:
        """Keep an event that this node saw, and tell the cluster if no other node would."""
        kept = self._timeline.add(event)
        if is_first_hand(kept, self._me):
            self._untold.append(_encode(kept))
            self._tell()

    @contextmanager
    def listen(self, after: str | None) -> Iterator[Listener]:
        """A listener that gets everything after that event; raises TooManyListeners."""
        with self._timeline.listen(after) as listener:
            self._is_watched.set()
            yield listener

    # ---- telling

    def _tell(self) -> None:
        if self._is_telling or not self._untold or not self._shards.is_up:
            return
        events = [self._untold.popleft() for _ in range(min(TELL_MAX, len(self._untold)))]
        self._is_telling = True

        def on_reply(answer: int | Exception) -> None:
            self._is_telling = False
            if isinstance(answer, Exception):  # no answer, or Redis refuses to write: try again at the next tick
                room = UNTOLD_MAX - len(self._untold)
                self._untold.extendleft(reversed(events[max(0, len(events) - room) :]))
            else:
                self._tell()

        self._shards.send(self._shards.calls.tell(events, EVENTS_MAX, TTL_MS, on_reply))

    def _read(self) -> None:
        """Read the events that Redis keeps."""

        def on_reply(lines: Sequence[bytes] | Exception) -> None:
            if not isinstance(lines, Exception):
                for raw in lines:
                    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                        self._timeline.merge([msgspec.json.decode(raw)])

        self._shards.send(self._shards.calls.timeline(on_reply))

    async def _tick(self) -> None:
        """Once a second: tell the cluster this node's sum, and the clients that listen here the sums of all nodes."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            next_s = max(next_s + INTERVAL_S, loop.time())
            await asyncio.sleep(next_s - loop.time())
            self._tell()
            own = self._summing.take()
            is_watched = self._timeline.listeners > 0
            others, self._sums = self._sums, []
            self._announce(own)
            self._count(own, int(time.time() // task_rates.STEP_S))
            if is_watched:
                await self._say(own, others)
            else:
                self._is_watched.clear()

    def _announce(self, own: Sum) -> None:
        if own.is_empty or not self._shards.is_up:
            return
        if self._unheard_ticks > 0:
            self._unheard_ticks -= 1
            return

        def on_reply(listeners: int | Exception) -> None:
            self._unheard_ticks = UNHEARD_TICKS if listeners == 0 else 0

        self._shards.send(self._shards.calls.announce(_encode(_Message(sum=own)), on_reply))

    def _count(self, own: Sum, step: int) -> None:
        """Keep a sum for charts: add it up here, and add the total to the cluster's counts when the step is over."""
        if step != self._step:
            if self._counted and self._shards.is_up:
                self._shards.send(
                    self._shards.calls.add_counts(self._step, self._counted, STEP_TTL_MS, lambda answer: None)
                )
            self._step, self._counted = step, {}
        task_rates.count(own, self._counted)

    async def _say(self, own: Sum, others: list[Sum]) -> None:
        try:
            counts: dict[str, Any] = await self._counts()
        except RumorError:
            counts = {"states": None, "queues": None}  # No number is better than an old one.
        event = {"at_ms": wall_ms(), "kind": "task_sums", "node_id": self._me, "window_s": INTERVAL_S}
        event["nodes"] = 1 + len({other.by for other in others})
        self._timeline.say("task", {**event, **task_rates.report([own, *others]), **counts})

    # ---- hearing

    async def _hear(self) -> None:
        """Subscribe while a client listens here. Events from before the subscription stood are read from Redis."""
        while True:
            await self._is_watched.wait()
            pubsub = self._client.pubsub(ignore_subscribe_messages=True)
            try:
                async with asyncio.timeout(1.0):
                    await pubsub.subscribe(keys.timeline_channel(self._shards.calls.database))
                self._read()
                while self._is_watched.is_set():
                    message = await pubsub.get_message(timeout=INTERVAL_S)
                    if message is not None and message["type"] == "message":
                        self._on_message(message["data"])
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:
                log.info("bulletin_unheard", error=str(error))
                await asyncio.sleep(INTERVAL_S)
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _on_message(self, data: bytes) -> None:
        if len(data) > MESSAGE_MAX_BYTES:
            return
        try:
            message = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        self._timeline.merge(message.events)
        if message.sum is not None and message.sum.by != self._me and len(self._sums) < SUMS_MAX:
            self._sums.append(message.sum)
