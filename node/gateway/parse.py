"""Bytes and query strings into the types of `schema`, or an error that names the field and shows its value.

Pure. Data that is accepted can be read again: it is decoded once here, so that no worker finds out later that it is
not UTF-8, out of range or nested too deep. Malformed JSON is a BadRequest (400); well-formed JSON that does not fit is
Invalid (422).

Does not know: HTTP, the engine.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct, inspect

from cluster import header_text
from cluster.errors import BadRequest, Invalid, RumorError, TooLarge
from node.schema import BackoffJson, Replay, Submission

T = TypeVar("T", bound=Struct)
Parsed = Submission | RumorError

SHOWN_MAX = 80  # characters of a value or of malformed JSON that an error repeats
AT_ONCE_BYTES = 2_097_152  # size up to which an array is decoded in one go, which is the fastest
PART_BYTES = 262_144  # bytes of an array after which others have a turn: a few milliseconds
PART_ITEMS = 250
EXAMPLE = 'Send JSON like {"type": "process", "data": "Hello World"}.'
QUEUE_HINT = "Use 1 to 48 of letters, digits, '_', '.', '-', beginning with a letter or digit."
LINES_HINT = "Send an array of tasks. For one JSON task a line, send Content-Type: application/x-ndjson."
EXAMPLES: dict[Any, str] = {Replay: 'Send JSON like {"type": "process", "limit": 100}, or nothing for all.'}

_json = msgspec.json.Decoder().decode
_submission = msgspec.json.Decoder(Submission).decode
_submissions = msgspec.json.Decoder(list[Submission]).decode
_raw = msgspec.json.Decoder(Raw).decode
_raw_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_raws = msgspec.json.Decoder(list[Raw]).decode
_replay = msgspec.json.Decoder(Replay).decode


def submission(body: bytes, nesting_max: int, root: str = "$") -> Submission:
    """One task. `root` is the path under which errors name its fields."""
    item: Submission = _decoded(_submission, body, nesting_max, root)
    _check_data(item.data, nesting_max, root)
    return item


def batch(body: bytes, tasks_max: int, nesting_max: int, item_max_bytes: int) -> Iterator[list[Parsed]]:
    """An array of tasks, in parts, so that a caller can do something else between two of them.

    In the place of an item that does not fit stands its error. Raises if the array itself does not fit; the whole of it
    is known to do so only after the last part.
    """
    if len(body) > AT_ONCE_BYTES:
        yield from _in_parts(body, tasks_max, nesting_max, item_max_bytes)
        return
    try:
        items: list[Submission] = _submissions(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # at least one item does not fit
        yield from _in_parts(body, tasks_max, nesting_max, item_max_bytes)
        return
    _check_length(len(items), tasks_max)
    step = max(1, PART_BYTES * len(items) // len(body))
    for first in range(0, len(items), step):
        checked: list[Parsed] = []
        for place, item in enumerate(items[first : first + step], first):
            try:
                _check_data(item.data, nesting_max, f"$[{place}]", item_max_bytes)
                checked.append(item)
            except RumorError as error:
                checked.append(error)
        yield checked


def _in_parts(body: bytes, tasks_max: int, nesting_max: int, item_max_bytes: int) -> Iterator[list[Parsed]]:
    """The same, item by item: only one is held apart at a time, and those beyond `tasks_max` are not looked at."""
    part: list[Parsed] = []
    size = 0
    for place, item in enumerate(_items(body, nesting_max)):
        if place == tasks_max:
            if len(body) <= AT_ONCE_BYTES:
                _check_length(len(_decoded(_raws, body, nesting_max, "$")), tasks_max)
            raise _too_many(f"more than {tasks_max:,}", tasks_max)
        if len(item) > item_max_bytes:
            part.append(_too_large(f"$[{place}]", item_max_bytes))
        else:
            part.append(_or_error(bytes(item), nesting_max, f"$[{place}]"))
        size += len(item)
        if len(part) == PART_ITEMS or size > PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _items(body: bytes, nesting_max: int) -> Iterator[memoryview]:
    """The items of a JSON array, not decoded. Raises BadRequest or Invalid where it is none."""
    view = memoryview(body)
    at = _skip_space(body, 0)
    if body[at : at + 1] != b"[":
        raise _no_array(body, nesting_max)
    at = _skip_space(body, at + 1)
    separator = b","
    if body[at : at + 1] == b"]":
        separator = b"]"
        at = _skip_space(body, at + 1)
    while separator == b",":
        start = at
        try:
            _raw(view[start:])
            raise _no_array(body, nesting_max)  # It reaches to the end, where the array should.
        except RecursionError:
            raise _too_deep(nesting_max, "$") from None
        except msgspec.DecodeError as error:
            # A decoder for one value says where it ended and the rest begins: msgspec has no other word for it.
            behind = _BEHIND.search(str(error))
            if behind is None:
                raise _no_array(body, nesting_max) from None
            at = start + int(behind[1]) - 1
        separator = body[at : at + 1]
        yield view[start:at]
        at = _skip_space(body, at + 1)
    if separator != b"]" or at < len(body):
        raise _no_array(body, nesting_max)


def _no_array(body: bytes, nesting_max: int) -> RumorError:
    """The error for a body that is not an array of JSON values."""
    try:
        _decoded(_raws, body, nesting_max, "$")
    except (BadRequest, Invalid) as error:
        if body.lstrip().startswith(b"{"):
            error.hint = LINES_HINT
        return error
    return BadRequest("the body is not a JSON array.", EXAMPLE)


def _skip_space(body: bytes, at: int) -> int:
    space = _SPACE.match(body, at)
    return at if space is None else space.end()


def lines(chunk: Sequence[bytes], nesting_max: int, first: int) -> list[Parsed]:
    """Lines of NDJSON; `first` is the number of the first line."""
    return [_or_error(line, nesting_max, f"line {number}: $") for number, line in enumerate(chunk, first)]


def replay(body: bytes) -> Replay:
    """The body of a replay, which may be empty."""
    return _decoded(_replay, body, 1, "$", Replay) if body.strip() else Replay()


def query(kind: type[T], pairs: Mapping[str, str]) -> T:
    """Query parameters as one of the query types. A parameter that the type lacks is an error."""
    names = kind.__struct_fields__
    for name in pairs:
        if name not in names:
            raise BadRequest(f"unknown query parameter {_cut(name)!r}.", _suggestion(name, names))
    try:
        return msgspec.convert(dict(pairs), kind, strict=False)
    except msgspec.ValidationError as error:
        what, path = _split(error)
        name = path.removeprefix("$.")
        hint = f"Change {name} or leave it out."
        choices = _choices(kind, name)
        if what.startswith("Invalid enum value"):
            hint = f"Use one of {', '.join(choices)}, or none."
        elif choices:
            hint = f"Use {'seconds, from ' * name.endswith('_s')}{choices[0]}, or leave {name} out."
        raise BadRequest(f"{name} is {_shown(pairs.get(name, ''))}: {_lower(what)}.", hint) from None


def no_query(pairs: Mapping[str, str]) -> None:
    """Raise BadRequest if there is a query parameter, for calls that take none."""
    for name in pairs:
        hint = "This call takes none; the body carries the fields."
        if name == "wait_s":
            hint = "POST /tasks waits for one task. Wait for each task of a batch with GET /tasks/{id}?wait_s=20."
        raise BadRequest(f"unknown query parameter {_cut(name)!r}.", hint)


def idempotency_key(text: str | None) -> str | None:
    """The Idempotency-Key header. Bytes that are not UTF-8 arrive as lone surrogates, which are unprintable."""
    return None if text is None else header_text.idempotency_key(text)


def depth_is_over(text: bytes, limit: int) -> bool:
    """Whether valid JSON nests deeper than `limit` levels.

    Cut out the strings, make all brackets one kind, and remove the innermost pairs `limit` times: each pass is one scan
    in C and takes one level off.
    """
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    brackets = _STRING.sub(b"", text).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(limit):
        brackets = brackets.replace(b"{}", b"")
        if not brackets:
            return False
    return True


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ONE_KIND = bytes.maketrans(b"[]", b"{}")
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")


def _check_data(data: Raw, nesting_max: int, root: str, max_bytes: int | None = None) -> None:
    """Raise Invalid for data that is JSON by its syntax, but cannot be read or is nested too deep."""
    if max_bytes is not None and memoryview(data).nbytes > max_bytes:
        raise _too_large(f"{root}.data", max_bytes)
    try:
        _json(data)
    except RecursionError:
        raise _too_deep(nesting_max, f"{root}.data") from None
    except UnicodeDecodeError as error:
        raise Invalid(f"{root}.data is not UTF-8: {error.reason}.", "Encode the body as UTF-8.") from None
    except msgspec.DecodeError as error:
        what, path = _split(error)
        raise Invalid(f"{root}.data{path[1:]}: {_lower(what)}.", "Send numbers that a 64-bit float can hold.") from None
    text = bytes(data)
    if len(text) > 2 * nesting_max and depth_is_over(text, nesting_max):
        raise _too_deep(nesting_max, f"{root}.data")


def _check_length(tasks: int, tasks_max: int) -> None:
    if tasks > tasks_max:
        raise _too_many(f"{tasks:,}", tasks_max)


def _too_many(tasks: str, tasks_max: int) -> TooLarge:
    return TooLarge(
        f"the batch has {tasks} tasks, at most {tasks_max:,}.",
        "Send several batches, or NDJSON (Content-Type: application/x-ndjson), which is streamed.",
    )


def _too_large(path: str, max_bytes: int) -> TooLarge:
    return TooLarge(
        f"{path} is over {max_bytes:,} bytes, the most for one task.", "Store the data elsewhere and send a reference."
    )


def _or_error(text: bytes, nesting_max: int, root: str) -> Parsed:
    try:
        return submission(text, nesting_max, root)
    except RumorError as error:
        return error


def _decoded(
    decode: Callable[[bytes], T | Any], body: bytes, nesting_max: int, root: str, kind: type[Struct] = Submission
) -> Any:
    try:
        return decode(body)
    except RecursionError:
        raise _too_deep(nesting_max, root) from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"{_place(root)} is not UTF-8: {error.reason}.", "Encode the body as UTF-8.") from None
    except msgspec.ValidationError as error:
        raise _misfit(error, body, root, kind) from None
    except msgspec.DecodeError as error:
        raise _malformed(error, body, root, EXAMPLES.get(kind, EXAMPLE)) from None


def _too_deep(nesting_max: int, path: str) -> Invalid:
    return Invalid(
        f"{path} is nested deeper than {nesting_max} levels.",
        "Flatten it, or store it elsewhere and send a reference.",
    )


def _malformed(error: msgspec.DecodeError, body: bytes, root: str, example: str) -> BadRequest:
    """The error for bytes that are no JSON: about where they break off, and the text there."""
    if not body.strip():
        return BadRequest(f"{_place(root)} is empty.", example)
    what = str(error)
    position = _AT_BYTE.search(what)
    if position is None and (half := _HALF.search(body)):
        shown = half[0].decode("ascii")
        return BadRequest(
            f"{_place(root)} is not JSON: {shown} is half of a surrogate pair.", "Send the other half, too."
        )
    if position is None:
        return BadRequest(f"{_place(root)} is not JSON: it ends too early ({len(body)} bytes).", example)
    at = min(int(position[1]), len(body))
    line, column = body.count(b"\n", 0, at) + 1, at - (body.rfind(b"\n", 0, at) + 1) + 1
    near = body[max(0, at - 20) : at + 20].decode("utf-8", "replace")
    what = _AT_BYTE.sub("", what.removeprefix("JSON is malformed: "))
    # "near", because msgspec names the byte at which it stopped, which may be a few past the wrong one.
    return BadRequest(f"{_place(root)} is not JSON: {what} near line {line}, column {column}: {near!r}.", example)


def _misfit(error: msgspec.ValidationError, body: bytes, root: str, kind: type[Struct]) -> Invalid:
    """The error for JSON that does not fit: which field, its value, and what would fit."""
    what, path = _split(error)
    unknown = _UNKNOWN_FIELD.search(what)
    if unknown is not None:
        names = BackoffJson.__struct_fields__ if path.endswith("backoff") else kind.__struct_fields__
        name = unknown[1]
        return Invalid(f"{root}{path[1:]} has an unknown field {_cut(name)!r}.", _suggestion(name, names))
    value = _value_at(body, path)
    if what.startswith("Object missing"):
        return Invalid(f"{root}{path[1:]}: {_lower(what)}.", EXAMPLE)
    hint = "GET /openapi.json describes every field."
    if "matching regex" in what:  # only a queue's name has a pattern
        what, hint = "not the name of a queue", QUEUE_HINT
    field = path.rpartition(".")[2]
    choices = _choices(BackoffJson if ".backoff." in path else kind, field)
    if what.startswith("Invalid enum value"):
        hint = f"Use one of {', '.join(choices)}."
    elif choices:
        hint = f"Use {'seconds, from ' * field.endswith('_s')}{', '.join(choices)}, or leave {field} out."
    return Invalid(f"{root}{path[1:]} is {value}: {_lower(what)}.", hint)


def _choices(kind: type[Struct], field: str) -> list[str]:
    """The words, and the range of numbers, that a field of this type takes."""
    choices: list[str] = []

    def collect(taken: Any) -> None:
        match taken:
            case inspect.LiteralType():
                choices.extend(map(str, taken.values))
            case inspect.EnumType():
                choices.extend(str(member.value) for member in taken.cls)
            case inspect.IntType(ge=int() as low, le=int() as high):
                choices.append(f"{low} to {high}")
            case inspect.FloatType(ge=int() | float() as low, le=int() | float() as high):
                choices.append(f"{_plain(low)} to {_plain(high)}")
            case inspect.FloatType(gt=int() | float() as low, le=int() | float() as high):
                choices.append(f"more than {_plain(low)} to {_plain(high)}")
            case inspect.UnionType():
                for part in taken.types:
                    collect(part)
            case inspect.Metadata():
                collect(taken.type)

    for declared in getattr(inspect.type_info(kind), "fields", ()):
        if declared.encode_name == field:
            collect(declared.type)
    return choices


_SPACE = re.compile(rb"[ \t\r\n]*")
_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")
_AT_BYTE = re.compile(r" \(byte (\d+)\)")
_HALF = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?=\"|[^\\])"
)  # the first half of a surrogate pair alone, of which msgspec gives no position
_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def _split(error: msgspec.DecodeError) -> tuple[str, str]:
    """msgspec's text as (what, path)."""
    what, _, path = str(error).partition(" - at `")
    return what, path.removesuffix("`") or "$"


