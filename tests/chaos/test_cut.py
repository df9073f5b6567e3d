"""Cut networks: a node without its peers, a node without Redis. One silent witness is never enough.

Every node has a network namespace of its own, so a cut is a firewall's, seen from both sides.
"""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.namespaces import Network, network
from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.netns]

PORT = 5000
CUT_S = 20.0
SHORT_LEASE_S = 4.0


class Site:
    """Nodes in namespaces, and their cables."""

    def __init__(self, net: Network, redis: RedisServer, folder: Path) -> None:
        self.net = net
        self.redis = redis
        self._folder = folder
        self._names: dict[int, str] = {}
        self.fleet: Fleet

    def start(self, stack: ExitStack, count: int, **settings: object) -> Fleet:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        secured = {"gossip_keys": key, "api_token": "chaos-token", **settings}
        url = f"redis://{self.net.gateway}:{self.redis.port}/0"
        self.fleet = stack.enter_context(fleet(self._folder, url, **secured))
        nodes = []
        for _ in range(count):
            name, address = self.net.add()
            node = self.fleet.make(address, PORT)
            node.prefix = ("ip", "netns", "exec", name)
            self._names[node.number] = name
            nodes.append(node)
        self.fleet.begin(nodes)
        return self.fleet

    def peers(self, node: Node) -> list[Node]:
        return [other for other in self.fleet.nodes if other is not node]

    def cut_peers(self, node: Node) -> None:
        """Drop all between this node and its peers."""
        for peer in self.peers(node):
            self.net.drop(self._names[node.number], peer.host)

    def reject_peers(self, node: Node) -> None:
        """Answer every connect of its peers with a reset, as if nobody listened, and drop their datagrams."""
        name = self._names[node.number]
        for peer in self.peers(node):
            self.net.drop(name, peer.host, "-p", "udp")
            reset = ("-p", "tcp", "--dport", str(PORT), "-j", "REJECT", "--reject-with", "tcp-reset")
            self.net.rule(name, "-A", "INPUT", "-s", peer.host, *reset)

    def split(self, *side: Node) -> None:
        """Drop all between these nodes and the others."""
        for node in side:
            for peer in self.peers(node):
                if peer not in side:
                    self.net.drop(self._names[node.number], peer.host)

    def cut_redis(self, node: Node) -> None:
        """Drop all between this node and Redis."""
        name, port = self._names[node.number], str(self.redis.port)
        self.net.rule(name, "-A", "OUTPUT", "-d", self.net.gateway, "-p", "tcp", "--dport", port, "-j", "DROP")
        self.net.rule(name, "-A", "INPUT", "-s", self.net.gateway, "-p", "tcp", "--sport", port, "-j", "DROP")

    def heal(self, node: Node) -> None:
        self.net.heal(self._names[node.number])


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`make_site(3, lease_s=4)`: a network, a Redis that listens on it, and nodes that are ready."""
    with ExitStack() as stack:

        def make(count: int, **settings: object) -> Site:
            net = stack.enter_context(network())
            (tmp_path / "redis").mkdir()
            redis = RedisServer(tmp_path / "redis", "--bind", "127.0.0.1", net.gateway, "--protected-mode", "no")
            stack.callback(redis.kill)
            site = Site(net, redis, tmp_path)
            site.start(stack, count, **settings)
            return site

        yield make


def hold(seconds: float) -> None:
    """Let time pass: the law is about the length of the cut."""
    threading.Event().wait(seconds)


@pytest.mark.parametrize("kind", ["drop", "reject"])
def test_a_node_cut_from_its_peers_alone_keeps_its_tasks_and_nothing_runs_twice(
    make_site: Callable[..., Site], ledger: Ledger, kind: str
) -> None:
    site = make_site(3)
    fleet = site.fleet
    victim = fleet.nodes[1]
    first = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    work = {"ledger": str(ledger.path), "seconds": 1.0}
    with Commits(site.redis.url) as commits:
        ids = fleet.spread("chaos.sleep", {**work, "seconds": 15.0}, each=10)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        assert ledger.open_on(victim.node_id)
        if kind == "drop":
            site.cut_peers(victim)
        else:
            site.reject_peers(victim)
        cut_s = time.monotonic()
        wait_until(lambda: first.member(victim.node_id)["verdict"] == "cut_from_peers", 15, "its peers say so")
        during = fleet.spread("chaos.sleep", work, each=10)
        fleet.wait_ended(during, 20)
        hold(cut_s + CUT_S - time.monotonic())
        site.heal(victim)
        ids += during
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert [node.session for node in fleet.nodes] == sessions, "nobody was fenced"
    assert fleet.fences() == 0
    wait_until(
        lambda: all(n.member(m.node_id).get("verdict") == "healthy" for n in fleet.nodes for m in fleet.nodes),
        20,
        "the cut has healed by itself",
    )


def test_a_node_cut_from_redis_for_less_than_the_lease_keeps_its_tasks_and_forwards_submissions(
    make_site: Callable[..., Site], ledger: Ledger
) -> None:
    site = make_site(3)
    fleet = site.fleet
    first, victim = fleet.nodes[0], fleet.nodes[1]
    sessions = [node.session for node in fleet.nodes]
    work = {"ledger": str(ledger.path), "seconds": 3.0}
    with Commits(site.redis.url) as commits:
        ids = fleet.spread("chaos.sleep", work, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        assert ledger.open_on(victim.node_id)
        site.cut_redis(victim)
        cut_s = time.monotonic()
        wait_until(lambda: first.member(victim.node_id)["verdict"] == "cut_from_redis", 5, "its peers say so")
        _, task = victim.remote.call("POST", "/tasks", {"type": "chaos.sleep", "data": work})
        wait_until(lambda: first.task(task["id"]), 2, "it is stored, through a peer")
        assert victim.metric("rumor_submissions_forwarded_total", outcome="ok") >= 1
        hold(cut_s + 8.0 - time.monotonic())
        site.heal(victim)
        ids.append(task["id"])
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert [node.session for node in fleet.nodes] == sessions, "nobody was fenced"
    assert fleet.fences() == 0
    wait_until(victim.is_ready, 10, "it works again")


def test_a_node_cut_from_redis_for_longer_than_the_lease_loses_its_tasks_and_cannot_commit_them(
    make_site: Callable[..., Site], ledger: Ledger
) -> None:
    site = make_site(3, lease_s=SHORT_LEASE_S)
    fleet = site.fleet
    victim = fleet.nodes[1]
    session = victim.session
    with Commits(site.redis.url) as commits:
        # They end while the node is cut off and its lease still runs: their outcomes come late.
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        site.cut_redis(victim)
        cut_s = time.monotonic()
        held = ledger.open_on(victim.node_id)
        assert held
        wait_until(lambda: len(ledger.of(held)) == 2 * len(held), SHORT_LEASE_S + 8, "given away")
        hold(cut_s + SHORT_LEASE_S + 4.0 - time.monotonic())
        site.heal(victim)
        wait_until(lambda: victim.metric("rumor_task_refused_total") >= len(held), 10, "its outcomes are refused")
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    moved_s = min(run.start_s for run in ledger.of(held) if run.delivery == 2) - cut_s
    assert moved_s > SHORT_LEASE_S - 0.5, "not before its lease ran out"
    wait_until(lambda: victim.session != session and victim.is_ready(), 10, "it works again, under a new session")
    more = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 0.2}, each=30)
    check_kept(fleet.wait_ended(more, 15), more, ledger)
    check_ran_once(ledger, more)


def test_a_node_killed_in_an_old_split_is_fenced_at_once_by_the_words_of_both_sides(
    make_site: Callable[..., Site], ledger: Ledger
) -> None:
    """Its own side was refused. The other side holds it dead since the cut, and says that it knows no more."""
    site = make_site(4, queues="default:60")
    fleet = site.fleet
    near, victim, far = fleet.nodes[0], fleet.nodes[1], fleet.nodes[2]
    site.split(near, victim)
    wait_until(lambda: far.member(victim.node_id)["verdict"] == "cut_from_peers", 15, "the other side holds it dead")
    with Commits(site.redis.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 3.0}, each=10)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        killed_s = time.monotonic()
        victim.kill()
        held = ledger.open_on(victim.node_id)
        assert held
        tasks = fleet.wait_ended(ids, 20, through=near)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    assert max(run.start_s for run in ledger.of(held) if run.delivery == 2) - killed_s < 2.0
    assert fleet.fences() == 1
