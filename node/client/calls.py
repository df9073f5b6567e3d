"""Each call of the client: what is sent, and what becomes of the answer. Shared by both clients.

Pure generators over `asking.carry_out`; only `new_key` draws randomness of its own. A submission without an
Idempotency-Key gets one here, before the first attempt, so that repeating it on any node gives the same task.
"""

from __future__ import annotations

import builtins
import json
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

from cluster.errors import BadRequest, Forbidden, Invalid, RumorError, Unauthorized
from node import trace_context
from node.client.asking import WAIT_SPARE_S, Pause, Request, Steps, carry_out, decoded
from node.client.errors import NotFinished, error_of
from node.client.nodes import Nodes
from node.client.task import Page, Task, task_of, typed

WAIT_AGAIN_S = 0.2  # the pause after an answer that came too early: a node that stops answers a wait at once
WAIT_STEP_S = 10.0  # the longest that one request of a wait stays open
BATCH_TASKS = 1_000
BATCH_BYTES = 4_194_304
BATCH_ATTEMPT_S = 20.0
LONG_ATTEMPT_S = 60.0
PAGE_TASKS = 500  # the most that a page may have: each page is a search of its own, where a list is filtered
NO_QUERY: Mapping[str, Any] = {}

T = TypeVar("T")
Item = Mapping[str, Any] | tuple[str, Any]
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
    return task_of((yield from asker.ask(_post(type, data, key, options, wait_s))))


def run(
    asker: Asker,
    type: str,
    data: Any,
    key: str | None,
    options: Mapping[str, Any],
    result_type: builtins.type[T] | None,
) -> Steps[Task[T]]:
    """Submit a task; the task once it has ended. Raises NotFinished when the time is up."""
    return (yield from _ended(asker, _post(type, data, key, options, WAIT_STEP_S), result_type))


def _post(type: str, data: Any, key: str | None, options: Mapping[str, Any], wait_s: float) -> Request:
    body = encoded({"type": type, "data": data, **options})
    return Request("POST", "/tasks", body=body, headers=_headers(key or new_key()), wait_s=wait_s or None)


def submit_many(asker: Asker, items: Iterable[Item], key: str | None) -> Steps[list[Result]]:
    """One result for each item, in order. Raises the errors that concern the caller (401, 403, 400).

    Any other error that fails a whole request is the result of each of its items; the other requests go on until the
    deadline. Each request's key names the place of its first item, and nodes add each item's place within the request:
    so the same items under the same key are the same tasks.
    """
    base = key or new_key()
    answers = _BatchAnswers()
    now_s, deadline_s = asker.now_s, asker.now_s + asker.within_s
    for part in _parts([_submission(item) for item in items]):
        request = Request(
            "POST",
            "/tasks/batch",
            body=b"[" + b",".join(part) + b"]",
            headers=_headers(f"{base}/{answers.asked}"),
            attempt_s=BATCH_ATTEMPT_S,
            meanwhile=answers.read,
            is_raw=True,
        )
        try:
            answer, now_s = yield from asker.ask_at(request, now_s, max(0.0, deadline_s - now_s))
            answers.add(len(part), answer)
        except (Unauthorized, Forbidden, BadRequest):
            raise
        except RumorError as error:
            answers.add(len(part), error)
    return answers.results()


class _BatchAnswers:
    """The answers to the requests of one `submit_many`. Each is read while a node works at the next request."""

    def __init__(self) -> None:
        self.asked = 0  # items
        self._results: list[Result] = []
        self._unread: tuple[int, bytes | RumorError] | None = None

    def add(self, items: int, answer: bytes | RumorError) -> None:
        """The answer to the next request, which had so many items; a RumorError if it failed as a whole."""
        self.read()
        self._unread = items, answer
        self.asked += items

    def read(self) -> None:
        """Read what is not read yet."""
        if self._unread is None:
            return
        (items, answer), self._unread = self._unread, None
        if isinstance(answer, bytes):
            told = decoded(answer)
            if isinstance(told, dict) and len(told.get("results", ())) == items:
                self._results += map(_result, told["results"])
                return
            answer = error_of(200, None, "the batch")
        self._results += [answer] * items

    def results(self) -> list[Result]:
        self.read()
        return self._results


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
    answer = yield from asker.ask(Request("GET", "/tasks", query))
    tasks = [task_of(row) for row in answer["tasks"]]
    return Page(tasks, answer.get("cursor"), answer.get("searched"), answer.get("complete", True))


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
    return {"state": state, "type": type, "key": key, "queue": queue, "fields": ",".join(fields) or None}


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
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"this is not JSON: {error}.", "Task data is whatever JSON can hold.") from None


def new_key() -> str:
    """An Idempotency-Key that nobody else has."""
    return secrets.token_hex(16)


def _plain(value: Any) -> Any:
    import msgspec  # paid for only by those who submit such values

    return msgspec.to_builtins(value)


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode


def _headers(key: str) -> dict[str, str]:
    """The key, and the caller's trace if it has one."""
    return {"Idempotency-Key": key, **trace_context.current()}


def _task(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"


def _submission(item: Item) -> bytes:
    return encoded({"type": item[0], "data": item[1]} if isinstance(item, tuple) else item)


def _parts(items: list[bytes]) -> Iterable[list[bytes]]:
    """The items of each request. The same items are always cut in the same places."""
    part: list[bytes] = []
    size = 0
    for item in items:
        if part and (len(part) == BATCH_TASKS or size + len(item) > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item)
    if part:
        yield part


def _result(row: Mapping[str, Any]) -> Result:
    return task_of(row) if "id" in row else error_of(422, row, "the batch")
