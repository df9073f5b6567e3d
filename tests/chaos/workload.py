"""Handlers that record every run: `--tasks tests.chaos.workload`.

A handler appends a line when it starts and when it ends, so that tests know what *ran*, not only what was committed.
Each line is one write to a file opened for appending, so lines of different processes never mix. Times are of the
machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from msgspec import Struct

from node import Context, task


class Work(Struct):
    """A handler's work, and the file that records it."""

    ledger: str
    seconds: float = 0.0


def note(work: Work, ctx: Context, what: str) -> None:
    line = {
        "what": what,
        "id": ctx.task_id,
        "delivery": ctx.delivery,
        "attempt": ctx.attempt,
        "node": ctx.node_id,
        "pid": os.getpid(),
        "at_s": time.monotonic(),
    }
    file = os.open(work.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def outcome(ctx: Context) -> dict[str, Any]:
    """A result that names its run, so that a test can compare a committed one with the run that made it."""
    return {"delivery": ctx.delivery, "pid": os.getpid()}


@task(name="chaos.sleep")
async def sleep(work: Work, ctx: Context) -> dict[str, Any]:
    """Hold a slot and nothing else."""
    note(work, ctx, "start")
    try:
        await asyncio.sleep(work.seconds)
    except asyncio.CancelledError:
        note(work, ctx, "stopped")
        raise
    note(work, ctx, "end")
    return outcome(ctx)


@task(name="chaos.hold_gil")
async def hold_gil(work: Work, ctx: Context) -> dict[str, Any]:
    """Hold the whole interpreter: one call into C that never releases it, so that not even other threads run."""
    begin_s = time.monotonic()
    sum(range(2_000_000))
    rate = 2_000_000 / (time.monotonic() - begin_s)
    note(work, ctx, "start")
    sum(range(int(rate * work.seconds)))
    note(work, ctx, "end")
    return outcome(ctx)


@task(name="chaos.crash")
async def crash(work: Work, ctx: Context) -> None:
    """End the node's process."""
    note(work, ctx, "start")
    os._exit(86)


@task(name="chaos.crash_process", max_attempts=3)
def crash_process(work: Work, ctx: Context) -> None:
    """End the child process that runs this."""
    note(work, ctx, "start")
    os._exit(86)


@task(name="chaos.fork")
async def fork(work: Work, ctx: Context) -> dict[str, Any]:
    """Leave behind a process that was forked off the node, as multiprocessing does."""
    copy = os.fork()
    if copy == 0:
        time.sleep(work.seconds)  # noqa: ASYNC251 - a process of its own by now
        os._exit(0)
    return outcome(ctx) | {"copy": copy}


@task(name="chaos.fork_and_return")
async def fork_and_return(work: Work, ctx: Context) -> dict[str, Any]:
    """Return twice: in the node and in its copy."""
    return {"copy": os.fork()} | outcome(ctx)


@task(name="chaos.fork_and_terminate")
async def fork_and_terminate(work: Work, ctx: Context) -> dict[str, Any]:
    """End the forked process with the signal that ends a node."""
    copy = os.fork()
    if copy == 0:
        time.sleep(60)  # noqa: ASYNC251 - a process of its own by now
        os._exit(0)
    os.kill(copy, signal.SIGTERM)
    _, status = await asyncio.to_thread(os.waitpid, copy, 0)
    return {"status": status} | outcome(ctx)


@task(name="chaos.leave_exits_behind")
async def leave_exits_behind(work: Work, ctx: Context) -> dict[str, Any]:
    """Leave behind a task and a callback that exit."""

    async def exits() -> None:
        raise SystemExit(3)

    loop = asyncio.get_running_loop()
    left.append(loop.create_task(exits()))
    loop.call_soon(sys.exit, 4)
    return outcome(ctx)


left: list[asyncio.Task[None]] = []  # references to tasks: a loop alone does not keep them alive
