"""Each call of the client: what is sent, and what becomes of the answer. Shared by both clients.

Pure generators over `asking.carry_out`; only `new_key` draws randomness of its own. A submission without an
Idempotency-Key gets one here, before the first attempt, so that repeating it on any node gives the same task.
"""

from __future__ import annotations

import builtins
import json
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Literal, TypedDict, TypeVar

from cluster.errors import BadRequest, Invalid, NotFound, RumorError
from cluster.header_text import idempotency_key
from node import trace_context
from node.client.asking import WAIT_SPARE_S, Pause, Request, Steps, carry_out
from node.client.errors import NotFinished
from node.client.nodes import Nodes
from node.client.task import Page, Task, task_of, typed

WAIT_AGAIN_S = 0.2  # the pause after an answer that came too early: a node that stops answers a wait at once
WAIT_STEP_S = 10.0  # the longest that one request of a wait stays open
LONG_ATTEMPT_S = 60.0
PAGE_TASKS = 500  # the most that a page may have: each page is a search of its own, where a list is filtered
ABSENT: Any = object()  # data of a submission without any: the handler's default counts then, which null is not
NO_QUERY: Mapping[str, Any] = {}
JSON_ONLY = "Give data and options that JSON can hold: no NaN, no infinity, no object of a class that it does not know."

T = TypeVar("T")
Result = Task[Any] | RumorError
Which = Mapping[str, Any]
Priority = Literal["low", "normal", "high"] | int


class Options(TypedDict, total=False):
    """The options of a submission beside type and data. The type's declaration says what is left out."""

    queue: str
    priority: Priority
    key: str
    delay_s: float
    run_at: str | datetime
    max_attempts: int
    timeout_s: float
    backoff: Mapping[str, float]
    unique_for_s: float
    unique_key: str
    retention_s: float


@dataclass(frozen=True, slots=True)
class Asker:
    """The means of one call of the client, which begins at `now_s` and ends within `within_s`."""

    nodes: Nodes
    rng: Random
    now_s: float
    within_s: float
    insists: bool = True

    def __post_init__(self) -> None:
        check_within(self.within_s)

    def ask(self, request: Request) -> Steps[Any]:
        """The JSON answer."""
        answer, _ = yield from self.ask_at(request, self.now_s, self.within_s)
        return answer

    def ask_at(self, request: Request, now_s: float, within_s: float) -> Steps[tuple[Any, float]]:
        """The JSON answer and the time, where a call of the client takes several requests."""
        return carry_out(request, self.nodes, self.rng, now_s, within_s, self.insists)


def check_within(within_s: float) -> None:
    """Raise BadRequest for a time in which no call can end, before anything is sent."""
    if not within_s > 0:  # in this form, because not-a-number is neither more nor less
        raise BadRequest(f"within_s is {within_s:g}: no call can end in that time.", "Give it seconds, more than 0.")


def submit(
    asker: Asker, type: str, data: Any, key: str | None, options: Mapping[str, Any], wait_s: float = 0.0
) -> Steps[Task[Any]]:
    key = new_key() if key is None else idempotency_key(key)
    return task_of((yield from _under(key, asker.ask(_post(type, data, key, options, wait_s)))))


def run(
    asker: Asker,
    type: str,
    data: Any,
    key: str | None,
    options: Mapping[str, Any],
    result_type: builtins.type[T] | None,
) -> Steps[Task[T]]:
    """Submit a task; the task once it has ended. Raises NotFinished when the time is up."""
    key = new_key() if key is None else idempotency_key(key)
    return (yield from _under(key, _ended(asker, _post(type, data, key, options, WAIT_STEP_S), result_type)))


def _post(type: str, data: Any, key: str, options: Mapping[str, Any], wait_s: float) -> Request:
    sent = {} if data is ABSENT else {"data": data}
    body = encoded({"type": type, **sent, **options})
    return Request("POST", "/tasks", body=body, headers=headers_of(key), wait_s=wait_s or None)


def _under(key: str, steps: Steps[T]) -> Steps[T]:
    """These steps of a submission; whatever ends them in the middle carries its key."""
    try:
        return (yield from steps)
    except BaseException as error:
        name_key(error, key)
        raise


def name_key(error: BaseException, key: str) -> None:
    """Give the caller of a submission that may have been stored the key under which to repeat it."""
    hint = f"Submit the same again with idempotency_key={key!r}: what is stored is not stored twice."
    if not isinstance(error, RumorError):  # KeyboardInterrupt, CancelledError, …
        error.idempotency_key = key  # type: ignore[attr-defined]
        error.add_note(hint)
    elif error.may_have_happened:
        error.idempotency_key, error.hint = key, hint


def get(asker: Asker, task_id: str) -> Steps[Task[Any]]:
    return task_of((yield from asker.ask(Request("GET", _task(task_id)))))


def wait(asker: Asker, task_id: str, type: type[T] | None) -> Steps[Task[T]]:
    """The task once it has ended. Raises NotFinished when the time is up."""
    return (yield from _ended(asker, _get(task_id), type))


def _get(task_id: str) -> Request:
    return Request("GET", _task(task_id), wait_s=WAIT_STEP_S)


