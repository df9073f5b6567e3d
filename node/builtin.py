"""The task types of every node: something to submit before there is any code, and ways to see things go wrong."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Annotated, Any

from msgspec import Meta, Struct

from node.context import Context
from node.tasks import task

Seconds = Annotated[float, Meta(ge=0, le=86_400)]
CRASH_CODE = 86
PROGRESS_INTERVAL_S = 0.2


class Sleep(Struct):
    """Data of `sleep`, `cpu` and `block`; a bare number is the same."""

    seconds: Seconds = 1.0


class Fail(Struct):
    """Data of `fail`; a bare text is its message."""

    message: str = "failed as asked"
    times: int | None = None  # None: always


class Crash(Struct):
    """Data of `crash` and `crash_process`."""

    code: Annotated[int, Meta(ge=0, le=255)] = CRASH_CODE


@task
async def process(data: Any, ctx: Context) -> dict[str, Any]:
    """The example of the README: take any JSON; say what came in and where it was processed."""
    answer: dict[str, Any] = {"processed": data, "kind": _kind(data), "node_id": ctx.node_id, "attempt": ctx.attempt}
    if isinstance(data, str):
        answer |= {"upper": data.upper(), "words": len(data.split())}
    if isinstance(data, str | list | dict):
        answer["length"] = len(data)
    return answer


def _kind(data: Any) -> str:
    """JSON's name for the value's type."""
    match data:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "number"


@task
async def noop() -> None:
    """Do nothing: shows what the queue itself costs."""


@task
async def sleep(data: Sleep | Seconds | None) -> dict[str, float]:
    """Wait, holding nothing but a slot."""
    seconds = _seconds(data)
    await asyncio.sleep(seconds)
    return {"slept_s": seconds}


@task
async def fail(data: Fail | str | None, ctx: Context) -> dict[str, int]:
    """Fail always, or the first `times` attempts."""
    how = data if isinstance(data, Fail) else Fail() if data is None else Fail(message=data)
    if how.times is None or ctx.attempt <= how.times:
        raise RuntimeError(how.message)
    return {"succeeded_at_attempt": ctx.attempt}


@task
def cpu(data: Sleep | Seconds | None, ctx: Context) -> dict[str, float]:
    """Keep one core busy in a child process by counting primes, and show the progress."""
    seconds = _seconds(data)
    begin = time.monotonic()
    report_at = begin + PROGRESS_INTERVAL_S
    primes, number = 0, 2
    while (now := time.monotonic()) < begin + seconds:
        if now >= report_at:
            ctx.progress(round((now - begin) / seconds, 3))
            report_at = now + PROGRESS_INTERVAL_S
        primes += all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        number += 1
    return {"busy_s": seconds, "primes": primes, "below": number}


@task
async def crash(data: Crash | None) -> None:
    """Kill the node that runs it, at once and without goodbye, and then the next one. After that it runs in a child
    process, and kills that until its attempts are used up."""
    os._exit(CRASH_CODE if data is None else data.code)


@task
def crash_process(data: Crash | None) -> None:
    """Kill the child process that runs it; the node stays up, the attempt fails."""
    os._exit(CRASH_CODE if data is None else data.code)


@task
async def block(data: Sleep | Seconds | None) -> dict[str, float]:
    """Do what an async handler must not: hold the event loop. Membership and other tasks must not suffer for it."""
    seconds = _seconds(data)
    time.sleep(seconds)  # noqa: ASYNC251
    return {"blocked_s": seconds}


def _seconds(data: Sleep | float | None) -> float:
    return data.seconds if isinstance(data, Sleep) else Sleep().seconds if data is None else data
