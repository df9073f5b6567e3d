"""The simulator with Redis: every node has its real `Fencing` (and `Trials`, `Jury`, `Witness`) beside its real `Swim`.

The event loop keeps virtual time, so that the vitals' own tasks run in it, beside the simulated network. Redis is the
scripts' model in Python (`tests.vote_model`, which a test compares with the scripts), a heartbeat and a subscription
of each session, and a network of its own: a node may lose it. A paused node's calls leave when it goes on.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import keys, session
from cluster.config import Config
from cluster.errors import StoreUnavailable, away
from cluster.kept_tasks import Nursery
from cluster.sim.network import Crash, Cut, Fault, Link, Node, Sim
from cluster.swim.events import Changed, Event, Fenced, Member, MemberState, Renew, Tcp, TcpConnect, TcpOutcome
from cluster.vitals.calls import LOOK, WORD_BEATS, FenceReply, Vote
from cluster.vitals.fencing import Fencing
from cluster.vitals.jury import FRESH_S, Ballot
from cluster.vitals.witness import Fence
from tests.vote_model import Slot

GOOD = Link()
WATCH_S = 0.05  # time between two looks of the world at its own signs of life
KNOWN_S = 0.5  # time for which a word counts
REDIS_S = (0.0002, 0.001)  # one way to Redis or back
NOTICED_S = (0.0005, 0.004)  # time from a process's end until Redis sees that its subscription is gone
EPOCH_MS = 1_764_000_000_000  # Redis's clock at the beginning


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but waiting."""

    def __init__(self) -> None:
        super().__init__(_Leap(self))
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class _Leap(selectors.SelectSelector):
    """Instead of waiting, it moves the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for nothing"
        if not ready and timeout:
            self._loop.now_s += timeout
        return ready


@dataclass(slots=True)
class Signs:
    """What reached others of a process that runs, as the world knows it (no node does)."""

    stopped_s: float = inf  # since when it has been stopped
    beat_s: float = 0.0  # when its heartbeat could last reach Redis
    live_s: float = 0.0  # when a live observer (one that runs and reaches Redis) could last have its answer
    any_s: float = 0.0  # when anything of it could last reach Redis or a live observer: also an accepted connect


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A fence: of whom, when, why, by whom, and how its process stood then ("gone": it was none any more)."""

    at_s: float
    session: str
    cause: str
    by: str
    standing: str

    @property
    def was_running(self) -> bool:
        return self.standing != "gone"

    @property
    def is_false(self) -> bool:
        """Whether it breaks the promise."""
        return self.standing == "false"