def _ended(asker: Asker, request: Request, type: type[T] | None) -> Steps[Task[T]]:
    """The task of this request's answer once it has ended. If it goes on then, read it until it has ended."""
    now_s, deadline_s = asker.now_s, asker.now_s + asker.within_s
    while True:
        left_s = max(deadline_s - now_s, 0.01)
        asked_s = now_s
        answer, now_s = yield from asker.ask_at(request, now_s, left_s)
        task = task_of(answer)
        if task.is_finished:
            return typed(task, type)
        if deadline_s - now_s <= WAIT_SPARE_S:
            raise NotFinished(task, asker.within_s)
        if now_s - asked_s < min(WAIT_STEP_S, left_s - WAIT_SPARE_S) / 2:
            _, now_s = yield Pause(WAIT_AGAIN_S)
        request = _get(task.id)


def cancel(asker: Asker, task_id: str) -> Steps[Task[Any]]:
    return task_of((yield from asker.ask(Request("DELETE", _task(task_id)))))


def retry(asker: Asker, task_id: str) -> Steps[Task[Any]]:
    # Not repeatable: the task may have run and died in between, and would run once more.
    request = Request("POST", _task(task_id) + "/retry", is_repeatable=False, attempt_s=LONG_ATTEMPT_S)
    return task_of((yield from asker.ask(request)))


def replay(asker: Asker, type: str | None, limit: int | None) -> Steps[int]:
    which = {name: value for name, value in (("type", type), ("limit", limit)) if value is not None}
    request = Request("POST", "/dead/replay", body=encoded(which), is_repeatable=False, attempt_s=LONG_ATTEMPT_S)
    return int((yield from asker.ask(request))["replayed"])


def purge_dead(asker: Asker) -> Steps[int]:
    request = Request("DELETE", "/dead", is_repeatable=False, attempt_s=LONG_ATTEMPT_S)
    return int((yield from asker.ask(request))["removed"])


def page(asker: Asker, query: Mapping[str, Any]) -> Steps[Page]:
    for name, value in query.items():
        if isinstance(value, str):
            check_text(name, value)
    answer = yield from asker.ask(Request("GET", "/tasks", query))
    tasks = [task_of(row) for row in answer["tasks"]]
    found = Page(tasks, answer.get("cursor"), answer.get("searched"), answer.get("complete", True))
    found.unreadable = answer.get("unreadable", ())
    return found


class Pages:
    """A listing, page after page, of at most `limit` tasks. `which` are the filters and the fields to show."""

    def __init__(self, which: Which, limit: int | None) -> None:
        self._which = which
        self._cursor: str | None = None
        self._left = limit
        self._is_over = False

    def next(self) -> dict[str, Any] | None:
        """The query of the next page; None when there is none."""
        if self._is_over or self._left == 0:
            return None
        limit = PAGE_TASKS if self._left is None else min(PAGE_TASKS, self._left)
        return {**self._which, "limit": limit, "cursor": self._cursor}

    def take(self, page: Page) -> list[Task[Any]]:
        """The page's tasks."""
        self._cursor = page.cursor
        self._is_over = self._cursor is None
        if self._left is not None:
            self._left -= len(page.tasks)
        return page.tasks


def which(state: str | None, type: str | None, key: str | None, queue: str | None, fields: Collection[str]) -> Which:
    """The filters of a listing, and the fields that it shows beside a summary."""
    shown = fields if isinstance(fields, str) else ",".join(fields)
    return {"state": state, "type": type, "key": key, "queue": queue, "fields": shown or None}


def read(
    asker: Asker, path: str, query: Mapping[str, Any] = NO_QUERY, accepts: tuple[int, ...] = ()
) -> Steps[dict[str, Any]]:
    """A request whose answer is an object of no fixed form: /workers, /cluster, /sums, /health."""
    answer: dict[str, Any] = yield from asker.ask(Request("GET", path, query, accepts=accepts))
    return answer


def encoded(value: Any) -> bytes:
    """JSON of plain values, and of others that msgspec knows (structs, dataclasses, datetimes …). Raises Invalid."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 20) : error.start + 1].encode("utf-8", "backslashreplace").decode()
        why = f"half of a surrogate pair stands in {near!r}"
    except Exception as error:  # a value's own code may raise anything when it is asked for its parts
        why = _where(value) or str(error) or type(error).__name__
    raise Invalid(f"this is not JSON: {why}.", JSON_ONLY)


def check_text(name: str, text: str) -> None:
    """Raise BadRequest for a text that no request can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{name} is {text!r}: half of a surrogate pair stands in it.", "Give it text.") from None


def new_key() -> str:
    """An Idempotency-Key that nobody else has."""
    return secrets.token_hex(16)


def _where(value: Any) -> str | None:
    """What of this value is no JSON, and where it stands; None if nobody can say."""
    try:
        from node.exact_json import fault  # needs msgspec, which a process that only submits may lack

        return fault(value)
    except Exception:
        return None


def _plain(value: Any) -> Any:
    import msgspec  # paid for only by those who submit such values

    return msgspec.to_builtins(value)


# Text as it is, so that half of a surrogate pair fails here: with escapes it would pass, and the node would refuse it.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


def headers_of(key: str) -> dict[str, str]:
    """The key, and the caller's trace if it has one."""
    return {"Idempotency-Key": key, **trace_context.current()}


def _task(task_id: str) -> str:
    """The path of a task. A text that no id can be would be another path, or none."""
    if not isinstance(task_id, str):
        raise BadRequest(f"the id of a task is text, and this is of type {type(task_id).__name__}.", "Give task.id.")
    if not _MAY_BE_ID.fullmatch(task_id):
        raise NotFound(f"there is no task {task_id!r}.", "The id of a task is letters and digits with a dash in it.")
    return f"/tasks/{task_id}"


_MAY_BE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
