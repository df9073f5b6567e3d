"""The test bed of the benchmarks: a Redis and nodes, children of the benchmark that end with it.

Everything is in a temporary directory and on free ports, so a benchmark meets no other cluster. Nodes get their
settings by field name (`queues="default:100"`), and none from the environment of the benchmark.

Does not know: what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import redis

from cluster.errors import RumorError
from node.client.one_node import Remote
from node.lab import private_redis
from node.lab.process import Process, port_problem, spawn, wait_for

ROOT = Path(__file__).resolve().parents[2]
READY_LIMIT_S = 30.0
END_LIMIT_S = 20.0
PORTS = range(21_000, 31_000, 10)  # first ports of a bed; kernels hand out higher ones to connections


@dataclass
class Node:
    """One node, through all its lives."""

    url: str
    log: Path
    environ: dict[str, str]
    remote: Remote
    process: Process = field(init=False)
    child: subprocess.Popen[bytes] = field(init=False)

    @property
    def name(self) -> str:
        return self.url.removeprefix("http://")

    def start(self) -> None:
        """Start it; do not wait."""
        command = [sys.executable, "-P", "-m", "node", "node"]
        self.process, self.child = spawn(command, self.environ, self.log, ROOT)

    def wait_ready(self, members: int = 1) -> None:
        """Wait until it takes work and holds this many members, itself included, healthy."""

        def is_ready() -> bool:
            if self.child.poll() is not None:
                raise RuntimeError(f"{self.url} ended: {private_redis.tail(self.log)}")
            try:
                rows = self.get("/cluster")["members"]
                return self.get("/readyz")["ready"] and sum(row["verdict"] == "healthy" for row in rows) >= members
            except RumorError:
                return False

        if not wait_for(is_ready, READY_LIMIT_S, 0.01):
            raise RuntimeError(f"{self.url} was not ready in time: {private_redis.tail(self.log)}")

    def get(self, path: str) -> Any:
        return self.remote.call("GET", path)[1]

    def kill(self) -> None:
        """Send SIGKILL; do not wait."""
        self.process.signal(signal.SIGKILL)

    def stop(self) -> None:
        """Let it drain, and wait; send SIGKILL when that takes too long."""
        self.process.signal(signal.SIGTERM)
        try:
            self.child.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.child.wait()


class Bed:
    """A Redis and up to ten nodes. Use it as a context."""

    def __init__(self, aof: bool = True, **settings: object) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rumor-bench-"))
        self.nodes: list[Node] = []
        self._settings = settings
        self.base_port = next(
            port
            for port in (PORTS[(os.getpid() + n) % len(PORTS)] for n in range(len(PORTS)))
            if not any(port_problem("127.0.0.1", port + n) for n in range(10))
        )
        self._redis, self._child, self.redis_url = private_redis.start(
            self.folder / "redis", private_redis.choose_port(self.base_port), {}
        )
        self.redis = redis.Redis.from_url(self.redis_url)
        self.redis_pid = self._child.pid
        if not aof:
            self.redis.config_set("appendonly", "no")

    def node(self, **settings: object) -> Node:
        """Start the next node; do not wait."""
        port = self.base_port + len(self.nodes)
        values = {"redis_url": self.redis_url, "port": port, "log_level": "warning", **self._settings, **settings}
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUMOR_")}
        environ |= {f"RUMOR_{name.upper()}": str(value) for name, value in values.items()}
        environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
        url = f"http://127.0.0.1:{port}"
        node = Node(url, self.folder / f"node-{port}.log", environ, Remote(url, timeout_s=60.0))
        self.nodes.append(node)
        node.start()
        return node

    def __enter__(self) -> Bed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.redis.close()
        for node in self.nodes:
            node.kill()
            node.child.wait()
        self._redis.signal(signal.SIGKILL)
        self._child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Meter:
    """CPU that a process and the bed's Redis spend on each task.

    On a busy machine these figures are steadier than rates.
    """

    def __init__(self, bed: Bed, pid: int) -> None:
        self._bed = bed
        self._pid = pid
        self._before = self._read()

    def figures(self, tasks: float, per_s: float) -> dict[str, float]:
        """`per_s` as it is given, and microseconds of CPU a task since the meter was made."""
        own_s, redis_s = (now - before for now, before in zip(self._read(), self._before, strict=True))
        return {"per_s": per_s, "cpu_us": own_s / tasks * 1e6, "redis_us": redis_s / tasks * 1e6}

    def _read(self) -> tuple[float, float]:
        fields = Path(f"/proc/{self._pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        redis_cpu = self._bed.redis.info("cpu")
        own_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return own_s, redis_cpu["used_cpu_user"] + redis_cpu["used_cpu_sys"]


# ---- figures


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def levels(values: Sequence[float]) -> dict[str, float]:
    """min, median, p99 and max."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"min": ordered[0], "p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}


def machine() -> dict[str, Any]:
    """The machine and the command behind the figures."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is aligned left, figures are aligned right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def publish(title: str, table: str, figures: dict[str, Any], path: Path | None) -> None:
    """Print the table; write everything as JSON to `path`, if there is one."""
    host = machine()
    print(f"\n## {title}\n\n{table}\n\n`{host['command']}`, {host['cores']} cores, Python {host['python']}, "
          f"{host['at']}, load {host['load']}", flush=True)  # fmt: skip
    if path is not None:
        path.write_text(json.dumps({"machine": host, **figures}, indent=1) + "\n", "utf-8")


def say(text: str) -> None:
    """Print progress to stderr: stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)
