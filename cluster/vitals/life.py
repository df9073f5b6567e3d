"""One node's life: gossip, heartbeat, watching, fencing and leading, on the vitals loop.

Each concern is one endless task that asks a pure part what to do: `Swim` (through the gossip driver) who is a member,
`Witness` whom to fence, `Lease` who leads. Redis answers or does not; a call without an answer changes nothing but the
watch, which begins again, so a Redis that was away fences nobody.

Order matters in a session's birth: its subscription first, then its heartbeat, then gossip. A session that gossip knew
before its subscription stood could be fenced by a mere refusal.

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

from cluster import keys, session
from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import ConfigError, StoreUnavailable
from cluster.gossip.address import seed_addresses
from cluster.gossip.driver import Gossip
from cluster.load import Load, encode_load
from cluster.swim.core import Swim
from cluster.swim.events import (
    Changed,
    Conflict,
    Evidence,
    Fenced,
    Identity,
    Join,
    Leave,
    Member,
    MemberState,
    Renew,
    SetLoad,
)
from cluster.view import RedisWord, View
from cluster.vitals import view_maker
from cluster.vitals.calls import MemberRow, Pulse
from cluster.vitals.fencing import Fencing
from cluster.vitals.heartbeat import Heartbeat
from cluster.vitals.kept_tasks import Nursery, wait_for
from cluster.vitals.leading import Leading
from cluster.vitals.lease import Lease, Term
from cluster.vitals.main_loop import MainLoop
from cluster.vitals.told import (
    Disowned,
    GivingUp,
    Happened,
    NameTaken,
    NewSession,
    NewView,
    RedisReach,
    SessionEnded,
    Tell,
    Woken,
)
from cluster.vitals.witness import Fence, Path

log = structlog.get_logger("vitals")

JOIN_S = 3.0  # between two tries to find members that are not alive here
VIEW_MIN_S = 0.05  # between two views for changes of state
LOAD_S = 0.1  # between two views for loads, and two changes of our own load
WATCH_MAIN_S = 0.25
SEEN_S, SEEN_MAX = 10.0, 1_000  # between two events of what was seen of one session; sessions remembered for that
EXIT_GAVE_UP = 70


class Life:
    """What the vitals thread does. Public attributes are read (and `load`, `ticked_s` written) by the main thread."""

    def __init__(self, config: Config, gossip_keys: Sequence[bytes], meta: bytes, tell: Tell, host: str) -> None:
        self.config = config
        self._tell = tell
        self._rng: Random = SystemRandom()
        self.session = session.new(config.name, wall_ms(), self._rng)
        self.view = View(config.name, self.session, (), None, 0, False, False)
        self.load = Load(True, False, False, {})
        self.ticked_s: float | None = None

        self._stats: Counter[str] = Counter()
        self._nursery = Nursery(self._stats)
        self._lease = Lease(self.session, config.leader_lease_s)
        self._told_leader: Term | None = None
        self._is_leaving = False
        self._is_stalled = False
        self._is_ending = False
        self._was: str | None = None  # our session before this one, until the new one is registered
        self._was_cause = ""
        self._told: tuple[object, ...] = ()
        self._told_load = b""
        self._own_load: Load | None = None
        self._view_timer: asyncio.TimerHandle | None = None
        self._viewed_s = 0.0
        self._seen_s: dict[tuple[str, str], float] = {}

        self._loop = asyncio.get_running_loop()
        self._lead_now = asyncio.Event()
        self.pulse = Pulse(config.redis_url, config.redis_timeout_s, self._watch_broke)
        self._heartbeat = Heartbeat(config, self.pulse, MemberRow(self.session, host, config.port), self, self._stats)
        me = Identity(config.name, self.session, host, config.port, meta)
        rng = Random(self._rng.getrandbits(64))
        self._swim = Swim(config, me, gossip_keys, rng, time.monotonic())
        self.gossip = Gossip(config, gossip_keys, self._swim, self._on_changed, self._on_conflict, self._on_seen)
        self._fencing = Fencing(config, self.pulse, self._swim, self._nursery, self, self._stats)
        self._leading = Leading(self._lease, self.pulse, self._swim, self.gossip, self._fencing.is_ended)

    # ---- birth and end

    async def begin(self) -> None:
        """Bind, register, join. Raises ConfigError when this cannot be: the port or the name is taken."""
        self.gossip.bind()
        older = await self._older_life()
        self._nursery.keep("listen", self._heartbeat.listen)
        await self._heartbeat.beat()
        if not self.redis_ok:
            self._tell(RedisReach(False))
        self.gossip.start()
        await self._join()
        if older is not None:
            self.consider([older])
        self._nursery.keep("beat", self._heartbeat.run)
        self._nursery.keep("read", self._fencing.run)
        self._nursery.keep("join", self._joins)
        self._nursery.keep("lead", self._leads)
        self._nursery.keep("load", self._loads)
        self._nursery.keep("main", self._watch_main)
        self._show()

    async def leave(self) -> None:
        """Say that we drain, and stop leading."""
        self._is_leaving = True
        self.gossip.feed(Leave(done=False))
        self._tell_load()
        await self._resign()
        self._show_soon()

    async def depart(self) -> None:
        """Say that we left; end our own session, so that nobody has to find out whether it died while it drained."""
        self._is_ending = self._is_leaving = True
        self.gossip.feed(Leave(done=True))
        await self._nursery.halt()  # No beat of ours may put back what the next lines take away.
        with contextlib.suppress(StoreUnavailable):
            await self._resign()
            await self.pulse.fence(Fence(self.session, Path.OWN, b"", "left"), self._tombstone_ms, self.config.name)
            await self.pulse.forget(self.session)

    async def close(self) -> None:
        """End every task and connection."""
        if self._view_timer is not None:
            self._view_timer.cancel()
        await self._nursery.halt()
        await self.gossip.close()
        await self.pulse.close()

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

    async def _older_life(self) -> str | None:
        """The session that the member list names for us, if there is one. Raises ConfigError if it lives.

        Our port is bound by now, so whoever moves that heartbeat is another process under our name.
        """
        try:
            record = (await self.pulse.members()).get(self.config.name)
            if record is None or record.session == self.session or not session.is_session(record.session):
                return None
            if not session.is_newer(self.session, than=record.session):
                # Its clock was ahead of ours: a life must come after the one before, or it would be the superseded one.
                self._rename(after=record.session)
            first = (await self.pulse.read([record.session]))[0]
            limit_s = time.monotonic() + self.config.heartbeat_stale_s
            while await self.pulse.subscribers(record.session) and time.monotonic() < limit_s:
                await asyncio.sleep(self.config.heartbeat_interval_s / 5)
                now = (await self.pulse.read([record.session]))[0]
                if first is not None and now not in (first, None) and not keys.is_tombstone(now):
                    raise ConfigError(
                        f"node_id {self.config.name} is alive elsewhere, at {record.host}:{record.port}.",
                        "Give each node its own node_id, or stop the other one.",
                    )
        except StoreUnavailable:
            return None
        return record.session

    def _rename(self, after: str) -> None:
        """Take a session name that comes after this one, before anybody knows us."""
        at_ms = max(wall_ms(), session.order(after)[0] + 1)
        self.session = session.new(self.config.name, at_ms, self._rng)
        self._lease.renamed(self.session)
        self._heartbeat.rename(self.session)
        self.gossip.feed(Renew(self.session))

    # ---- what the heartbeat says

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes our heartbeats."""
        return self._heartbeat.redis_ok

    def on_fenced(self, cause: str) -> None:
        """Our own tombstone stands there, or may have stood there."""
        self._go_on_as_another(cause)

    def on_registered(self) -> None:
        """Redis has taken a heartbeat: of a new session the first ends the one before it."""
        if self._was is not None:
            was, self._was = self._was, None
            self._tell(NewSession(self.session))
            self._tell(SessionEnded(was, self._was_cause))

    def on_reach(self, is_ok: bool) -> None:
        """Redis takes our heartbeats again, or no longer: the watch on others begins again either way."""
        if is_ok:
            self._nursery.spawn(self._redis_is_back())
        self._watch_broke()
        self._tell(RedisReach(is_ok))
        self._tell_load()
        self._show_soon()
        self._lead_now.set()

    def on_refusal(self) -> None:
        """Redis gives another reason why it takes no heartbeat."""
        self._show_soon()

    def on_message(self, message: bytes) -> None:
        """Another node published this to our channel."""
        self._tell(Woken(message))

    async def _redis_is_back(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.pulse.load()

    def _go_on_as_another(self, cause: str, after: str = "") -> None:
        """Our session was fenced: take a new one. It is registered by the next beat, after its subscription.

        `after`: a session of ours that it must come after, if not this one.
        """
        if self._is_ending:
            return
        was = self.session
        self._tell(Disowned(was))  # The new session may have to wait for Redis; what runs must not.
        at_ms = max(wall_ms(), session.order(after or was)[0] + 1)
        self.session = session.new(self.config.name, at_ms, self._rng)
        log.warning("session_fenced", was=was, now=self.session, cause=cause)
        self._stats["own_fencings"] += 1
        if self._was is None:
            self._was, self._was_cause = was, cause
        self._fencing.renamed(was, cause)
        self._lease.renamed(self.session)
        self._heartbeat.renew(self.session)
        self.gossip.feed(Fenced(was))
        self.gossip.feed(Renew(self.session))
        self._event("session_renewed", self.config.name, session=self.session, was=was, evidence=cause)
        self._show_soon()

    # ---- what the second witness says

    def consider(self, names: Iterable[str]) -> None:
        """These sessions hold work in Redis."""
        self._fencing.consider(names)

    def on_ended(self, name: str, cause: str, by: str, is_ours: bool) -> None:
        """A tombstone stands for this session: tell the main loop first, then the lease and gossip."""
        self._tell(SessionEnded(name, cause))
        if self._lease.died(name):
            self._lead_now.set()
        if is_ours:
            self._nursery.spawn(self._forget(name))
        if cause != MemberState.LEFT.value:
            self.gossip.feed(Fenced(name))
            self._event("session_fenced", session.node_of(name), session=name, by=by, evidence=cause)
            log.info("session_ended", session=name, cause=cause, by=by)
        self._show_soon()

    def on_ended_again(self, name: str, cause: str) -> None:
        """It may have claimed something, late, since it was reaped."""
        self._tell(SessionEnded(name, cause))

    def on_word(self) -> None:
        """Redis's word on some session changed."""
        self._show_soon()

    def _watch_broke(self) -> None:
        self._fencing.broke()

    async def _forget(self, name: str) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.pulse.forget(name)

    @property
    def _tombstone_ms(self) -> int:
        return int(self.config.tombstone_s * 1000)

    # ---- gossip

    def _on_changed(self, change: Changed) -> None:
        member = change.member
        name, node_id = member.identity.session, member.identity.node_id
        if name == self.session:
            if member.evidence is Evidence.FENCED and not self._is_ending:
                self._go_on_as_another("fenced")
            self._show_soon()
            return
        if node_id == self.config.name:
            return  # An earlier life of ours.
        is_back = member.state is MemberState.ALIVE and change.was in (None, MemberState.DEAD, MemberState.LEFT)
        kind = "joined" if is_back else member.state.value
        if member.state is not change.was:
            self._event(f"member_{kind}", node_id, session=name, by=member.by, evidence=member.evidence.value)
        self._fencing.changed(change)
        self._show_soon()

    def _on_seen(self, kind: str, name: str) -> None:
        """What a session's sockets said to this node itself: once in a while each, for the timeline alone."""
        now_s = time.monotonic()
        if now_s - self._seen_s.get((kind, name), -inf) > SEEN_S:
            self._seen_s[kind, name] = now_s
            while len(self._seen_s) > SEEN_MAX:
                del self._seen_s[next(iter(self._seen_s))]
            self._event(kind, session.node_of(name), session=name, by=self.config.name)

    def _on_conflict(self, conflict: Conflict) -> None:
        self._nursery.spawn(self._contest(conflict))

    async def _contest(self, conflict: Conflict) -> None:
        """Another session of our name is newer than ours: give way, unless it is one that has ended.

        Then it is an earlier life, and the clock stepped back since: ours must be named after it, or nobody listens.
        """
        other = conflict.other
        with contextlib.suppress(StoreUnavailable):
            value = (await self.pulse.read([other.session]))[0]
            if value is not None and keys.is_tombstone(value):
                self._tell(Disowned(self.session))  # Before anybody can run its tasks again.
                fence = Fence(self.session, Path.OWN, b"", Evidence.SUPERSEDED.value)
                await self.pulse.fence(fence, self._tombstone_ms, self.config.name)
                if session.is_newer(other.session, than=self.session):
                    self._go_on_as_another(Evidence.SUPERSEDED.value, after=other.session)
                return
        message = (
            f"node_id {other.node_id} is used twice: also at {other.host}:{other.port}, as session {other.session}."
        )
        log.error("name_used_twice", message=message)
        self._tell(NameTaken(message))

    async def _joins(self) -> None:
        while True:
            await asyncio.sleep(JOIN_S)
            await self._join()

    async def _join(self) -> None:
        """Look for members that are not alive here: the seeds, and the list in Redis."""
        alive = {
            m.identity.session: m for m in self._swim.members() if m.state not in (MemberState.DEAD, MemberState.LEFT)
        }
        there = {(member.identity.host, member.identity.port) for member in alive.values()}
        seeds = await seed_addresses(self.config.seeds)
        listed: dict[str, MemberRow] = {}
        with contextlib.suppress(StoreUnavailable):
            listed = await self.pulse.members()
        known = [(record.host, record.port) for record in listed.values() if record.session not in alive]
        wanted = tuple(address for address in view_maker.addresses(seeds, known) if address not in there)
        self.gossip.feed(Join(wanted))
        # A row whose node nobody knows any more: its session is watched, and fenced by the rules.
        for record in listed.values():
            if self._fencing.is_ended(record.session):
                await self._forget(record.session)
            elif record.session not in alive and session.node_of(record.session) != self.config.name:
                self.consider([record.session])

    # ---- leading

    async def _leads(self) -> None:
        while True:
            await self._lead()
            await wait_for(self._lead_now, self.config.leader_lease_s / 3)

    async def _lead(self) -> None:
        """One round, if this node may lead at all."""
        if self.redis_ok and not self._is_leaving and not self._is_stalled and self._was is None:
            await self._leading.ask()
            await self._leading.keep_snapshot(self.view, self.config.forget_s)
        self._see_leader()

    async def _resign(self) -> None:
        await self._leading.resign()
        self._see_leader()

    def _see_leader(self) -> None:
        term = self._leading.leader() if self.redis_ok else None
        if term == self._told_leader:
            return
        self._told_leader = term
        if term is None:
            self._event("leader_lost", self.config.name)
        else:
            self._event("leader_elected", session.node_of(term.session), session=term.session, epoch=term.epoch)
        self._show_soon()

    # ---- load, view, timeline

    async def _loads(self) -> None:
        while True:
            await asyncio.sleep(LOAD_S)
            self._tell_load()
            self._see_leader()
            self._show()

    def _tell_load(self) -> None:
        """Gossip our load if it changed. Redis counts as reached while both loops reach it."""
        load = self.load
        own = Load(
            redis=self.redis_ok and load.redis,
            stalled=self._is_stalled,
            leaving=self._is_leaving,
            queues=load.queues,
            running=load.running,
        )
        encoded = encode_load(own)
        if encoded != self._told_load:
            self._told_load = encoded
            self.gossip.feed(SetLoad(encoded, is_urgent=own.turns(self._own_load)))
            self._own_load = own

    def _show_soon(self) -> None:
        """A new view now, or when the last one is VIEW_MIN_S old."""
        if self._view_timer is None:
            wait_s = max(0.0, self._viewed_s + VIEW_MIN_S - time.monotonic())
            self._view_timer = self._loop.call_later(wait_s, self._show_changed)

    def _show_changed(self) -> None:
        self._view_timer = None
        self._viewed_s = time.monotonic()
        self._show()

    def _show(self) -> None:
        """Build the view, and tell the main loop if there is anything new in it."""
        view = View(
            node_id=self.config.name,
            session=self.session,
            members=tuple(
                view_maker.peer(member, self._word(member), self._age_s(member)) for member in self._swim.members()
            ),
            leader=view_maker.leader(self._told_leader),
            epoch=max(self._swim.epoch, self._lease.epoch),
            redis_ok=self.redis_ok,
            is_synced=self._swim.is_synced,
            refusal=self._heartbeat.refusal,
        )
        self.view = view
        essence = view_maker.essence(view)
        if essence != self._told:
            self._told = essence
            self._tell(NewView(view))

    def _word(self, member: Member) -> RedisWord:
        name = member.identity.session
        if name == self.session:
            return RedisWord.LIVE if self.redis_ok else RedisWord.STALE
        if member.evidence is Evidence.FENCED:
            return RedisWord.GONE  # whoever gossips that has seen the tombstone; our own reading is on its way
        return self._fencing.word(name)

    def _age_s(self, member: Member) -> float | None:
        name = member.identity.session
        return self._heartbeat.age_s() if name == self.session else self._fencing.age_s(name)

    def _event(self, kind: str, node_id: str, **more: Any) -> None:
        self._tell(Happened({"at_ms": wall_ms(), "kind": kind, "node_id": node_id, **more}))

    # ---- the main loop

    async def _watch_main(self) -> None:
        """A main loop that does not tick is stalled; one that never ticks again takes its node with it."""
        main = MainLoop(WATCH_MAIN_S, time.monotonic())
        while True:
            await asyncio.sleep(WATCH_MAIN_S)
            quiet_s = main.look(self.ticked_s, time.monotonic())
            if (quiet_s > self.config.stall_after_s) != self._is_stalled:
                self._is_stalled = not self._is_stalled
                log.warning("main_loop_stalled" if self._is_stalled else "main_loop_ticks", quiet_s=round(quiet_s, 1))
                self._event("main_stalled" if self._is_stalled else "main_recovered", self.config.name)
                self._tell_load()
                self._show_soon()
                if self._is_stalled:
                    await self._resign()
            if quiet_s > self.config.stall_limit_s:
                await self._give_up(quiet_s)

    async def _give_up(self, quiet_s: float) -> None:
        """End our own session, so that others take the work at once, then the process: it cannot heal."""
        message = f"the main loop has not ticked for {quiet_s:.0f} s (stall_limit_s {self.config.stall_limit_s})"
        log.error("gave_up", message=message)
        self._tell(GivingUp(message))
        self._is_ending = True
        with contextlib.suppress(StoreUnavailable):
            await self.pulse.fence(Fence(self.session, Path.OWN, b"", "stalled"), self._tombstone_ms, self.config.name)
        self.gossip.feed(Fenced(self.session))
        os._exit(EXIT_GAVE_UP)
