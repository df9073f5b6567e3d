"""Tasks that kill the process that runs them: their attempts are bounded, and other nodes stay up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from cluster.errors import RumorError
from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

ATTEMPTS = 3


def test_a_task_that_kills_its_node_takes_two_at_the_most_and_ends_dead(
    make_fleet: Callable[..., Fleet], ledger: Ledger
) -> None:
    fleet = make_fleet(3, backoff_base_s=0.2)
    deaths = 0

    def supervise() -> None:
        """Start nodes that have ended, as a supervisor would."""
        nonlocal deaths
        down = [node for node in fleet.nodes if not node.is_running]
        deaths += len(down)
        # Both may be down at once: the second one runs the task, and dies of it, within milliseconds.
        assert deaths <= 2, "the others stay up"
        for node in down:
            assert node.wait() == 86
            node.start()

    # A moment later, so that the node still answers.
    (poison,) = fleet.nodes[0].submit("chaos.crash", {"ledger": str(ledger.path)}, max_attempts=ATTEMPTS, delay_s=0.3)

    def ended() -> dict[str, Any]:
        supervise()
        for node in fleet.nodes:
            with contextlib.suppress(RumorError):  # The node may die during the request.
                task = node.task(poison)
                return task if task["state"] == "dead" else {}
        return {}

    task = wait_until(ended, 40, "the poison is dead")
    assert task["attempt"] == ATTEMPTS
    assert task["error"]["type"] == "WorkerCrashed", "from the second death on it ran in a child process"
    assert [run.attempt for run in ledger.of([poison])] == [1, 2, 3]
    supervise()
    assert deaths == 2, "and none more"
    fleet.wait_ready()
    ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 0.1}, each=10)
    check_kept(fleet.wait_ended(ids, 10), ids, ledger)
    check_ran_once(ledger, ids)


def test_a_task_that_kills_its_child_process_ends_dead_and_the_node_stays_up(
    make_fleet: Callable[..., Fleet], ledger: Ledger
) -> None:
    fleet = make_fleet(1, backoff_base_s=0.05)
    (node,) = fleet.nodes
    pid, session = node.pid, node.session
    poison, built_in = (
        *node.submit("chaos.crash_process", {"ledger": str(ledger.path)}, max_attempts=ATTEMPTS),
        *node.submit("crash_process", None, max_attempts=2, backoff={"base_s": 0.05}),
    )
    tasks = {task["id"]: task for task in fleet.wait_ended([poison, built_in], 30)}
    assert [(tasks[i]["state"], tasks[i]["attempt"]) for i in (poison, built_in)] == [("dead", ATTEMPTS), ("dead", 2)]
    assert [run.attempt for run in ledger.of([poison])] == [1, 2, 3]
    assert "86" in tasks[poison]["error"]["message"], f"it says how the child ended: {tasks[poison]['error']}"
    assert (node.pid, node.session, node.is_running) == (pid, session, True)
    ids = node.submit("chaos.sleep", {"ledger": str(ledger.path)}, 10)
    check_kept(fleet.wait_ended(ids, 10), ids, ledger)


def test_what_a_handler_leaves_behind_may_exit_and_the_node_stays_up(
    make_fleet: Callable[..., Fleet], ledger: Ledger
) -> None:
    fleet = make_fleet(1)
    (node,) = fleet.nodes
    fleet.expected.append("SystemExit")
    running = node.submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 2.0}, 5)
    leaking = node.submit("chaos.leave_exits_behind", {"ledger": str(ledger.path)}, 3)
    wait_until(lambda: "exit_ignored" in node.log(), 10, "it is told")
    assert {task["state"] for task in fleet.wait_ended([*running, *leaking], 10)} == {"succeeded"}
    check_ran_once(ledger, running)
    node.terminate()
    assert node.wait() == 0, "and it drains when it is told to"
