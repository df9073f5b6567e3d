"""The demo does what it says: a fault, told from the nodes' own timeline, and everything counted at the end."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.lab.process import port_problem
from tests.processes import ROOT, clean_environ, free_base_port
from tests.waiting import wait_until

LIMIT_S = 90
PORTS = 5


@pytest.fixture
def place() -> Iterator[tuple[Path, int]]:
    folder = Path(tempfile.mkdtemp(prefix="rumor-demo-"))
    yield folder, free_base_port(PORTS)
    shutil.rmtree(folder, ignore_errors=True)


def demo(place: tuple[Path, int], *words: str) -> subprocess.Popen[str]:
    folder, base = place
    with (folder / "out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-u", "scripts/demo.py", *words],
            cwd=ROOT,
            env=clean_environ() | {"RUMOR_DATA_DIR": str(folder / "data"), "RUMOR_BASE_PORT": str(base)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def nothing_runs(base: int) -> bool:
    return all(port_problem("127.0.0.1", port) is None for port in range(base, base + PORTS))


def test_a_kill_is_told_and_nothing_is_lost(place: tuple[Path, int]) -> None:
    assert demo(place, "--seconds", "3").wait(LIMIT_S) == 0
    said = (place[0] / "out").read_text("utf-8")
    assert re.search(
        r"kill -9 for node 3\n.*held dead \d+ ms later \(its port refuses connections\), fenced after", said
    )
    assert "Nothing was lost." in said
    assert re.search(r"lost or unfinished +0\n", said)
    assert nothing_runs(place[1])
    data = place[0] / "data"
    assert [path.name for path in data.iterdir()] == ["demo"], "RUMOR_DATA_DIR itself may be another cluster's"


def test_ctrl_c_ends_all_that_it_started(place: tuple[Path, int]) -> None:
    running = demo(place, "--seconds", "60")
    wait_until(lambda: "load" in (place[0] / "out").read_text("utf-8"), 30, "the load has begun")
    running.send_signal(signal.SIGINT)
    assert running.wait(LIMIT_S) == 130
    assert nothing_runs(place[1])
