"""The errors that a client raises: a node's own, by their code, and those that only a client can find out.

Each is a RumorError with `code`, `message`, `hint` and `may_have_happened`. Does not know: HTTP libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster import errors
from cluster.errors import RumorError

if TYPE_CHECKING:
    from node.client.task import Task

NEVER_AGAIN = ("InvalidData", "Rejected")  # types of failures that the same data meets every time

BY_CODE: dict[str, type[RumorError]] = {
    kind.code: kind
    for kind in (
        errors.BadRequest,
        errors.Invalid,
        errors.UnknownType,
        errors.IdempotencyConflict,
        errors.NotFound,
        errors.Conflict,
        errors.TooLarge,
        errors.TooSlow,
        errors.TooManyConnections,
        errors.QueueFull,
        errors.Unauthorized,
        errors.Forbidden,
        errors.MethodNotAllowed,
        errors.StoreUnavailable,
        errors.StoreUnsafe,
        errors.TaskUnreadable,
    )
}
GATEWAY_DOWN = (502, 504)  # statuses of a proxy before the node; they do not say whether the node did anything


class Unreachable(RumorError):
    """No node answered in time. `may_have_happened` says whether one may have received the request."""

    code = "unreachable"
    status = 503

    def __init__(self, message: str, hint: str = "", may_have_happened: bool = True) -> None:
        super().__init__(message, hint)
        self.may_have_happened = may_have_happened


class NotFinished(RumorError, TimeoutError):
    """The time is up, the task goes on. `task` is the task as it was last seen."""

    code = "not_finished"
    status = 408

    def __init__(self, task: Task[Any], within_s: float) -> None:
        super().__init__(
            f"task {task.id} is {task.state} after {within_s:g} s.", "It goes on; wait again, or cancel it."
        )
        self.task = task


class TaskFailed(RumorError):
    """The task has ended without a result. `type`, `message` and `traceback` are those of its last error.

    The call itself succeeded; `task` is the whole task.
    """

    code = "task_failed"
    status = 200

    def __init__(self, task: Task[Any]) -> None:
        failure = task.error
        super().__init__(
            failure.message if failure else f"task {task.id} is {task.state}",
            "Correct the data and submit a new task."
            if failure and failure.type in NEVER_AGAIN
            else f"Queue it again with retry({task.id!r}).",
        )
        self.task = task
        self.type = failure.type if failure else task.state
        self.traceback = failure.traceback if failure else None

    def __str__(self) -> str:
        if self.task.error is None:
            return super().__str__()
        return f"{self.code}: task {self.task.id} is {self.task.state}: {self.type}: {self.message}\n  {self.hint}"


class TaskCancelled(TaskFailed):
    """Somebody cancelled the task."""

    code = "task_cancelled"


class BadResult(RumorError):
    """The task succeeded, but its result is not of the type asked for. `task` is the whole task."""

    code = "bad_result"
    status = 200

    def __init__(self, task: Task[Any], why: str) -> None:
        super().__init__(f"the result of task {task.id} does not fit: {why}.", "task.result holds it unconverted.")
        self.task = task


def error_of(status: int, answer: Any, url: str) -> RumorError:
    """The gateway's error as an exception of its class; for any other body, one that names the URL and the status."""
    body = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(body, dict):
        body = {"code": f"http_{status}", "message": f"{url} answered {status}.", "hint": "Is this a Rumor node?"}
    code = str(body.get("code", f"http_{status}"))
    error = BY_CODE.get(code, RumorError)(str(body.get("message", "")), str(body.get("hint", "")))
    error.code, error.status = code, status
    error.may_have_happened = bool(body.get("may_have_happened", status in (500, *GATEWAY_DOWN)))
    return error
