"""The driver of the second witness: reads heartbeats, sees to the silent sessions, carries fences out.

All members are read each second. At every beat it reads those that gossip doubts, those whose heartbeat paused, those
that hold work in Redis while gossip does not know them, and the jurors that were not heard in a trial that runs. It
fences a session whose lease has run out. What may end one before that is decided by all (see `jury`, `trials`).

Decides nothing about who may be fenced; see `witness` and `jury`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import structlog

from cluster import keys, session
from cluster.bounded import Bounded
from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.gossip.driver import GossipDriver
from cluster.kept_tasks import Nursery, wait_for
from cluster.swim.core import Swim
from cluster.swim.events import Address, Changed, Evidence, Looked, MemberState, Sight
from cluster.view import RedisWord
from cluster.vitals.calls import FenceReply, Pulse
from cluster.vitals.jury import Ballot, Jury, Undecided
from cluster.vitals.trials import Trials
from cluster.vitals.witness import Belief, Fence, Witness

log = structlog.get_logger("vitals")

SWEEP_S = 1.0  # time between two readings of all members
ENDED_MAX = 10_000  # dead sessions that this node remembers, so that it tells of each once
HELD_UP_AFTER_S = 0.5  # time for which a session is undecided before people are told
HELD_UP_S = 10.0  # time between two such words about one session
NAMED_MAX = 5  # jurors named to people


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

    def on_held_up(self, name: str, why: str) -> None:
        """This session would be fenced, but for others: `why` names them."""


class Pace(Protocol):
    """The node's own heartbeat."""

    @property
    def is_hearing(self) -> bool:
        """Whether its own subscription stands."""

    def redis_ms(self, at_s: float) -> int:
        """Redis's clock at that moment of the monotonic one."""


