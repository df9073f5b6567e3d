"""A handler's view of its attempt: what it may ask and report while it runs.

Does not know: where the handler runs. The worker's end of the line is a `WorkerLink`.
"""

from __future__ import annotations

from typing import Any, Protocol

from cluster.shards.task import Claimed
from node import exact_json, trace_context

PROGRESS_MAX_BYTES = 4096


class WorkerLink(Protocol):
    """The line from a running handler to the worker: one kind each for the loop, threads and child processes."""

    @property
    def is_stopped(self) -> bool: ...
    def report(self, value: bytes) -> None: ...


class Context:
    """A handler's view of its attempt. Call a parameter `ctx`, or annotate one with Context."""

    __slots__ = ("_claimed", "_link", "_log", "node_id")

    def __init__(self, claimed: Claimed, node_id: str, link: WorkerLink) -> None:
        self._claimed = claimed
        self._link = link
        self._log: Any = None
        self.node_id = node_id

    @property
    def task_id(self) -> str:
        """The id that `POST /tasks` answered with."""
        return self._claimed.id

    @property
    def type(self) -> str:
        """The task's type."""
        return self._claimed.spec.type

    @property
    def attempt(self) -> int:
        """1 for the first try; counted against `max_attempts`."""
        return self._claimed.attempt

    @property
    def delivery(self) -> int:
        """Rises with every claim, never reset. With `task_id` it names this attempt: a fencing token outside."""
        return self._claimed.delivery

    @property
    def trace(self) -> str | None:
        """The task's trace context (W3C traceparent), which is that of its submission."""
        context = self._claimed.spec.trace
        return None if context is None else trace_context.traceparent(context)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt's right to commit has ended: timed out, cancelled, fenced or handed back.

        From then on the handler's result is dropped. An async handler is also cancelled; a thread can only look here; a
        child process is killed instead and never sees it.
        """
        return self._link.is_stopped

    def progress(self, value: Any) -> None:
        """Show how far this attempt is: any JSON value of up to 4 KiB, by custom a number from 0 to 1.

        Cheap to call often: the node stores a few values a second, always including the latest. Raises TypeError for a
        value that JSON cannot hold, with the place in it, and ValueError for one that is too large.
        """
        data = exact_json.encode(value)
        if len(data) > PROGRESS_MAX_BYTES:
            raise ValueError(f"progress is {len(data)} bytes of JSON, at most {PROGRESS_MAX_BYTES}")
        self._link.report(data)

    @property
    def log(self) -> Any:
        """A structlog logger bound to the task's id, type and attempt, and to the id of its trace."""
        if self._log is None:
            import structlog

            from node.observe import logs

            self._log = structlog.get_logger("rumor.task").bind(
                **logs.ids_of(self._claimed), type=self.type, attempt=self.attempt
            )
        return self._log
