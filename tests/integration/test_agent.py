"""`rumor agent` as processes: the lines it prints, what ends it, and what its TCP side answers to whom."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 20.0
KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2)]


class Agent:
    """One agent and the lines it has printed so far."""

    def __init__(self, name: str, *words: str, seed: int = 0) -> None:
        self.name = name
        self.port = free_port()
        self.lines: list[dict[str, Any]] = []
        command = [sys.executable, "-m", "node", "agent", "--name", name, "--port", str(self.port), *words]
        command += ["--seed", f"127.0.0.1:{seed}"] if seed else []
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUMOR_")}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def said(self, event: str, subject: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if (line["event"], line["subject"]) == (event, subject)]

    def wait(self, event: str, subject: str, count: int = 1) -> dict[str, Any]:
        until(lambda: len(self.said(event, subject)) >= count, f"{self.name}: {event} {subject}, not {self.lines}")
        return self.said(event, subject)[count - 1]

    def ask(self, request: bytes) -> bytes:
        """What a fresh connection gets for these bytes, up to its end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as sock:
            sock.sendall(request)
            return b"".join(iter(lambda: sock.recv(65_536), b""))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def until(condition: Callable[[], Any], what: str) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.005)


Start = Callable[..., Agent]


@pytest.fixture
def start() -> Iterator[Start]:
    agents: list[Agent] = []

    def make(*words: Any, **more: Any) -> Agent:
        agents.append(Agent(*words, **more))
        return agents[-1]

    yield make
    for agent in agents:
        agent.end()


def trio(start: Start, *words: str) -> tuple[Agent, Agent, Agent]:
    """Three that know each other."""
    first = start("a", *words)
    first.wait("ready", "a")
    others = [start(name, *words, seed=first.port) for name in ("b", "c")]
    for agent in (first, *others):
        for other in {"a", "b", "c"} - {agent.name}:
            agent.wait("join", other)
    return first, *others


def test_a_killed_agent_is_dead_and_a_new_life_joins(start: Start) -> None:
    a, b, c = trio(start)
    killed_s = time.monotonic()
    c.process.kill()
    for agent in (a, b):
        assert agent.wait("dead", "c")["t"] - killed_s < 2.0
    again = start("c", seed=a.port)
    again.wait("join", "b")
    for agent in (a, b):
        agent.wait("join", "c", count=2)
        assert not agent.said("dead", "a") + agent.said("dead", "b")
        assert [line["event"] for line in agent.lines[:2]] == ["start", "ready"]


def test_a_stopped_agent_is_suspect_and_alive_again(start: Start) -> None:
    a, b, c = trio(start)
    c.process.send_signal(signal.SIGSTOP)
    a.wait("suspect", "c")
    c.process.send_signal(signal.SIGCONT)
    for agent in (a, b):
        if agent.said("suspect", "c"):
            agent.wait("alive", "c")
    assert not a.said("dead", "c") + b.said("dead", "c")


@pytest.mark.parametrize("how", ["stdin", "SIGTERM", "SIGHUP"])
def test_it_leaves_when_its_input_ends_or_on_a_signal(start: Start, how: str) -> None:
    a, b, c = trio(start)
    if how == "stdin":
        assert c.process.stdin is not None
        c.process.stdin.close()
    else:
        c.process.send_signal(signal.Signals[how])
    assert c.process.wait(LIMIT_S) == 0
    for agent in (a, b):
        agent.wait("left", "c")
        assert not agent.said("dead", "c")


def test_a_signal_prints_counters(start: Start) -> None:
    a, *_ = trio(start)
    a.process.send_signal(signal.SIGUSR1)
    stats = a.wait("stats", "a")
    assert stats["live"] == 3
    assert stats["bytes_out"] > 0
    assert 0 < stats["cpu_s"] < LIMIT_S


def test_keys_rotate_without_anybody_noticing(start: Start) -> None:
    """One ring at a time gets the new key in second place, then in first, then without the old agent."""
    a = start("a", "--gossip-keys", ",".join(KEYS))
    a.wait("ready", "a")
    b = start("b", "--gossip-keys", ",".join(reversed(KEYS)), seed=a.port)
    stranger = start("s", "--gossip-keys", base64.b64encode(bytes(32)).decode(), seed=a.port)
    for agent, other in ((a, "b"), (b, "a")):
        agent.wait("join", other)
    stranger.wait("ready", "s")
    time.sleep(1.0)
    assert [line["event"] for line in stranger.lines] == ["start", "ready"]
    assert not a.said("join", "s")


