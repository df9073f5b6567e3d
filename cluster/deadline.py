"""A deadline that looks into the socket before it believes the clock.

A loop that was busy past a deadline serves its timer first, and only then the socket in which the answer may have lain
in time. So a deadline has a moment of grace, in which the loop reads what has arrived.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

GRACE_S = 0.02  # after a deadline, for an answer that lies in the buffer


async def ends_within(task: asyncio.Future[Any], limit_s: float) -> bool:
    """Whether the task ends by then or within the grace that follows. A task that does not is its maker's to cancel."""
    for wait_s in (limit_s, GRACE_S):
        done, _ = await asyncio.wait((task,), timeout=wait_s)
        if done:
            return True
    return False


class Deadline:
    """`async with Deadline(limit_s):` raises TimeoutError when the block has not ended by then or within the grace.

    The block is cancelled before that is raised. It runs in the caller's task: nothing is made but one timer.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._is_over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancels = task, task.cancelling()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._limit_s, self._late)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancels and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _late(self) -> None:
        self._timer = self._loop.call_later(GRACE_S, self._end)

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()
