"""Tasks as a client shows them: the JSON of the gateway as frozen values.

Pure. A field that this version does not know is left out; one that an older node does not send is None.

Does not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

from node.client.errors import BadResult, TaskCancelled, TaskFailed

T = TypeVar("T")
R = TypeVar("R")

ENDED = (
    "succeeded",
    "dead",
    "cancelled",
    "expired",
)  # expired: the answer to a repeat of a task that is past its retention


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Task(Generic[T]):
    """A task as it was when the node answered. Times are Redis's clock, in milliseconds since 1970.

    `told` is the whole answer of the node, in JSON's types.
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
    traceparent: str | None = None  # None: the task has no trace context
    trace_url: str | None = None  # the page of its trace; only in the answer about one task
    history: tuple[Mapping[str, Any], ...] = ()  # attempts that did not succeed; only in the answer about one task
    told: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in ENDED


class _Page(NamedTuple):
    tasks: list[Task[Any]]
    cursor: str | None
    searched: int | None = None  # tasks that the node looked at; None: an older node, which does not say
    is_complete: bool = True


class Page(_Page):
    """A page of a listing; the last one has no cursor.

    A node looks at a bounded number of tasks for one page. Where that ended the page early, `is_complete` is False: the
    page may be short or empty, and `cursor` goes on.
    """

    # Ids that belong on the page, but what Redis holds of their tasks cannot be read. Programs unpack a page into four.
    unreadable: Sequence[str] = ()


def task_of(answer: Mapping[str, Any]) -> Task[Any]:
    """The task of an answer."""
    get = answer.get
    error = get("error")
    return Task(  # by position: a batch has thousands of them
        answer["id"],
        answer["type"],
        answer["state"],
        get("queue", ""),
        get("priority", 5),
        get("data"),
        get("attempt", 0),
        get("max_attempts", 0),
        get("delivery", 0),
        get("queued_at_ms"),
        get("run_at_ms"),
        get("started_at_ms"),
        get("finished_at_ms"),
        get("node_id"),
        get("result"),
        None
        if error is None
        else Failure(str(error.get("type", "")), str(error.get("message", "")), error.get("traceback")),
        get("progress"),
        get("key"),
        get("traceparent"),
        get("trace_url"),
        tuple(get("history") or ()),
        answer,
    )


def typed(task: Task[Any], type: type[R] | None) -> Task[R]:
    """The task with its result as this type, once it has succeeded. Raises BadResult when it does not fit."""
    if type is None or task.state != "succeeded":
        return task
    import msgspec  # paid for only by those who ask for a type

    try:
        return replace(task, result=msgspec.convert(task.result, type))
    except msgspec.ValidationError as error:
        raise BadResult(task, str(error)) from None


def result_of(task: Task[T]) -> T:
    """The result of a task that has ended. Raises TaskFailed, or TaskCancelled, unless it succeeded."""
    if task.state == "succeeded":
        return task.result
    raise (TaskCancelled if task.state == "cancelled" else TaskFailed)(task)
