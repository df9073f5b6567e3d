"""Two clusters beside each other: on one Redis server, on one machine, with one name and without a gossip key.

They are as alike as two clusters can be, and the second one is even given the first one's nodes as its seeds. Neither
sees, counts or harms the other: members, leader, timeline, waits, counts, fences. Each loses a node and recovers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster.errors import RumorError
from node import SyncClient
from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]


class Heard:
    """What somebody hears who follows a node's events, as the page does: their data."""

    def __init__(self, node: Node) -> None:
        self.events: list[Mapping[str, Any]] = []
        self._node = node
        threading.Thread(target=self._follow, daemon=True).start()

    def sums(self) -> list[Mapping[str, Any]]:
        return [data for data in self.events if data["kind"] == "task_sums"]

    def _follow(self) -> None:
        with contextlib.suppress(RumorError), SyncClient(self._node.remote.url, learn=False) as client:
            for event in client.events(within_s=0.1):
                self.events.append(event.data)


@pytest.fixture
def pair(make_fleet: Make, tmp_path: Path, redis_server: RedisServer) -> Iterator[tuple[Fleet, Fleet]]:
    """Three nodes on database 0, two on database 1 of the same server."""
    first = make_fleet(3)
    folder = tmp_path / "second"
    folder.mkdir()
    seeds = ",".join(node.node_id for node in first.nodes)
    with fleet(folder, redis_server.url.rsplit("/", 1)[0] + "/1", seeds=seeds) as second:
        second.start(2)
        yield first, second


def names(cluster: Fleet) -> set[str]:
    return {node.node_id for node in cluster.nodes}


def check_apart(cluster: Fleet, accepted: int) -> None:
    """Each node knows the nodes of its own cluster alone, and counts its tasks alone."""
    nodes = [node for node in cluster.nodes if node.is_running]
    for node in nodes:
        view = node.get("/cluster")
        assert {row["node_id"] for row in view["members"]} == names(cluster)
        assert view["leader"]["node_id"] in names(cluster)
        assert {event["node_id"] for event in view["events"]} <= names(cluster)
        assert len(node.tasks(fields="")) == accepted

    def counted() -> float:  # The leader alone tells of the cluster.
        return sum(node.metric("rumor_tasks", state="succeeded") for node in nodes)

    wait_until(lambda: counted() == accepted, 10, f"{accepted} tasks in the metrics")


def test_each_kills_and_counts_its_own(pair: tuple[Fleet, Fleet], tmp_path: Path, redis_server: RedisServer) -> None:
    ledgers = [Ledger(tmp_path / f"{number}.jsonl") for number in range(2)]
    accepted: list[list[str]] = [[], []]

    def spread(seconds: float) -> None:
        for number, cluster in enumerate(pair):
            data = {"ledger": str(ledgers[number].path), "seconds": seconds}
            for node in filter(lambda node: node.is_running, cluster.nodes):
                accepted[number] += node.submit("chaos.sleep", data, 10)

    spread(1.5)
    for number in range(2):
        wait_until(lambda n=number: ledgers[n].started(accepted[n]) == len(accepted[n]), 15, "all run")
    sessions = [[node.session for node in cluster.nodes] for cluster in pair]
    heard = Heard(pair[1].nodes[0])
    with redis.Redis.from_url(redis_server.url) as server:
        pair[0].nodes[2].kill()
        wait_until(lambda: pair[0].fences() == 1, 10, "the first cluster fences its own")
        assert pair[1].fences() == 0
        server.script_flush()
        spread(0.1)
        for number, cluster in enumerate(pair):
            rows = cluster.wait_ended(accepted[number], 20)
            check_kept(rows, accepted[number], ledgers[number])
        wait_until(heard.sums, 10, "the second cluster's own sums")
        wait_until(lambda: pair[0].nodes[0].events("session_fenced"), 10, "the first cluster's own timeline")
        assert max(data["nodes"] for data in heard.sums()) <= 2
        assert {data["node_id"] for data in heard.events} <= names(pair[1])
    check_ran_once(ledgers[1], accepted[1])
    assert [node.session for node in pair[1].nodes] == sessions[1]
    check_apart(pair[0], len(accepted[0]))
    check_apart(pair[1], len(accepted[1]))

    # A node of the second cluster takes over the port of the one that died in the first.
    dead = pair[0].nodes[2]
    pair[0].nodes.remove(dead)
    pair[1].begin([pair[1].make(dead.host, dead.port)])
    for node in pair[0].nodes:
        assert node.member(dead.node_id).get("verdict") in (None, "dead")
    spread(0.1)
    for number, cluster in enumerate(pair):
        check_kept(cluster.wait_ended(accepted[number], 20), accepted[number], ledgers[number])
    check_apart(pair[1], len(accepted[1]))


def test_another_name_on_the_same_database_is_refused_in_words_that_help(make_fleet: Make) -> None:
    cluster = make_fleet(1)
    stray = cluster.stray("127.0.0.1", cluster.nodes[0].port + 1000, cluster="another")
    stray.start()
    assert stray.wait() > 0
    assert "cluster is 'another', and this Redis database belongs to 'rumor'" in stray.log()
    assert "Use another Redis database (redis://…/1)" in stray.log()