class Court(Sim):
    """A cluster with Redis in virtual time. `fences` has every tombstone."""

    def __init__(self, seed: int, nodes: int, link: Link = GOOD, config: Config | None = None) -> None:
        self.loop = VirtualLoop()
        self.fences: list[Tombstone] = []
        self.slots: dict[str, Slot] = {}
        self.stats: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.held_up: list[tuple[float, str, str, str]] = []  # (when, by, of whom, why)
        self.bodies: dict[str, Body] = {}
        self.cut_off: set[str] = set()  # nodes that do not reach Redis
        self.redis_rng = Random(f"redis {seed}")
        self.signs: list[dict[str, Signs]] = []  # the last of them, the latest at the end
        self._rejecting: set[tuple[str, str]] = set()
        self._rejected_s: dict[tuple[str, str], float] = {}
        self.clock = SimpleNamespace(monotonic=self.loop.time)
        super().__init__(seed, nodes, link, config)
        self.do(0.0, self._watch_signs)
        self.on_looked = lambda node, looked: self.bodies[node.name].fencing.looked(looked)

    # ---- what a test does

    def run_until(self, until_s: float) -> None:
        async def wait() -> None:
            await asyncio.sleep(until_s - self.loop.time())

        with pytest.MonkeyPatch.context() as patch:
            for module in ("fencing", "trials"):
                patch.setattr(f"cluster.vitals.{module}.time", self.clock)
            self.loop.run_until_complete(wait())
        self.now_s = until_s

    def do(self, at_s: float, action: Callable[[], object]) -> None:
        """Let this happen at that time."""
        self._at(at_s, lambda: action() and None)

    def no_redis(self, at_s: float, *names: str, until_s: float | None = None) -> None:
        """These nodes do not reach Redis from then on."""
        self.do(at_s, lambda: self.cut_off.update(names))
        if until_s is not None:
            self.do(until_s, lambda: self.cut_off.difference_update(names))

    def cut(self, at_s: float, cut: Cut, until_s: float) -> None:
        """This cut alone heals at the end."""
        self.at(at_s, cut)
        self.do(until_s, lambda: self._cuts.remove(cut))

    def resubscribe(self, at_s: float, *names: str, for_s: float = 0.05) -> None:
        """The subscriptions of these nodes are lost for a moment."""

        def lose() -> None:
            for name in names:
                self.slot(self.nodes[name].session).subscribers = 0
                self.bodies[name].is_hearing = False

        self.do(at_s, lose)
        self.do(at_s + for_s, lambda: [self.bodies[name].subscribe() for name in names])

    def close(self) -> None:
        """End everything."""
        for body in self.bodies.values():
            body.end()
        while tasks := asyncio.all_tasks(self.loop):
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()

    # ---- the world

    def slot(self, name: str) -> Slot:
        return self.slots.setdefault(name, Slot())

    @property
    def redis_ms(self) -> int:
        return EPOCH_MS + int(1000 * self.loop.time())

    def buried(self, name: str, tombstone: bytes) -> None:
        cause, by = keys.tombstone(tombstone)
        node = self._host_of(name)
        standing = self._standing(node) if node.is_running and node.session == name else "gone"
        self.fences.append(Tombstone(self.loop.time(), name, cause, by, standing))

    def _standing(self, node: Node) -> str:
        """How a process that runs stands when it is fenced, in the words of the rule's model.

        Words count for two beats, so a sign that came within the last two is too late to be known.
        """
        config, now_s, stopped_s = self.config, self.loop.time(), self.signs[-1][node.name].stopped_s
        signs = self.signs[0][node.name]
        if now_s - stopped_s >= config.stalled_s:
            return "hung"
        if now_s - signs.beat_s >= config.lease_s - 1.0:
            return "lease"
        live = [other for other in self.running() if other is not node and other.name not in self.cut_off]
        if not self.slot(node.session).subscribers and any(
            self._rejected_s.get((other.name, node.name), -inf) >= now_s - KNOWN_S for other in live
        ):
            return "refused by all"
        if now_s - signs.any_s >= config.suspicion_min_s:
            return "cut from all" if stopped_s == inf else "stopped and cut"
        return "silent" if now_s - max(signs.beat_s, signs.live_s) >= config.stalled_s else "false"

    def _watch_signs(self) -> None:
        self.do(self.loop.time() + WATCH_S, self._watch_signs)
        running = self.running()
        live = [node for node in running if node.name not in self.cut_off]
        now_s, known = self.loop.time(), self.signs[-1] if self.signs else {}
        self.signs = [*self.signs[-int(KNOWN_S / WATCH_S) :], {}]
        for node in self.nodes.values():
            signs = self.signs[-1][node.name] = replace(known.get(node.name, Signs()))
            if not node.is_running:
                continue
            signs.stopped_s = min(signs.stopped_s, now_s) if node.is_paused else inf
            self._rejected_s.update({(other.name, node.name): now_s for other in live if self._rejects(other, node)})
            signs.beat_s = max(signs.beat_s, self.bodies[node.name].beaten_s)
            signs.live_s, signs.any_s = max(signs.live_s, signs.beat_s), max(signs.any_s, signs.beat_s)
            others = [other for other in live if other is not node]
            if any(self._is_reachable(other, node) and not self._rejects(other, node) for other in others):
                signs.any_s = now_s
            if not node.is_paused and any(self._has_round_trip(node, other, running) for other in others):
                signs.live_s = signs.any_s = now_s

    def _has_round_trip(self, node: Node, other: Node, running: list[Node]) -> bool:
        """Whether datagrams get there and back, directly or through others."""
        if not self._cuts:
            return True

        def reached(source: Node, *, back: bool) -> list[Node]:
            reach = [source]
            for here in reach:
                reach += [
                    to
                    for to in running
                    if to not in reach and (self._gets_through(to, here) if back else self._gets_through(here, to))
                ]
            return reach

        return other in reached(node, back=False) and other in reached(node, back=True)

    def reject(self, at_s: float, names: Sequence[str], others: Sequence[str], until_s: float | None = None) -> None:
        """These nodes and the others refuse each other's connects, and lose each other's datagrams."""
        pairs = {(one, two) for a in names for b in others for one, two in ((a, b), (b, a))}
        cut = Cut(tuple(names), tuple(others))
        self.at(at_s, cut)
        self.do(at_s, lambda: self._rejecting.update(pairs))
        if until_s is not None:
            self.do(until_s, lambda: (self._rejecting.difference_update(pairs), self._cuts.remove(cut)))

    def _rejects(self, node: Node, to: Node) -> bool:
        return (node.name, to.name) in self._rejecting

    def _connect(self, node: Node, connect: TcpConnect) -> None:
        to = self._by_address.get(connect.target)
        if to is not None and self._rejects(node, to) and not to.has_vanished:
            self._deliver(node, TcpOutcome(connect.session, Tcp.REFUSED, connect.look), 2 * self._delay_s())
        else:
            super()._connect(node, connect)

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        def act() -> None:
            self.now_s = self.loop.time()
            action()

        self.loop.call_at(max(at_s, self.loop.time()), act)

    def hand(self, node: Node, event: Event) -> None:
        self.now_s = self.loop.time()
        self._hand_in(node, event)

    def _start(self, node: Node, seeds: tuple[str, ...], node_id: str) -> None:
        earlier = node.session
        if node.name in self.bodies:
            self.bodies[node.name].end()
        super()._start(node, seeds, node_id)
        self.bodies[node.name] = Body(self, node, earlier)

    def _crash(self, node: Node, how: Crash) -> None:
        ended = node.session
        super()._crash(node, how)
        self.bodies[node.name].end()
        if node.name not in self.cut_off:
            self.do(self.now_s + self._rng.uniform(*NOTICED_S), lambda: setattr(self.slot(ended), "subscribers", 0))

    def _apply(self, fault: Fault) -> None:
        super()._apply(fault)
        for body in self.bodies.values():
            body.runs()

    def _note(self, node: Node, change: Changed, member: Member) -> None:
        super()._note(node, change, member)
        body = self.bodies.get(node.name)
        if body is not None and session.node_of(member.identity.session) != session.node_of(node.session):
            body.fencing.changed(change)


