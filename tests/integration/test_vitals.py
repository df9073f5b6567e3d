"""Vitals on real sockets and a real Redis: join, die, hang, be cut off, lead.

Time limits are generous upper bounds of conditions; what a test is about it measures itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from cluster import keys, session
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.vitals.witness import Fence
from cluster.vitals.witness import Path as FencePath
from tests.integration.conftest import RedisServer, free_port
from tests.integration.vitals_node import VitalsNode

LIMIT_S = 30.0
ROOT = Path(__file__).parents[2]


async def until(condition: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for a condition. Asserts it at the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.005)


class Child:
    """A node in a process of its own."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.node_id: str = fields["node_id"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.vitals_node", json.dumps(fields)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.session = ""

    async def ready(self) -> Child:
        assert self.process.stdout is not None
        for line in iter(self.process.stdout.readline, b""):
            news = json.loads(line) if line.startswith(b"{") else {}
            if "ready" in news:
                self.session = news["ready"]
                return self
        raise AssertionError(f"{self.node_id} ended before it was ready")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Cluster:
    """Makes nodes that share one Redis, and ends them."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.nodes: list[VitalsNode] = []
        self.children: list[Child] = []

    def fields(self, name: str, **more: Any) -> dict[str, Any]:
        return {"node_id": name, "port": free_port(), "redis_url": self.redis_url, **more}

    async def node(self, name: str, **more: Any) -> VitalsNode:
        node = VitalsNode(Config(**self.fields(name, **more)))
        self.nodes.append(node)
        return await node.start()

    async def child(self, name: str, **more: Any) -> Child:
        child = Child(self.fields(name, **more))
        self.children.append(child)
        return await asyncio.to_thread(lambda: asyncio.run(child.ready()))

    async def agree(self, *names: str) -> None:
        """Until every node here holds exactly these names healthy."""
        all_ids = set(names)

        def agreed() -> bool:
            return all(
                {p.node_id for p in node.vitals.view.members if p.verdict == "healthy" and p.state == "alive"}
                == all_ids
                and all(p.redis == "live" for p in node.vitals.view.members if p.node_id in all_ids)
                for node in self.nodes
            )

        await until(agreed, f"all nodes agree on {sorted(all_ids)}")

    def close_children(self) -> None:
        for child in self.children:
            child.end()

    async def close(self) -> None:
        for node in self.nodes:
            await node.stop()
        self.nodes.clear()


@pytest.fixture
def children(redis_server: RedisServer) -> Iterator[Cluster]:
    cluster = Cluster(redis_server.url)
    yield cluster
    cluster.close_children()


@pytest.fixture
async def cluster(children: Cluster) -> AsyncIterator[Cluster]:
    yield children
    await children.close()


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


async def eventually(ask: Callable[[], Awaitable[Any]], what: str, limit_s: float = LIMIT_S) -> Any:
    """Like until, for a condition that has to be asked for."""
    end_s = time.monotonic() + limit_s
    while not (value := await ask()):
        assert time.monotonic() < end_s, f"not within {limit_s} s: {what}"
        await asyncio.sleep(0.01)
    return value


async def test_nodes_find_each_other_by_redis_alone_and_one_leads(cluster: Cluster, client: Any) -> None:
    for name in ("n1", "n2", "n3"):
        await cluster.node(name)
    await cluster.agree("n1", "n2", "n3")
    await until(
        lambda: (
            len({node.vitals.view.leader for node in cluster.nodes} - {None}) == 1
            and all(node.vitals.view.leader for node in cluster.nodes)
        ),
        "all name one leader",
    )
    assert await client.smembers(keys.WORKERS_ACTIVE) == {b"n1", b"n2", b"n3"}
    snapshot = json.loads(await eventually(lambda: client.get(keys.LEADER_SNAPSHOT), "a snapshot"))
    assert snapshot["epoch"] == 1


async def test_loads_reach_the_others(cluster: Cluster) -> None:
    n1, n2 = await cluster.node("n1"), await cluster.node("n2")
    await cluster.agree("n1", "n2")

    def free() -> int | None:
        peer = n2.vitals.view.get("n1")
        return peer.load.queues["default"].free if peer and peer.load and "default" in peer.load.queues else None

    await until(lambda: free() == 4, "n2 hears of n1's free slots")
    peer = n2.vitals.view.get("n1")
    assert peer is not None
    assert peer.is_able
    assert n1.vitals.stats["swim_datagrams_out"] > 0


async def test_a_killed_process_is_dead_everywhere_within_moments(cluster: Cluster, client: Any) -> None:
    for name in ("n1", "n2", "n3"):
        await cluster.node(name)
    child = await cluster.child("n4")
    await cluster.agree("n1", "n2", "n3", "n4")
    began_s = time.monotonic()
    child.send(signal.SIGKILL)
    await until(lambda: all(child.session in node.dead for node in cluster.nodes), "all reap n4")
    took_s = [node.dead[child.session][1] - began_s for node in cluster.nodes]
    print(f"kill -9 to SessionEnded: {[round(1000 * s, 1) for s in took_s]} ms")
    assert min(took_s) < 1.0
    assert {node.dead[child.session][0] for node in cluster.nodes} == {"refused"}
    assert (await client.get(keys.heartbeat(child.session))).startswith(b"fenced refused ")
    await eventually(lambda: _lacks(client, b"n4"), "n4 is no active worker")
    assert sum(node.vitals.stats.get("fences", 0) for node in cluster.nodes) == 1
    assert not any(node.fenced for node in cluster.nodes)


async def _lacks(client: Any, node_id: bytes) -> bool:
    return node_id not in await client.smembers(keys.WORKERS_ACTIVE)


async def test_a_short_stop_of_a_process_is_not_a_death(cluster: Cluster) -> None:
    await cluster.node("n1")
    await cluster.node("n2")
    child = await cluster.child("n3")
    await cluster.agree("n1", "n2", "n3")
    child.send(signal.SIGSTOP)
    await until(lambda: all(node.state_of("n3")[0] == "suspect" for node in cluster.nodes), "n3 is suspect")
    child.send(signal.SIGCONT)
    await cluster.agree("n1", "n2", "n3")
    assert not any(node.dead for node in cluster.nodes)
    peer = cluster.nodes[0].vitals.view.get("n3")
    assert peer is not None
    assert peer.session == child.session


async def test_a_hung_process_is_dead_by_both_witnesses_and_comes_back_as_another_session(cluster: Cluster) -> None:
    quick = {"stalled_s": 2.0}
    await cluster.node("n1", **quick)
    await cluster.node("n2", **quick)
    child = await cluster.child("n3", **quick)
    await cluster.agree("n1", "n2", "n3")
    child.send(signal.SIGSTOP)
    await until(lambda: all(child.session in node.dead for node in cluster.nodes), "n3 is dead")
    assert cluster.nodes[0].dead[child.session][0] == "stalled"
    child.send(signal.SIGCONT)
    await cluster.agree("n1", "n2", "n3")
    peer = cluster.nodes[0].vitals.view.get("n3")
    assert peer is not None
    assert peer.session != child.session


async def test_a_fenced_node_goes_on_as_a_new_session(cluster: Cluster, client: Any) -> None:
    n1, n2 = await cluster.node("n1"), await cluster.node("n2")
    await cluster.agree("n1", "n2")
    old = n1.vitals.session
    fence = Fence(old, FencePath.OWN, b"", "test")
    result = await _on(n2, lambda life: life.pulse.fence(fence, 60_000, "n2"))
    assert result.is_ours
    await until(lambda: n1.fenced, "n1 notices")
    assert n1.fenced == [n1.vitals.session] != [old]
    await until(lambda: old in n1.dead and old in n2.dead, "the old session is reaped")
    await cluster.agree("n1", "n2")
    peer = n2.vitals.view.get("n1")
    assert peer is not None
    assert peer.session == n1.vitals.session
    assert await client.exists(keys.heartbeat(n1.vitals.session))
    assert b"n1" in await client.smembers(keys.WORKERS_ACTIVE)


async def _on(node: VitalsNode, work: Callable[[Any], Any]) -> Any:
    """Run something on a node's vitals loop."""
    return await node.vitals._call(work(node.vitals._life))


