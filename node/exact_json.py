"""JSON that says what the value says, or an error that says where it cannot. Pure.

msgspec writes NaN and infinity as null, and 1 and "1" as the same key; its other errors do not say where. Here both are
errors, with a path like `$.rows[3].price`. The search for that place costs nothing as long as nothing looks wrong.

What JSON has no form for but a text, an array or an object, it gets: `datetime`, `Decimal`, `UUID` and enums, bytes (as
base64), sets, tuples, dataclasses, and keys that are numbers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

DEPTH_MAX = 400  # how deep the search goes; msgspec stops at some 900
PATH_MAX = 120  # characters

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_encode_packed = msgspec.msgpack.Encoder().encode
_has_odd_number = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search  # msgpack's floats that are not finite
_number_as_key = re.compile(rb'\{"(?:-?[0-9]|((?:nan|-?inf)"))').search  # as the first of an object
_PLAIN = (str, int, bool, type(None))


class NotExact(TypeError):
    """The value, or a part of it, that JSON cannot hold, and where it stands."""


def encode(value: Any) -> bytes:
    """The value as JSON. Raises NotExact.

    Every result of a handler passes here, so the usual value costs two searches in C and no look at its parts.
    """
    try:
        data = _encode(value)
    except (Exception, RecursionError) as error:
        raise NotExact(fault(value) or _text(error)) from None
    kind = type(value)
    if kind is str or kind is int or kind is bool:
        return data
    # bytes.count is twice as fast as the operator `in`.
    has_odd_number = data.count(b"null") and value is not None and _may_have_odd_number(value)
    if has_odd_number or ((key := _number_as_key(data)) is not None and (key[1] or _loses_a_key(data))):
        found = fault(value)
        if found is not None:
            raise NotExact(found)
    return data


def _loses_a_key(data: bytes) -> bool:
    """Whether an object of this JSON names a field twice: whoever reads it keeps one of the two."""
    try:
        return len(_encode(_decode(data))) != len(data)
    except Exception:
        return True


def _may_have_odd_number(value: Any) -> bool:
    try:
        return _has_odd_number(_encode_packed(value)) is not None
    except Exception:
        return True  # msgpack holds less than JSON, such as no integer beyond 64 bits


def fault(value: Any) -> str | None:
    """What JSON cannot hold of this value, and where; None if it can hold it."""
    try:
        return next(_faults(value, "$", 0), None)
    except RecursionError:
        return f"it is nested deeper than {DEPTH_MAX} levels"


def _faults(value: Any, path: str, depth: int) -> Iterator[str]:
    if depth > DEPTH_MAX:
        yield f"{_short(path)} is nested deeper than {DEPTH_MAX} levels"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{_short(path)} is {value!r}, a number that JSON does not have"
    elif isinstance(value, str):
        yield from _faults_of_text(value, path)
    elif isinstance(value, dict):
        yield from _faults_of_object(value, path, depth)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for n, item in enumerate(value):
            yield from _faults(item, f"{path}[{n}]", depth + 1)
    elif isinstance(value, msgspec.Struct):
        for name, shown in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
            yield from _faults(getattr(value, name), f"{path}.{shown}", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _faults(getattr(value, field.name, None), f"{path}.{field.name}", depth + 1)
    elif not isinstance(value, _PLAIN):
        yield from _faults_of_another(value, path, depth)


def _faults_of_object(value: dict[Any, Any], path: str, depth: int) -> Iterator[str]:
    texts: dict[str, Any] = {}
    for key, item in value.items():
        text = key if isinstance(key, str) else _as_text(key)
        if text is None or (isinstance(key, float) and not math.isfinite(key)):
            yield f"{_short(path)} has the key {key!r}, which JSON does not have"
            return
        if text in texts:
            yield f"{_short(path)} has the keys {texts[text]!r} and {key!r}, which are one in JSON"
        texts[text] = key
        yield from _faults_of_text(text, f"{path}.{text}")
        yield from _faults(item, f"{path}.{text}", depth + 1)


def _as_text(key: Any) -> str | None:
    try:
        return str(next(iter(msgspec.json.decode(_encode({key: None})))))
    except Exception:
        return None


def _faults_of_text(text: str, path: str) -> Iterator[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        yield f"{_short(path)} holds a lone surrogate, {text[error.start]!a}, which is no character"


def _faults_of_another(value: Any, path: str, depth: int) -> Iterator[str]:
    """Of a value that msgspec turns into a plainer one, or does not know."""
    try:
        plain = msgspec.to_builtins(value)
    except Exception as error:
        yield f"{_short(path)} is {type(value).__name__}: {_text(error)}"
        return
    if type(plain) is not type(value):
        yield from _faults(plain, path, depth)


def _short(path: str) -> str:
    shown = path if len(path) <= PATH_MAX else path[: PATH_MAX - 1] + "…"
    return shown.encode("utf-8", "backslashreplace").decode()


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
