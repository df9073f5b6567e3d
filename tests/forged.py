"""One real Swim among forged peers: a test writes what the peers say and reads what the node does about it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from random import Random
from typing import Any, TypeVar

from cluster.config import Config
from cluster.session import node_of
from cluster.swim import wire
from cluster.swim.core import Swim
from cluster.swim.events import (
    Action,
    Address,
    Changed,
    Datagram,
    Event,
    Evidence,
    Identity,
    Member,
    MemberState,
    Send,
    Tcp,
    TcpConnect,
    TcpOutcome,
    Tick,
    Vouched,
)
from cluster.swim.newcomers import CHALLENGE_SPACING_S
from cluster.swim.wire import Ack, Body, Digest, Gossip, Head, LoadRow, Packet, Ping, Row

WALL_MS = 1_764_000_000_000
CONFIG = Config(probe_interval_s=0.5, probe_timeout_s=0.4, gossip_interval_s=0.1)

T = TypeVar("T")


def session_of(name: str, life: int = 1) -> str:
    """The session name of a node's n-th life."""
    return f"{name}/{WALL_MS + life:011x}-{life:08x}"


def address_of(name: str) -> Address:
    return f"{name}.test", 5000


def identity_of(name: str, life: int = 1) -> Identity:
    return Identity(name, session_of(name, life), *address_of(name), b"meta")


def row_of(name: str, life: int = 1, **changes: Any) -> Row:
    """A full row: alive at incarnation 0 unless `changes` say otherwise."""
    host, port = address_of(name)
    fields = {"incarnation": 0, "state": MemberState.ALIVE, "host": host, "port": port, "meta": b"meta", **changes}
    return Row(session_of(name, life), **fields)


def accusation(name: str, by: str, evidence: Evidence = Evidence.SILENT, incarnation: int = 0) -> Row:
    return Row(session_of(name), incarnation, MemberState.SUSPECT, evidence, by)


