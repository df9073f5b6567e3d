"""SIGTERM: a node leaves in good order, and the others go on."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.chaos.stream import Stream
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]


def test_a_node_that_drains_finishes_what_it_runs_and_exits_with_0(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, drain_s=10)
    leaver, first = fleet.nodes[1], fleet.nodes[0]
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        held = ledger.open_on(leaver.node_id)
        assert held
        leaver.terminate()
        wait_until(lambda: first.member(leaver.node_id)["state"] == "leaving", 2, "it says that it leaves")
        during = fleet.nodes[2].submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 0.1}, 30)
        fleet.wait_ended(during, 5)
        assert leaver.is_running, "the others took what came meanwhile, at once"
        assert leaver.wait() == 0
        ids += during
        tasks = fleet.wait_ended(ids, 5)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert {run.node_id for run in ledger.of(held)} == {leaver.node_id}
    assert leaver.node_id not in {run.node_id for run in ledger.of(during)}
    wait_until(lambda: first.member(leaver.node_id)["state"] == "left", 5, "it has left")
    assert sum(node.metric("rumor_tasks_reaped_total") for node in fleet.nodes if node.is_running) == 0


def test_what_does_not_finish_in_time_is_handed_back_uncounted_and_taken_over_at_once(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    drain_s = 1.0
    fleet = make_fleet(3, drain_s=drain_s)
    leaver = fleet.nodes[1]
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 4.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        held = ledger.open_on(leaver.node_id)
        leaver.terminate()
        asked_s = time.monotonic()
        assert leaver.wait() == 0
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    again = [run for run in ledger.of(held) if run.delivery == 2]
    assert {run.task_id for run in again} == held
    assert {run.attempt for run in again} == {1}, "a drain costs no attempt"
    assert max(run.start_s for run in again) - asked_s < drain_s + 1.0
    for run in ledger.of(held):
        assert run.is_stopped == (run.delivery == 1), "the first run was ended before the second began"


def test_a_rolling_restart_of_all_nodes_under_load_loses_nothing(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, drain_s=2)
    work = {"ledger": str(ledger.path), "seconds": 0.3}
    with Commits(redis_server.url) as commits:
        with Stream(fleet.nodes, "chaos.sleep", work, pause_s=0.005) as stream:
            wait_until(lambda: len(stream.accepted) > 100, 20, "load")
            for node in fleet.nodes:
                node.terminate()
                assert node.wait() == 0
                node.start()
                fleet.wait_ready()
            since = len(stream.accepted)
            wait_until(lambda: len(stream.accepted) > since + 50, 20, "load goes on")
        ids = stream.accepted
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    refused = stream.of(lambda answer: answer.status not in (202, 0))
    assert not refused, f"a node that leaves says 503 or nothing: {refused[:3]}"
    assert max(run.attempt for run in ledger.of(ids)) == 1