class Fencing:
    """One node's second witness, at work."""

    def __init__(
        self,
        config: Config,
        pulse: Pulse,
        swim: Swim,
        gossip: GossipDriver,
        nursery: Nursery,
        heartbeat: Pace,
        owner: Owner,
        stats: Counter[str],
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._swim = swim
        self._nursery = nursery
        self._heartbeat = heartbeat
        self._owner = owner
        self._stats = stats
        self._now = asyncio.Event()
        self._read_all_s = 0.0
        self._fencing: dict[str, None] = {}
        self._ended: Bounded[str, str] = Bounded(ENDED_MAX)  # session -> cause, of every tombstone that this node knows
        self._held_up_s: Bounded[str, float] = Bounded(ENDED_MAX)  # session -> when people are to be told (again)
        self._witness = Witness(config.heartbeat_stale_s, config.lease_s)
        self._jury = Jury(config, swim, self._witness, self._ended, lambda: owner.session)
        self._trials = Trials(config, pulse, self._jury, gossip.feed, nursery, self, stats)

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
        now_s = time.monotonic()
        for name in names:
            if name == self._owner.session or not session.is_session(name):
                continue
            if cause := self._ended.get(name):
                self._owner.on_ended_again(name, cause)
            elif self._jury.consider(name, now_s) and self._jury.is_superseded(name):
                self._trials.hurry(name)
        self._now.set()

    def lives_at(self, name: str, address: Address) -> None:
        """Where a session is to be looked for."""
        self._jury.lives_at(name, address)

    def changed(self, change: Changed) -> None:
        """Gossip's word on another node changed: look at once where it matters."""
        member = change.member
        name = member.identity.session
        last = self._jury.met(member)
        if last is not None and last not in self._ended:
            self.consider([last])  # A newer life ends it, whatever gossip says of it.
        if member.state is MemberState.ALIVE:
            return
        if self._jury.belief(name, member) is Belief.GONE:
            self.consider([name])  # Gossip forgets a session as soon as it knows a newer one; Redis may not yet.
            self._trials.hurry(name)
        self._now.set()

    def looked(self, looked: Looked) -> None:
        """A look of this node has ended."""
        self._trials.looked(looked)

    def asked(self, name: str) -> None:
        """Another node asks for this one's word on a session."""
        if name != self._owner.session and session.is_session(name) and name not in self._ended:
            now_s = time.monotonic()
            self._stats["asked"] += 1
            self._jury.asked(name, now_s)
            if self._swim.member(name) is None:
                self._jury.consider(name, now_s)
            if self._jury.is_open(name, now_s):
                self._trials.hurry(name)
            self._now.set()

    def ended(self, name: str, tombstone: bytes, is_ours: bool = False) -> None:
        """A tombstone stands for this session."""
        if name in self._ended or name == self._owner.session:
            return  # Our next beat finds our own.
        cause, by = keys.tombstone(tombstone)
        self._remember(name, cause)
        self._jury.forget(name)
        self._held_up_s.pop(name, None)
        self._trials.gone(name)
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
        for name in self._jury.drop_old(asked_s):
            self._witness.forget(name)
        names = self._due(self._jury.beliefs(), asked_s)
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
            beliefs = self._jury.beliefs()
            for fence in self._witness.expired(beliefs):
                self._fence_soon(fence)
            self._trials.open(self._jury.open_cases(beliefs, now_s))

    def _due(self, beliefs: dict[str, Belief], now_s: float) -> list[str]:
        """The sessions to read now."""
        if now_s - self._read_all_s >= SWEEP_S:
            self._read_all_s = now_s
            return list(beliefs)
        suspects = {m.identity.session: None for m in self._swim.members() if m.state is MemberState.SUSPECT}
        missing = {name: None for names in self._trials.missing.values() for name in names}
        paused_s = self._config.heartbeat_stale_s / 2
        return [
            name
            for name, belief in beliefs.items()
            if belief is not Belief.ALIVE
            or name in suspects
            or name in missing
            or self._jury.is_considered(name)
            or (self._witness.age_s(name) or 0.0) >= paused_s
        ]

    # ---- fencing

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes our heartbeats."""
        return self._owner.redis_ok

    @property
    def is_hearing(self) -> bool:
        """Whether our own subscription stands."""
        return self._heartbeat.is_hearing

    def redis_ms(self, at_s: float) -> int:
        """Redis's clock at that moment of the monotonic one."""
        return self._heartbeat.redis_ms(at_s)

    def fenced(self, name: str, reply: FenceReply, cause: str) -> None:
        """The session's tombstone stands."""
        if reply.is_ours:
            self._stats["fences"] += 1
            self._stats[f"fences_{cause}"] += 1
        self.ended(name, reply.value, reply.is_ours)

    def held_up(self, name: str, ballot: Ballot, reply: Undecided) -> None:
        """Tell people who stands in the way, once it has lasted for a moment: the session's neighbours do."""
        due_s = self._held_up_s.setdefault(name, ballot.said_s + HELD_UP_AFTER_S)
        if not ballot.ways or ballot.said_s < due_s or not self._swim.is_neighbour(name):
            return
        self._held_up_s[name] = ballot.said_s + HELD_UP_S
        self._stats["held_up_fences"] += 1
        why = _why(ballot, reply)
        log.info("fence_held_up", session=name, word=ballot.word.value, why=why)
        self._owner.on_held_up(name, why)

    def _fence_soon(self, fence: Fence) -> None:
        name = fence.session
        if name not in self._fencing and name not in self._ended and name != self._owner.session:
            self._fencing[name] = None
            self._nursery.spawn(self._fence(fence))

    async def _fence(self, fence: Fence) -> None:
        """Ask Redis to end a session whose lease has run out."""
        try:
            reply = await self._pulse.fence(fence, int(self._config.tombstone_s * 1000), self._config.name)
            if reply.is_dead:
                self.fenced(fence.session, reply, fence.cause)
            else:
                self._stats["fence_calls_refused"] += 1
        except StoreUnavailable:
            self._stats["fence_calls_failed"] += 1
        finally:
            self._fencing.pop(fence.session, None)

    def cause(self, name: str) -> str:
        """One word for the tombstone: gossip's evidence."""
        if self._jury.is_superseded(name):
            return Evidence.SUPERSEDED.value
        member = self._swim.member(name)
        if member is None:
            return "unknown"
        return MemberState.LEFT.value if member.state is MemberState.LEFT else member.evidence.value

    def _remember(self, name: str, cause: str) -> None:
        self._ended[name] = cause


def _why(ballot: Ballot, reply: Undecided) -> str:
    """Who stands in the way of a fence, for people."""

    def nodes(names: Iterable[str]) -> str:
        shown = [session.node_of(name) for name in names]
        more = f" and {len(shown) - NAMED_MAX} more" if len(shown) > NAMED_MAX else ""
        return ", ".join(shown[:NAMED_MAX]) + more

    if reply.missing:
        return f"no word from {nodes(reply.missing)}, which may hear it"
    if reply.alibis:
        return f"{nodes(reply.alibis)} heard it before falling silent"
    if reply.subscribers and ballot.sight is Sight.REFUSED:
        return "its connection to Redis stands"
    return "its silence is too short, or nobody knows more than a cut"
