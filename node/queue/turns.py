"""Turns: a bound for reads that many callers may ask for at once.

`Turns` lets a few callers in; the others wait, neither too many nor for too long. `Shared` lets all callers who ask
for the same thing share one read.

Does not know: what is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from cluster.errors import TooManyReads

T = TypeVar("T")


class Turns:
    """At most `at_once` turns at a time, and `waiting_max` callers that wait up to `within_s` for theirs."""

    def __init__(self, at_once: int, waiting_max: int, within_s: float) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._at_once = at_once
        self._waiting_max = waiting_max
        self._within_s = within_s
        self._waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """One turn. Raises TooManyReads if too many callers wait, or if none gets free in time."""
        if self._waiting >= self._waiting_max:
            raise self._too_many()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._within_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._too_many() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    def _too_many(self) -> TooManyReads:
        return TooManyReads(
            f"this node makes {self._at_once} lists of this kind at once, and {self._waiting} more wait.",
            "Ask again in a moment, or ask another node.",
        )


class Shared(Generic[T]):
    """One read under way at a time. All who ask while it is under way share the next one, which begins after it.

    So the answer is never older than the question, and however many ask, Redis does the work of one after another.
    """

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._under_way: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """The answer of a read that begins now or later."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._read_after(self._under_way))
            self._next.add_done_callback(_heed)
        return await asyncio.shield(self._next)  # one caller's end must not end the read of the others

    async def _read_after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._under_way, self._next = self._next, None
        return await self._read()


def _heed(task: asyncio.Task[T]) -> None:
    """Look at the outcome, since all who waited for it may have gone."""
    if not task.cancelled():
        task.exception()
