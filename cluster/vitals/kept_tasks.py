"""Tasks that belong together: endless ones, which begin again when they fail, and short ones. All end at once.

If an endless task ended quietly, its node would be half dead. So a failure is logged and counted, and the task runs
again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("vitals")

RESTART_S = 0.5  # pause before a task that failed begins again


class Nursery:
    """Tasks on the running loop."""

    def __init__(self, stats: Counter[str]) -> None:
        self._stats = stats
        self._tasks: set[asyncio.Task[None]] = set()

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run an endless task, again and again."""

        async def forever() -> None:
            while True:
                try:
                    await work()
                except Exception as error:
                    self._stats["restarts"] += 1
                    log.exception("vitals_task_failed", task=name, error=repr(error))
                await asyncio.sleep(RESTART_S)

        self.spawn(forever())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a short task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def halt(self) -> None:
        """Cancel everything and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stats["task_failures"] += 1
            log.error("vitals_task_failed", error=repr(error))


async def wait_for(event: asyncio.Event, limit_s: float) -> None:
    """Wait until the event is set or the time is up; clear the event."""
    try:
        async with asyncio.timeout(max(0.0, limit_s)):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
