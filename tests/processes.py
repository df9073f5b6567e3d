"""A real cluster for a test, run through `rumor launch` as a user would run it."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from node.client.one_node import Remote
from node.lab.process import port_problem

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LIMIT_S = 100.0
SPARE_PORTS = 4  # for `add`
TRACEBACK = "Traceback (most recent call last)"


class LaunchedCluster:
    """N nodes and a Redis in a directory of their own. Give settings by field name: `drain_s=1`.

    With `netns` each lives in a network namespace of its own.
    """

    def __init__(
        self, folder: Path, nodes: int = 3, *, base_port: int | None = None, netns: bool = False, **settings: object
    ) -> None:
        self.folder = folder
        self.base_port = base_port or free_base_port(nodes + SPARE_PORTS)
        self.expected: list[str] = []
        self.was_stopped = False
        self.netns = netns
        self.environ = clean_environ() | {
            "RUMOR_DATA_DIR": str(folder),
            "RUMOR_BASE_PORT": str(self.base_port),
            **{f"RUMOR_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.token = str(settings.get("api_token", ""))
        self.launch(str(nodes), "--detach", *(["--netns"] if netns else []))
        if netns and not self.token:
            self.token = (folder / "api.token").read_text("ascii").strip()

    def launch(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rumor launch …` for this cluster. With `check`, a failure fails the test and shows the output."""
        done = launch(*words, environ=self.environ)
        assert not check or done.returncode == 0, f"rumor launch {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def status(self) -> dict[str, Any]:
        """`status --json`."""
        status: dict[str, Any] = json.loads(self.launch("status", "--json", check=False).stdout)
        return status

    def node(self, number: int) -> dict[str, Any]:
        """One row of the status."""
        return next(row for row in self.status()["nodes"] if row["number"] == number)

    def url(self, number: int) -> str:
        return str(self.node(number)["url"]) if self.netns else f"http://127.0.0.1:{self.base_port + number - 1}"

    @property
    def redis_url(self) -> str:
        """With the password, which `status` leaves out."""
        record: dict[str, Any] = json.loads((self.folder / "cluster.json").read_text("utf-8"))
        return str(record["redis"]["url"])

    def remote(self, number: int, timeout_s: float = 10.0) -> Remote:
        """Node `number` over HTTP: `cluster.remote(1).call("GET", "/cluster")`."""
        return Remote(self.url(number), self.token, timeout_s=timeout_s)

    def kill(self, number: int) -> None:
        self.launch("kill", str(number))

    def pause(self, number: int) -> None:
        self.launch("pause", str(number))

    def resume(self, number: int) -> None:
        self.launch("resume", str(number))

    def restart(self, number: int) -> None:
        self.launch("restart", str(number))

    def add(self) -> int:
        """Start one more node; its number."""
        self.launch("add")
        return int(self.status()["nodes"][-1]["number"])

    def stop(self) -> None:
        self.was_stopped = True
        self.launch("stop")

    def log(self, number: int) -> str:
        path = self.folder / f"node-{number}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def expect_traceback(self, pattern: str) -> None:
        """Allow tracebacks that match this pattern: they are part of the test."""
        self.expected.append(pattern)

    def unexpected_tracebacks(self) -> list[str]:
        """Every traceback in the nodes' logs that no `expect_traceback` covers, with the lines around it."""
        tracebacks = []
        for path in sorted(self.folder.glob("node-*.log")):
            text = path.read_text("utf-8", "replace")
            for match in re.finditer(re.escape(TRACEBACK), text):
                part = text[max(0, match.start() - 500) : match.start() + 4000]
                if not any(re.search(pattern, part) for pattern in self.expected):
                    tracebacks.append(f"{path.name}: {part}")
        return tracebacks

    def close(self) -> None:
        """End it if it still runs; fail if a node logged an unexpected traceback."""
        if not self.was_stopped:
            self.stop()
        tracebacks = self.unexpected_tracebacks()
        assert not tracebacks, "a node logged a traceback:\n" + "\n".join(tracebacks)


def launch(*words: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `rumor launch …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "node", "launch", *words],
        env=environ,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_LIMIT_S,
        check=False,
    )


def clean_environ() -> dict[str, str]:
    """This process's environment without any Rumor setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RUMOR_")}


def free_base_port(count: int) -> int:
    """The first of `count` neighbouring ports, free on TCP and UDP a moment ago.

    They lie below the range that kernels hand out by themselves (32768 and up), so that no connection takes one.
    """
    chance = random.Random(os.getpid() ^ random.SystemRandom().getrandbits(32))
    for _ in range(200):
        base = chance.randrange(20_000, 32_000)
        if all(port_problem("127.0.0.1", port) is None for port in range(base, base + count)):
            return base
    raise RuntimeError(f"no {count} neighbouring free ports between 20000 and 32000")
