"""The bulletin: what nodes tell the whole cluster through Redis, for people who watch.

Two things go over one channel. Events: each node tells what it saw or did first-hand; they are kept in a bounded list,
so that a page opened later knows what happened. Sums of tasks: one a second from each node that has something to say.
Of those only the counts of a step are kept, for some minutes, for charts; a step in which Redis is away has a hole, and
what a node counted in the step of its end is lost. Observing costs next to nothing while nobody observes: only a node
that somebody listens to subscribes, and a node whose sums nobody hears tells them rarely.

With Redis away a node goes on with its own events, and tells them when it is back. Decides nothing.
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
from cluster.errors import StoreUnavailable
from cluster.shards.shards import Shards
from node.observe import task_rates
from node.observe.task_rates import Sum, Summing
from node.observe.timeline import EVENTS_MAX, Event, Listener, Timeline, is_first_hand

INTERVAL_S = 1.0  # of sums
UNTOLD_MAX = 200  # events that wait for Redis
TELL_MAX = 50  # in one call
TTL_MS = 7 * 86_400_000
STEP_TTL_MS = 1_000 * task_rates.STEP_S * (task_rates.STEPS_KEPT + 2)
UNHEARD_TICKS = 3  # sums that nobody heard: this many are left out before the next try
SUMS_MAX = 1_000  # of one interval: a sum from each node
MESSAGE_MAX_BYTES = 262_144

log = structlog.get_logger("rumor.bulletin")


class _Message(msgspec.Struct):
    """What goes over the channel."""

    events: list[dict[str, Any]] = []
    sum: Sum | None = None


_decode = msgspec.json.Decoder(_Message).decode
_encode = msgspec.json.Encoder().encode


class Bulletin:
    """One node's part."""

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
        self._sums: list[Sum] = []  # of other nodes, since the last tick
        self._step = 0
        self._counted: dict[str, int] = {}  # by this node in that step
        self._wanted = asyncio.Event()  # somebody listens
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; needs the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._tick()), loop.create_task(self._hear())]
        self._read()

    async def close(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def note(self, event: Event) -> None:
        """Something happened that this node saw: keep it, and tell the cluster if nobody else would."""
        kept = self._timeline.add(event)
        if is_first_hand(kept, self._me):
            self._untold.append(_encode(kept))
            self._tell()

    @contextmanager
    def listen(self, after: str | None) -> Iterator[Listener]:
        """Everything from that event on; raises TooManyListeners."""
        with self._timeline.listen(after) as listener:
            self._wanted.set()
            yield listener

    # ---- telling

    def _tell(self) -> None:
        if self._is_telling or not self._untold or not self._shards.is_up:
            return
        events = [self._untold.popleft() for _ in range(min(TELL_MAX, len(self._untold)))]
        self._is_telling = True

        def told(answer: int | Exception) -> None:
            self._is_telling = False
            if isinstance(answer, Exception):  # no answer, or Redis refuses to write: again with the next tick
                room = UNTOLD_MAX - len(self._untold)
                self._untold.extendleft(reversed(events[max(0, len(events) - room) :]))
            else:
                self._tell()

        self._shards.send(self._shards.calls.tell(events, EVENTS_MAX, TTL_MS, told))

    def _read(self) -> None:
        """What the cluster was told before."""

        def read(lines: Sequence[bytes] | Exception) -> None:
            if not isinstance(lines, Exception):
                for raw in lines:
                    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                        self._timeline.merge([msgspec.json.decode(raw)])

        self._shards.send(self._shards.calls.timeline(read))

    async def _tick(self) -> None:
        """Once a second: this node's sum to the cluster, and everybody's to those who listen here."""
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
                self._wanted.clear()

    def _announce(self, own: Sum) -> None:
        if own.is_empty or not self._shards.is_up:
            return
        if self._unheard_ticks > 0:
            self._unheard_ticks -= 1
            return

        def told(listeners: int | Exception) -> None:
            self._unheard_ticks = UNHEARD_TICKS if listeners == 0 else 0

        self._shards.send(self._shards.calls.announce(_encode(_Message(sum=own)), told))

    def _count(self, own: Sum, step: int) -> None:
        """Keep it for charts: added up here, and to the cluster's counts when the step is over."""
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
        except StoreUnavailable:
            counts = {"states": None, "queues": None}  # No number is better than an old one.
        told = {"at_ms": time.time_ns() // 1_000_000, "kind": "task_sums", "node_id": self._me, "window_s": INTERVAL_S}
        told["nodes"] = 1 + len({one.by for one in others})
        self._timeline.say("task", {**told, **task_rates.report([own, *others]), **counts})

    # ---- hearing

    async def _hear(self) -> None:
        """Subscribed while somebody listens here. What was told before the subscription stood is read after it."""
        while True:
            await self._wanted.wait()
            pubsub = self._client.pubsub(ignore_subscribe_messages=True)
            try:
                async with asyncio.timeout(1.0):
                    await pubsub.subscribe(keys.TIMELINE_CHANNEL)
                self._read()
                while self._wanted.is_set():
                    message = await pubsub.get_message(timeout=INTERVAL_S)
                    if message is not None and message["type"] == "message":
                        self._heard_one(message["data"])
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:
                log.info("bulletin_unheard", error=str(error))
                await asyncio.sleep(INTERVAL_S)
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _heard_one(self, data: bytes) -> None:
        if len(data) > MESSAGE_MAX_BYTES:
            return
        try:
            message = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        self._timeline.merge(message.events)
        if message.sum is not None and message.sum.by != self._me and len(self._sums) < SUMS_MAX:
            self._sums.append(message.sum)
