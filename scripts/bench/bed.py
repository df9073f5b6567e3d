"""The test bed of the benchmarks: a Redis and nodes, children of the benchmark that end with it.

Everything is in a temporary directory and on free ports, so a benchmark meets no other cluster. Nodes get their
settings by field name (`queues="default:100"`), and none from the environment of the benchmark.

A bed belongs to one checkout: this one, or the one that `--beside` names, which may be older. Its nodes run that
checkout's code in that checkout's environment, and that checkout's launcher sets up its Redis. The benchmark itself is
always this checkout's: it talks HTTP with the nodes, and reads INFO and /proc.

Does not know: what is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import redis
from figures import at

from cluster.errors import RumorError
from node.client.one_node import Remote
from node.lab import private_redis
from node.lab.process import Process, port_problem, spawn, wait_for

ROOT = Path(__file__).resolve().parents[2]
READY_LIMIT_S = 30.0
END_LIMIT_S = 20.0
PORTS = range(21_000, 31_000, 10)  # first ports of a bed; kernels hand out higher ones to connections
WATCH_S = 0.01
TICKS_S = os.sysconf("SC_CLK_TCK")

# A program that starts a checkout's Redis by that checkout's launcher. It ends Redis and itself when its stdin is
# closed, so that neither outlives the benchmark, however that ends.
REDIS = """
import signal, sys
from pathlib import Path
try:
    from node.lab import private_redis
except ImportError:  # the launcher of 0d169ad and before
    from node import private_redis
process, child, url = private_redis.start(Path(sys.argv[1]), int(sys.argv[2]), {})
print(child.pid, url, flush=True)
sys.stdin.read()
process.signal(signal.SIGKILL)
child.wait()
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout of Rumor with an environment of its own."""

    name: str
    root: Path
    python: Path

    def __str__(self) -> str:
        return self.name

    def environ(self) -> dict[str, str]:
        """The environment of its processes, without the settings of whoever runs the benchmark."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUMOR_")}
        return environ | {"PYTHONPATH": os.pathsep.join((str(self.root), str(Path(__file__).parent)))}


def described(root: Path) -> str:
    """The commit of a checkout, marked if files differ from it; else the folder's name."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or root.name


HERE = Tree(f"this tree ({described(ROOT)})", ROOT, Path(sys.executable))


def checkout(folder: str) -> Tree:
    """The checkout in a folder, as a type for argparse. Raises ArgumentTypeError if its nodes could not start."""
    root = Path(folder).expanduser().resolve()
    if not (root / "node" / "__main__.py").is_file():
        raise argparse.ArgumentTypeError(f"{root} is no checkout of Rumor: it has no node/__main__.py.")
    tree = Tree(f"beside ({described(root)})", root, root / ".venv" / "bin" / "python")
    cure = f"Make its environment: python3 {root}/scripts/bootstrap.py"
    if not tree.python.is_file():
        raise argparse.ArgumentTypeError(f"{root} has no .venv/bin/python, and its nodes need their own. {cure}")
    command = [str(tree.python), "-P", "-c", "import node.main"]
    tried = subprocess.run(command, cwd=root, env=tree.environ(), capture_output=True, text=True, check=False)
    if tried.returncode:
        why = tried.stderr.strip().rpartition("\n")[2]
        raise argparse.ArgumentTypeError(f"{tree.python} cannot run the node of {root} ({why}). {cure}")
    return tree


def add_beside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--beside", type=checkout, metavar="DIR", help="a second checkout: rounds alternate, and ratios are reported"
    )


def trees_of(options: argparse.Namespace) -> list[Tree]:
    """This checkout, and the one beside it if there is one."""
    return [HERE] if options.beside is None else [HERE, options.beside]


@dataclass
class Node:
    """One node, through all its lives."""

    tree: Tree
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
        command = [str(self.tree.python), "-P", "-m", "node", "node"]
        self.process, self.child = spawn(command, self.environ, self.log, self.tree.root)

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

    def metric(self, name: str) -> float:
        """The sum of all values of /metrics whose line begins with `name`: a metric, with or without a label."""
        text = self.remote.request("GET", "/metrics")[1].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))

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

    def __init__(self, aof: bool = True, tree: Tree = HERE, **settings: object) -> None:
        self.tree = tree
        self.folder = Path(tempfile.mkdtemp(prefix="rumor-bench-"))
        self.nodes: list[Node] = []
        self._settings = settings
        self.base_port = next(
            port
            for port in (PORTS[(os.getpid() + n) % len(PORTS)] for n in range(len(PORTS)))
            if not any(port_problem("127.0.0.1", port + n) for n in range(10))
        )
        self._keeper = subprocess.Popen(
            [
                str(tree.python),
                "-P",
                "-c",
                REDIS,
                self.folder / "redis",
                str(private_redis.choose_port(self.base_port)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tree.root,
            env=tree.environ(),
            text=True,
            start_new_session=True,  # a Ctrl-C must not reach Redis before the nodes
        )
        assert self._keeper.stdout is not None
        pid, _, self.redis_url = self._keeper.stdout.readline().strip().partition(" ")
        if not pid:
            raise RuntimeError(f"{tree} could not start its Redis; the reason stands above")
        self.redis_pid = int(pid)
        self.redis = redis.Redis.from_url(self.redis_url)
        if not aof:
            self.redis.config_set("appendonly", "no")

    def node(self, **settings: object) -> Node:
        """Start the next node; do not wait."""
        port = self.base_port + len(self.nodes)
        values = {"redis_url": self.redis_url, "port": port, "log_level": "warning", **self._settings, **settings}
        environ = self.tree.environ() | {f"RUMOR_{name.upper()}": str(value) for name, value in values.items()}
        url = f"http://127.0.0.1:{port}"
        node = Node(self.tree, url, self.folder / f"node-{port}.log", environ, Remote(url, timeout_s=60.0))
        self.nodes.append(node)
        node.start()
        return node

    def stored_bytes(self) -> int:
        """Memory that Redis uses, without the buffers of its clients and of the append-only file."""
        memory = self.redis.info("memory")
        return int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])

    def redis_cpu_s(self) -> float:
        """CPU that Redis has used, by its own accounting: all its threads."""
        cpu = self.redis.info("cpu")
        return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])

    def __enter__(self) -> Bed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.redis.close()
        for node in self.nodes:
            node.kill()
            node.child.wait()
        self._keeper.communicate()
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
        return cpu_s(self._pid), self._bed.redis_cpu_s()


class Watch:
    """CPU of some processes over time. Use it as a context.

    A thread reads it from /proc: whoever is measured must not spend time on answers.
    """

    def __init__(self, *pids: int) -> None:
        self._points: dict[int, list[tuple[float, float]]] = {pid: [] for pid in pids}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def spent_s(self, pid: int, begin_s: float, end_s: float) -> float:
        """CPU seconds of a process between two moments of the wall clock."""
        return at(self._points[pid], end_s) - at(self._points[pid], begin_s)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            for pid, points in self._points.items():
                points.append((time.time(), cpu_s(pid)))


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S
