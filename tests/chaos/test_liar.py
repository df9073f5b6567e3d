"""A member that lies: a process with the gossip key, and without Redis, forges well-sealed messages to real nodes.

Each lie is told to all of a cluster of three, again and again, while tasks run. Nobody loses a task, its session, its
name or its voice; there is one leader; the lies are counted; a member that is killed afterwards is still recovered, and
its next life is let in.
"""

from __future__ import annotations

import base64
import http.client
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import session as sessions
from cluster.swim import wire
from cluster.swim.events import Evidence, MemberState
from cluster.swim.wire import Ack, Body, Digest, Gossip, Head, LoadRow, Packet, Ping, Row, Sync
from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]

KEY = b"k" * 32
LIES_S = 2.5  # time for which each lie is told: longer than a heartbeat may be stale
EVERY_S = 0.02
FAR_MS = 2**56 - 1


class Liar:
    """Knows the key, the sessions and the addresses: what any member knows. Answers pings as it was told to."""

    def __init__(self, fleet: Fleet) -> None:
        self.sessions = [node.session for node in fleet.nodes]
        self.places = [(node.host, node.port) for node in fleet.nodes]
        self.answers_as = ""  # the session as which it answers pings; "": it is silent
        self.asked = 0  # pings that it heard
        self._seal = wire.Seal([KEY], lambda: os.urandom(wire.NONCE_BYTES))
        self._seq = 5_000  # above what the nodes have sent, so that it is believed, and they seem to repeat themselves
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.host, self.port = self._udp.getsockname()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._udp.close()

    def packet(
        self, head_of: str, rows: list[Row], body: Body | None = None, loads: list[LoadRow] | None = None, **head: Any
    ) -> bytes:
        self._seq += 1
        fields: dict[str, Any] = {
            "session": head_of,
            "incarnation": 0,
            "state": MemberState.ALIVE,
            "seq": self._seq,
            "digest": Digest(0, 0),
            "epoch": 0,
            "load_seq": 0,
            "load": b"",
            **head,
        }
        encoded = [wire.encode_row(row) for row in rows], [wire.encode_row(load) for load in loads or []]
        return self._seal.seal(wire.pack("rumor", Head(**fields), body or Gossip(), *encoded))

    def row(self, session: str, state: MemberState = MemberState.ALIVE, **changes: Any) -> Row:
        """A full row; it is said to be here."""
        return Row(session, **{"incarnation": 0, "state": state, "host": self.host, "port": self.port, **changes})

    def claim(self, session: str, state: MemberState, evidence: Evidence, incarnation: int = 0) -> Row:
        return Row(session, incarnation, state, evidence, sessions.node_of(self.sessions[0]))

    def tell(self, make: Callable[[int, str], bytes | None]) -> None:
        """For LIES_S, send each node (its number, its session) what `make` makes of it."""
        until_s = time.monotonic() + LIES_S
        while time.monotonic() < until_s:
            for number, place in enumerate(self.places):
                data = make(number, self.sessions[number])
                if data is not None:
                    self._udp.sendto(data, place)
            self._stop.wait(EVERY_S)

    def post(self, number: int, data: bytes) -> int:
        """POST /gossip, as a full table; the status."""
        connection = http.client.HTTPConnection(*self.places[number], timeout=5)
        try:
            connection.request("POST", "/gossip", data)
            return connection.getresponse().status
        finally:
            connection.close()

    def _answer(self) -> None:
        while not self._stop.is_set():
            if not select.select([self._udp], [], [], 0.05)[0]:
                continue
            data, source = self._udp.recvfrom(65_536)
            plain = self._seal.open(data)
            packet: Packet | None = wire.decode(plain) if plain is not None else None
            if packet is not None and isinstance(packet.body, Ping):
                self.asked += 1
                if self.answers_as:
                    answer = Ack(packet.body.nr, self.answers_as)
                    row = self.row(self.answers_as)
                    self._udp.sendto(self.packet(self.answers_as, [row], answer), source)


@pytest.fixture
def fleet(make_fleet: Make) -> Fleet:
    return make_fleet(3, gossip_keys=base64.b64encode(KEY).decode())