def test_a_second_bearer_of_a_name_gives_up(start: Start) -> None:
    a, b, _ = trio(start)
    twin = start("c", seed=a.port)
    assert twin.process.wait(LIMIT_S) == 3
    assert not b.said("dead", "c")


def test_a_clock_that_was_set_back_between_two_lives_keeps_nobody_out(start: Start) -> None:
    first = start("a")
    second = start("b", seed=first.port)
    first.wait("join", "b")
    second.process.kill()
    first.wait("dead", "b")
    an_hour_ago = "import time; real = time.time_ns; time.time_ns = lambda: real() - 3600 * 10**9"
    words = ["agent", "--name", "b", "--port", str(second.port), "--seed", f"127.0.0.1:{first.port}"]
    command = [sys.executable, "-c", f"{an_hour_ago}; from node.cli import main; main()", *words]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as third:
        try:
            first.wait("join", "b", count=2)
            assert third.poll() is None
        finally:
            third.kill()


def test_its_tcp_side_answers_members_only(start: Start) -> None:
    a = start("a", "--gossip-keys", KEYS[0])
    a.wait("ready", "a")
    for request, status in (
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"404"),
        (b"GET /gossip/watch HTTP/1.1\r\nRumor-Watch: forged\r\n\r\n", b"403"),
        (b"GET /gossip/watch HTTP/1.1\r\n\r\n", b"403"),
        (b"POST /gossip HTTP/1.1\r\nContent-Length: 4\r\n\r\nfour", b"403"),
        (b"POST /gossip HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"POST /gossip HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"413"),
        (b"POST /gossip HTTP/1.1\r\n\r\n", b"413"),
        (b"POST /gossip HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 4\r\n\r\nfour", b"403"),
        (b"POST /gossip HTTP/1.1\r\nOrigin: http://127.0.0.1\r\nContent-Length: 9999\r\n\r\n", b"403"),
        (b"GET /gossip/watch HTTP/1.1\r\nSec-Fetch-Site: same-origin\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 2000, b"431"),
        (b"POST /gossip HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
    ):
        assert a.ask(request).startswith(b"HTTP/1.1 " + status), request[:60]


def test_a_port_that_is_taken_is_said_and_nothing_runs(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        agent = start("a", "--port", str(port))
        assert agent.process.wait(LIMIT_S) == 2
        assert agent.process.stderr is not None
        assert f"127.0.0.1:{port} cannot be bound" in agent.process.stderr.read().decode()


@pytest.mark.parametrize("words", [("--host", "0.0.0.0"), ("--seed", "")])
def test_what_cannot_be_is_refused_before_anything_runs(start: Start, words: tuple[str, str]) -> None:
    agent = start("a", *words)
    if words[0] == "--host":
        assert agent.process.wait(LIMIT_S) == 2
        assert not agent.said("ready", "a")
    else:
        agent.wait("ready", "a")  # An empty seed is none.


@pytest.mark.parametrize("streams", [">&-", "2>&-", "2>&- >&-", ">/dev/full"])
def test_it_is_a_member_without_anything_to_write_to(start: Start, streams: str) -> None:
    first = start("a")
    words = [sys.executable, "-m", "node", "agent", "--name", "b", "--port", str(free_port())]
    words += ["--seed", f"127.0.0.1:{first.port}"]
    with subprocess.Popen(["sh", "-c", f'exec "$@" {streams}', "sh", *words], cwd=ROOT, stdin=subprocess.PIPE) as mute:
        try:
            first.wait("join", "b")
            assert mute.stdin is not None
            mute.stdin.close()
            assert mute.wait(LIMIT_S) == 0
            first.wait("left", "b")
        finally:
            mute.kill()


def test_it_is_a_member_although_nobody_reads_what_it_tells(start: Start) -> None:
    first = start("a")
    first.wait("ready", "a")
    words = [sys.executable, "-m", "node", "agent", "--name", "b", "--port", str(free_port())]
    words += ["--seed", f"127.0.0.1:{first.port}"]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mute:
        try:
            first.wait("join", "b")
            for _ in range(300):  # much more than a pipe takes
                mute.send_signal(signal.SIGUSR1)
                time.sleep(0.005)
            assert mute.stdin is not None
            mute.stdin.close()
            first.wait("left", "b")
            assert mute.wait(LIMIT_S) == 0
        finally:
            mute.kill()


def test_the_benchmark_of_membership_runs(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/bench/membership.py", "--nodes=4", "--trials=1", "--scenarios=start,kill"]
    done = subprocess.run(
        [*command, f"--json={tmp_path}/figures.json"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert 0 < rows["kill -9: the last survivor knows"][0] < 5.0
    assert "| kill -9: the last survivor knows |" in done.stdout
