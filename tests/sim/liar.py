"""A member that lies: a process with the gossip key that speaks in anybody's name, in the place of a node's `Swim`.

It opens what it hears, answers every ping as whoever it likes to be, and forges what would do the most harm: each lie
of LIES on its own, or random ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from cluster.sim.network import KEY, Sim
from cluster.swim import wire
from cluster.swim.events import (
    Action,
    Datagram,
    Event,
    Evidence,
    Member,
    MemberState,
    PushPull,
    Send,
    Tcp,
    Tick,
)
from cluster.swim.plausible import INCARNATION_AHEAD
from cluster.swim.wire import Ack, Body, Digest, Gossip, Head, LoadRow, Nack, Packet, Ping, PingReq, Pull, Row, Sync

EVERY_S = 0.02  # time between two lies
FAR_MS = 2**56 - 1
NOWHERE = ("192.0.2.7", 9)


class Liar:
    """What a simulated node runs instead of a Swim. `lie` makes the rows, body, loads and head of one packet."""

    def __init__(self, sim: Sim, name: str, lie: Callable[[Liar], Packet]) -> None:
        self.sim = sim
        self.rng = Random(f"liar {sim.seed}")
        self.address = sim.nodes[name].address
        self.stats: Mapping[str, int] = {}
        self._name = name
        self._lie = lie
        self._seal = wire.Seal([KEY], lambda: self.rng.randbytes(wire.NONCE_BYTES))
        self._next_s = sim.now_s

    # ---- as the simulator sees it

    def handle(self, event: Event, now_s: float) -> list[Action]:
        match event:
            case Datagram(source, data):
                packet = self._opened(data)
                if packet is not None and isinstance(packet.body, Ping):
                    return [self._send(source, self.answer(packet.body))]
            case Tick() if now_s >= self._next_s:
                self._next_s = now_s + EVERY_S
                packet = self._lie(self)
                targets = [node.address for node in self.sim.running() if node.name != self._name]
                if isinstance(packet.body, Sync):
                    return [PushPull(target, self._sealed(packet)) for target in targets]
                return [self._send(target, packet) for target in targets]
        return []

    def deadline_s(self) -> float:
        return self._next_s

    def members(self) -> tuple[Member, ...]:
        return ()

    # ---- what it says

    def victim(self) -> str:
        """The session of a living node."""
        return self.rng.choice([node.session for node in self.sim.running() if node.name != self._name])

    def incarnation(self, session: str) -> int:
        """The present incarnation of a living node: everybody is told it."""
        swim = self.sim.nodes[name_of(session)].swim
        members = swim.members() if swim is not None else ()
        return max((m.incarnation for m in members if m.identity.session == session), default=0)

    def answer(self, ping: Ping) -> Packet:
        """An answer as somebody else, who is said to be here."""
        session = self.rng.choice([ping.target, self.victim(), later(self)])
        session = session if wire.is_session(session) else self.victim()
        return self.packet([self.row(session)], Ack(ping.nr, session), session=session)

    def packet(
        self, rows: list[Row], body: Body | None = None, loads: list[LoadRow] | None = None, **head: Any
    ) -> Packet:
        fields: dict[str, Any] = {
            "session": self.victim(),
            "incarnation": 0,
            "state": MemberState.ALIVE,
            "seq": int(self.sim.now_s * 1000) + self.rng.randrange(1000),
            "digest": Digest(0, 0),
            "epoch": 0,
            "load_seq": 0,
            "load": b"",
            **head,
        }
        return Packet(wire.VERSION, self.sim.config.cluster, Head(**fields), body or Gossip(), rows, loads or [])

    def row(self, session: str, **changes: Any) -> Row:
        host, port = self.rng.choice([self.address, NOWHERE])
        fields = {"incarnation": 0, "state": MemberState.ALIVE, "host": host, "port": port, "meta": b"lie", **changes}
        return Row(session, **fields)

    def _send(self, target: tuple[str, int], packet: Packet) -> Send:
        return Send(target, self._sealed(packet))

    def _sealed(self, packet: Packet) -> bytes:
        rows = [wire.encode_row(row) for row in packet.rows]
        loads = [wire.encode_row(load) for load in packet.loads]
        return self._seal.seal(wire.pack(packet.cluster, packet.head, packet.body, rows, loads))

    def _opened(self, data: bytes) -> Packet | None:
        plain = self._seal.open(data)
        return wire.decode(plain) if plain is not None else None


def name_of(session: str) -> str:
    return session.partition("/")[0]


def later(liar: Liar) -> str:
    """A later session of a living node that exists nowhere."""
    at_ms = liar.rng.choice([FAR_MS, int("19ab0000000", 16) + liar.rng.randrange(10**9)])
    return f"{name_of(liar.victim())}/{at_ms:011x}-{liar.rng.getrandbits(32):08x}"


def claim(liar: Liar, state: MemberState, evidence: Evidence, incarnation: int | None = None, ahead: int = 0) -> Packet:
    """A claim about a living node, at its present incarnation unless said otherwise."""
    session = liar.victim()
    if incarnation is None:
        incarnation = liar.incarnation(session) + ahead
    return liar.packet([Row(session, incarnation, state, evidence, name_of(liar.victim()))])


def lost(liar: Liar) -> Packet:
    """One random packet, in anybody's name."""
    numbers = (0, 1, 7, 2**20, 2**40, wire.INCARNATION_MAX - 1, wire.INCARNATION_MAX)
    sessions = [liar.victim(), later(liar), f"x{liar.rng.getrandbits(20)}/0019ab00000-00000001"]
    rows = [
        liar.row(
            liar.rng.choice(sessions),
            incarnation=liar.rng.choice(numbers),
            state=liar.rng.choice(list(MemberState)),
            evidence=liar.rng.choice(list(Evidence)),
            by=name_of(liar.victim()),
            age_s=liar.rng.choice(numbers),
        )
        for _ in range(liar.rng.randrange(5))
    ]
    bodies: list[Body] = [
        Gossip(),
        Ping(liar.rng.choice(numbers), liar.victim()),
        Ack(liar.rng.choice(numbers), liar.victim()),
        Nack(liar.rng.choice(numbers), liar.victim(), liar.rng.choice(list(Tcp))),
        PingReq(liar.rng.choice(numbers), liar.victim(), *NOWHERE, True),
        Pull(liar.rng.randbytes(8), False),
        wire.Rows(True, False),
        Sync(),
    ]
    return liar.packet(
        rows,
        liar.rng.choice(bodies),
        [LoadRow(liar.victim(), liar.rng.choice(numbers), b"lie")],
        session=liar.rng.choice(sessions),
        incarnation=liar.rng.choice(numbers),
        state=liar.rng.choice(list(MemberState)),
        seq=liar.rng.choice([*numbers, 2**62, 2**63 - 1]),
        digest=Digest(liar.rng.choice(numbers), 1),
        epoch=liar.rng.choice([*numbers, 10**15, 2**63 - 1]),
        load_seq=liar.rng.choice(numbers),
    )


