"""A node outlives everything that it writes to, and does not outlive a part of its own.

Real nodes. The streams of one are broken while tasks run on it, then another is killed, and every task is counted. Or a
handler breaks a part of its node from inside: the node ends by itself, and its tasks run elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.errors import RumorError
from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.integration.outlive_names import SABOTAGE
from tests.processes import ROOT, free_base_port
from tests.waiting import wait_until

TASKS = "tests.integration.outlive_tasks"
LIMIT_S = 30.0
ELSEWHERE_WITHIN_S = 5.0  # from the node's end until its tasks have run on another; usually some ten milliseconds
LOUD_TASKS = 12  # with 80 KB of output each, where a pipe holds 64

F_SETPIPE_SZ = getattr(fcntl, "F_SETPIPE_SZ", None)


@pytest.fixture
def nodes(tmp_path: Path, redis_server: RedisServer) -> Iterator[Fleet]:
    with fleet(tmp_path, redis_server.url, tasks=TASKS, drain_s=3, stall_limit_s=3, stall_after_s=1) as made:
        yield made


def start_into(node: Node, out: int) -> None:
    """Start a node whose standard output and error are this descriptor."""
    command = [sys.executable, "-P", "-m", "node", "node"]
    node.process = subprocess.Popen(
        command, env=node.environ, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out
    )


@contextlib.contextmanager
def pipe(has_reader: bool) -> Iterator[int]:
    reader, writer = os.pipe()
    if not has_reader:
        os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)
        if has_reader:
            os.close(reader)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    number = os.open("/dev/full", os.O_WRONLY)
    yield number
    os.close(number)


@contextlib.contextmanager
def held_terminal() -> Iterator[int]:
    """A terminal whose other side reads nothing, as after Ctrl-S."""
    master, slave = pty.openpty()
    yield slave
    os.close(slave)
    os.close(master)


STREAMS: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
    "the reader is gone": lambda: pipe(has_reader=False),
    "the reader has stopped": lambda: pipe(has_reader=True),
    "the disk is full": full_disk,
    "the terminal is held": held_terminal,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_node_outlives_its_standard_streams(nodes: Fleet, stream: str) -> None:
    base = free_base_port(2)
    mute, other = (nodes.make("127.0.0.1", base + n, log_level="debug") for n in range(2))
    with STREAMS[stream]() as out:
        start_into(mute, out)
        nodes.nodes.append(mute)
        nodes.begin([other])
        ids = [task for kind in ("loud", "loud_child") for task in mute.submit(kind, 0.5, LOUD_TASKS)]
        wait_until(lambda: mute.get("/health")["running"] or other.get("/health")["running"], LIMIT_S, "some run")
        other.kill()
        nodes.nodes.remove(other)
        tasks = nodes.wait_ended(ids, LIMIT_S)
        assert {task["state"] for task in tasks} == {"succeeded"}
        assert mute.get("/livez")["status"] == "ok"
        assert mute.is_ready()
        mute.terminate()
        assert mute.wait(3 + 15) == 0


def test_a_node_lives_with_closed_streams(nodes: Fleet) -> None:
    node = nodes.make("127.0.0.1", free_base_port(1))
    command = f"exec {sys.executable} -P -m node node 0<&- 1>&- 2>&-"
    node.process = subprocess.Popen(["sh", "-c", command], env=node.environ, cwd=ROOT)
    nodes.nodes.append(node)
    nodes.wait_ready()
    ids = [*node.submit("loud", 0.1, 4), *node.submit("loud_child", 0.1, 2)]
    assert {task["state"] for task in nodes.wait_ended(ids, LIMIT_S)} == {"succeeded"}
    node.terminate()
    assert node.wait(3 + 15) == 0


def test_a_logging_handler_that_raises_harms_only_who_logs_through_it(nodes: Fleet) -> None:
    nodes.expected.append("nobody looks|ZeroDivision|this handler is broken")
    nodes.start(1)
    node = nodes.nodes[0]
    ids = node.submit("bad_logging", 0.1, 3)
    assert {task["state"] for task in nodes.wait_ended(ids, LIMIT_S)} == {"succeeded"}
    (loud,) = node.submit("loud", 0.1, max_attempts=1)
    assert "this handler is broken" in nodes.wait_ended([loud], LIMIT_S)[0]["error"]["message"]
    assert node.is_ready()
    assert node.get("/livez")["status"] == "ok"
    node.terminate()
    assert node.wait(3 + 15) == 0


@pytest.mark.parametrize("part", SABOTAGE)
def test_a_part_that_has_ended_for_good_ends_its_node_and_its_tasks_run_elsewhere(
    nodes: Fleet, tmp_path: Path, part: str
) -> None:
    nodes.expected.append("sabotage|never end|cancelled|task_|node_broken|vitals_|Broken|Error")
    base = free_base_port(2)
    broken = nodes.make("127.0.0.1", base, queues="default:10,sync:0,long:10,sabotage:10")
    nodes.begin([broken])
    runs = tmp_path / "runs"
    ids = broken.submit("long_here", str(runs), 1)
    wait_until(lambda: runs.exists(), LIMIT_S, "it runs where it can")
    nodes.begin([nodes.make("127.0.0.1", base + 1, queues="default:10,sync:0,long:10")])
    with contextlib.suppress(RumorError):  # the node may end before it answers
        broken.submit("sabotage", part)
    status = broken.wait(LIMIT_S)
    ended_s = time.monotonic()
    nodes.nodes.remove(broken)
    assert status == 70, broken.log()[-3000:]
    assert "node_broken" in broken.log() or "gave_up" in broken.log()
    tasks = nodes.wait_ended(ids, LIMIT_S)
    assert time.monotonic() - ended_s < ELSEWHERE_WITHIN_S
    assert [task["state"] for task in tasks] == ["succeeded"]
    assert len(runs.read_text().splitlines()) == 2
