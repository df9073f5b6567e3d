"""The throughput of one node, what a task costs it and Redis, and how many bytes it leaves there.

    python scripts/bench/throughput.py [--beside DIR] [--rounds 5] [--only drain,batch,keys,single] [--json FILE]

- drain: no-ops of 100 bytes are queued by a node that does not serve their queue and then ends; then a node with 100
  slots starts. (N-1) / (last start - first start), by Redis's clock. CPU of the node and of Redis, and how many cores
  both keep busy, count from the first start to the last finish, so the start of the node is not in them. A task's whole
  life is that and what Redis used to store it. Bytes are differences of used_memory, without clients' buffers.
- batch: POST /tasks/batch with 10,000 no-ops of 100 bytes, into a queue that no node serves, and into a served one, so
  that the node runs them meanwhile.
- keys: submit_many of the checkout's own SyncClient, which sends an Idempotency-Key with each call; nothing runs.
- single: POST /tasks from 64 connections (wrk), unserved and served. Ceiling: aiohttp on uvloop that answers 202.

Without --beside, drain and batch have a ceiling, too: a bare client that claims and settles (100 a script, two
pipelines), or stores (256 a script), with this checkout's own scripts. With --beside DIR, both checkouts play each
round, in alternating order, each with a node and a Redis of its own. Each ratio, to the other checkout or to a ceiling,
comes from one round: a machine that slows down slows both. It enforces nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from bed import Bed, Meter, Node, Tree, Watch, add_beside, trees_of
from ceilings import IDLE, PAYLOAD, bare_drain, bare_http, bare_store, uvloop_run
from figures import Figures, by_name, play, publish, table

from node.client.errors import Unreachable
from node.lab.process import wait_for

BATCH = 10_000
CONNECTIONS = 64
DRAIN_LIMIT_S = 60.0
SUBMIT_LIMIT_S = 120.0
PAGE = 500
JSON = {"Content-Type": "application/json"}
ACCEPTED = "rumor_tasks_accepted_total"
SUCCEEDED = 'rumor_task_commits_total{outcome="succeeded"'

MANY = """
import sys, time
from node import SyncClient
tasks = int(sys.argv[2])
items = [("noop", {"payload": "x" * 86})] * tasks
with SyncClient(sys.argv[1], within_s=100.0) as client:
    began_s = time.perf_counter()
    results = client.submit_many(items)
    took_s = time.perf_counter() - began_s
for result in results:
    if isinstance(result, Exception): raise result
