"""Intruders: a second node with the same name, a node with other settings, bytes that no member sent.

Each is turned away with a reason, and the members do not suffer for it.
"""

from __future__ import annotations

import base64
import gzip
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cluster.swim import wire
from cluster.swim.events import Evidence, MemberState
from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.integration.conftest import RedisServer
from tests.processes import free_base_port
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]

KEY = b"k" * 32
DROPPED = ("malformed", "unsealed", "other_cluster")


def refused(stray: Node) -> str:
    """Start it; its output up to its end with an error."""
    stray.start()
    status = stray.wait()
    assert status not in (0, None)
    assert status > 0, "it ended by itself, not by a signal"
    text = stray.log()
    assert "Traceback" not in text
    return text


def check_unharmed(fleet: Fleet, sessions: list[str], ledger: Ledger) -> None:
    """The members are the same as before, and work."""
    assert [node.session for node in fleet.nodes] == sessions
    fleet.wait_ready()
    ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path)}, each=5)
    check_kept(fleet.wait_ended(ids, 10), ids, ledger)
    check_ran_once(ledger, ids)
    assert fleet.fences() == 0


def test_a_second_node_of_the_same_name_refuses_to_start_and_the_first_is_unharmed(
    make_fleet: Make, ledger: Ledger
) -> None:
    fleet = make_fleet(2)
    first = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 4.0}, each=10)
    wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
    twin = fleet.stray("127.0.0.1", free_base_port(1), node_id=first.node_id)
    text = refused(twin)
    assert f"node_id {first.node_id} is alive elsewhere, at {first.host}:{first.port}" in text
    assert "Give each node its own node_id" in text
    check_kept(fleet.wait_ended(ids, 20), ids, ledger)
    check_ran_once(ledger, ids)
    check_unharmed(fleet, sessions, ledger)


def test_a_node_with_another_number_of_shards_refuses_to_start(make_fleet: Make, ledger: Ledger) -> None:
    fleet = make_fleet(1)
    sessions = [node.session for node in fleet.nodes]
    text = refused(fleet.stray("127.0.0.1", free_base_port(1), shards=32))
    assert "shards is 32, and this cluster was made with 64" in text
    check_unharmed(fleet, sessions, ledger)


def test_a_node_refuses_a_redis_that_evicts_unless_told_that_it_may(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    redis = RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru")
    fleet = Fleet(tmp_path, redis.url)
    try:
        text = refused(fleet.stray("127.0.0.1", free_base_port(1)))
        assert "maxmemory-policy is 'allkeys-lru'" in text
        assert "--insecure-redis" in text
        bold = fleet.make("127.0.0.1", free_base_port(1))
        fleet.nodes.append(bold)
        bold.start("--insecure-redis")
        fleet.wait_ready()
        assert "redis_evicts" in {problem["code"] for problem in bold.get("/health")["problems"]}
    finally:
        fleet.close()
        redis.kill()


def test_datagrams_of_nobody_are_counted_and_harm_nobody(make_fleet: Make, ledger: Ledger) -> None:
    fleet = make_fleet(3, gossip_keys=base64.b64encode(KEY).decode())
    target, accused = fleet.nodes[0], fleet.nodes[1]
    sessions = [node.session for node in fleet.nodes]
    # Members would believe this death, if it were sealed with their key.
    head = wire.Head(
        fleet.nodes[2].session, 0, MemberState.ALIVE, time.time_ns() // 1_000_000, wire.Digest(0, 0), 0, 0, b""
    )
    row = wire.Row(accused.session, 0, MemberState.DEAD, Evidence.REFUSED, fleet.nodes[2].node_id)
    forged = wire.pack("rumor", head, wire.Gossip(), [wire.encode_row(row)])
    chance = random.Random(7)
    datagrams = [
        *(chance.randbytes(chance.randrange(1, 1400)) for _ in range(200)),
        *(b"\x01" + chance.randbytes(60) for _ in range(50)),
        wire.Seal([b"x" * 32], lambda: os.urandom(12)).seal(forged),
        wire.Seal([], lambda: os.urandom(12)).seal(forged),
        wire.Seal([KEY], lambda: os.urandom(12)).seal(b"\x93\x01\x02"),
        wire.Seal([KEY], lambda: os.urandom(12)).seal(wire.pack("another", head, wire.Gossip())),
    ]

    def dropped() -> float:
        return sum(target.metric("rumor_gossip_dropped_total", reason=why) for why in DROPPED)

    before = dropped()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for datagram in datagrams:
            udp.sendto(datagram, (target.host, target.port))
    wait_until(lambda: dropped() - before == len(datagrams), 5, f"{len(datagrams)} datagrams counted")
    for why in DROPPED:
        assert target.metric("rumor_gossip_dropped_total", reason=why) >= 1, why
    assert target.member(accused.node_id)["verdict"] == "healthy"
    assert not target.events("member_dead")
    check_unharmed(fleet, sessions, ledger)


def test_garbage_on_the_http_port_harms_nobody(make_fleet: Make, ledger: Ledger) -> None:
    fleet = make_fleet(2)
    target = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    chance = random.Random(7)
    bodies = [
        *(chance.randbytes(chance.randrange(1, 4000)) for _ in range(50)),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n{",
        b"POST /tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /gossip HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\xff\xff\xff\xff",
        b"POST /gossip/submit HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\xff\xff\xff\xff",
    ]
    for body in bodies:
        with socket.create_connection((target.host, target.port), timeout=5) as tcp:
            tcp.sendall(body)
            tcp.settimeout(0.05)
            try:
                answer = tcp.recv(4096)
            except OSError:
                answer = b""
            assert b" 500 " not in answer[:20], body[:60]
            assert b" 202 " not in answer[:20], body[:60]
    check_unharmed(fleet, sessions, ledger)


def test_strangers_who_hold_hundreds_of_connections_keep_nobody_out(make_fleet: Make, ledger: Ledger) -> None:
    """More of them than the node has places, each in another way; some send bodies that unpack to 20 MB."""
    fleet = make_fleet(
        2, api_token="a-token-of-this-test", gossip_keys=base64.b64encode(KEY).decode(), connections_max=100
    )
    target = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    bomb = gzip.compress(b" " * 20_000_000)
    ways = [
        b"",
        b"GET /livez HTTP/1.1\r\nHost:",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{",
        b"POST /gossip HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nx",
        b"POST /gossip HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb,
        b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb,
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + b"z" * 50_000,
    ]
    with ExitStack() as held:
        for n in range(600):
            tcp = held.enter_context(socket.create_connection((target.host, target.port), timeout=5))
            with suppress(OSError):  # The node may have ended it already.
                tcp.sendall(ways[n % len(ways)])
        assert target.get("/livez") == {"status": "ok"}
        ids = target.submit("noop", count=20)
        assert {target.task(task_id, wait_s=10)["state"] for task_id in ids} == {"succeeded"}
        assert target.get("/cluster")["members"]
    assert not target.events("main_stalled")
    assert not fleet.nodes[1].events("member_dead")
    check_unharmed(fleet, sessions, ledger)