class Bench:
    """The node `me`, at a clock that the test moves, among members that are alive and say only what the test says."""

    def __init__(self, *peers: str, config: Config = CONFIG, seed: int = 1, has_registry: bool = False) -> None:
        """With a registry, it vouches for `peers` and for nobody else."""
        self.now_s = 1000.0
        self.config = config
        self.swim = Swim(config, identity_of("me"), (), Random(seed), self.now_s, has_registry=has_registry)
        self.actions: list[Action] = []
        self._seq = count(1)
        for peer in peers:
            self.meet(peer)
            if has_registry:
                self.hand_in(Vouched(identity_of(peer)))
        if peers:
            self.hear(peers[0], Ping(0, session_of("me")))  # Its digest is equal: the joining is over.
        self.take()

    # ---- what happens to the node

    def hand_in(self, event: Event) -> list[Action]:
        """Hand in one event now. Returns the node's actions, and keeps them for `take` too."""
        actions = self.swim.handle(event, self.now_s)
        self.actions += actions
        return actions

    def hear(
        self,
        peer: str,
        body: Body | None = None,
        rows: Iterable[Row] = (),
        loads: Iterable[LoadRow] = (),
        source: str = "",
        **head: Any,
    ) -> list[Action]:
        """Hand in a datagram of a peer. Its digest is the node's own unless `head` says otherwise: nothing to pull."""
        fields: dict[str, Any] = {
            "session": session_of(peer),
            "incarnation": self.incarnation(peer),
            "state": MemberState.ALIVE,
            "seq": next(self._seq),
            "digest": self.digest(),
            "epoch": 0,
            "load_seq": 0,
            "load": b"",
            **head,
        }
        packed = wire.pack(
            self.config.cluster,
            Head(**fields),
            body if body is not None else Gossip(),
            [wire.encode_row(row) for row in rows],
            [wire.encode_row(load) for load in loads],
        )
        return self.hand_in(Datagram(address_of(source or peer), wire.PLAIN + packed))

    def meet(self, peer: str, rows: Iterable[Row] | None = None, **head: Any) -> None:
        """The peer joins: it pings, is asked back, and answers with its row (or these)."""
        asked = sent(self.hear(peer, Ping(1, "")), Ping, peer)[-1]
        self.hear(peer, Ack(asked.nr, session_of(peer)), rows if rows is not None else [row_of(peer)], **head)

    def renew(self, peer: str, life: int = 2) -> list[Action]:
        """A later life of the peer answers a ping to the peer's address: the earlier one no longer has the port."""
        self.now_s += 2 * CHALLENGE_SPACING_S
        session = session_of(peer, life)
        asked = sent(self.hear(peer, Ping(1, ""), session=session), Ping, peer)[-1]
        return self.hear(peer, Ack(asked.nr, session), rows=[row_of(peer, life)], session=session)

    def pass_s(self, duration_s: float, answering: Iterable[str] = ()) -> None:
        """Let time pass with ticks when they are due; `answering` peers answer each ping at once."""
        until_s = self.now_s + duration_s
        answering = tuple(answering)
        while (due_s := self.swim.deadline_s()) <= until_s:
            self.now_s = max(self.now_s, due_s)
            for action in self.hand_in(Tick()):
                self._answer(action, answering)
        self.now_s = until_s

    def _answer(self, action: Action, answering: tuple[str, ...]) -> None:
        if isinstance(action, Send):
            packet = opened(action)
            name = action.target[0].removesuffix(".test")
            if isinstance(packet.body, Ping) and name in answering:
                for follow in self.hear(name, Ack(packet.body.nr, session_of(name))):
                    self._answer(follow, answering)

    def tcp(self, peer: str, outcome: Tcp) -> list[Action]:
        return self.hand_in(TcpOutcome(session_of(peer), outcome))

    # ---- what the node did and holds

    def take(self) -> list[Action]:
        """The node's actions since the last `take`."""
        actions, self.actions = self.actions, []
        return actions

    def member(self, name: str) -> Member | None:
        return next((member for member in self.swim.members() if member.identity.node_id == name), None)

    def state(self, name: str) -> MemberState | None:
        member = self.member(name)
        return member.state if member is not None else None

    def incarnation(self, name: str) -> int:
        member = self.member(name)
        return member.incarnation if member is not None else 0

    def digest(self) -> Digest:
        """The node's digest, as its next datagram would carry it."""
        return self.swim._table.digest


def opened(action: Send) -> Packet:
    """The packet in a datagram that the node sent."""
    packet = wire.decode(action.data[1:])
    assert packet is not None
    return packet


def sent(actions: Iterable[Action], kind: type[T], to: str | None = None) -> list[T]:
    """Bodies of this kind in the datagrams, to one peer or to all."""
    packets = [
        opened(action)
        for action in actions
        if isinstance(action, Send) and (to is None or action.target == address_of(to))
    ]
    return [packet.body for packet in packets if isinstance(packet.body, kind)]


def rows_about(actions: Iterable[Action], about: str, to: str | None = None) -> list[Row]:
    """Rows about a member in the datagrams, to one peer or to all."""
    return [
        row
        for action in actions
        if isinstance(action, Send) and (to is None or action.target == address_of(to))
        for row in opened(action).rows
        if node_of(row.session) == about
    ]


def targets(actions: Iterable[Action], kind: type[Body] | None = None) -> list[str]:
    """Names of the peers to which the node sent a datagram (with such a body), in order."""
    return [
        action.target[0].removesuffix(".test")
        for action in actions
        if isinstance(action, Send) and (kind is None or isinstance(opened(action).body, kind))
    ]


def connects(actions: Iterable[Action]) -> list[str]:
    """Sessions whose TCP port the node tried."""
    return [action.session for action in actions if isinstance(action, TcpConnect)]


def changes(actions: Iterable[Action], of: str) -> list[tuple[MemberState, Evidence]]:
    """The states of a member, with their evidence, of which the driver was told."""
    return [
        (action.member.state, action.member.evidence)
        for action in actions
        if isinstance(action, Changed) and action.member.identity.node_id == of
    ]
