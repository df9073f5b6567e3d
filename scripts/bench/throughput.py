"""The throughput of one node; beside each figure its own ceiling, from the same run on the same machine.

    python scripts/bench/throughput.py [--rounds 5] [--tasks 20000] [--only drain,batch,single] [--json FILE]

- drain: N no-ops are queued while no node serves their queue; then a node starts. (N-1) / (last start - first start),
  by Redis's clock. Ceiling: a bare client with two pipelines that claims and settles with the project's claim.lua and
  settle.lua, 100 tasks a script, and does nothing in between.
- batch: POST /tasks/batch with 10,000 no-ops of 100 bytes, into a queue that no node serves, and into a served one, so
  that the node runs them meanwhile. Ceiling: a bare client that stores the same tasks with store.lua, 256 a script.
- single: POST /tasks from 64 connections (wrk), unserved and served. Ceiling: aiohttp on uvloop that answers 202.

Rounds are interleaved, ceiling and node in turn, and each ratio comes from one round: a machine that slows down slows
both. It enforces nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import redis.asyncio
import uvloop
from aiohttp import web
from bed import Bed, Meter, Node, markdown, publish, say, spread

from cluster import keys
from cluster.scripts import script
from cluster.shards.answers import SettleKind
from cluster.shards.calls import Calls, NewTask, Settlement
from cluster.shards.task import Backoff, Claimed, Ids, Spec, shard_of
from node.client.errors import Unreachable
from node.client.one_node import Remote
from node.lab.process import wait_for

PAYLOAD = {"payload": "x" * 86}  # 100 bytes as JSON
BATCH = 10_000
LANES = 2
CLAIM_MAX = 100
SUCCEEDED = SettleKind.SUCCEEDED
CLAIM_STRIDE = 7  # values that claim.lua returns for each task
STORE_MAX = 256
SHARDS = 64
CONNECTIONS = 64
DRAIN_LIMIT_S = 60.0
IDLE = "idle"  # a queue that no node serves
SESSION = "bench/0-0"

AIMS = {  # (tasks/s, share of the ceiling); for orientation, not enforced
    "drain": (30_000, 0.25),
    "batch": (60_000, None),
    "single": (None, 0.40),
}


Figures = dict[str, dict[str, float]]  # name of the row -> per_s, cpu_us, redis_us, latencies

# ---- drain


def drain_round(tasks: int, aof: bool) -> Figures:
    """The bare client, then a node, each with a Redis of its own."""
    with Bed(aof) as bed:
        ids = queue_tasks(bed, tasks)
        meter = Meter(bed, os.getpid())
        ceiling = meter.figures(tasks, uvloop_run(bare_drain(bed.redis_url, ids)))
    with Bed(aof) as bed:
        ids = queue_tasks(bed, tasks)
        node = bed.node(queues="default:100")
        meter = Meter(bed, node.child.pid)  # includes the cost of its start (imports, joining), which is fixed
        wait_drained(bed, tasks)
        figures = meter.figures(tasks, 0.0)
        figures["per_s"] = rate(started_ms(bed, ids))
    return {"ceiling": ceiling, "drain": figures}


def queue_tasks(bed: Bed, tasks: int) -> list[str]:
    """Queue no-ops through a gateway that does not serve their queue, then end it; their ids."""
    gateway = bed.node(queues=f"{IDLE}:1")
    gateway.wait_ready()
    ids = []
    for at in range(0, tasks, BATCH):
        body = [{"type": "noop", "data": PAYLOAD}] * min(BATCH, tasks - at)
        answer = gateway.remote.call("POST", "/tasks/batch", body)[1]
        assert answer["rejected"] == 0, answer["results"][:2]
        ids += [row["id"] for row in answer["results"]]
    gateway.stop()
    return ids


def wait_drained(bed: Bed, tasks: int) -> None:
    """Wait until this many have succeeded."""
    end_s = time.monotonic() + DRAIN_LIMIT_S
    while sum(bed.redis.zcard(keys.done(shard)) for shard in range(SHARDS)) < tasks:
        if time.monotonic() > end_s:
            raise RuntimeError(f"not drained within {DRAIN_LIMIT_S:g} s")
        time.sleep(0.2)  # a short pause would load the Redis that is measured


def started_ms(bed: Bed, ids: Sequence[str]) -> list[int]:
    """The time of each task's start, by Redis's clock."""
    pipe = bed.redis.pipeline(transaction=False)
    for task_id in ids:
        pipe.hget(keys.task(shard_in(task_id), task_id), "started_at")
    return [int(value) for value in pipe.execute()]


def rate(at_ms: Sequence[int]) -> float:
    return (len(at_ms) - 1) / max(max(at_ms) - min(at_ms), 1) * 1000


async def bare_drain(url: str, ids: Sequence[str]) -> float:
    """Claim and settle every task, and do nothing else; tasks/s."""
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    for name in ("claim", "settle"):
        await client.script_load(script(name).text)
    calls = Calls(60.0, 1_000_000, 604_800.0)
    spec = Spec("noop", "default", 5, 5, 3600.0, Backoff(1.0, 2.0, 300.0))  # the bare client decodes no spec

    async def noop() -> None:
        return None

    async def lane(shards: Sequence[int]) -> int:
        done = 0
        settle: Any = None
        for shard in shards:
            left = 1
            while left:
                pipe = client.pipeline(transaction=False)
                if settle is not None:
                    pipe.execute_command(*settle.command())
                claim = calls.claim(shard, "default", SESSION, CLAIM_MAX, None, ignore)
                pipe.execute_command(*claim.command())
                _, left, _, flat = (await pipe.execute())[-1]
                outcomes = [
                    Settlement(Claimed(flat[n], shard, flat[n + 1], 1, spec, b""), SUCCEEDED, run(noop), 86_400_000)
                    for n in range(0, len(flat), CLAIM_STRIDE)
                ]
                done += len(outcomes)
                settle = calls.settle(shard, SESSION, outcomes, ignore) if outcomes else None
        if settle is not None:
            await client.execute_command(*settle.command())
        return done

    def run(handler: Callable[[], Any]) -> bytes:
        try:
            handler().send(None)
        except StopIteration:
            return b"null"
        raise AssertionError("a no-op does not wait")

    began_s = time.perf_counter()
    done = sum(await asyncio.gather(*(lane(range(n, SHARDS, LANES)) for n in range(LANES))))
    took_s = time.perf_counter() - began_s
    await client.aclose()
    assert done == len(ids), f"{done} of {len(ids)}"
    return (done - 1) / took_s


# ---- batch


def batch_round(node: Node, bed: Bed, bodies: int) -> Figures:
    """The bare client, an unserved queue, a served queue."""
    tasks = bodies * BATCH
    meter = Meter(bed, os.getpid())
    figures = {"ceiling": meter.figures(tasks, uvloop_run(bare_store(bed.redis_url, tasks)))}
    for name, queue in (("batch", IDLE), ("batch, running", "default")):
        meter = Meter(bed, node.child.pid)
        per_s = asyncio.run(post_batches(node, queue, bodies))
        settle_down(bed)
        figures[name] = meter.figures(tasks, per_s)
    return figures


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


async def bare_store(url: str, tasks: int) -> float:
    """Store as many equal tasks with store.lua; tasks/s. Python prepares everything before the clock starts."""
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    await client.script_load(script("store").text)
    calls = Calls(60.0, 1_000_000, 604_800.0)
    ids = Ids()
    spec = Spec("noop", IDLE, 5, 5, 3600.0, Backoff(1.0, 2.0, 300.0))
    data = msgspec.json.encode(PAYLOAD)
    commands = []
    for n, at in enumerate(range(0, tasks, STORE_MAX)):
        shard = n % SHARDS
        new = [
            NewTask(
                id=ids.next(time.time_ns() // 1_000_000, shard),
                shard=shard,
                queue=IDLE,
                level=5,
                due=0,
                spec=spec,
                spec_bytes=msgspec.msgpack.encode(spec),
                data=data,
                claim=False,
                idempotency="",
                idempotency_ms=0,
                fingerprint="",
                on_code=ignore,
                more=None,
            )
            for _ in range(min(STORE_MAX, tasks - at))
        ]
        commands.append(calls.store(shard, SESSION, new, ignore).command())
    left = iter(commands)

    async def lane() -> None:
        for command in left:
            await client.execute_command(*command)

    began_s = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(LANES)))
    took_s = time.perf_counter() - began_s
    await client.aclose()
    return tasks / took_s


# ---- single


def single_round(node: Node, bed: Bed, bare: tuple[str, int], seconds: float) -> Figures:
    """The bare handler (its URL and pid), an unserved queue, a served queue."""
    figures = {}
    for name, (url, pid), more in (
        ("ceiling", bare, {"queue": IDLE}),
        ("single", (node.url, node.child.pid), {"queue": IDLE}),
        ("single, running", (node.url, node.child.pid), {}),
    ):
        meter = Meter(bed, pid)
        answered = load(url, {"type": "noop", "data": PAYLOAD, **more}, seconds, bed.folder)
        settle_down(bed)
        figures[name] = answered | meter.figures(answered["per_s"] * seconds, answered["per_s"])
    return figures


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


def bare_server(port: int) -> None:
    """Serve with aiohttp on uvloop; read nothing and answer 202."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/tasks", answer)

    async def serve() -> None:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()

    uvloop_run(serve())


