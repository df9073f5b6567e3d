"""Tasks that belong together: endless ones, which somebody watches, and short ones. All end at once.

If an endless task ended quietly, its node would be half dead: it would look well and do no work. So an endless task
that fails begins again a few times. When it has failed too often, has returned, or was cancelled by somebody else (a
handler that cancels every task of its loop), it has ended for good, and `on_end` hears of it: that must end the node.

Does not know: what the tasks do, how a node ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger("rumor.tasks")

RESTART_S = 0.5  # pause before a task that failed begins again
RESTARTS_MAX = 5  # failures within RESTARTS_WITHIN_S that a task may begin again after
RESTARTS_WITHIN_S = 60.0

OnEnd = Callable[[str], None]  # takes a sentence: which task has ended for good, and why


def unheard(message: str) -> None:
    """Do nothing more: the log has it."""


class Nursery:
    """Tasks on the running loop."""

    def __init__(self, on_end: OnEnd = unheard, stats: Counter[str] | None = None) -> None:
        self._on_end = on_end
        self._stats: Counter[str] = Counter() if stats is None else stats
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept: set[asyncio.Task[None]] = set()

    def keep(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restarts: int = RESTARTS_MAX
    ) -> asyncio.Task[None]:
        """Run an endless task. `restarts`: how often it may fail in a while and begin again."""
        task = self.spawn(self._again(name, work, restarts), name)
        self._kept.add(task)
        return task

    def spawn(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """Run a short task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def halt(self) -> None:
        """Cancel everything and wait until it has ended."""
        self._kept.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self, name: str, work: Callable[[], Coroutine[Any, Any, None]], restarts: int) -> None:
        loop = asyncio.get_running_loop()
        failures: deque[float] = deque(maxlen=restarts + 1)
        while True:
            try:
                await work()
                return
            except Exception as error:
                failures.append(loop.time())
                if len(failures) > restarts and loop.time() - failures[0] < RESTARTS_WITHIN_S:
                    raise
                self._stats["restarts"] += 1
                log.exception("task_failed", task=name, error=repr(error))
            await asyncio.sleep(RESTART_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if task not in self._kept:
            if error is not None:
                self._stats["task_failures"] += 1
                log.error("task_failed", task=task.get_name(), error=repr(error))
            return
        self._kept.discard(task)
        why = "was cancelled" if task.cancelled() else "returned" if error is None else f"failed: {error!r}"
        log.critical("task_ended", task=task.get_name(), why=why, exc_info=error)
        self._on_end(f"the task {task.get_name()!r}, which must never end, {why}")


async def wait_for(event: asyncio.Event, limit_s: float) -> None:
    """Wait until the event is set or the time is up; clear the event."""
    try:
        async with asyncio.timeout(max(0.0, limit_s)):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()
