"""Waiting for a condition, with a limit and a reason: what tests do instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(condition: Callable[[], T], limit_s: float, why: str) -> T:
    """Return the first true value of `condition()`; fail with `why` and the last value if none comes in time."""
    end_s = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {limit_s:g} s: {why} (last: {value!r})")
        time.sleep(POLL_S)
    return value


async def wait_until_async(condition: Callable[[], T | Awaitable[T]], limit_s: float, why: str) -> T:
    """The same on an event loop, for a plain or an async condition."""
    end_s = time.monotonic() + limit_s
    while True:
        answer = condition()
        value: T = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {limit_s:g} s: {why} (last: {value!r})")
        await asyncio.sleep(POLL_S)