async def test_a_redis_that_was_away_fences_nobody(cluster: Cluster, redis_server: RedisServer) -> None:
    for name in ("n1", "n2", "n3"):
        await cluster.node(name)
    await cluster.agree("n1", "n2", "n3")
    sessions = [node.vitals.session for node in cluster.nodes]
    began_s = time.monotonic()
    redis_server.stop()
    await until(lambda: all(not node.vitals.view.redis_ok for node in cluster.nodes), "all notice")
    noticed_s = [node.redis[-1][1] - began_s for node in cluster.nodes]
    print(f"Redis stopped to RedisReach(False): {[round(s, 2) for s in noticed_s]} s")
    await until(lambda: time.monotonic() > began_s + 3.0, "three seconds")
    assert all(node.vitals.view.leader is None for node in cluster.nodes)
    redis_server.cont()
    await cluster.agree("n1", "n2", "n3")
    assert [node.vitals.session for node in cluster.nodes] == sessions
    assert not any(node.dead or node.fenced for node in cluster.nodes)
    await until(lambda: all(node.vitals.view.leader for node in cluster.nodes), "there is a leader again")


async def test_a_restarted_redis_fences_nobody(cluster: Cluster, redis_server: RedisServer, client: Any) -> None:
    for name in ("n1", "n2", "n3"):
        await cluster.node(name)
    await cluster.agree("n1", "n2", "n3")
    sessions = [node.vitals.session for node in cluster.nodes]
    redis_server.kill()
    await until(lambda: all(not node.vitals.view.redis_ok for node in cluster.nodes), "all notice")
    redis_server.start()
    await client.flushall()  # It even forgot everything.
    await cluster.agree("n1", "n2", "n3")
    await eventually(lambda: _all_active(client, 3), "all register again")
    assert [node.vitals.session for node in cluster.nodes] == sessions
    assert not any(node.dead or node.fenced for node in cluster.nodes)