@pytest.fixture
def liar(fleet: Fleet) -> Iterator[Liar]:
    liar = Liar(fleet)
    yield liar
    liar.close()


def later(session: str, at_ms: int | None = None) -> str:
    at_ms = sessions.order(session)[0] + 60_000 if at_ms is None else at_ms
    return f"{sessions.node_of(session)}/{at_ms:011x}-00000001"


def other(liar: Liar, number: int) -> str:
    """The session of another node: in whose name a lie comes."""
    return liar.sessions[(number + 1) % 3]


Lie = Callable[[Liar, int, str], bytes | None]


def _each(liar: Liar, number: int, rows: list[Row]) -> bytes:
    return liar.packet(other(liar, number), rows)


LIES: dict[str, tuple[str, Lie]] = {  # name -> (reason under which it is counted, what one node is sent)
    "fenced": (
        "unconfirmed",
        lambda liar, n, me: _each(
            liar, n, [liar.claim(name, MemberState.DEAD, Evidence.FENCED) for name in liar.sessions]
        ),
    ),
    "a later session that exists nowhere": (
        "unconfirmed",
        lambda liar, n, me: _each(liar, n, [liar.row(later(name)) for name in liar.sessions]),
    ),
    "the last session that can be": (
        "unconfirmed",
        lambda liar, n, me: _each(liar, n, [liar.row(later(name, FAR_MS)) for name in liar.sessions]),
    ),
    "a later session at the right address": (
        "unconfirmed",
        lambda liar, n, me: _each(
            liar,
            n,
            [
                liar.row(later(name), host=host, port=port)
                for name, (host, port) in zip(liar.sessions, liar.places, strict=True)
            ],
        ),
    ),
    "epoch 10^15": ("implausible", lambda liar, n, me: liar.packet(other(liar, n), [], epoch=10**15)),
    "epoch 2^63 - 1": ("implausible", lambda liar, n, me: liar.packet(other(liar, n), [], epoch=2**63 - 1)),
    "incarnation 2^48": (
        "implausible",
        lambda liar, n, me: _each(
            liar,
            n,
            [
                liar.claim(name, MemberState.SUSPECT, Evidence.SILENT, wire.INCARNATION_MAX - (name != me))
                for name in liar.sessions
            ],
        ),
    ),
    "sequence 2^62": ("implausible", lambda liar, n, me: liar.packet(other(liar, n), [], seq=2**62)),
    "load 2^48": (
        "implausible",
        lambda liar, n, me: liar.packet(
            other(liar, n), [], None, [LoadRow(name, wire.INCARNATION_MAX, b"\xff" * 9) for name in liar.sessions]
        ),
    ),
    "moved": (
        "",
        lambda liar, n, me: _each(liar, n, [liar.row(name, incarnation=1) for name in liar.sessions if name != me]),
    ),
    "names that never end": (
        "unconfirmed",
        lambda liar, n, me: _each(
            liar, n, [liar.row(f"x{os.urandom(6).hex()}/0019ab00000-00000001") for _ in range(12)]
        ),
    ),
}


def dropped(fleet: Fleet, reason: str) -> float:
    return sum(node.metric("rumor_gossip_dropped_total", reason=reason) for node in fleet.nodes)


def check_unharmed(fleet: Fleet, liar: Liar, elections: int = 1) -> None:
    """Sessions, addresses, members and leader are as they were, and nobody was fenced."""
    assert [node.session for node in fleet.nodes] == liar.sessions
    fleet.wait_ready()
    for node in fleet.nodes:
        members = node.get("/cluster")["members"]
        assert sorted(row["session"] for row in members) == sorted(liar.sessions), "nobody else was let in"
        assert sorted(row["url"] for row in members) == sorted(f"http://{host}:{port}" for host, port in liar.places)
    leaders = {tuple((node.get("/cluster")["leader"] or {}).values()) for node in fleet.nodes}
    assert len(leaders) == 1, leaders
    _, leader, epoch = leaders.pop()
    assert leader in liar.sessions
    assert epoch <= elections, "nobody took the lease from it"
    assert fleet.fences() == 0


def start_tasks(fleet: Fleet, ledger: Ledger) -> list[str]:
    """Tasks on every node that run through all the lies."""
    ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": LIES_S + 1.0}, each=8)
    wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
    return ids


