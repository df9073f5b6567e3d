"""Real nodes as children of this process: tests kill, pause and restart them, and ask them over HTTP.

Unlike `rumor launch`, this is the parent of the nodes: it sees exit statuses, and can start a node in the moment its
earlier life ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import RumorError
from node import SyncClient
from node.client.errors import Unreachable
from node.client.one_node import Remote
from tests.processes import ROOT, TRACEBACK, clean_environ, free_base_port
from tests.waiting import wait_until

READY_LIMIT_S = 30.0
END_LIMIT_S = 20.0
PAGE = 500
WORKLOAD = "tests.chaos.workload"
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")

# Imports everything and waits for a pid on standard input; then ends that earlier life and starts in the same moment.
SPARE = """
import os, signal, sys
from cluster.config import from_env
from node import main
from node.lab.process import of_pid
config = from_env(os.environ)
print("spare ready", flush=True)
old = of_pid(int(sys.stdin.readline()))
os.kill(old.pid, signal.SIGKILL)
while old.is_alive:
    pass
sys.exit(main.main_node(config))
"""


class Node:
    """One node of a fleet, through all its lives."""

    def __init__(self, number: int, host: str, port: int, environ: Mapping[str, str], folder: Path) -> None:
        self.number = number
        self.host = host
        self.port = port
        self.environ = dict(environ)
        self.log_path = folder / f"node-{number}.log"
        self.prefix: Sequence[str] = ()  # words before its command: `ip netns exec NAME`
        self.process: subprocess.Popen[bytes] | None = None
        self.remote = Remote(f"http://{host}:{port}", self.environ.get("RUMOR_API_TOKEN", ""), timeout_s=65.0)

    @property
    def node_id(self) -> str:
        return self.environ.get("RUMOR_NODE_ID") or f"{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # Life

    def start(self, *flags: str) -> None:
        """Start it; do not wait."""
        self._spawn([sys.executable, "-P", "-m", "node", "node", *flags], subprocess.DEVNULL)

    def kill(self) -> None:
        """Send SIGKILL, and wait until it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def pause(self) -> None:
        """Send SIGSTOP: its connections stay, but nothing runs."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Send SIGTERM: the node drains."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, limit_s: float = END_LIMIT_S) -> int:
        """Its exit status."""
        assert self.process is not None
        return self.process.wait(limit_s)

    def prepare_spare(self) -> Callable[[], None]:
        """Prepare the next life. The function returned kills the present one and starts it within milliseconds."""
        old = self.process
        assert old is not None
        self._spawn([sys.executable, "-P", "-c", SPARE], subprocess.PIPE)
        spare, self.process = self.process, old
        assert spare is not None
        wait_until(lambda: "spare ready" in self.log(), READY_LIMIT_S, "the next life has imported everything")

        def swap() -> None:
            assert spare.stdin is not None
            spare.stdin.write(b"%d\n" % old.pid)
            spare.stdin.close()
            self.process = spare
            old.wait()

        return swap

    def _spawn(self, command: Sequence[str], stdin: int) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command], env=self.environ, cwd=ROOT, stdin=stdin, stdout=log, stderr=log
            )

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    # Over HTTP

    def get(self, path: str, **query: Any) -> Any:
        return self.remote.call("GET", path, query=query)[1]

    @property
    def session(self) -> str:
        return str(self.get("/cluster")["session"])

    def is_ready(self) -> bool:
        with contextlib.suppress(RumorError):
            return bool(self.get("/readyz")["ready"])
        return False

    def member(self, node_id: str) -> dict[str, Any]:
        """One row of this node's view; empty when the node does not know the name."""
        rows = self.get("/cluster")["members"]
        return next((dict(row) for row in rows if row["node_id"] == node_id), {})

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.get("/cluster")["events"] if event["kind"] == kind]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels."""
        pairs = {f'{label}="{value}"' for label, value in labels.items()}
        status, body = self.remote.request("GET", "/metrics")
        assert status == 200
        total = 0.0
        for line in body.decode().splitlines():
            match = SAMPLE.match(line)
            if match and match[1] == name and pairs <= set((match[2] or "").split(",")):
                total += float(match[3])
        return total

    def submit(self, type: str, data: Any = None, count: int = 1, **more: Any) -> list[str]:
        """Submit a batch of equal tasks, all of which must be accepted; their ids."""
        item = {"type": type, "data": data, **more}
        _, answer = self.remote.call("POST", "/tasks/batch", [item] * count)
        assert answer["accepted"] == count, answer["results"][:3]
        return [result["id"] for result in answer["results"]]

    def submit_surely(self, type: str, data: Any = None, count: int = 1) -> list[str]:
        """The same over a bad network: to this node, with one key, until it answers."""
        with SyncClient(self.remote.url, token=self.remote.token, learn=False) as client:
            results = client.submit_many([(type, data)] * count)
        refused = [result for result in results if isinstance(result, RumorError)]
        assert not refused, refused[:3]
        return [result.id for result in results if not isinstance(result, RumorError)]

    def task(self, task_id: str, wait_s: float = 0.0) -> dict[str, Any]:
        task: dict[str, Any] = self.get(f"/tasks/{task_id}", wait_s=wait_s or None)
        return task

    def tasks(self, fields: str = "data,result,error", **query: Any) -> list[dict[str, Any]]:
        """All tasks, page by page."""
        rows: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.get("/tasks", limit=PAGE, cursor=cursor, fields=fields or None, **query)
            rows += page["tasks"]
            cursor = page.get("cursor")
            if not cursor:
                return rows


class Fleet:
    """Nodes on one Redis. Give settings by field name: `drain_s=1`."""

    def __init__(self, folder: Path, redis_url: str, **settings: object) -> None:
        self.folder = folder
        self.settings: dict[str, object] = {"tasks": WORKLOAD, "log_format": "json", "redis_url": redis_url, **settings}
        self.nodes: list[Node] = []
        self.strays: list[Node] = []  # processes that must not become members: twins and misconfigured nodes
        self.expected: list[str] = []  # patterns of tracebacks that are part of the test
        self._made = 0

    def make(self, host: str, port: int, **settings: object) -> Node:
        """A node, not started, with settings of its own on top of the fleet's."""
        values = {**self.settings, "host": host, "port": port, **settings}
        environ = clean_environ() | {f"RUMOR_{name.upper()}": str(value) for name, value in values.items()}
        environ["PYTHONPATH"] = str(ROOT)
        self._made += 1
        return Node(self._made, host, port, environ, self.folder)

    def stray(self, host: str, port: int, **settings: object) -> Node:
        """A process that must not become a member."""
        node = self.make(host, port, **settings)
        self.strays.append(node)
        return node

    def start(self, count: int) -> None:
        """Start nodes on loopback; return when each is ready and sees all."""
        base = free_base_port(count)
        self.begin([self.make("127.0.0.1", base + n) for n in range(count)])

    def begin(self, nodes: Sequence[Node]) -> None:
        """Start these nodes and add them to the fleet; return when each is ready and sees all."""
        for node in nodes:
            self.nodes.append(node)
            node.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        names = {node.node_id for node in self.nodes}

        def is_ready(node: Node) -> bool:
            assert node.is_running, f"node {node.number} ended: {node.log()[-3000:]}"
            try:
                rows = node.get("/cluster")["members"]
            except Unreachable:
                return False
            return node.is_ready() and {row["node_id"] for row in rows if row["verdict"] == "healthy"} == names

        for node in self.nodes:
            wait_until(lambda node=node: is_ready(node), READY_LIMIT_S, f"node {node.number} ready and seeing all")

    def spread(self, type: str, data: Any, each: int, **more: Any) -> list[str]:
        """Submit `each` tasks through every node; their ids."""
        return [task_id for node in self.nodes for task_id in node.submit(type, data, each, **more)]

    def wait_ended(self, ids: Collection[str], limit_s: float, through: Node | None = None) -> list[dict[str, Any]]:
        """Wait until all of these tasks have ended; their rows."""
        waited = set(ids)
        node = through or self.nodes[0]

        def has_ended() -> bool:
            rows = [row for row in node.tasks(fields="") if row["id"] in waited]
            is_done = all(row["state"] in ("succeeded", "dead", "cancelled") for row in rows)
            return is_done and len(rows) == len(waited)

        if not waited:
            return []
        wait_until(has_ended, limit_s, f"{len(waited)} tasks have ended")
        return [row for row in node.tasks() if row["id"] in waited]

    def fences(self) -> float:
        """The number of sessions that running nodes fenced."""
        return sum(node.metric("rumor_fences_total") for node in self.nodes if node.is_running)

    def close(self) -> None:
        """End everything; fail if a node logged an unexpected traceback."""
        for node in (*self.nodes, *self.strays):
            node.kill()
        for node in (*self.nodes, *self.strays):
            text = node.log()
            for match in re.finditer(re.escape(TRACEBACK), text):
                part = text[max(0, match.start() - 500) : match.start() + 4000]
                assert any(re.search(pattern, part) for pattern in self.expected), f"{node.log_path}: {part}"


@contextlib.contextmanager
def fleet(folder: Path, redis_url: str, **settings: object) -> Iterator[Fleet]:
    """A fleet that ends with the block."""
    nodes = Fleet(folder, redis_url, **settings)
    try:
        yield nodes
    except BaseException:
        for node in (*nodes.nodes, *nodes.strays):
            node.kill()
        print("".join(f"--- {node.log_path}\n{node.log()[-4000:]}\n" for node in nodes.nodes))
        raise
    nodes.close()