class Body:
    """The second witness of one process: its `Fencing`, its heartbeat, and its way to Redis (the Pulse)."""

    def __init__(self, court: Court, node: Node, earlier: str) -> None:
        self.court = court
        self.node = node
        self.session = node.session
        self.redis_ok = False
        self.is_hearing = False
        self.beaten_s = 0.0  # when Redis took its last heartbeat
        self.timeout_s = court.config.redis_timeout_s
        self.nursery = Nursery(stats=court.stats)
        self._life = node.life
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._beat_nr = 0
        gossip: Any = SimpleNamespace(feed=lambda event: court.loop.call_soon(court.hand, node, event))
        swim: Any = node.swim
        pulse: Any = self
        config = Config(**{**_fields(court.config), "node_id": session.node_of(node.session)})
        self.fencing = Fencing(config, pulse, swim, gossip, self.nursery, self, self, court.stats)
        if earlier:  # Its row stands on the member list.
            self.fencing.lives_at(earlier, node.address)
            self._at_once(self.fencing.consider, [earlier])
        for work in (self._beats(), self.fencing.run(), self._list_members()):
            court.loop.call_soon(self._spawn, work)

    def _at_once(self, act: Callable[..., object], *words: object) -> None:
        self.court.loop.call_soon(act, *words)

    def _spawn(self, work: Any) -> None:
        self.nursery.spawn(work)

    def runs(self) -> bool:
        """Whether the process runs; while it is paused, nothing leaves it."""
        is_running = self.node.is_running and not self.node.is_paused
        (self._goes_on.set if is_running else self._goes_on.clear)()
        return is_running

    def end(self) -> None:
        for task in self.nursery._tasks:
            task.cancel()

    def subscribe(self) -> None:
        self.court.slot(self.session).subscribers = 1
        self.is_hearing = True

    # ---- the heartbeat

    async def _beats(self) -> None:
        self.subscribe()
        next_s = self.court.loop.time()
        while True:
            self._beat_nr += 1
            try:
                await self._reach("beat")
                slot = self.court.slot(self.session)
                if slot.heartbeat is not None and keys.is_tombstone(slot.heartbeat):
                    self._go_on_as_another()
                    continue
                self.beaten_s = self.court.loop.time()
                slot.heartbeat = keys.heartbeat_value(self._beat_nr).encode()
                self.is_hearing = slot.subscribers > 0
                if not self.redis_ok:
                    self.redis_ok = True
                    self.fencing.broke()
            except StoreUnavailable:
                self.is_hearing = False
                if self.redis_ok:
                    self.redis_ok = False
                    self.fencing.broke()
            next_s = max(next_s + self.court.config.heartbeat_interval_s, self.court.loop.time())
            await asyncio.sleep(next_s - self.court.loop.time())

    def _go_on_as_another(self) -> None:
        was = self.session
        self.session = session.new(session.node_of(was), self.court._wall_ms() + 1, self.node.rng)
        self.node.session = self.session
        self.subscribe()
        self.fencing.renamed(was, "fenced")
        self.court.hand(self.node, Fenced(was))
        self.court.hand(self.node, Renew(self.session))

    async def _list_members(self) -> None:
        """The member list in Redis: whoever runs stands on it."""
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._reach("members")
            except StoreUnavailable:
                continue
            assert self.node.swim is not None
            alive = {m.identity.session for m in self.node.swim.members() if m.state in (MemberState.ALIVE, "leaving")}
            for other in self.court.nodes.values():
                name = other.session
                if name and name not in alive and not self.fencing.is_ended(name) and name in self.court.slots:
                    self.fencing.lives_at(name, other.address)
                    self.fencing.consider([name])

    # ---- the life that owns the witness

    def redis_ms(self, at_s: float) -> int:
        return EPOCH_MS + int(1000 * at_s) - 1

    def on_ended(self, name: str, cause: str, by: str, is_ours: bool) -> None:
        if cause != "left":
            self.court.loop.call_soon(self.court.hand, self.node, Fenced(name))

    def on_ended_again(self, name: str, cause: str) -> None:
        pass

    def on_word(self) -> None:
        pass

    def on_held_up(self, name: str, why: str) -> None:
        self.court.held_up.append((self.court.loop.time(), self.node.name, name, why))

    # ---- the Pulse

    async def _reach(self, call: str) -> None:
        """A call leaves this process, and reaches Redis."""
        await self._goes_on.wait()
        self.court.calls[call] += 1
        if self.node.name in self.court.cut_off or self.node.has_vanished:
            await asyncio.sleep(self.timeout_s)
            raise away()
        await asyncio.sleep(self.court.redis_rng.uniform(*REDIS_S))

    async def _back(self) -> None:
        """The answer comes back, and the process runs to take it."""
        if self.node.name in self.court.cut_off:
            await asyncio.sleep(self.timeout_s)
            raise away()
        await asyncio.sleep(self.court.redis_rng.uniform(*REDIS_S))
        await self._goes_on.wait()

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        await self._reach("read")
        values = [self.court.slot(name).heartbeat for name in names]
        await self._back()
        return values

    async def fence(self, fence: Fence, tombstone_ms: int, by: str) -> FenceReply:
        await self._reach("fence")
        reply = self.court.slot(fence.session).fence(fence.path, fence.seen, fence.cause, by, self.court.redis_ms)
        if reply.is_ours:
            self.court.buried(fence.session, reply.value)
        await self._back()
        return reply

    async def vote(self, ballot: Ballot, said_ms: int, beat_s: float, cause: str, tombstone_ms: int, by: str) -> Vote:
        await self._reach("vote")
        reply = self.court.slot(ballot.session).vote(
            *(ballot.voter, ballot.word, said_ms, ballot.seen, int(1000 * ballot.alibi_s), ballot.ways, ballot.jury),
            stands_ms=int(1000 * WORD_BEATS * beat_s),
            fresh_ms=int(1000 * FRESH_S),
            cause=cause,
            by=by,
            now_ms=self.court.redis_ms,
        )
        if isinstance(reply, FenceReply) and reply.is_ours:
            self.court.buried(ballot.session, reply.value)
        await self._back()
        return reply

    async def ask_to_look(self, names: Sequence[str], at: str) -> None:
        await self._reach("ask")
        for name in names:
            self.court.loop.call_later(self.court.redis_rng.uniform(*REDIS_S), self._hear, name, LOOK + at.encode())
        await self._back()

    def _hear(self, name: str, message: bytes) -> None:
        for body in self.court.bodies.values():
            if body.session == name and body.node.is_running and body.node.name not in self.court.cut_off:
                self.court.loop.create_task(body._asked(message[1:].decode()))

    async def _asked(self, name: str) -> None:
        await self._goes_on.wait()
        self.fencing.asked(name)


def _fields(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}
