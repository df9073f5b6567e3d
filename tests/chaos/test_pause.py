"""Processes that live but do not answer: stopped, or with a loop or an interpreter that a handler holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]

STALLED_S = 5.0  # the default
PINNED = {
    "queues": "default:100,sync:2,pin:20"
}  # only one node serves the queue `pin`: a test chooses where a task runs


def hold(seconds: float) -> None:
    """Let time pass: the law is about the pause."""
    threading.Event().wait(seconds)


def test_a_stop_of_two_and_a_half_seconds_moves_nothing(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3)
    victim = fleet.nodes[2]
    sessions = [node.session for node in fleet.nodes]
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 3.0}, each=30)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        assert ledger.open_on(victim.node_id)
        victim.pause()
        hold(2.5)
        victim.resume()
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert [node.session for node in fleet.nodes] == sessions
    assert fleet.fences() == 0
    assert sum(node.metric("rumor_task_refused_total") for node in fleet.nodes) == 0


def test_a_stop_of_twelve_seconds_moves_its_tasks_after_stalled_s_and_refuses_what_comes_late(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, queues="default:30")
    victim = fleet.nodes[2]
    session = victim.session
    others = {node.node_id for node in fleet.nodes[:2]}
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        victim.pause()
        stopped_s = time.monotonic()
        held = ledger.open_on(victim.node_id)
        assert held
        wait_until(lambda: ledger.started(ids) and len(ledger.of(held)) == 2 * len(held), 12, "all it held runs again")
        hold(stopped_s + 12.0 - time.monotonic())
        backlog = fleet.nodes[0].submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 1.0}, 150)
        victim.resume()
        tasks = fleet.wait_ended([*ids, *backlog], 30)
        wait_until(
            lambda: victim.metric("rumor_task_refused_total", reason="fenced") >= len(held), 5, "its outcomes refused"
        )
        check_committed_once(commits, [*ids, *backlog])
    check_kept(tasks, [*ids, *backlog], ledger)
    check_ran_once(ledger, ids, again=held)
    check_ran_once(ledger, backlog)  # When it came back, it claimed nothing in the session that it had lost.
    assert any(run.pid == victim.pid for run in ledger.of(backlog)), "it works again"
    again = [run for run in ledger.of(held) if run.delivery == 2]
    assert {run.node_id for run in again} <= others
    moved_s = [run.start_s - stopped_s for run in again]
    assert min(moved_s) > STALLED_S - 0.5, "short hangs move nothing"
    assert max(moved_s) < STALLED_S + 4.0, "a probe round, stalled_s, a confirmation, a sweep"
    assert fleet.fences() == 1
    wait_until(lambda: victim.session != session, 10, "a new session")
    fleet.wait_ready()


def test_a_handler_that_blocks_the_loop_for_ten_seconds_moves_nothing(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(2)
    victim = fleet.make("127.0.0.1", fleet.nodes[-1].port + 1, **PINNED)
    fleet.begin([victim])
    first = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    with Commits(redis_server.url) as commits:
        work = {"ledger": str(ledger.path), "seconds": 1.0}
        ids = first.submit("chaos.sleep", work, 10, queue="pin")
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        began_s = time.monotonic()
        (blocker,) = first.submit("block", 10.0, queue="pin")
        wait_until(lambda: first.member(victim.node_id)["load"]["stalled"], 9, "it says that it is stalled")
        assert first.member(victim.node_id)["verdict"] == "healthy"
        meanwhile = fleet.nodes[1].submit("chaos.sleep", work, 30)
        fleet.wait_ended(meanwhile, 10)
        assert time.monotonic() - began_s < 10.0, "what came while it was stalled did not wait for it"
        assert {run.node_id for run in ledger.of(meanwhile)} <= {first.node_id, fleet.nodes[1].node_id}
        tasks = fleet.wait_ended([*ids, *meanwhile], 20)
        check_committed_once(commits, [*ids, *meanwhile])
    check_kept(tasks, [*ids, *meanwhile], ledger)
    check_ran_once(ledger, [*ids, *meanwhile])
    blocked = first.task(blocker, wait_s=10)
    assert (blocked["state"], blocked["delivery"]) == ("succeeded", 1)
    assert [node.session for node in fleet.nodes] == sessions
    assert fleet.fences() == 0
    wait_until(lambda: not first.member(victim.node_id)["load"]["stalled"], 5, "it has recovered")


def test_a_handler_that_holds_the_interpreter_for_less_than_stalled_s_moves_nothing(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(2)
    victim = fleet.make("127.0.0.1", fleet.nodes[-1].port + 1, **PINNED)
    fleet.begin([victim])
    first = fleet.nodes[0]
    sessions = [node.session for node in fleet.nodes]
    with Commits(redis_server.url) as commits:
        ids = first.submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 1.0}, 10, queue="pin")
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        ids += first.submit("chaos.hold_gil", {"ledger": str(ledger.path), "seconds": 3.0}, queue="pin")
        tasks = fleet.wait_ended(ids, 30)
        check_committed_once(commits, ids)
    held = next(run for run in ledger.runs() if run.task_id == ids[-1])
    assert held.end_s is not None
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert [node.session for node in fleet.nodes] == sessions, f"held for {held.end_s - held.start_s:.1f} s"
    assert fleet.fences() == 0


def test_a_handler_that_holds_the_interpreter_for_longer_than_stalled_s_is_a_hung_node(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(1)
    port = fleet.nodes[0].port
    pair = [fleet.make("127.0.0.1", port + n, **PINNED) for n in (1, 2)]
    fleet.begin(pair)
    first = fleet.nodes[0]
    with Commits(redis_server.url) as commits:
        ids = first.submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 1.0}, 20, queue="pin")
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        # One attempt: the next node would hang as well.
        work = {"ledger": str(ledger.path), "seconds": 10.0}
        (holder,) = first.submit("chaos.hold_gil", work, queue="pin", max_attempts=1)
        run = wait_until(lambda: ledger.of([holder]), 10, "it holds")[0]
        held = ledger.open_on(run.node_id) - {holder}
        tasks = fleet.wait_ended([*ids, holder], 30)
        wait_until(lambda: ledger.of([holder])[0].end_s, 20, "it lets go")
        check_committed_once(commits, [*ids, holder])
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    (task,) = [task for task in tasks if task["id"] == holder]
    assert (task["state"], task["error"]["type"]) == ("dead", "WorkerLost")
    assert len(ledger.of([holder])) == 1
    victim = next(node for node in pair if node.node_id == run.node_id)
    wait_until(lambda: victim.metric("rumor_task_refused_total", reason="fenced") >= 1, 5, "its outcome is refused")
