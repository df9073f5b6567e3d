"""The driver of the second witness: reads heartbeats, asks `Witness` whom to fence, carries the fences out.

All members are read each second. At every beat it reads those that gossip doubts, those whose heartbeat paused, and
those that hold work in Redis while gossip does not know them. It fences a process that gossip proves gone without any
reading: Redis itself looks whether that session's subscriber is gone.

Decides nothing about who may be fenced; see `witness`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from cluster import keys, session
from cluster.bounded import Bounded
from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.kept_tasks import Nursery, wait_for
from cluster.swim.core import Swim
from cluster.swim.events import Changed, Evidence, Member, MemberState
from cluster.view import RedisWord
from cluster.vitals.calls import Pulse
from cluster.vitals.witness import Belief, Fence, Path, Witness, believe

SWEEP_S = 1.0  # time between two readings of all members
RETRIES_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1)  # waits: Redis may see a process end later than its peers do
CONSIDERED_MAX, CONSIDERED_S = 10_000, 60.0  # sessions considered at a time, and for how long each
LIVES_MAX = 10_000  # nodes whose latest session this node remembers
ENDED_MAX = 10_000  # dead sessions that this node remembers, so that it tells of each once


class Owner(Protocol):
    """The life whose second witness this is, and the script that stands for it in a test."""

    @property
    def session(self) -> str:
        """This node's own session."""

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes its heartbeats."""

    def on_ended(self, name: str, cause: str, by: str, is_ours: bool) -> None:
        """A tombstone stands for this session; called once for each. `is_ours`: this node wrote it just now."""

    def on_ended_again(self, name: str, cause: str) -> None:
        """Somebody asked about a session that ended long ago."""

    def on_word(self) -> None:
        """Redis's word on some session changed."""


