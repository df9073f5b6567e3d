"""Ceilings: bare clients of this checkout's scripts, and a bare HTTP server, with as little around them as possible.

Does not know: nodes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import redis.asyncio
import uvloop
from aiohttp import web

from cluster.scripts import script
from cluster.shards.answers import SettleKind
from cluster.shards.calls import Calls, NewTask, Settlement
from cluster.shards.task import Backoff, Ids, Spec, packed
from node.client.errors import Unreachable
from node.client.one_node import Remote
from node.lab.process import wait_for

PAYLOAD = {"payload": "x" * 86}  # 100 bytes as JSON
LANES = 2
CLAIM_MAX = 100
SUCCEEDED = SettleKind.SUCCEEDED
STORE_MAX = 256
SHARDS = 64
IDLE = "idle"  # a queue that no node serves
SESSION = "bench/0-0"


async def bare_drain(url: str, tasks: int) -> float:
    """Claim and settle every task, and do nothing else; tasks/s. The node's own decoder reads the claims."""
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    for name in ("claim", "settle"):
        await client.script_load(script(name).text)
    calls = Calls(60.0, 1_000_000, 604_800.0)

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
                claims = claim.decode((await pipe.execute())[-1])
                left = claims.left
                outcomes = [Settlement(claimed, SUCCEEDED, run(noop), 86_400_000) for claimed in claims.tasks]
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
    assert done == tasks, f"{done} of {tasks}"
    return (done - 1) / took_s


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
                packed=packed(spec),
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


@contextmanager
def bare_http(port: int) -> Iterator[tuple[str, int]]:
    """A server that only answers 202, in a process of its own: its URL and pid."""
    process = multiprocessing.get_context("spawn").Process(target=bare_server, args=(port,), daemon=True)
    process.start()
    try:
        url = f"http://127.0.0.1:{port}"
        wait_open(url)
        assert process.pid is not None
        yield url, process.pid
    finally:
        process.kill()
        process.join()


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


def ignore(*_: Any) -> None:
    """Take a reply that nobody needs."""


def uvloop_run(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)
