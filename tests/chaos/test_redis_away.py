"""A Redis that is silent, gone or refuses for a while: nodes refuse quickly, lose nothing and blame nobody."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.chaos.stream import Stream
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

AWAY_S = 10.0
ANSWER_S = 1.0  # the promised limit
BUSY_S = 0.5  # extra time on a machine with few cores
SILENT_S = 1.0  # time until a node knows: the deadline of one call


@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_a_redis_that_was_away_loses_nothing_and_fences_nobody(
    make_fleet: Callable[..., Fleet], ledger: Ledger, redis_server: RedisServer, kind: str
) -> None:
    fleet = make_fleet(3)
    sessions = [node.session for node in fleet.nodes]
    work = {"ledger": str(ledger.path), "seconds": 0.2}
    with Stream(fleet.nodes, "chaos.sleep", work, pause_s=0.01) as stream:
        # Some end while Redis is away: their outcomes must wait.
        ids = fleet.spread("chaos.sleep", {**work, "seconds": 4.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        if kind == "stopped":
            redis_server.stop()
        else:
            redis_server.kill()
        away_s = time.monotonic()
        wait_until(
            lambda: all(run.end_s for run in ledger.of(ids)), AWAY_S, "what ran before ends, with Redis or without"
        )
        threading.Event().wait(away_s + AWAY_S - time.monotonic())
        back_s = time.monotonic()
        if kind == "stopped":
            redis_server.cont()
        else:
            redis_server.start()
        for node in fleet.nodes:
            wait_until(node.is_ready, 10, f"node {node.number} works again by itself")
        took_s = time.monotonic() - back_s
        since = len(stream.answers)
        wait_until(lambda: len(stream.answers) > since + 30, 10, "submissions go on")
        assert {answer.status for answer in stream.answers[since + 3 :]} == {202}
    tasks = fleet.wait_ended([*ids, *stream.accepted], 30)
    check_kept(tasks, [*ids, *stream.accepted], ledger)
    check_ran_once(ledger, [*ids, *stream.accepted])
    meanwhile = stream.of(lambda answer: away_s <= answer.at_s < back_s)
    assert len(meanwhile) > 5
    assert {answer.status for answer in meanwhile} == {503}, "nothing can be accepted without Redis"
    slow = [answer for answer in meanwhile if answer.took_s > ANSWER_S + BUSY_S]
    assert not slow, f"answered late: {slow}"
    assert [node.session for node in fleet.nodes] == sessions, f"nobody was fenced ({took_s:.1f} s to come back)"
    assert fleet.fences() == 0


@pytest.mark.parametrize("kind", ["NOREPLICAS", "MISCONF"])
def test_a_redis_that_refuses_to_write_for_longer_than_the_lease_stops_no_task_and_fences_nobody(
    make_fleet: Callable[..., Fleet], ledger: Ledger, redis_server: RedisServer, kind: str
) -> None:
    lease_s = 2.0
    fleet = make_fleet(2, lease_s=lease_s)
    sessions = [node.session for node in fleet.nodes]
    ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 3 * lease_s}, each=5)
    ids += fleet.spread(
        "chaos.sleep", {"ledger": str(ledger.path), "seconds": lease_s}, each=5
    )  # these end while Redis refuses
    wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
    with redis.Redis.from_url(redis_server.url) as client:
        refuse(client, redis_server, kind)
        for node in fleet.nodes:
            wait_until(
                lambda node=node: kind in answer_of(node, "/readyz")["reason"],
                5,
                "it says that it is not ready, and why",
            )
        problems = answer_of(fleet.nodes[0], "/health")["problems"]
        assert problems[0]["code"] == "redis_refuses"
        assert kind in problems[0]["message"]
        assert "CONFIG SET" in problems[0]["hint"]
        threading.Event().wait(2 * lease_s)
        for name, value in (("min-replicas-to-write", 0), ("stop-writes-on-bgsave-error", "no")):
            client.config_set(name, value)
    for node in fleet.nodes:
        wait_until(node.is_ready, 10, f"node {node.number} works again by itself")
    tasks = fleet.wait_ended(ids, 30)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert {task["delivery"] for task in tasks} == {1}
    assert [node.session for node in fleet.nodes] == sessions
    assert fleet.fences() == 0


def answer_of(node: Node, path: str) -> dict[str, Any]:
    """The JSON answer, also of a 503."""
    return dict(json.loads(node.remote.request("GET", path)[1]))


def refuse(client: redis.Redis, server: RedisServer, kind: str) -> None:
    """Let the server refuse writes."""
    if kind == "NOREPLICAS":
        client.config_set("min-replicas-to-write", 1)
        return
    client.config_set("appendonly", "no")
    client.config_set("save", "3600 1")
    client.config_set("stop-writes-on-bgsave-error", "yes")
    shutil.rmtree(server.directory)  # its working directory: a snapshot has no place
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 5, "a snapshot failed")
