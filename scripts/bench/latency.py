"""How soon an idle node starts a task, and how soon a client sees the result; one request at a time.

    python scripts/bench/latency.py [--beside DIR] [--rounds 3] [--tasks 200] [--nodes 1] [--json FILE]

Times count from just before the client writes POST /tasks: to the first line of the handler, to the 202, and to the
answer of GET /tasks/{id}?wait_s=10, which the client sends as soon as it knows the id. If the node has it, further
tasks go by POST /tasks?wait_s=10, whose answer is the ended task. "Fewest requests" repeats the best way that the node
has. The client is a plain socket, so that its own cost is small and even. With more nodes the task goes through one and
may run on another.

The ceilings are measured on the same machine in the same run: one request to a bare aiohttp handler on uvloop, and one
round trip to Redis by the same kind of plain socket.

Each round has nodes and a Redis of its own. With --beside DIR, both checkouts play each round, in alternating order,
and each ratio (this checkout to the other) comes from one round.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from bed import Bed, Node, Tree, add_beside, trees_of
from ceilings import bare_http
from figures import Figures, by_name, levels, play, publish, table

WARM_UP = 50
ANSWER_LIMIT_S = 15.0
PAUSE_S = 0.002  # time for the node to become idle again
PING = b"*1\r\n$4\r\nPING\r\n"


class Http:
    """One kept connection, with as little code as possible between it and the clock."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = f"{parts.hostname}:{parts.port}"
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), ANSWER_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of the answer."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head_bytes, _, answer = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head_bytes.split(b"\r\n")[1:])
        while len(answer) < int(fields[b"content-length"]):
            answer += self._more()
        assert head_bytes[9:10] == b"2", received
        return answer

    def _more(self) -> bytes:
        part = self._socket.recv(65_536)
        assert part, "the node closed the connection"
        return part


def each(tasks: int, measure: Callable[[], dict[str, float]]) -> dict[str, list[float]]:
    """Milliseconds of each task after the first WARM_UP."""
    times: dict[str, list[float]] = {}
    for n in range(WARM_UP + tasks):
        time.sleep(PAUSE_S)
        for name, ms in measure().items():
            if n >= WARM_UP:
                times.setdefault(name, []).append(ms)
    return times


def task_round(http: Http, listener: socket.socket, path: str) -> dict[str, float]:
    """One task: from the client's POST to each step that follows."""
    body = json.dumps({"type": "bench.tell", "data": path}).encode()
    began_ns = time.monotonic_ns()
    answer = http.request("POST", "/tasks", body)
    accepted_ns = time.monotonic_ns()
    task_id = answer[7 : answer.index(b'"', 7)].decode()
    task = json.loads(http.request("GET", f"/tasks/{task_id}?wait_s=10"))
    visible_ns = time.monotonic_ns()
    assert task["state"] == "succeeded", task
    started, witnessed = listener.recv(256).split()
    assert witnessed.decode() == task_id, (witnessed, task_id)
    return {
        "handler started": (int(started) - began_ns) / 1e6,
        "accepted (202)": (accepted_ns - began_ns) / 1e6,
        "result, two requests": (visible_ns - began_ns) / 1e6,
    }


def waiting_round(http: Http, listener: socket.socket, path: str) -> dict[str, float]:
    """One task whose submission waits for its end."""
    body = json.dumps({"type": "bench.tell", "data": path}).encode()
    began_ns = time.monotonic_ns()
    answer = http.request("POST", "/tasks?wait_s=10", body)
    visible_ns = time.monotonic_ns()
    task = json.loads(answer)
    assert task["state"] == "succeeded", task
    assert listener.recv(256).split()[1].decode() == task["id"], task
    return {"result, one request": (visible_ns - began_ns) / 1e6}


def has_waiting_submission(node: Node) -> bool:
    """Whether the node's own description has `wait_s` for POST /tasks."""
    parameters = node.get("/openapi.json")["paths"]["/tasks"]["post"].get("parameters", ())
    return any(parameter.get("name") == "wait_s" for parameter in parameters)


def http_round(http: Http) -> dict[str, float]:
    began_ns = time.monotonic_ns()
    http.request("POST", "/tasks", b"{}")
    return {"ceiling: POST to bare aiohttp": (time.monotonic_ns() - began_ns) / 1e6}


def redis_round(connection: socket.socket) -> dict[str, float]:
    began_ns = time.monotonic_ns()
    connection.sendall(PING)
    connection.recv(64)
    return {"ceiling: PING to Redis": (time.monotonic_ns() - began_ns) / 1e6}


def latency_round(tree: Tree, options: argparse.Namespace) -> Figures:
    """One cluster, its tasks one after the other, then the ceilings."""
    with Bed(options.aof, tree, tasks="witness_tasks") as bed:
        for _ in range(options.nodes):
            bed.node()
        for node in bed.nodes:
            node.wait_ready(options.nodes)
        path = str(bed.folder / "witness.sock")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.bind(path)
        listener.settimeout(ANSWER_LIMIT_S)
        http = Http(bed.nodes[0].url)
        times = each(options.tasks, lambda: task_round(http, listener, path))
        if has_waiting_submission(bed.nodes[0]):
            times |= each(options.tasks, lambda: waiting_round(http, listener, path))
        http.close()
        listener.close()

        with bare_http(bed.base_port + 9) as (url, _):
            bare = Http(url)
            times |= each(options.tasks, lambda: http_round(bare))
            bare.close()
        parts = urlsplit(bed.redis_url)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            if parts.password:
                connection.sendall(f"AUTH {parts.password}\r\n".encode())
                connection.recv(64)
            times |= each(options.tasks, lambda: redis_round(connection))
    figures = {name: p50_and_p99(ms) for name, ms in times.items()}
    one, two = figures.get("result, one request"), figures["result, two requests"]
    figures["result, fewest requests"] = {"requests": 1, **one} if one else {"requests": 2, **two}
    return figures


def p50_and_p99(ms: list[float]) -> dict[str, float]:
    found = levels(ms)
    return {"p50_ms": found["p50"], "p99_ms": found["p99"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_beside(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=200, help="tasks of a round, for each way (%(default)s)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--aof", action=argparse.BooleanOptionalAction, default=True, help="Redis's append-only file")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rounds = play(trees_of(options), options.rounds, lambda tree: latency_round(tree, options), "latency")
    title = f"Latency, {options.nodes} idle node{'s' if options.nodes > 1 else ''}, {options.tasks} tasks a round"
    publish(title, table("", rounds), by_name(rounds), options.json)


if __name__ == "__main__":
    main()