def check_tasks(fleet: Fleet, ids: list[str], ledger: Ledger) -> None:
    more = fleet.spread("chaos.sleep", {"ledger": str(ledger.path)}, each=5)
    check_kept(fleet.wait_ended([*ids, *more], 30), [*ids, *more], ledger)
    check_ran_once(ledger, [*ids, *more])


def check_recovery(fleet: Fleet, victim: Node, ledger: Ledger) -> None:
    """It is killed: its tasks run elsewhere soon, and its next life is one of the cluster."""
    ids = victim.submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 1.0}, 10)
    wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
    victim.kill()
    survivor = next(node for node in fleet.nodes if node is not victim)
    wait_until(lambda: survivor.member(victim.node_id).get("verdict") == "dead", 5, "its death is known")
    check_kept(fleet.wait_ended(ids, 20, through=survivor), ids, ledger)
    victim.start()
    fleet.wait_ready()


@pytest.mark.parametrize("lie", LIES)
def test_a_forged_message_takes_nothing_from_anybody(fleet: Fleet, liar: Liar, ledger: Ledger, lie: str) -> None:
    reason, make = LIES[lie]
    ids = start_tasks(fleet, ledger)
    before = dropped(fleet, reason) if reason else 0.0
    liar.tell(lambda number, me: make(liar, number, me))
    if reason:
        assert dropped(fleet, reason) > before, f"{reason} lies are counted"
    check_tasks(fleet, ids, ledger)
    check_unharmed(fleet, liar)
    check_recovery(fleet, fleet.nodes[2], ledger)


@pytest.mark.parametrize("which", ["a later life", "an earlier life", "a stranger"])
def test_who_answers_pings_in_anothers_name_does_not_get_it(
    fleet: Fleet, liar: Liar, ledger: Ledger, which: str
) -> None:
    """The liar says that a session lives at its address, and answers there as that session."""
    target = liar.sessions[1]
    names = {
        "a later life": later(target),
        "an earlier life": later(target, sessions.order(target)[0] - 60_000),
        "a stranger": "x/0019ab00000-00000001",
    }
    liar.answers_as = names[which]
    ids = start_tasks(fleet, ledger)
    row = liar.row(names[which])
    liar.tell(lambda number, me: liar.packet(names[which], [row], Ping(1, "")))
    assert liar.asked > 0
    check_tasks(fleet, ids, ledger)
    check_unharmed(fleet, liar)


def test_a_forged_table_over_tcp_is_believed_no_more_than_a_datagram(fleet: Fleet, liar: Liar, ledger: Ledger) -> None:
    ids = start_tasks(fleet, ledger)
    rows = [
        *(liar.claim(name, MemberState.DEAD, Evidence.FENCED) for name in liar.sessions),
        *(liar.row(later(name, FAR_MS)) for name in liar.sessions),
        *(liar.row(f"x{number}/0019ab00000-00000001") for number in range(2_000)),
    ]
    for _ in range(3):
        for number in range(3):
            head = {"epoch": 10**15, "incarnation": wire.INCARNATION_MAX}
            assert liar.post(number, liar.packet(other(liar, number), rows, Sync(), **head)) == 200
    check_tasks(fleet, ids, ledger)
    check_unharmed(fleet, liar)


def test_without_redis_a_lie_has_no_effect_either(
    fleet: Fleet, liar: Liar, ledger: Ledger, redis_server: RedisServer
) -> None:
    ids = start_tasks(fleet, ledger)
    redis_server.stop()
    try:
        wait_until(
            lambda: all(node.member(node.node_id)["redis"] == "stale" for node in fleet.nodes), 5, "all miss Redis"
        )
        _, fenced = LIES["fenced"]
        _, superseded = LIES["a later session that exists nowhere"]
        liar.tell(lambda number, me: (fenced if os.urandom(1) < b"\x80" else superseded)(liar, number, me))
    finally:
        redis_server.cont()
    fleet.wait_ready()
    check_tasks(fleet, ids, ledger)
    check_unharmed(fleet, liar, elections=2)  # The lease may have run out while Redis was away.
