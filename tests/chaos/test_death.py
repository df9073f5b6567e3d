"""A process ends: its tasks run again at once, and no others do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]

# Both witnesses learn of a process's end from its kernel; no timer has to run out. A second is for a busy machine.
TAKEN_OVER_S = 1.0


def test_a_killed_node_loses_nothing_and_only_what_it_ran_runs_twice(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, queues="default:150")  # two nodes have room for the tasks of three
    first, victim, last = fleet.nodes
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, each=67)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        killed_s = time.monotonic()
        victim.kill()
        held = ledger.open_on(victim.node_id)
        assert held, "the victim ran something"
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    again = [run for run in ledger.of(held) if run.delivery == 2]
    assert {run.task_id for run in again} == held, "all it held ran again"
    assert {run.node_id for run in again} <= {first.node_id, last.node_id}
    assert max(run.start_s for run in again) - killed_s < TAKEN_OVER_S
    assert fleet.fences() == 1, "one session ended, by one of them"
    for node in (first, last):
        assert node.metric("rumor_task_commits_total", outcome="succeeded") == sum(
            task["node_id"] == node.node_id for task in tasks
        )


def test_a_node_restarted_at_once_on_its_address_is_another_life_and_its_tasks_run_again(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3)
    victim = fleet.nodes[1]
    old = victim.session, victim.pid
    swap = victim.prepare_spare()
    with Commits(redis_server.url) as commits:
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        swapped_s = time.monotonic()
        swap()
        held = {run.task_id for run in ledger.runs() if run.pid == old[1] and run.end_s is None}
        tasks = fleet.wait_ended(ids, 20)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=held)
    again = [run for run in ledger.of(held) if run.delivery == 2]
    assert {run.task_id for run in again} == held
    took_s = [run.start_s - swapped_s for run in again]
    assert max(took_s) < TAKEN_OVER_S
    fleet.wait_ready()
    assert victim.session != old[0]
    for node in fleet.nodes:
        assert node.member(victim.node_id)["session"] == victim.session, "all know the new life"
    more = fleet.spread("chaos.sleep", {"ledger": str(ledger.path)}, each=5)
    check_kept(fleet.wait_ended(more, 10), more, ledger)
    check_ran_once(ledger, more)


def test_a_process_that_a_handler_forked_does_not_hide_the_death_of_its_node(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3)
    victim = fleet.nodes[1]
    work = {"ledger": str(ledger.path), "seconds": 60.0}
    copies: list[int] = []

    def is_forked_off_the_victim() -> bool:
        result = victim.task(victim.submit("chaos.fork", work)[0], wait_s=5)["result"]
        copies.append(result["copy"])
        return bool(result["pid"] == victim.pid)

    try:
        wait_until(is_forked_off_the_victim, 10, "the victim itself ran it")
        ids = fleet.spread("chaos.sleep", work | {"seconds": 2.0}, each=20)
        wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
        killed_s = time.monotonic()
        victim.kill()
        held = ledger.open_on(victim.node_id)
        os.kill(copies[-1], 0)  # it lives on
        check_kept(fleet.wait_ended(ids, 20), ids, ledger)
        again = [run for run in ledger.of(held) if run.delivery == 2]
        assert {run.task_id for run in again} == held
        assert max(run.start_s for run in again) - killed_s < TAKEN_OVER_S
        victim.start()
        fleet.wait_ready()
    finally:
        for copy in copies:
            with contextlib.suppress(ProcessLookupError):
                os.kill(copy, signal.SIGKILL)


def test_a_handler_that_forks_and_returns_twice_makes_no_second_node(make_fleet: Make, ledger: Ledger) -> None:
    fleet = make_fleet(1)
    (node,) = fleet.nodes
    work = {"ledger": str(ledger.path)}
    for task_id in node.submit("chaos.fork_and_return", work, count=3):
        task = node.task(task_id, wait_s=5)
        assert (task["state"], task["result"]["pid"], task["delivery"]) == ("succeeded", node.pid, 1)
        state = Path(f"/proc/{task['result']['copy']}/stat")
        wait_until(lambda state=state: ") Z " in state.read_text(), 5, "the copy has ended")  # type: ignore[misc]
    more = node.submit("chaos.sleep", work, count=20)
    check_kept(fleet.wait_ended(more, 10), more, ledger)


def test_the_signal_that_ends_a_forked_process_does_not_reach_its_node(make_fleet: Make, ledger: Ledger) -> None:
    fleet = make_fleet(1)
    (node,) = fleet.nodes
    task = node.task(node.submit("chaos.fork_and_terminate", {"ledger": str(ledger.path)})[0], wait_s=10)
    assert (task["state"], os.WTERMSIG(task["result"]["status"])) == ("succeeded", signal.SIGTERM)
    more = node.submit("chaos.sleep", {"ledger": str(ledger.path)}, count=20)
    check_kept(fleet.wait_ended(more, 10), more, ledger)
    assert node.is_ready(), "it does not drain"