def flood(liar: Liar) -> Packet:
    rows = [liar.row(f"x{liar.rng.getrandbits(40)}/0019ab00000-00000001") for _ in range(12)]
    return liar.packet(rows)


LIES: dict[str, Callable[[Liar], Packet]] = {
    "fenced": lambda liar: claim(liar, MemberState.DEAD, Evidence.FENCED),
    "superseded": lambda liar: claim(liar, MemberState.DEAD, Evidence.SUPERSEDED),
    "refused": lambda liar: claim(liar, MemberState.DEAD, Evidence.REFUSED),
    "left": lambda liar: claim(liar, MemberState.LEFT, Evidence.NONE),
    "creeping": lambda liar: claim(liar, MemberState.SUSPECT, Evidence.SILENT, ahead=INCARNATION_AHEAD),
    "later": lambda liar: liar.packet([liar.row(later(liar))]),
    "later, first hand": lambda liar: liar.packet([], session=later(liar)),
    "later, full table": lambda liar: liar.packet([liar.row(later(liar))], Sync()),
    "beyond refutation": lambda liar: claim(liar, MemberState.SUSPECT, Evidence.SILENT, wire.INCARNATION_MAX),
    "last refutation": lambda liar: claim(liar, MemberState.SUSPECT, Evidence.SILENT, wire.INCARNATION_MAX - 1),
    "mute": lambda liar: liar.packet([], seq=2**62),
    "mute softly": lambda liar: liar.packet([], seq=2**19 + liar.rng.getrandbits(18)),
    "mute loads": lambda liar: liar.packet([], None, [LoadRow(liar.victim(), wire.INCARNATION_MAX, b"lie")]),
    "epoch 10^15": lambda liar: liar.packet([], epoch=10**15),
    "epoch 2^63": lambda liar: liar.packet([], epoch=2**63 - 1),
    "moved": lambda liar: liar.packet([liar.row(liar.victim(), incarnation=1, host="zz")]),
    "names": flood,
    "random": lost,
}
