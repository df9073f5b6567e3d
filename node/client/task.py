"""Tasks as a client shows them: the JSON of the gateway as plain, frozen values.

A field that this version does not know is left out, one that an older node does not send is None. Does not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, NamedTuple, TypeVar

from node.client.errors import BadResult, TaskCancelled, TaskFailed

T = TypeVar("T")
R = TypeVar("R")

ENDED = ("succeeded", "dead", "cancelled", "expired")  # expired: a repeat of a task that is past its retention


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """A task as it was when the node answered. Times are Redis's clock, in milliseconds since 1970.

    `told` is all that the node said, in JSON's types.
    """

    id: str
    type: str
    state: str
    queue: str
    priority: int
    data: Any
    attempt: int
    max_attempts: int
    delivery: int
    queued_at_ms: int | None = None
    run_at_ms: int | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    node_id: str | None = None
    result: T = None  # type: ignore[assignment]
    error: Failure | None = None
    progress: Any = None
    key: str | None = None
    traceparent: str | None = None  # of a task that has a trace context
    trace_url: str | None = None  # where to look at its trace; only where one task was asked for
    history: tuple[Mapping[str, Any], ...] = ()  # attempts that did not succeed; only where one task was asked for
    told: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in ENDED


class Page(NamedTuple):
    """A page of a listing; no cursor: it is the last."""

    tasks: list[Task[Any]]
    cursor: str | None


def task_of(told: Mapping[str, Any]) -> Task[Any]:
    """One task of an answer."""
    known = {name: told[name] for name in _FIELDS if name in told}
    for name, default in _REQUIRED.items():
        known.setdefault(name, default)
    if (error := known.get("error")) is not None:
        known["error"] = Failure(str(error.get("type", "")), str(error.get("message", "")), error.get("traceback"))
    known["history"] = tuple(known.get("history") or ())
    return Task(**known, told=told)


def typed(task: Task[Any], type: type[R] | None) -> Task[R]:
    """The task with its result as this type, once it has succeeded. Raises BadResult when it does not fit."""
    if type is None or task.state != "succeeded":
        return task
    import msgspec  # only who asks for a type pays for it

    try:
        return replace(task, result=msgspec.convert(task.result, type))
    except msgspec.ValidationError as error:
        raise BadResult(task, str(error)) from None


def result_of(task: Task[T]) -> T:
    """The result of a task that has ended. Raises TaskFailed for any other end than success."""
    if task.state == "succeeded":
        return task.result
    raise (TaskCancelled if task.state == "cancelled" else TaskFailed)(task)


_FIELDS = tuple(one.name for one in fields(Task) if one.name != "told")
_REQUIRED: dict[str, Any] = {
    "queue": "",
    "priority": 5,
    "data": None,
    "attempt": 0,
    "max_attempts": 0,
    "delivery": 0,
}
