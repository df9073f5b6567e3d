"""Processes by pid and birth: a signal reaches the one that was meant, or none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from node.lab import process as processes
from node.lab.process import Process, of_pid, port_problem, spawn, with_variable
from tests.waiting import wait_until

LIMIT_S = 10.0
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(params=["by /proc", "by psutil"], autouse=True)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Linux, and as on a platform without /proc."""
    if request.param == "by psutil":
        monkeypatch.setattr(processes, "PROC", tmp_path / "nowhere")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[Process, subprocess.Popen[bytes]]]:
    process, child = spawn(SLEEPER, {**os.environ, "RUMOR_TEST_MARK": str(tmp_path)}, tmp_path / "log", tmp_path)
    yield process, child
    child.kill()
    child.wait()


def test_a_process_runs_is_paused_and_goes_on(sleeper: tuple[Process, subprocess.Popen[bytes]]) -> None:
    process, _ = sleeper
    assert process.state == "running"
    assert process.signal(signal.SIGSTOP)
    wait_until(lambda: process.state == "paused", LIMIT_S, "it stops")
    assert process.is_alive
    assert process.signal(signal.SIGCONT)
    wait_until(lambda: process.state == "running", LIMIT_S, "it goes on")


def test_a_zombie_has_exited(sleeper: tuple[Process, subprocess.Popen[bytes]]) -> None:
    process, child = sleeper
    assert process.signal(signal.SIGKILL)
    assert process.wait(LIMIT_S), "nobody has waited for the child yet: it is a zombie"
    assert not process.signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert process.state == "exited"


def test_a_later_bearer_of_the_pid_is_another_process(sleeper: tuple[Process, subprocess.Popen[bytes]]) -> None:
    process, child = sleeper
    earlier = Process(process.pid, process.began + "0")
    assert earlier.state == "exited"
    assert not earlier.signal(signal.SIGKILL)
    assert child.poll() is None


def test_no_pid_at_all_is_an_exited_process() -> None:
    assert of_pid(2**22 + 1).state == "exited"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows environments")
def test_processes_are_found_by_what_their_environment_began_with(
    sleeper: tuple[Process, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    # The kernel closes our end of the start before it shows the new environment: it may take a moment.
    found = wait_until(lambda: list(with_variable("RUMOR_TEST_MARK", str(tmp_path))), LIMIT_S, "it shows")
    assert found == [sleeper[0]]
    assert list(with_variable("RUMOR_TEST_MARK", str(tmp_path) + "/other")) == []


def test_an_address_that_is_not_ours_is_a_problem_in_words() -> None:
    problem = port_problem("192.0.2.1", 5000)  # TEST-NET-1: nobody's
    assert problem is not None
    assert "192.0.2.1" in problem


def _free_of_tcp() -> int:
    """A port on which nobody listens: the holder over UDP alone is then what there is to find."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_who_holds_a_port_is_found_also_where_only_each_process_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    with socket.socket() as listener, socket.socket(type=socket.SOCK_DGRAM) as bound:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        bound.bind(("127.0.0.1", _free_of_tcp()))
        for _ in range(2):
            for kind, holder in (("TCP", listener), ("UDP", bound)):
                port = holder.getsockname()[1]
                problem = port_problem("127.0.0.1", port)
                assert problem is not None
                assert problem.startswith(f"{kind} port {port} on 127.0.0.1 cannot be bound: ")
                assert f", held by pid {os.getpid()} (" in problem
            monkeypatch.setattr(psutil, "net_connections", refuse)
