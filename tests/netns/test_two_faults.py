"""Two faults at once, on different nodes: who is cut off himself is no witness, and fences nobody.

The law: a node that lives, was not stopped for stalled_s and still reaches Redis or one live peer keeps its session and
its tasks, whoever else holds it dead meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.exercises import Exercise, Ground, across, around, exercise, hold
from tests.netns.conftest import COUNT
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.netns]

ALL = range(1, COUNT + 1)
STOP_S = 2.0  # promised to be harmless up to stalled_s, which is 5
WORK_S = 8.0  # longer than either
SILENT_S = 4.0  # promised to be harmless up to the lease, which is 30


@contextmanager
def nobody_is_fenced(ground: Ground, text: str) -> Iterator[Exercise]:
    """A cut, in which nothing runs twice and every session goes on."""
    sessions, fences = ground.sessions(), ground.fences()
    with exercise(ground, text, seconds=0.1) as run:
        yield run
        run.check()
        assert ground.sessions() == sessions
        assert ground.fences() == fences, fenced(ground)
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == fences, fenced(ground)


def fenced(ground: Ground) -> list[object]:
    """What the nodes say of it."""
    return [node.events("session_fenced") for node in ground.nodes]


def work(run: Exercise, number: int) -> None:
    """Start tasks everywhere; this node runs some of them."""
    ids = run.submit(ALL, 6, WORK_S)
    wait_until(lambda: run.ledger.started(ids) == len(ids), 15, "all run")
    assert run.ledger.open_on(run.ground.node(number).node_id)


def stop(ground: Ground, number: int) -> None:
    """Stop a node's process for a moment."""
    told = json.loads((ground.fleet.folder / "cluster.json").read_text("utf-8"))
    (pid,) = (row["pid"] for row in told["nodes"] if row["number"] == number)
    os.kill(pid, signal.SIGSTOP)
    try:
        hold(STOP_S)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_node_without_peers_does_not_fence_one_that_is_stopped_for_a_moment(ground: Ground) -> None:
    with nobody_is_fenced(ground, "no-gossip 3") as run:
        ground.wait_believed(around(3, COUNT, "cut_from_peers"), run.text)
        work(run, 1)
        stop(ground, 1)
        run.submit(ALL)


def test_a_node_without_peers_does_not_fence_one_that_lost_redis_for_a_moment(ground: Ground) -> None:
    with nobody_is_fenced(ground, "no-gossip 3") as run:
        ground.wait_believed(around(3, COUNT, "cut_from_peers"), run.text)
        work(run, 1)
        ground.partition("no-redis", "1")
        hold(SILENT_S)
        ground.partition("heal")
        wait_until(ground.node(1).is_ready, 15, "it reaches Redis again")


@pytest.mark.parametrize("stopped", [1, 4])
def test_no_side_of_a_split_fences_a_node_of_the_other_that_is_stopped_for_a_moment(
    ground: Ground, stopped: int
) -> None:
    with nobody_is_fenced(ground, "split 1,2 3,4,5") as run:
        ground.wait_believed(across((1, 2), (3, 4, 5), "cut_from_peers"), run.text)
        work(run, stopped)
        stop(ground, stopped)
        run.submit(ALL)