class Fencing:
    """One node's second witness, at work."""

    def __init__(
        self, config: Config, pulse: Pulse, swim: Swim, nursery: Nursery, owner: Owner, stats: Counter[str]
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._swim = swim
        self._nursery = nursery
        self._owner = owner
        self._stats = stats
        self._witness = Witness(config.heartbeat_stale_s, config.lease_s)
        self._now = asyncio.Event()
        self._read_all_s = 0.0
        self._fencing: dict[str, None] = {}
        self._ended: Bounded[str, str] = Bounded(ENDED_MAX)  # session -> cause, of every tombstone that this node knows
        self._considered: dict[str, float] = {}
        self._lives: Bounded[str, str] = Bounded(LIVES_MAX)  # node_id -> the latest session that gossip named

    # ---- what others ask

    def is_ended(self, name: str) -> bool:
        """Whether this node knows of the session's tombstone."""
        return name in self._ended

    def word(self, name: str) -> RedisWord:
        """Redis's word on another session, for the view."""
        if name in self._ended:
            return RedisWord.GONE
        return self._witness.word(name) if self._owner.redis_ok else RedisWord.UNKNOWN

    def age_s(self, name: str) -> float | None:
        """How long this node has watched its heartbeat stand still."""
        return self._witness.age_s(name)

    def broke(self) -> None:
        """An outage or a new connection broke the watch: it begins again."""
        self._witness.restart()
        self._stats["watch_restarts"] += 1

    # ---- what happens

    def consider(self, names: Iterable[str]) -> None:
        """Watch these too: they hold work in Redis or stand on the member list, and gossip does not hold them alive."""
        until_s = time.monotonic() + CONSIDERED_S
        for name in names:
            if name == self._owner.session or not session.is_session(name):
                continue
            if cause := self._ended.get(name):
                self._owner.on_ended_again(name, cause)
            elif len(self._considered) < CONSIDERED_MAX or name in self._considered:
                self._considered[name] = until_s
                if self._is_superseded(name):
                    self._fence_soon(Fence(name, Path.FAST, b"", "gone"))
        self._now.set()

    def changed(self, change: Changed) -> None:
        """Gossip's word on another node changed: look at once where it matters."""
        member = change.member
        name, node_id = member.identity.session, member.identity.node_id
        last = self._lives.get(node_id)
        if last is None or session.is_newer(name, than=last):
            self._lives[node_id] = name
            if last is not None and last not in self._ended:
                self.consider([last])  # A newer life ends it, whatever gossip says of it.
        if member.state is MemberState.ALIVE:
            return
        if self._belief(name, member) is Belief.GONE:
            self.consider([name])  # Gossip forgets a session as soon as it knows a newer one; Redis may not yet.
            self._fence_soon(Fence(name, Path.FAST, b"", "gone"))
        self._now.set()

    def ended(self, name: str, tombstone: bytes, is_ours: bool = False) -> None:
        """A tombstone stands for this session."""
        if name in self._ended or name == self._owner.session:
            return  # Our next beat finds our own.
        cause, by = keys.tombstone(tombstone)
        self._remember(name, cause)
        self._considered.pop(name, None)
        self._witness.forget(name)
        self._owner.on_ended(name, cause, by, is_ours)

    def renamed(self, was: str, cause: str) -> None:
        """Our own session ended; `cause` is its tombstone's."""
        self._remember(was, cause)

    async def run(self) -> None:
        """Read and fence, for ever."""
        while True:
            await wait_for(self._now, self._config.heartbeat_interval_s)
            await self._read()

    # ---- reading

    async def _read(self) -> None:
        asked_s = time.monotonic()
        beliefs = self._beliefs(asked_s)
        names = self._due(beliefs, asked_s)
        if not names or not self._owner.redis_ok:
            return
        try:
            values = await self._pulse.read(names)
        except StoreUnavailable:
            self._stats["reads_failed"] += 1
            self.broke()
            return
        now_s = time.monotonic()
        for name, value in zip(names, values, strict=True):
            word = self._witness.word(name)
            self._witness.read(name, value, asked_s, now_s)
            if value is not None and keys.is_tombstone(value):
                self.ended(name, value)
            elif self._witness.word(name) is not word:
                self._owner.on_word()
        if self._owner.redis_ok:
            for fence in self._witness.fences(self._beliefs(now_s)):
                self._fence_soon(fence)

    def _due(self, beliefs: dict[str, Belief], now_s: float) -> list[str]:
        """The sessions to read now."""
        if now_s - self._read_all_s >= SWEEP_S:
            self._read_all_s = now_s
            return list(beliefs)
        suspects = {m.identity.session: None for m in self._swim.members() if m.state is MemberState.SUSPECT}
        paused_s = self._config.heartbeat_stale_s / 2
        return [
            name
            for name, belief in beliefs.items()
            if belief is not Belief.ALIVE
            or name in suspects
            or name in self._considered
            or (self._witness.age_s(name) or 0.0) >= paused_s
        ]

    def _beliefs(self, now_s: float) -> dict[str, Belief]:
        """Gossip's word on every session that this node watches: members, and those that it considers."""
        members = {m.identity.session: m for m in self._swim.members() if m.is_vouched}
        beliefs = {
            name: self._belief(name, member)
            for name, member in members.items()
            if name != self._owner.session and name not in self._ended
        }
        for name, until_s in list(self._considered.items()):
            if until_s < now_s:
                del self._considered[name]
                if name not in members:
                    self._witness.forget(name)
            elif name not in members:
                beliefs[name] = self._belief(name, None)
        return beliefs

    def _belief(self, name: str, member: Member | None) -> Belief:
        state, evidence = (member.state, member.evidence) if member is not None else (None, Evidence.NONE)
        return believe(state, evidence, self._is_superseded(name), self._swim.is_synced)

    def _is_superseded(self, name: str) -> bool:
        newest = self._lives.get(session.node_of(name))
        own = self._owner.session
        return (newest is not None and session.is_newer(newest, than=name)) or session.is_newer(own, than=name)

    # ---- fencing

    def _fence_soon(self, fence: Fence) -> None:
        name = fence.session
        if name not in self._fencing and name not in self._ended and name != self._owner.session:
            self._fencing[name] = None
            self._nursery.spawn(self._fence(replace(fence, cause=self._cause(fence))))

    async def _fence(self, fence: Fence) -> None:
        """Ask Redis to end a session. The fast path asks a few times: Redis notices a closed connection late."""
        try:
            for wait_s in RETRIES_S if fence.path is Path.FAST else (0.0,):
                answer = await self._pulse.fence(fence, int(self._config.tombstone_s * 1000), self._config.name)
                if answer.is_dead:
                    if answer.is_ours:
                        self._stats["fences"] += 1
                        self._stats[f"fences_{fence.cause}"] += 1
                    self.ended(fence.session, answer.value, answer.is_ours)
                    return
                self._stats["fence_calls_refused"] += 1
                await asyncio.sleep(wait_s)
        except StoreUnavailable:
            self._stats["fence_calls_failed"] += 1
        finally:
            self._fencing.pop(fence.session, None)

    def _cause(self, fence: Fence) -> str:
        """One word for the tombstone: the witness's own for a lease, else gossip's evidence."""
        if fence.cause == "lease":
            return fence.cause
        if self._is_superseded(fence.session):
            return Evidence.SUPERSEDED.value
        member = next((m for m in self._swim.members() if m.identity.session == fence.session), None)
        if member is None:
            return "unknown"
        return MemberState.LEFT.value if member.state is MemberState.LEFT else member.evidence.value

    def _remember(self, name: str, cause: str) -> None:
        self._ended[name] = cause
