"""`submit_many`: many submissions in few requests, and one result for each item, whatever any of them holds.

Pure generators over `asking.carry_out`.

- An item that is no JSON has its error for a result. Its place in the request is kept, with `null` in it: nodes know
  the tasks of a request by their places, and a repeat in which the item is mended must find the others where they were.
- A request that is refused as a whole for what it holds (too large for a proxy, nested too deep) is sent again in
  halves, until the item at fault stands alone.
- Whatever ends the call in the middle carries the results so far, and the key under which the same items are the same
  tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import BadRequest, Forbidden, IdempotencyConflict, Invalid, RumorError, Unauthorized
from cluster.header_text import IDEMPOTENCY_KEY_MAX, idempotency_key
from node.client.asking import Pause, Request, Steps, decoded
from node.client.calls import Asker, Result, encoded, headers_of, name_key, new_key
from node.client.errors import error_of
from node.client.task import task_of

BATCH_TASKS = 1_000
BATCH_BYTES = 4_194_304
BATCH_ATTEMPT_S = 20.0

Item = Mapping[str, Any] | tuple[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """The items of one request. `first`: the place of the first of them among all items."""

    first: int
    texts: Sequence[bytes]

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.texts) // 2
        return _Part(self.first, self.texts[:middle]), _Part(self.first + middle, self.texts[middle:])


def submit_many(asker: Asker, items: Sequence[Item], key: str | None) -> Steps[list[Result]]:
    """One result for each item, in order. Raises what concerns the caller (401, 403) while nothing was sent before.

    Any other error that fails a whole request is the result of each of its items; the other requests go on until the
    deadline. Each request's key names the place of its first item, and nodes add each item's place within the request:
    so the same items under the same key are the same tasks.
    """
    base = new_key() if key is None else idempotency_key(key, key_max(len(items)))
    answers = _Answers(base)
    try:
        yield from _send(asker, deque(_parts(answers.texts_of(items))), base, answers)
    except BaseException as error:
        _leave(error, answers.results(), len(items), base)
        raise
    return answers.results()


def key_max(items: int) -> int:
    """The longest Idempotency-Key for so many items: each request's key has the place of its first item at its end."""
    return IDEMPOTENCY_KEY_MAX - len(f"/{items}")


def _send(asker: Asker, parts: deque[_Part], base: str, answers: _Answers) -> Steps[None]:
    now_s, deadline_s = asker.now_s, asker.now_s + asker.within_s
    while parts:
        part = parts.popleft()
        if answers.are_all_known(part):
            answers.add(part, b"")
            continue
        request = Request(
            "POST",
            "/tasks/batch",
            body=b"[" + b",".join(part.texts) + b"]",
            headers=headers_of(f"{base}/{part.first}"),
            attempt_s=BATCH_ATTEMPT_S,
            meanwhile=answers.read,
            is_raw=True,
        )
        try:
            answer, now_s = yield from asker.ask_at(request, now_s, max(0.0, deadline_s - now_s))
            answers.add(part, answer)
        except RumorError as error:
            if isinstance(error, Unauthorized | Forbidden) and not answers.asked:
                raise
            if len(part.texts) > 1 and _is_about_an_item(error):
                parts.extendleft(reversed(part.halves()))
            else:
                name_key(error, base)
                answers.add(part, error)
            _, now_s = yield Pause(0.0)  # an error says nothing of the time that it took


def _is_about_an_item(error: RumorError) -> bool:
    """Whether a whole request was refused for what one of its items may hold. Nothing of it was stored."""
    if isinstance(error, IdempotencyConflict):
        return False
    return isinstance(error, BadRequest | Invalid) or error.status == 413


class _Answers:
    """The answers to the requests of one `submit_many`. Each is read while a node works at the next request."""

    def __init__(self, base: str) -> None:
        self.asked = 0  # items
        self._base = base
        self._results: list[Result] = []
        self._unread: tuple[_Part, bytes | RumorError] | None = None
        self._unfit: dict[int, Invalid] = {}  # by place: the errors of items that are no submissions

    def texts_of(self, items: Sequence[Item]) -> Iterator[bytes]:
        """Each item as JSON; `null` in the place of one that has its error here."""
        for place, item in enumerate(items):
            try:
                yield _submission(item)
            except Invalid as error:
                self._unfit[place] = error
                yield b"null"

    def are_all_known(self, part: _Part) -> bool:
        """Whether no item of this part needs a node."""
        places = range(part.first, part.first + len(part.texts))
        return bool(self._unfit) and all(place in self._unfit for place in places)

    def add(self, part: _Part, answer: bytes | RumorError) -> None:
        """The answer to the next request; a RumorError if it failed as a whole."""
        self.read()
        self._unread = part, answer
        self.asked += len(part.texts)

    def read(self) -> None:
        """Read what is not read yet."""
        if self._unread is None:
            return
        (part, answer), self._unread = self._unread, None
        results = self._read(part, answer)
        for place in self._unfit.keys() & range(part.first, part.first + len(part.texts)) if self._unfit else ():
            results[place - part.first] = self._unfit[place]
        self._results += results

    def _read(self, part: _Part, answer: bytes | RumorError) -> list[Result]:
        if isinstance(answer, bytes):
            told = decoded(answer)
            if isinstance(told, dict) and len(told.get("results", ())) == len(part.texts):
                return [_result(row) for row in told["results"]]
            answer = error_of(200, None, "the batch")
            answer.may_have_happened = True
            name_key(answer, self._base)
        return [answer] * len(part.texts)

    def results(self) -> list[Result]:
        self.read()
        return self._results


def _leave(error: BaseException, results: list[Result], items: int, base: str) -> None:
    """Give an error that ends the call in the middle what the caller needs to go on."""
    if results:
        error.results = results  # type: ignore[attr-defined]
        error.add_note(
            f"submit_many has the results of {len(results):,} of {items:,} items: they are this error's `results`."
        )
    name_key(error, base)


def _submission(item: Item) -> bytes:
    if isinstance(item, tuple) and len(item) == 2:
        return encoded({"type": item[0], "data": item[1]})
    if isinstance(item, Mapping):
        return encoded(item if isinstance(item, dict) else dict(item))
    what = f"a tuple of {len(item)}" if isinstance(item, tuple) else f"of type {type(item).__name__}"
    raise Invalid(f"this item is {what}.", "Give a pair (type, data), or a mapping with the fields of a submission.")


def _parts(texts: Iterable[bytes]) -> Iterator[_Part]:
    """The items of each request. The same items are always cut in the same places."""
    first, part, size = 0, list[bytes](), 0
    for text in texts:
        if part and (len(part) == BATCH_TASKS or size + len(text) > BATCH_BYTES):
            yield _Part(first, part)
            first, part, size = first + len(part), [], 0
        part.append(text)
        size += len(text)
    if part:
        yield _Part(first, part)


def _result(row: Mapping[str, Any]) -> Result:
    return task_of(row) if "id" in row else error_of(422, row, "the batch")