async def _all_active(client: Any, count: int) -> bool:
    return len(await client.smembers(keys.WORKERS_ACTIVE)) == count == await client.hlen(keys.LEADER_MEMBERS)


async def test_a_killed_leader_is_replaced_without_waiting_for_its_lease(cluster: Cluster) -> None:
    child = await cluster.child("n0", leader_lease_s=30.0)
    for name in ("n1", "n2"):
        await cluster.node(name, leader_lease_s=30.0)
    await cluster.agree("n0", "n1", "n2")
    await until(lambda: all(_leads(node, "n0") for node in cluster.nodes), "n0 leads")
    epoch = cluster.nodes[0].vitals.view.epoch
    began_s = time.monotonic()
    child.send(signal.SIGKILL)
    await until(lambda: any(_leads(node, "n1") or _leads(node, "n2") for node in cluster.nodes), "another leads")
    print(f"kill -9 of the leader to the next: {1000 * (time.monotonic() - began_s):.0f} ms")
    await until(
        lambda: (
            len({node.vitals.view.leader for node in cluster.nodes}) == 1
            and all(node.vitals.view.epoch == epoch + 1 for node in cluster.nodes)
        ),
        "all name the same, one epoch higher",
    )


def _leads(node: VitalsNode, name: str) -> bool:
    leader = node.vitals.view.leader
    return leader is not None and leader.node_id == name


async def test_a_blocked_main_loop_is_stalled_and_not_dead(cluster: Cluster) -> None:
    n1 = await cluster.node("n1")
    await cluster.node("n2")
    await cluster.child("n3", stall_after_s=0.5, hang_s=6.0)
    await until(lambda: _stalled(n1, "n3") is True, "n3 says that it is stalled")
    assert n1.state_of("n3") == ("alive", "healthy")
    await until(lambda: _stalled(n1, "n3") is False, "n3 recovers")
    assert not n1.dead


def _stalled(node: VitalsNode, name: str) -> bool | None:
    peer = node.vitals.view.get(name)
    return None if peer is None or peer.load is None else peer.load.stalled