# ---- all


JSON = {"Content-Type": "application/json"}


def ignore(*_: Any) -> None:
    """Take a reply that nobody needs."""


def shard_in(task_id: str) -> int:
    shard = shard_of(task_id, SHARDS)
    assert shard is not None
    return shard


def uvloop_run(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def settle_down(bed: Bed) -> None:
    """Wait until the node has no more queued tasks: their cost would count for the next figure."""
    end_s = time.monotonic() + DRAIN_LIMIT_S
    while any(bed.redis.zcard(keys.ready(shard, "default")) for shard in range(SHARDS)):
        if time.monotonic() > end_s:
            raise RuntimeError(f"the node has not emptied its queue within {DRAIN_LIMIT_S:g} s")
        time.sleep(0.05)
    time.sleep(0.2)


def table(what: str, rounds: Sequence[Figures]) -> str:
    """One row for each figure: median, spread, share of its ceiling in the same round, aim, CPU a task."""
    head = [what, "median/s", "spread", "of ceiling", "spread", "aim", "CPU us a task", "Redis CPU us a task"]
    more = [key for key in rounds[0]["ceiling"] if key.endswith("_ms")]
    rows = []
    for name in rounds[0]:
        values = spread([figures[name]["per_s"] for figures in rounds])
        row = [name, f"{values['median']:,.0f}", f"{values['min']:,.0f}..{values['max']:,.0f}"]
        if name == "ceiling":
            row += ["-", "-", "-"]
        else:
            share = spread([figures[name]["per_s"] / figures["ceiling"]["per_s"] for figures in rounds])
            per_s, of_ceiling = AIMS.get(name, (None, None))
            aims = [f"{per_s:,}/s" if per_s else "", f"{of_ceiling:.2f}" if of_ceiling else ""]
            row += [
                f"{share['median']:.2f}",
                f"{share['min']:.2f}..{share['max']:.2f}",
                ", ".join(filter(None, aims)) or "-",
            ]
        columns = ("cpu_us", "redis_us", *more)
        row += [f"{spread([figures[name][key] for figures in rounds])['median']:.1f}" for key in columns]
        rows.append(row)
    return markdown([*head, *(key.replace("_", " ") for key in more)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of a drain (%(default)s)")
    parser.add_argument("--bodies", type=int, default=4, help="batches of 10,000 tasks in a round (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one load with wrk (%(default)s)")
    parser.add_argument("--only", default="drain,batch,single", help="which parts (%(default)s)")
    parser.add_argument(
        "--aof", action=argparse.BooleanOptionalAction, default=True, help="Redis with its append-only file"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    only = options.only.split(",")
    figures: dict[str, Any] = {"aims": AIMS, "aof": options.aof}
    tables = []
    for name, what, measure in (
        ("drain", "drain of one node", lambda: drain_round(options.tasks, options.aof)),
        ("batch", "tasks in batches over HTTP", lambda: with_node(options, batch_round, options.bodies)),
        ("single", "POST /tasks, 64 connections", lambda: with_bare_server(options)),
    ):
        if name in only:
            rounds = []
            for n in range(options.rounds):
                rounds.append(measure())
                say(
                    f"{name} {n + 1}: "
                    + ", ".join(f"{row} {values['per_s']:,.0f}/s" for row, values in rounds[-1].items())
                )
            figures[name] = rounds
            tables.append(table(what, rounds))
    publish("Throughput of one node", "\n\n".join(tables), figures, options.json)


def with_node(options: argparse.Namespace, measure: Callable[..., Figures], *more: Any) -> Figures:
    """Measure with a new Redis and node in each round: tasks that never run would pile up."""
    with Bed(options.aof) as bed:
        node = bed.node(queues="default:100,sync:2")
        node.wait_ready()
        return measure(node, bed, *more)


def with_bare_server(options: argparse.Namespace) -> Figures:
    """The same with the bare handler beside it."""

    def measure(node: Node, bed: Bed) -> Figures:
        port = bed.base_port + 9
        bare = multiprocessing.get_context("spawn").Process(target=bare_server, args=(port,), daemon=True)
        bare.start()
        try:
            url = f"http://127.0.0.1:{port}"
            wait_open(url)
            assert bare.pid is not None
            return single_round(node, bed, (url, bare.pid), options.seconds)
        finally:
            bare.kill()
            bare.join()

    return with_node(options, measure)


def wait_open(url: str) -> None:
    """Wait until a server answers there."""

    def answers() -> bool:
        try:
            Remote(url, timeout_s=1.0).request("GET", "/")
        except Unreachable:
            return False
        return True

    if not wait_for(answers, 10.0):
        raise RuntimeError(f"{url} does not answer")


if __name__ == "__main__":
    sys.exit(main())