print(took_s)
"""

# ---- drain


def drain_round(tree: Tree, options: argparse.Namespace) -> Figures:
    """The bare client where there is only one checkout, then a node; each with a Redis of its own."""
    tasks = options.tasks
    figures: Figures = {}
    if options.beside is None:
        with Bed(options.aof, tree) as bed:
            queue_tasks(bed, tasks)
            meter = Meter(bed, os.getpid())
            figures["ceiling"] = meter.figures(tasks, uvloop_run(bare_drain(bed.redis_url, tasks)))
    with Bed(options.aof, tree) as bed:
        empty_bytes, store_s = queue_tasks(bed, tasks)
        queued_bytes = bed.stored_bytes()
        node = bed.node(queues="default:100")
        with Watch(node.child.pid, bed.redis_pid) as watch:
            wait_drained(node, tasks)
        finished_bytes = bed.stored_bytes()
        started_s, finished_s = zip(*times(node), strict=True)
        begin_s, end_s = min(started_s), max(finished_s)
        node_s, redis_s = (watch.spent_s(pid, begin_s, end_s) for pid in (node.child.pid, bed.redis_pid))
    figures["drain"] = {
        "per_s": rate(started_s),
        "cpu_us": node_s / tasks * 1e6,
        "redis_us": redis_s / tasks * 1e6,
        "life_us": (store_s + redis_s) / tasks * 1e6,
        "busy": (node_s + redis_s) / (end_s - begin_s),
        "queued_bytes": (queued_bytes - empty_bytes) / tasks,
        "finished_bytes": (finished_bytes - empty_bytes) / tasks,
    }
    return with_shares(figures)


def queue_tasks(bed: Bed, tasks: int) -> tuple[int, float]:
    """Queue no-ops through a gateway that does not serve their queue, then end it.

    Returns the bytes in Redis before, and the CPU seconds of Redis that storing took.
    """
    gateway = bed.node(queues=f"{IDLE}:1")
    gateway.wait_ready()
    empty_bytes, began_s = bed.stored_bytes(), bed.redis_cpu_s()
    for at in range(0, tasks, BATCH):
        body = [{"type": "noop", "data": PAYLOAD}] * min(BATCH, tasks - at)
        answer = gateway.remote.call("POST", "/tasks/batch", body)[1]
        assert answer["rejected"] == 0, answer["results"][:2]
    store_s = bed.redis_cpu_s() - began_s
    gateway.stop()
    return empty_bytes, store_s


def wait_drained(node: Node, tasks: int) -> None:
    """Wait until the node has run this many, by its own count: to ask Redis would load what is measured."""

    def is_drained() -> bool:
        try:
            return node.metric(SUCCEEDED) >= tasks
        except Unreachable:  # it is starting
            return False

    if not wait_for(is_drained, DRAIN_LIMIT_S, 0.2):
        raise RuntimeError(f"not drained within {DRAIN_LIMIT_S:g} s")


def times(node: Node) -> Iterator[tuple[float, float]]:
    """When each finished task started and ended, in seconds by Redis's clock, which is this machine's."""
    cursor = None
    while True:
        page = node.remote.call("GET", "/tasks", query={"limit": PAGE, "cursor": cursor})[1]
        for task in page["tasks"]:
            yield task["started_at_ms"] / 1000, task["finished_at_ms"] / 1000
        cursor = page["cursor"]
        if cursor is None:
            return


def rate(at_s: Sequence[float]) -> float:
    return (len(at_s) - 1) / max(max(at_s) - min(at_s), 0.001)


# ---- batch


def batch_round(node: Node, bed: Bed, options: argparse.Namespace) -> Figures:
    """The bare client where there is only one checkout, an unserved queue, a served queue."""
    tasks = options.bodies * BATCH
    figures: Figures = {}
    if options.beside is None:
        meter = Meter(bed, os.getpid())
        figures["ceiling"] = meter.figures(tasks, uvloop_run(bare_store(bed.redis_url, tasks)))
    for name, queue in (("batch", IDLE), ("batch, running", "default")):
        meter = Meter(bed, node.child.pid)
        per_s = asyncio.run(post_batches(node, queue, options.bodies))
        settle_down(node, tasks if queue == "default" else 0)
        figures[name] = meter.figures(tasks, per_s)
    return with_shares(figures)


async def post_batches(node: Node, queue: str, bodies: int) -> float:
    """Tasks/s over two connections, so that one body travels while the node works on the other."""
    # The served queue is the type's default. Naming it would give each task a spec of its own, at a cost.
    more = {} if queue == "default" else {"queue": queue}
    body = json.dumps([{"type": "noop", "data": PAYLOAD, **more}] * BATCH).encode()
    left = iter(range(bodies))

    async def client(http: aiohttp.ClientSession) -> None:
        for _ in left:
            async with http.post(f"{node.url}/tasks/batch", data=body, headers=JSON) as response:
                answer = await response.read()
                assert answer.startswith(b'{"accepted":%d,"rejected":0,' % BATCH), answer[:200]

    async with aiohttp.ClientSession() as http:
        began_s = time.perf_counter()
        await asyncio.gather(client(http), client(http))
        return bodies * BATCH / (time.perf_counter() - began_s)


# ---- keys


def keys_round(tree: Tree, options: argparse.Namespace) -> Figures:
    """The client of the same checkout as the node; the node does not serve the tasks' queue."""
    tasks = options.bodies * BATCH
    with Bed(options.aof, tree) as bed:
        node = bed.node(queues=f"{IDLE}:1")
        node.wait_ready()
        meter = Meter(bed, node.child.pid)
        command = [str(tree.python), "-P", "-c", MANY, node.url, str(tasks)]
        told = subprocess.run(
            command, cwd=tree.root, env=tree.environ(), stdout=subprocess.PIPE, check=True, timeout=SUBMIT_LIMIT_S
        )
        return {"client.submit_many": meter.figures(tasks, tasks / float(told.stdout))}


# ---- single