async def test_a_main_loop_that_never_comes_back_takes_its_node_with_it(cluster: Cluster) -> None:
    n1 = await cluster.node("n1")
    child = await cluster.child("n2", stall_after_s=0.5, stall_limit_s=2.0, hang_s=60.0)
    await until(lambda: child.session in n1.dead, "n1 reaps n2")
    assert n1.dead[child.session][0] == "stalled"
    assert await asyncio.to_thread(child.process.wait, LIMIT_S) == 70


async def test_a_node_that_leaves_is_left_and_leaves_nothing_behind(cluster: Cluster, client: Any) -> None:
    n1, n2 = await cluster.node("n1"), await cluster.node("n2")
    await cluster.agree("n1", "n2")
    session = n2.vitals.session
    await n2.vitals.leave()
    await until(lambda: n1.state_of("n2")[0] == "leaving", "n1 hears of it")
    await n2.stop()
    cluster.nodes.remove(n2)
    await until(lambda: n1.state_of("n2")[0] == "left", "n1 hears of it")
    assert await client.smembers(keys.WORKERS_ACTIVE) == {b"n1"}
    assert await client.hkeys(keys.LEADER_MEMBERS) == [b"n1"]
    assert (await client.get(keys.heartbeat(session))).startswith(b"fenced left ")
    await until(lambda: n1.vitals.view.leader is not None and _leads(n1, "n1"), "n1 leads")
    assert n1.vitals.stats.get("fences", 0) == 0


async def test_a_node_restarted_at_once_ends_its_earlier_life(cluster: Cluster) -> None:
    n1, n2 = await cluster.node("n1"), await cluster.node("n2")
    port = free_port()
    first = await cluster.child("n3", port=port)
    await cluster.agree("n1", "n2", "n3")
    first.end()
    cluster.children.remove(first)
    second = await cluster.child("n3", port=port)
    await until(lambda: first.session in n1.dead and first.session in n2.dead, "the first life is reaped")
    await cluster.agree("n1", "n2", "n3")
    assert second.session not in n1.dead
    peer = n1.vitals.view.get("n3")
    assert peer is not None
    assert peer.session == second.session


async def test_a_session_that_holds_work_and_is_unknown_to_gossip_is_fenced(cluster: Cluster, client: Any) -> None:
    n1 = await cluster.node("n1")
    await cluster.node("n2")
    await cluster.agree("n1", "n2")
    ghost = "ghost/0190aaaaaaaa-0badcafe"
    await client.set(keys.heartbeat(ghost), 7)
    n1.vitals.consider([ghost])
    await until(lambda: ghost in n1.dead, "the ghost is reaped")
    assert n1.dead[ghost][0] == "unknown"


async def test_wakes_arrive_and_echoes_do_not(cluster: Cluster, client: Any) -> None:
    n1 = await cluster.node("n1")
    await client.publish(keys.wake(n1.vitals.session), b"3 shards")
    await until(lambda: n1.wakes, "the wake arrives")
    assert n1.wakes == [b"3 shards"]


async def test_a_deaf_subscription_is_made_new(cluster: Cluster, client: Any) -> None:
    n1 = await cluster.node("n1")
    before = n1.vitals.stats["subscriptions"]
    await client.client_kill_filter(_type="pubsub")
    await until(lambda: n1.vitals.stats["subscriptions"] > before, "it subscribes again")
    await client.publish(keys.wake(n1.vitals.session), b"again")
    await until(lambda: n1.wakes == [b"again"], "wakes arrive again")
    assert not n1.fenced


async def test_a_name_that_is_alive_elsewhere_is_refused(cluster: Cluster) -> None:
    await cluster.node("n1")
    with pytest.raises(ConfigError, match="n1 is alive elsewhere"):
        await VitalsNode(Config(**cluster.fields("n1"))).start()


async def test_a_port_that_is_taken_is_refused(cluster: Cluster) -> None:
    n1 = await cluster.node("n1")
    twin = VitalsNode(Config(**{**cluster.fields("n2"), "port": n1.config.port}))
    with pytest.raises(ConfigError, match="cannot be bound"):
        await twin.vitals.start()


