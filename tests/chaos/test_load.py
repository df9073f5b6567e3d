"""More work than slots: which tasks start first, and the effect of more nodes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from node.queue.backlog import SLACK_MS
from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.chaos.stream import Stream
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]


def test_on_a_busy_node_all_high_tasks_start_before_the_normal_ones_that_came_first(
    make_fleet: Make, ledger: Ledger
) -> None:
    fleet = make_fleet(1, queues="default:2")
    (node,) = fleet.nodes
    work = {"ledger": str(ledger.path), "seconds": 0.02}
    busy = node.submit("chaos.sleep", {**work, "seconds": 1.0}, 2)
    wait_until(lambda: ledger.started(busy) == 2, 5, "no slot is free")
    normal = node.submit("chaos.sleep", work, 50, priority="normal")
    high = node.submit("chaos.sleep", work, 50, priority="high")
    assert ledger.started([*normal, *high]) == 0
    tasks = fleet.wait_ended([*normal, *high], 20)
    check_kept(tasks, [*normal, *high], ledger)
    last_high_s = max(run.start_s for run in ledger.of(high))
    first_normal_s = min(run.start_s for run in ledger.of(normal))
    assert last_high_s < first_normal_s


def test_no_low_task_waits_for_ever_under_a_steady_stream_of_high_ones(make_fleet: Make, ledger: Ledger) -> None:
    aging_s = 0.5
    fleet = make_fleet(1, queues="default:2", priority_aging_s=aging_s)
    (node,) = fleet.nodes
    work = {"ledger": str(ledger.path), "seconds": 0.1}  # the node runs 20 a second; about 30 a second arrive
    with Stream([node], "chaos.sleep", work, pause_s=0.03, priority="high") as stream:
        wait_until(lambda: len(stream.accepted) > ledger.started(stream.accepted) + 20, 20, "high ones pile up")
        began_s = time.monotonic()
        low = node.submit("chaos.sleep", work, priority="low")
        wait_until(lambda: ledger.started(low) == 1, 30, "the low one starts")
        waited_s = time.monotonic() - began_s
        waiting = len(stream.accepted) - ledger.started(stream.accepted)
    assert waiting > 20, "high ones were still waiting"
    # Six levels lie between low and high: a high task that arrived later than six levels are worth comes after the low
    # one. (The order is free among tasks of equal age, to the slack of a claim.)
    assert waited_s > 1.0, "it did wait"
    low_s = ledger.of(low)[0].start_s
    started = {run.task_id for run in ledger.runs() if run.start_s < low_s}
    late = [
        a for a in stream.answers if a.at_s > began_s + 6 * aging_s + SLACK_MS / 1000 + 0.3 and a.task_id in started
    ]
    assert not late, f"{len(late)} high ones that came long after it were served before it"


def test_more_nodes_take_over_shards_and_work_from_those_that_are_full(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(2, queues="default:4")
    with Commits(redis_server.url) as commits:
        ids = fleet.nodes[0].submit("chaos.sleep", {"ledger": str(ledger.path), "seconds": 0.2}, 600)
        wait_until(lambda: ledger.started(ids) > 80, 20, "two nodes are at work")
        port = max(node.port for node in fleet.nodes) + 1
        added = [fleet.make("127.0.0.1", port + n) for n in range(3)]
        fleet.begin(added)
        joined_s = time.monotonic()
        owners = wait_until(
            lambda: (lambda names: names if len(names) == 5 else None)(
                set(fleet.nodes[0].get("/cluster")["shards"].values())
            ),
            5,
            "shards are spread over five",
        )
        assert owners == {node.node_id for node in fleet.nodes}
        tasks = fleet.wait_ended(ids, 60)
        check_committed_once(commits, ids)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    runs = ledger.of(ids)
    began_s = runs[0].start_s
    first_added_s = min(run.start_s for run in runs if run.node_id in {node.node_id for node in added})
    before = [run for run in runs if run.start_s < first_added_s]
    after = [run for run in runs if run.start_s >= joined_s]
    rate_before = len(before) / (first_added_s - began_s)
    rate_after = len(after) / (max(run.start_s for run in after) - joined_s)
    assert rate_after / rate_before > 1.3, f"{rate_before:.0f}/s, then {rate_after:.0f}/s"
    assert {run.node_id for run in after} == owners, "all five work"