def single_round(node: Node, bed: Bed, options: argparse.Namespace) -> Figures:
    """The bare handler, an unserved queue, a served queue."""
    figures: Figures = {}
    with bare_http(bed.base_port + 9) as bare:
        for name, (url, pid), more in (
            ("ceiling", bare, {"queue": IDLE}),
            ("single", (node.url, node.child.pid), {"queue": IDLE}),
            ("single, running", (node.url, node.child.pid), {}),
        ):
            accepted = node.metric(ACCEPTED)
            meter = Meter(bed, pid)
            answered = load(url, {"type": "noop", "data": PAYLOAD, **more}, options.seconds, bed.folder)
            settle_down(node, 0 if more else node.metric(ACCEPTED) - accepted)
            figures[name] = answered | meter.figures(answered["per_s"] * options.seconds, answered["per_s"])
    return with_shares(figures)


def load(url: str, body: dict[str, Any], seconds: float, folder: Path) -> dict[str, float]:
    """POST for some seconds from 64 connections, with wrk if it is installed."""
    if shutil.which("wrk") is None:
        return asyncio.run(post_singles(url, json.dumps(body).encode(), seconds))
    lua = folder / "post.lua"
    lua.write_text(
        'wrk.method = "POST"\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = {json.dumps(json.dumps(body))}\n",
        "utf-8",
    )
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-s", str(lua), f"{url}/tasks"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not re.search("Non-2xx|Socket errors", report), report
    match = re.search(r"Requests/sec:\s+([\d.]+)", report)
    assert match, report
    return {"per_s": float(match[1]), **{f"p{level}_ms": in_ms(report, level) for level in ("50", "99")}}


def in_ms(report: str, level: str) -> float:
    """One line of wrk's latency distribution."""
    match = re.search(rf"{level}%\s+([\d.]+)(us|ms|s)", report)
    assert match, report
    return float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]


async def post_singles(url: str, body: bytes, seconds: float) -> dict[str, float]:
    """The same without wrk. Then the client is the limit, also for the ceiling."""
    took: list[float] = []
    end_s = time.perf_counter() + seconds

    async def client(http: aiohttp.ClientSession) -> None:
        while (began_s := time.perf_counter()) < end_s:
            async with http.post(f"{url}/tasks", data=body, headers=JSON) as response:
                assert response.status == 202, await response.text()
                await response.read()
            took.append(time.perf_counter() - began_s)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as http:
        await asyncio.gather(*(client(http) for _ in range(CONNECTIONS)))
    took.sort()
    return {
        "per_s": len(took) / seconds,
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3,
    }


# ---- all


def settle_down(node: Node, tasks: float) -> None:
    """Wait until the node has run this many since it started: their cost would count for the next figure."""
    wait_drained(node, int(tasks))
    time.sleep(0.2)


def with_shares(figures: Figures) -> Figures:
    """The same, each rate with its share of the round's ceiling if there is one."""
    if "ceiling" in figures:
        for row, values in figures.items():
            if row != "ceiling":
                values["of_ceiling"] = values["per_s"] / figures["ceiling"]["per_s"]
    return figures


def with_node(tree: Tree, options: argparse.Namespace, measure: Callable[..., Figures]) -> Figures:
    """Measure with a new Redis and node: tasks that never run would pile up."""
    with Bed(options.aof, tree) as bed:
        node = bed.node(queues="default:100,sync:2")
        node.wait_ready()
        return measure(node, bed, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_beside(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=60_000, help="tasks of a drain (%(default)s)")
    parser.add_argument("--bodies", type=int, default=4, help="tens of thousands of tasks in batches (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one load with wrk (%(default)s)")
    parser.add_argument("--only", default="drain,batch,keys,single", help="which parts (%(default)s)")
    parser.add_argument(
        "--aof", action=argparse.BooleanOptionalAction, default=True, help="Redis with its append-only file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    parts: dict[str, tuple[str, Callable[[Tree], Figures]]] = {
        "drain": ("drain of one node", lambda tree: drain_round(tree, options)),
        "batch": ("tasks in batches over HTTP", lambda tree: with_node(tree, options, batch_round)),
        "keys": ("tasks by the client", lambda tree: keys_round(tree, options)),
        "single": ("POST /tasks, 64 connections", lambda tree: with_node(tree, options, single_round)),
    }
    figures: dict[str, Any] = {"aof": options.aof}
    tables = []
    for part in options.only.split(","):
        what, measure = parts[part]
        rounds = play(trees_of(options), options.rounds, measure, part)
        figures[part] = by_name(rounds)
        tables.append(table(what, rounds))
    publish("Throughput of one node", "\n\n".join(tables), figures, options.json)


if __name__ == "__main__":
    sys.exit(main())