async def test_a_node_starts_while_redis_is_away_and_joins_by_its_seeds(
    cluster: Cluster, redis_server: RedisServer
) -> None:
    redis_server.kill()
    n1 = await cluster.node("n1")
    await cluster.node("n2", seeds=(f"127.0.0.1:{n1.config.port}",))
    assert n1.redis[0][0] is False
    await until(lambda: all(len(node.vitals.view.members) == 2 for node in cluster.nodes), "they see each other")
    assert not n1.vitals.view.redis_ok
    redis_server.start()
    await cluster.agree("n1", "n2")


async def test_a_key_of_somebody_elses_in_the_place_of_a_list_stops_nobody(
    cluster: Cluster, redis_server: RedisServer
) -> None:
    """`workers:active` is a name that anybody might use. What cannot be written there is no silence of Redis."""
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.set(keys.WORKERS_ACTIVE, "not a set")
        await client.set(keys.LEADER_MEMBERS, "not a hash")
        a = await cluster.node("a")
        b = await cluster.node("b", seeds=(f"127.0.0.1:{a.config.port}",))
        await cluster.agree("a", "b")
        assert all(node.vitals.view.redis_ok for node in (a, b))
        await client.delete(keys.WORKERS_ACTIVE, keys.LEADER_MEMBERS)
        async with asyncio.timeout(LIMIT_S):
            while await client.smembers(keys.WORKERS_ACTIVE) != {b"a", b"b"}:  # type: ignore[misc]
                await asyncio.sleep(0.05)


async def test_a_node_whose_clock_was_set_back_between_two_lives_joins_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its earlier life, ended and forgotten in Redis, is the newer one by its name, and the others remember it."""
    await cluster.node("a")
    with monkeypatch.context() as ahead:
        ahead.setattr("cluster.vitals.life.wall_ms", lambda: time.time_ns() // 1_000_000 + 86_400_000)
        first = await cluster.node("b")
    await cluster.agree("a", "b")
    earlier = first.vitals.session
    await first.stop()
    cluster.nodes.remove(first)
    await until(lambda: cluster.nodes[0].state_of("b")[0] == "left", "a knows that it left")
    second = await cluster.node("b", port=first.config.port, seeds=(f"127.0.0.1:{cluster.nodes[0].config.port}",))
    await cluster.agree("a", "b")
    assert not second.conflicts
    assert session.is_newer(second.vitals.session, than=earlier)


async def test_while_redis_refuses_writes_everybody_knows_why_and_nobody_is_fenced(
    cluster: Cluster, client: Any
) -> None:
    nodes = [await cluster.node(name, lease_s=1.5) for name in ("n1", "n2")]
    await cluster.agree("n1", "n2")
    sessions = [node.vitals.session for node in nodes]
    await client.config_set("min-replicas-to-write", 1)
    await until(lambda: all(node.vitals.view.is_refused_like_all for node in nodes), "both know that all are refused")
    assert all("NOREPLICAS" in node.vitals.view.refusal.words for node in nodes)  # type: ignore[union-attr]
    failed = nodes[0].vitals.stats["beats_failed"]
    await until(lambda: nodes[0].vitals.stats["beats_failed"] > failed + 12, "twice the lease has passed")
    await client.config_set("min-replicas-to-write", 0)
    await cluster.agree("n1", "n2")
    assert [node.vitals.session for node in nodes] == sessions
    assert not any(node.vitals.view.refusal for node in nodes)
    assert not any(node.dead or node.disowned for node in nodes)


async def test_a_fenced_node_drops_its_tasks_at_once_although_redis_does_not_take_its_new_name(
    cluster: Cluster, client: Any
) -> None:
    n1, _ = await cluster.node("n1"), await cluster.node("n2")
    await cluster.agree("n1", "n2")
    was = n1.vitals.session
    await client.config_set("min-replicas-to-write", 1)
    await until(lambda: n1.vitals.view.refusal, "it is refused")
    # As by the word of those who found its tombstone, on a server that this node does not see.
    life = n1.vitals._life
    n1.vitals._loop.call_soon_threadsafe(life._go_on_as_another, "fenced")  # type: ignore[union-attr]
    await until(lambda: n1.disowned == [was], "what runs is to stop")
    assert n1.fenced == [], "its new session is not registered"
    await client.config_set("min-replicas-to-write", 0)
    await until(lambda: n1.fenced == [n1.vitals.session], "it goes on")
