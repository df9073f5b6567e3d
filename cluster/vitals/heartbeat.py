"""One node's sign of life in Redis: its session's heartbeat, the channel it listens on, its row on the member list.

A session subscribes to its own channel first and sends its heartbeat after that. In the other order its heartbeat would
stand there without a subscriber, as that of a process which is gone, and a mere refusal could fence it. Redis echoes
each heartbeat on the channel, so that a subscription which has gone deaf is found.

A call without an answer changes nothing but what this node says of Redis: that it is away, or refuses, and why.

Decides nothing: its `Bearer` acts on the answers. Does not know: gossip, other sessions, the main loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from math import inf
from typing import Protocol

import msgspec
import structlog

from cluster import keys
from cluster.clock import boot_s
from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.kept_tasks import wait_for
from cluster.refusal import Refusal
from cluster.vitals.calls import LOOK, MemberRow, Pulse

log = structlog.get_logger("vitals")

ECHO = b"\x00"  # first byte of what a session publishes to itself; no other message begins with it
ECHOES_LOST_MAX = 3  # beats without an echo, before the subscription counts as deaf
ECHOES_LATE_MAX = 1  # beats without an echo (the last may be under way), up to which the subscription certainly stands
RELISTEN_MIN_S = 0.5  # time between two new subscriptions, unless nobody is subscribed at all
TTL_LEASES = 2  # leases until a heartbeat vanishes after its last beat: longer than any fencer watches it
ENROLL_S = 1.0  # time between two writings of our own row on the member list


class Bearer(Protocol):
    """The life whose heartbeat this is, or the script that stands for it in a test."""

    def on_fenced(self, cause: str) -> None:
        """A tombstone stands for our session, or may have stood there until Redis forgot it."""

    def on_registered(self) -> None:
        """Redis has taken a heartbeat of our session, and our row was written or at least tried."""

    def on_reach(self, is_ok: bool) -> None:
        """Redis takes our heartbeats again, or no longer."""

    def on_refusal(self) -> None:
        """Redis gives another reason than before why it takes no heartbeat, or none any more."""

    def on_message(self, message: bytes) -> None:
        """Another node published this to our channel."""

    def on_asked(self, name: str) -> None:
        """Another node asks this one to look at that session."""


class Heartbeat:
    """The heartbeat of one node, session after session. `run` and `listen` are endless tasks; both must run."""

    def __init__(self, config: Config, pulse: Pulse, row: MemberRow, bearer: Bearer, stats: Counter[str]) -> None:
        self.redis_ok = False
        self.error = ""  # why Redis takes no heartbeat, in words
        self.refusal: Refusal | None = None  # why Redis takes no heartbeat, although it answers
        self._config = config
        self._pulse = pulse
        self._row = row
        self._bearer = bearer
        self._stats = stats
        self._beat_nr = 0
        self._echoed_nr = 0
        self._acked_s = boot_s()
        self._clock_ms = 0.0  # what is to be added to this machine's monotonic time to get Redis's, or a little less
        self._listened_s = 0.0
        self._enrolled_s = -inf
        self._not_enrolled = ""  # why our row could not be written, as last logged
        self._unheard: StoreUnavailable | None = None  # why our subscription does not stand
        self._listening, self._relisten = asyncio.Event(), asyncio.Event()
        self._beat_now = asyncio.Event()

    @property
    def session(self) -> str:
        """The session whose heartbeat this is now."""
        return self._row.session

    def age_s(self) -> float:
        """Seconds since the last heartbeat left that Redis acknowledged."""
        return boot_s() - self._acked_s

    @property
    def is_hearing(self) -> bool:
        """Whether our own subscription stands: Redis echoed our last heartbeats to us."""
        return self._listening.is_set() and self._beat_nr - self._echoed_nr <= ECHOES_LATE_MAX

    def redis_ms(self, at_s: float) -> int:
        """Redis's clock at a moment of our monotonic one, as the last heartbeat shows it; rather too early."""
        return int(1000 * at_s + self._clock_ms)

    def rename(self, session: str) -> None:
        """Take another session's name, while Redis has heard nothing under the old one."""
        self._row = msgspec.structs.replace(self._row, session=session)

    def renew(self, session: str) -> None:
        """Go on as this session: subscribe anew, then beat at once."""
        self.rename(session)
        self._acked_s = boot_s()
        self._enrolled_s = -inf
        self._listening.clear()
        self._relisten.set()
        self._beat_now.set()

    def hurry(self) -> None:
        """Beat now: Redis's answer says whether our session lives."""
        self._beat_now.set()

    async def run(self) -> None:
        """Beat, for ever."""
        next_s = time.monotonic() + self._config.heartbeat_interval_s
        while True:
            await wait_for(self._beat_now, next_s - time.monotonic())
            next_s = max(next_s, time.monotonic()) + self._config.heartbeat_interval_s
            await self.beat()

    async def beat(self) -> None:
        """One heartbeat, and what its answer means."""
        if self.age_s() > self._config.tombstone_s:
            # Our tombstone may have been written and forgotten since. Registering again would raise the dead.
            self._bearer.on_fenced("forgotten")
        name, self._beat_nr = self.session, self._beat_nr + 1
        asked_s = boot_s()
        try:
            await self._until_listening()
            ttl_ms = int(TTL_LEASES * self._config.lease_s * 1000)
            beat = await self._pulse.beat(name, self._beat_nr, ttl_ms, ECHO + b"%d" % self._beat_nr)
        except StoreUnavailable as error:
            self._stats["beats_failed"] += 1
            self._reached(False, error.message, error.refusal)
            return
        self._clock_ms = beat.redis_ms - 1000 * time.monotonic()
        if name != self.session:
            return
        if beat.tombstone is not None:
            self._bearer.on_fenced(keys.tombstone(beat.tombstone)[0])
            return
        self._stats["beats"] += 1
        self._acked_s = asked_s  # The answer may have lain in its buffer for long: this process may have been stopped.
        self._reached(True)
        await self._enroll()
        if name != self.session:
            return
        self._bearer.on_registered()
        if self._is_deaf(beat.subscribers):
            self._stats["deaf"] += 1
            self._relisten.set()

    def _is_deaf(self, subscribers: int) -> bool:
        """Whether our subscription is gone, doubled, or no longer hears our own echoes."""
        if subscribers == 0:
            return True
        is_off = subscribers > 1 or self._beat_nr - self._echoed_nr > ECHOES_LOST_MAX
        return is_off and time.monotonic() - self._listened_s > RELISTEN_MIN_S

    async def _enroll(self) -> None:
        """Put our row on the member list. A failure is no sign that Redis is away: it has just taken our heartbeat.

        The row is written again and again, as it may have been taken away together with an earlier life of ours.
        """
        now_s = time.monotonic()
        if now_s - self._enrolled_s < ENROLL_S:
            return
        self._enrolled_s = now_s
        try:
            await self._pulse.enroll(self._config.name, self._row)
            self._not_enrolled = ""
        except StoreUnavailable as error:
            self._stats["enrollments_failed"] += 1
            if error.message != self._not_enrolled:
                log.warning("not_enrolled", error=error.message)
            self._not_enrolled = error.message

    def _reached(self, is_ok: bool, why: str = "", refusal: Refusal | None = None) -> None:
        """Redis took our heartbeat; or it did not, and why."""
        self.error = why
        if refusal != self.refusal:
            self.refusal = refusal
            self._bearer.on_refusal()
        if is_ok == self.redis_ok:
            return
        self.redis_ok = is_ok
        if not is_ok:
            self._enrolled_s = -inf
        self._bearer.on_reach(is_ok)

    # ---- our own channel

    async def listen(self) -> None:
        """Hold one subscription to our own channel, for ever; replace one that is deaf or doubled."""
        loop = asyncio.get_running_loop()
        while True:
            self._relisten.clear()
            try:
                async with self._pulse.listen(self.session) as messages:
                    self._listened_s = time.monotonic()
                    self._echoed_nr = self._beat_nr
                    self._listening.set()
                    self._unheard = None
                    self._stats["subscriptions"] += 1
                    hearing = loop.create_task(self._hear(messages))
                    waiting = loop.create_task(self._relisten.wait())
                    try:
                        await asyncio.wait({hearing, waiting}, return_when=asyncio.FIRST_COMPLETED)
                        if hearing.done():
                            hearing.result()
                    finally:
                        hearing.cancel()
                        waiting.cancel()
                        await asyncio.gather(hearing, waiting, return_exceptions=True)
            except StoreUnavailable as error:
                self._stats["subscriptions_lost"] += 1
                self._unheard = error
                self._listening.clear()
                await asyncio.sleep(self._config.heartbeat_interval_s / 2)

    async def _hear(self, messages: AsyncIterator[bytes]) -> None:
        async for message in messages:
            if message[:1] == ECHO:
                with contextlib.suppress(ValueError):
                    self._echoed_nr = int(message[1:])
            elif message[:1] == LOOK:
                self._bearer.on_asked(message[1:].decode("utf-8", "replace"))
            else:
                self._stats["wakes"] += 1
                self._bearer.on_message(message)

    async def _until_listening(self) -> None:
        try:
            async with asyncio.timeout(self._config.redis_timeout_s):
                await self._listening.wait()
        except TimeoutError:
            if self._unheard is not None and self._unheard.refusal is not None:
                raise self._unheard from None
            raise StoreUnavailable("Redis does not take our subscription.") from None


async def moves_on(pulse: Pulse, config: Config, name: str) -> bool:
    """Whether a process is subscribed to this session's channel and moves its heartbeat on, so that the session lives.

    Looks for heartbeat_stale_s at most. Raises StoreUnavailable.
    """
    first = (await pulse.read([name]))[0]
    limit_s = time.monotonic() + config.heartbeat_stale_s
    while first is not None and await pulse.subscribers(name) and time.monotonic() < limit_s:
        await asyncio.sleep(config.heartbeat_interval_s / 5)
        now = (await pulse.read([name]))[0]
        if now not in (first, None) and not keys.is_tombstone(now):
            return True
    return False