def _value_at(body: bytes, path: str) -> str:
    """The value that the path names, as short JSON."""
    if len(body) > AT_ONCE_BYTES:
        return "too large to show"
    try:
        value = _json(body)
        for name, place in _STEP.findall(path):
            value = value[name] if name else value[int(place)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return _raw_value_at(body, path)
    return _shown(value)


def _raw_value_at(body: bytes, path: str) -> str:
    """The same where some value of the body cannot be decoded, such as a number that no float holds."""
    try:
        value = Raw(body)
        for name, _ in _STEP.findall(path):
            value = _raw_fields(value)[name]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError):
        return "not acceptable"
    return _cut(bytes(value).decode("utf-8", "backslashreplace"))


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else f"{number:g}"


def _shown(value: Any) -> str:
    if isinstance(value, str):  # header bytes that are not UTF-8 arrive as lone surrogates, which JSON cannot hold
        value = value.encode("utf-8", "backslashreplace").decode()
    return _cut(msgspec.json.encode(value).decode())


def _cut(text: str, max_chars: int = SHOWN_MAX) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _suggestion(name: str, names: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name[:SHOWN_MAX], names, 1)
    return (f"Did you mean {near[0]}? " if near else "") + f"Known here: {', '.join(names)}."


def _place(root: str) -> str:
    return "the body" if root == "$" else root.removesuffix(": $")


def _lower(text: str) -> str:
    return _cut(text[:1].lower() + text[1:].rstrip("."), 4 * SHOWN_MAX)
