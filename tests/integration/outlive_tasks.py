"""Handlers of test_outlive.py and test_leaving.py: loud ones, some that break their node, some that leave things."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.shards.lane import Lane
from cluster.vitals.heartbeat import Heartbeat
from cluster.vitals.thread import Vitals
from node import task
from node.observe import redis_memory
from node.queue.housekeeping import Housekeeping

LOUD = "x" * 40_000
LONG_S = 600.0


class Raises(logging.Handler):
    """A logging handler of a user, with a fault of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("this handler is broken")


def speak() -> None:
    for stream in (sys.stdout, sys.stderr):
        print(LOUD, file=stream)
    logging.getLogger("users.own").warning(LOUD)


@task
async def loud(seconds: float) -> str:
    speak()
    await asyncio.sleep(seconds)
    speak()
    return "said"


@task
def loud_child(seconds: float) -> str:
    speak()
    time.sleep(seconds)
    speak()
    return "said"


@task
async def bad_logging(seconds: float) -> str:
    """From here on all that goes through the root of `logging` raises; and libraries have a lot to say."""
    logging.getLogger().addHandler(Raises())
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: 1 / 0)  # the loop logs it
    loop.create_future().set_exception(ValueError("nobody looks"))  # so does this, when it is collected
    gc.collect()
    await asyncio.sleep(seconds)
    return "said"


# What breaks a node


def _raise(*_: Any, **__: Any) -> Any:
    raise ValueError("sabotage")


async def _raise_async(*_: Any, **__: Any) -> Any:
    raise ValueError("sabotage")


def _vitals() -> Vitals:
    thread = next(one for one in threading.enumerate() if one.name == "vitals")
    vitals: Vitals = thread._target.__self__  # type: ignore[attr-defined]
    return vitals


def _cancel(name: str) -> None:
    for one in asyncio.all_tasks():
        if one.get_name() == name:
            one.cancel()


def _stop_vitals() -> None:
    loop = _vitals()._loop
    assert loop is not None
    loop.call_soon_threadsafe(loop.stop)


def _hang_vitals() -> None:
    loop = _vitals()._loop
    assert loop is not None
    loop.call_soon_threadsafe(time.sleep, LONG_S)


ACTS: dict[str, Callable[[], Any]] = {
    "all tasks cancelled": lambda: [one.cancel() for one in asyncio.all_tasks()],
    "a lane cancelled": lambda: _cancel("lane"),
    "a lane fails": lambda: setattr(Lane, "_exchange", _raise_async),
    "housekeeping fails": lambda: setattr(Housekeeping, "_sweep", _raise),
    "housekeeping cancelled": lambda: _cancel("housekeeping"),
    "the load's report cancelled": lambda: _cancel("load"),
    "the memory's watch fails": lambda: setattr(redis_memory, "look", _raise),
    "the timeline cancelled": lambda: _cancel("timeline_tells"),
    "the heartbeat fails": lambda: setattr(Heartbeat, "beat", _raise_async),
    "the vitals thread ends": _stop_vitals,
    "the vitals thread hangs": _hang_vitals,
}


@task(queue="sabotage", max_attempts=1)
async def sabotage(what: str) -> None:
    ACTS[what]()
    await asyncio.sleep(LONG_S)


@task(queue="long", max_attempts=5)
async def long_here(path: str) -> str:
    """First on the node that will break, where it takes long; then on another."""
    if note_run(Path(path)) == 1:
        await asyncio.sleep(LONG_S)
    return "done"


def note_run(path: Path) -> int:
    """How many runs there were, with this one."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().splitlines())


# What a handler leaves behind

_kept: list[Any] = []


def _swallow() -> Any:
    async def never_ends() -> None:
        while True:
            try:
                await asyncio.sleep(LONG_S)
            except asyncio.CancelledError:
                continue

    return asyncio.create_task(never_ends())


def _executor() -> Any:
    loop = asyncio.get_running_loop()
    return [loop.run_in_executor(None, time.sleep, LONG_S) for _ in range(40)]


def _names() -> Any:
    """A look-up of a name that never comes back, as of a resolver that hangs."""
    return _executor()


def _thread() -> Any:
    thread = threading.Thread(target=time.sleep, args=(LONG_S,), name="users-own", daemon=False)
    thread.start()
    return thread


def _program() -> Any:
    return subprocess.Popen(["sh", "-c", "trap '' TERM INT; sleep 30"], start_new_session=True)


def _raise_at_exit() -> None:
    raise SystemExit(9)


def _generator() -> Any:
    async def endless() -> Any:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(LONG_S)

    generator = endless()
    return generator, asyncio.create_task(anext(generator))


LEAVES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a task that swallows its cancellation": _swallow,
    "a full executor": _executor,
    "a thread": _thread,
    "a program that ignores signals": _program,
    "an exit hook that blocks": lambda: atexit.register(time.sleep, LONG_S),
    "an exit hook that raises": lambda: atexit.register(_raise_at_exit),
    "a generator that is not closed": _generator,
    "a broken logging handler": lambda: logging.getLogger().addHandler(Raises()),
}


@task
async def leave(what: str) -> str:
    _kept.append(LEAVES[what]())
    return what


@task
async def stubborn(_: None = None) -> str:
    """Never ends, whatever it is told."""
    while True:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            continue


@task
def deaf_child(_: None = None) -> str:
    """A child that no signal but SIGKILL ends, and a program of it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    time.sleep(LONG_S)
    return ""


@task
async def blocks_the_loop(_: None = None) -> str:
    time.sleep(LONG_S)  # noqa: ASYNC251 (the fault itself)
    return ""
