"""One node's life: its parts on the vitals loop, and the news that each must have of the others.

Every part is an endless task, and a pure part decides for it: `Swim` (through the gossip driver) who is a member,
`Witness` whom to fence, `Lease` who leads, `MainLoop` whether the main loop stalls. Redis answers or does not; a call
without an answer changes nothing but the watch, which begins again, so a Redis that was away fences nobody.

A life owns what the parts share: the name of its session, and whether it drains or ends. A session is born in this
order: its subscription, its heartbeat, gossip. If gossip knew a session before its subscription stood, a mere refusal
could fence it.

Does not know: tasks, shards, HTTP, and the main loop: `tell` is the way back to it (see `told`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from random import Random, SystemRandom
from typing import Any

import structlog

from cluster import keys, output, session
from cluster.bounded import Bounded
from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import ConfigError, StoreUnavailable
from cluster.gossip.driver import GossipDriver
from cluster.hosts import hostport
from cluster.kept_tasks import Nursery
from cluster.load import Load
from cluster.swim.core import Swim
from cluster.swim.events import (
    Changed,
    Evidence,
    Fenced,
    Identity,
    Leave,
    Member,
    MemberState,
    NameConflict,
    RegistryReach,
    Renew,
)
from cluster.view import Peer, View
from cluster.vitals import view_maker
from cluster.vitals.calls import MemberRow, Pulse
from cluster.vitals.fencing import Fencing
from cluster.vitals.heartbeat import Heartbeat, moves_on
from cluster.vitals.joining import Joiner
from cluster.vitals.leading import Leading
from cluster.vitals.lease import Lease, Term
from cluster.vitals.main_watch import MainWatch
from cluster.vitals.own_load import OwnLoad
from cluster.vitals.told import (
    Disowned,
    GivingUp,
    Happened,
    NameTaken,
    NewSession,
    RedisReach,
    SessionEnded,
    Tell,
    Woken,
)
from cluster.vitals.views import Views
from cluster.vitals.vouching import Vouching
from cluster.vitals.witness import Fence, Path

log = structlog.get_logger("vitals")

LOAD_S = 0.1  # time between two views for loads, and between two changes of our own load
SEEN_S, SEEN_MAX = 10.0, 1_000  # time between two events of one kind about one session; how many are remembered
EXIT_GAVE_UP = 70


class Life:
    """What the vitals thread does. The main thread reads `view` and `session`, writes `load` and `main.ticked_s`."""

    def __init__(self, config: Config, gossip_keys: Sequence[bytes], meta: bytes, tell: Tell, host: str) -> None:
        self.config = config
        self._tell = tell
        self._rng: Random = SystemRandom()
        self.session = session.new(config.name, wall_ms(), self._rng)
        self.load = Load(True, False, False, {})
        self._own_load = OwnLoad()
        self._is_leaving = False
        self._is_ending = False
        self._was: tuple[str, str] | None = None  # the session before this one and its cause, until this is registered
        self._seen_s: Bounded[tuple[str, str], float] = Bounded(SEEN_MAX)  # (kind, session) -> when it was last told
        self._stats: Counter[str] = Counter()
        self._nursery = Nursery(self._broke_down, self._stats)

        self.pulse = Pulse(config.redis_url, config.redis_timeout_s, self._watch_broke)
        row = MemberRow(self.session, host, config.port, meta)
        self._heartbeat = Heartbeat(config, self.pulse, row, self, self._stats)
        me = Identity(config.name, self.session, host, config.port, meta)
        # The system's randomness: nobody may guess the number of the next ping from those before it.
        self._swim = Swim(config, me, gossip_keys, self._rng, time.monotonic(), has_registry=True)
        self.gossip = GossipDriver(
            config,
            gossip_keys,
            self._swim,
            self._on_changed,
            lambda conflict: self._nursery.spawn(self._contest(conflict)),
            self._on_seen,
            lambda rumor: self._vouching.hear(rumor),
            lambda looked: self._fencing.looked(looked),
        )
        self._vouching = Vouching(self.pulse, self._swim, self.gossip, self, self._stats)
        self._fencing = Fencing(
            config, self.pulse, self._swim, self.gossip, self._nursery, self._heartbeat, self, self._stats
        )
        self._joining = Joiner(config, self.pulse, self._swim, self.gossip, self._fencing)
        self._lease = Lease(self.session, config.leader_lease_s)
        self._leading = Leading(config, self._lease, self.pulse, self._swim, self.gossip, self)
        self.main = MainWatch(config.stall_after_s, config.stall_limit_s, self._on_stall, self._on_hang)
        self.turned_s = time.monotonic()  # when this thread's loop last turned; the main thread reads it
        self._views = Views(View(config.name, self.session, (), None, 0, False, False), self._make_view, tell)

    # ---- birth and end

    async def begin(self) -> None:
        """Bind, register, join. Raises ConfigError when this cannot be: the port or the name is taken."""
        self.gossip.bind()
        older = await self._older_life()
        self._nursery.keep("listen", self._heartbeat.listen)
        await self._heartbeat.beat()
        if not self.redis_ok:
            self._tell(RedisReach(False, self._heartbeat.error, self._heartbeat.refusal))
        self.gossip.feed(RegistryReach(self.redis_ok))
        self._nursery.keep("vouch", self._vouching.run)
        self.gossip.start()
        await self._joining.look()
        if older is not None:
            self._fencing.lives_at(older.session, (older.host, older.port))
            self.consider([older.session])
        self._nursery.keep("beat", self._heartbeat.run)
        self._nursery.keep("read", self._fencing.run)
        self._nursery.keep("join", self._joining.run)
        self._nursery.keep("lead", self._leading.run)
        self._nursery.keep("load", self._loads)
        self._nursery.keep("main", self.main.run)
        self._views.now()

    async def leave(self) -> None:
        """Say that we drain, and stop leading."""
        self._is_leaving = True
        self.gossip.feed(Leave(done=False))
        self._tell_load()
        await self._leading.resign()
        self._views.soon()

    async def depart(self) -> None:
        """Say that we left; end our own session, so that nobody has to find out whether it died while it drained."""
        self._is_ending = self._is_leaving = True
        self.gossip.feed(Leave(done=True))
        await self._nursery.halt()  # No beat of ours may put back what the next lines take away.
        with contextlib.suppress(StoreUnavailable):
            await self._leading.resign()
            await self._end_own("left")
            await self.pulse.forget(self.session)

    async def end_session(self) -> None:
        """End our own session while everything else goes on; nothing of it may commit from here on."""
        self._is_ending = True
        with contextlib.suppress(StoreUnavailable):
            await self._end_own("left")
        self.gossip.feed(Fenced(self.session))

    async def close(self) -> None:
        """End every task and connection."""
        self._views.close()
        await self._nursery.halt()
        await self.gossip.close()
        await self.pulse.close()

    async def _older_life(self) -> MemberRow | None:
        """The row that the member list has under our name, of an earlier session. Raises ConfigError if it lives.

        Our port is bound by now, so whoever moves that heartbeat is another process under our name.
        """
        try:
            row = (await self.pulse.members()).get(self.config.name)
            if row is None or row.session == self.session or not session.is_session(row.session):
                return None
            if not session.is_newer(self.session, than=row.session):
                # Its clock was ahead of ours. A life must come after the one before, or it would be the superseded one.
                self._name_after(row.session)
                self._heartbeat.rename(self.session)
                self.gossip.feed(Renew(self.session))
            if await moves_on(self.pulse, self.config, row.session):
                raise ConfigError(
                    f"node_id {self.config.name} is alive elsewhere, at {hostport(row.host, row.port)}.",
                    "Give each node its own node_id, or stop the other one.",
                )
        except StoreUnavailable:
            return None
        return row

    # ---- what the main thread asks

    @property
    def view(self) -> View:
        """The latest view."""
        return self._views.latest

    def stats(self) -> Mapping[str, int]:
        """All counters in one."""
        counts = Counter(self._stats)
        counts.update({f"swim_{name}": count for name, count in self._swim.stats.items()})
        counts.update({f"gossip_{name}": count for name, count in self.gossip.stats.items()})
        return counts

    def is_sure(self, name: str) -> bool:
        """Whether nobody can have watched this session's heartbeat stand still: Redis acknowledged it just now."""
        return name == self.session and self._heartbeat.age_s() < self.config.heartbeat_stale_s

    def answer(self, body: bytes) -> bytes | None:
        """The reply to a peer's full exchange."""
        return self.gossip.answer(body)

    # ---- one session after another

    def _name_after(self, other: str) -> None:
        """Take the name of a new session, which comes after `other` whatever the clock says."""
        at_ms = max(wall_ms(), session.order(other)[0] + 1)
        self.session = session.new(self.config.name, at_ms, self._rng)
        self._lease.renamed(self.session)

    def _go_on_as_another(self, cause: str, after: str = "") -> None:
        """Our session was fenced: take a new one. It is registered by the next beat, after its subscription.

        `after`: a session of our name that the new one must come after, if not the one that was fenced.
        """
        if self._is_ending:
            return
        was = self.session
        self._tell(Disowned(was))  # The new session may have to wait for Redis; the tasks that run must not.
        self._name_after(after or was)
        log.warning("session_fenced", was=was, now=self.session, cause=cause)
        self._stats["own_fencings"] += 1
        if self._was is None:
            self._was = was, cause
        self._fencing.renamed(was, cause)
        self._heartbeat.renew(self.session)
        self.gossip.feed(Fenced(was))
        self.gossip.feed(Renew(self.session))
        self._event("session_renewed", self.config.name, session=self.session, was=was, evidence=cause)
        self._views.soon()

    async def _contest(self, conflict: NameConflict) -> None:
        """Gossip knows another session of our name: give way if it lives by Redis's word, which gossip cannot forge.

        If it has ended, it is an earlier life of ours. If it comes after ours all the same, the clock was set back
        since: our session must be named after it, or nobody listens to us.
        """
        other = conflict.other
        try:
            value = (await self.pulse.read([other.session]))[0]
            if keys.is_tombstone(value) and session.is_newer(other.session, than=self.session):
                self._tell(Disowned(self.session))  # Before anybody can run its tasks again.
                await self._end_own(Evidence.SUPERSEDED.value)
                self._go_on_as_another(Evidence.SUPERSEDED.value, after=other.session)
                return
            if not await moves_on(self.pulse, self.config, other.session):
                self._stats["conflicts_denied"] += 1
                return
        except StoreUnavailable:
            return  # Gossip tells it again.
        place = hostport(other.host, other.port)
        message = f"node_id {other.node_id} is used twice: also at {place}, as session {other.session}."
        log.error("name_used_twice", message=message)
        self._tell(NameTaken(message))

    async def _end_own(self, cause: str) -> None:
        """Write our own session's tombstone. Raises StoreUnavailable."""
        fence = Fence(self.session, Path.OWN, b"", cause)
        await self.pulse.fence(fence, int(self.config.tombstone_s * 1000), self.config.name)

    # ---- what the heartbeat says

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes our heartbeats."""
        return self._heartbeat.redis_ok

    def on_asked(self, name: str) -> None:
        """Another node asks this one to look at that session."""
        self._fencing.asked(name)

    def on_fenced(self, cause: str) -> None:
        """Our own tombstone stands there, or may have stood there."""
        self._go_on_as_another(cause)

    def on_registered(self) -> None:
        """Redis has our session. The first time, this is when the session before it may be reaped."""
        if self._was is not None:
            (was, cause), self._was = self._was, None
            self._tell(NewSession(self.session))
            self._tell(SessionEnded(was, cause))

    def on_reach(self, is_ok: bool) -> None:
        """Redis takes our heartbeats again, or no longer. Either way the watch on others begins again."""
        if is_ok:
            self._nursery.spawn(self._load_scripts())
        self._watch_broke()
        self.gossip.feed(RegistryReach(is_ok))
        self._tell(RedisReach(is_ok, self._heartbeat.error, self._heartbeat.refusal))
        self._tell_load()
        self._views.soon()
        self._leading.hurry()

    def on_refusal(self) -> None:
        """The reason why Redis takes no heartbeat changed."""
        self._views.soon()

    def on_message(self, message: bytes) -> None:
        """Another node published this to our channel."""
        self._tell(Woken(message))

    async def _load_scripts(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.pulse.load()

    # ---- what the second witness says

    def consider(self, names: Iterable[str]) -> None:
        """These sessions hold work in Redis."""
        self._fencing.consider(names)

    def is_ended(self, name: str) -> bool:
        """Whether this node knows that this session was fenced."""
        return self._fencing.is_ended(name)

    def on_ended(self, name: str, cause: str, by: str, is_ours: bool) -> None:
        """A tombstone stands for this session: tell the main loop first, then the lease and gossip."""
        self._tell(SessionEnded(name, cause))
        if self._lease.died(name):
            self._leading.hurry()
        if is_ours:
            self._nursery.spawn(self._forget(name))
        if cause != MemberState.LEFT.value:
            self.gossip.feed(Fenced(name))
            self._event("session_fenced", session.node_of(name), session=name, by=by, evidence=cause)
            log.info("session_ended", session=name, cause=cause, by=by)
        self._views.soon()

    def on_ended_again(self, name: str, cause: str) -> None:
        """It may have claimed something, late, since it was reaped."""
        self._tell(SessionEnded(name, cause))

    def on_word(self) -> None:
        """Redis's word on some session changed."""
        self._views.soon()

    def on_held_up(self, name: str, why: str) -> None:
        """This session would be fenced, but for others."""
        self._event("fence_held_up", session.node_of(name), session=name, by=self.config.name, why=why)

    def _watch_broke(self) -> None:
        self._fencing.broke()

    async def _forget(self, name: str) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.pulse.forget(name)

    # ---- what gossip says

    def _on_changed(self, change: Changed) -> None:
        member = change.member
        name, node_id = member.identity.session, member.identity.node_id
        if name == self.session:
            self._views.soon()
            return
        if node_id == self.config.name:
            return  # An earlier life of ours.
        if not member.is_vouched:
            self._views.soon()
            return  # Redis has shown nothing of it: it is for people to see, and ends no session.
        is_back = member.state is MemberState.ALIVE and change.was in (None, MemberState.DEAD, MemberState.LEFT)
        kind = "joined" if is_back else member.state.value
        if member.state is not change.was:
            self._event(f"member_{kind}", node_id, session=name, by=member.by, evidence=member.evidence.value)
        self._fencing.changed(change)
        if member.state in (MemberState.SUSPECT, MemberState.DEAD):
            self._joining.hurry()
        self._views.soon()

    def on_own_rumor(self) -> None:
        """Gossip says that we were fenced. Whoever has its key can say so; a heartbeat tells whether it is true."""
        self._heartbeat.hurry()

    def on_tombstone(self, name: str, tombstone: bytes) -> None:
        """Gossip spoke of this session, and its tombstone stands in Redis."""
        self._fencing.ended(name, tombstone)
        if keys.tombstone(tombstone)[0] != MemberState.LEFT.value:
            self.gossip.feed(Fenced(name))

    def _on_seen(self, kind: str, name: str) -> None:
        """This node itself saw this on a session's sockets. The timeline alone hears of it, once in SEEN_S each."""
        now_s = time.monotonic()
        if now_s - self._seen_s.get((kind, name), -inf) > SEEN_S:
            self._seen_s[kind, name] = now_s
            self._event(kind, session.node_of(name), session=name, by=self.config.name)

    # ---- what the lease says

    def may_ask(self) -> bool:
        """Whether this node may lead at all."""
        return self.redis_ok and not self._is_leaving and not self.main.is_stalled and self._was is None

    def on_leader(self, leader: Term | None) -> None:
        """This node names another leader than before, or none."""
        if leader is None:
            self._event("leader_lost", self.config.name)
        else:
            node_id = session.node_of(leader.session)
            self._event("leader_elected", node_id, session=leader.session, epoch=leader.epoch)
        self._views.soon()

    # ---- what the main loop's ticks say

    async def _on_stall(self, quiet_s: float) -> None:
        """The main loop stalls, or ticks again."""
        is_stalled = self.main.is_stalled
        log.warning("main_loop_stalled" if is_stalled else "main_loop_ticks", quiet_s=round(quiet_s, 1))
        self._event("main_stalled" if is_stalled else "main_recovered", self.config.name)
        self._tell_load()
        self._views.soon()
        if is_stalled:
            await self._leading.resign()

    async def _on_hang(self, quiet_s: float) -> None:
        """The main loop will never tick again."""
        message = f"the main loop has not ticked for {quiet_s:.0f} s (stall_limit_s {self.config.stall_limit_s})"
        await self.give_up(message, "stalled")

    def _broke_down(self, message: str) -> None:
        """A task of this thread has ended for good."""
        self._nursery.spawn(self.give_up(message, "broken"), "give_up")

    async def give_up(self, message: str, cause: str) -> None:
        """End our own session, so that others take the work at once, then the process: it cannot heal."""
        if self._is_ending:
            return
        log.error("gave_up", message=message)
        self._tell(GivingUp(message))
        self._is_ending = True
        try:
            with contextlib.suppress(StoreUnavailable):
                await self._end_own(cause)
            self.gossip.feed(Fenced(self.session))
        finally:
            output.flush()
            os._exit(EXIT_GAVE_UP)

    # ---- load, view, timeline

    async def _loads(self) -> None:
        while True:
            await asyncio.sleep(LOAD_S)
            self.turned_s = time.monotonic()
            self._tell_load()
            self._leading.look()
            self._views.now()

    def _tell_load(self) -> None:
        """Gossip our load if it changed."""
        news = self._own_load.news(
            self.load, redis_ok=self.redis_ok, is_stalled=self.main.is_stalled, is_leaving=self._is_leaving
        )
        if news is not None:
            self.gossip.feed(news)

    def _make_view(self) -> View:
        return View(
            node_id=self.config.name,
            session=self.session,
            members=tuple(self._peer(member) for member in self._swim.members()),
            leader=view_maker.leader(self._leading.leader),
            epoch=self._lease.epoch,
            redis_ok=self.redis_ok,
            is_synced=self._swim.is_synced,
            refusal=self._heartbeat.refusal,
        )

    def _peer(self, member: Member) -> Peer:
        name = member.identity.session
        if name == self.session:
            return view_maker.own_row(member, self.redis_ok, self._heartbeat.age_s())
        return view_maker.peer(member, view_maker.word(member, self._fencing.word(name)), self._fencing.age_s(name))

    def _event(self, kind: str, node_id: str, **more: Any) -> None:
        self._tell(Happened({"at_ms": wall_ms(), "kind": kind, "node_id": node_id, **more}))
