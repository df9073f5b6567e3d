"""How an attempt ended: from a handler's result or exception to what the worker reports.

The same rules hold on the loop, in threads and in child processes, so they stand here once. No function here raises:
whatever a handler returns or raises, and however its exceptions misbehave, there is an ending.

Does not know: attempts left, backoff, Redis.
"""

from __future__ import annotations

import asyncio
import traceback
from types import TracebackType
from typing import Any

import msgspec

from cluster.shards.task import Failure, Kind
from node import exact_json
from node.context import Context
from node.tasks import BUILTIN, Handler, Reject, Retry

RESULT_MAX_BYTES = 1_048_576
MESSAGE_MAX = 2_000  # characters
TRACEBACK_MAX = 8_000  # characters; the end is kept, for it names the cause
FRAMES_MAX = 30

# A name for the hot path: Python 3.11 is slow to look a member up in an enum class.
_SUCCEEDED = Kind.SUCCEEDED


class Ending(msgspec.Struct, array_like=True, frozen=True):
    """An outcome without its claim; a child process sends it back."""

    kind: Kind
    result: bytes | None = None
    failure: Failure | None = None
    retry_after_s: float = 0.0


_NULL = Ending(_SUCCEEDED, b"null")


def returned(result: Any) -> Ending:
    """The ending of a handler that returned: succeeded, unless its result cannot be kept, which is final."""
    if result is None:
        return _NULL
    try:
        data = exact_json.encode(result)
    except exact_json.NotExact as error:
        message = f"the handler returned {type(result).__name__}, which JSON cannot hold: {_text(error)}"
        return rejected("ResultNotSerializable", message)
    if len(data) > RESULT_MAX_BYTES:
        return rejected("ResultTooLarge", f"the result is {len(data)} bytes of JSON, at most {RESULT_MAX_BYTES}")
    return Ending(_SUCCEEDED, data)


def raised(error: BaseException) -> Ending:
    """The ending of a handler that raised anything at all, SystemExit and KeyboardInterrupt included."""
    if isinstance(error, Reject):
        return rejected("Rejected", _reason(error))
    if isinstance(error, Retry):
        failure = Failure("Retry", _reason(error))
        after_s = getattr(error, "after_s", None)
        if after_s is None:
            return Ending(Kind.FAILED, failure=failure)  # the task's usual backoff
        return Ending(Kind.RETRY, failure=failure, retry_after_s=after_s)
    return Ending(Kind.FAILED, failure=Failure(_name(error), _text(error), _trace(error)))


def failed(type_: str, message: str) -> Ending:
    """The ending of a failure that is ours and not the handler's: it counts, and may be tried again."""
    return Ending(Kind.FAILED, failure=Failure(type_, _clean(message, MESSAGE_MAX)))


def rejected(type_: str, message: str) -> Ending:
    """The ending of a task that trying again cannot help."""
    return Ending(Kind.REJECTED, failure=Failure(type_, _clean(message, MESSAGE_MAX)))


def unfit(error: msgspec.MsgspecError) -> Ending:
    """The ending of a task whose data does not fit the handler's annotation. The message names the wrong field."""
    return rejected("InvalidData", f"data does not fit the handler: {error}")


def run(handler: Handler, data: bytes, context: Context | None) -> Ending:
    """Run a handler to its end outside the node's loop: in a thread or in a child process."""
    try:
        value = handler.decode(data)
    except msgspec.MsgspecError as error:
        return unfit(error)
    try:
        result = handler.call(value, context)
        return returned(asyncio.run(result) if handler.is_async else result)
    except BaseException as error:
        return raised(error)


def _name(error: BaseException) -> str:
    try:
        return _clean(type(error).__name__, 200)
    except Exception:  # raised by a metaclass of the user's
        return "Exception"


def _reason(error: Reject | Retry) -> str:
    """The reason that the handler gave; a subclass may lack one."""
    return _text(getattr(error, "reason", error))


def _text(error: Any) -> str:
    try:
        return _clean(str(error), MESSAGE_MAX)
    except Exception as second:
        return f"(its message cannot be shown: {type(second).__name__})"


def _trace(error: BaseException) -> str | None:
    """The traceback from the handler's first frame on; only its end if it is long."""
    try:
        frames = _handler_frames(error.__traceback__)
        lines = traceback.TracebackException(type(error), error, frames, limit=-FRAMES_MAX, compact=True).format()
        text = "".join(lines)
    except Exception:
        return None
    return _clean(text if len(text) <= TRACEBACK_MAX else "…" + text[1 - TRACEBACK_MAX :], TRACEBACK_MAX)


def _handler_frames(tb: TracebackType | None) -> TracebackType | None:
    """The frames without the worker's that precede the handler's; all of them if the handler has none."""
    first = tb
    while tb is not None and _is_ours(tb.tb_frame.f_globals.get("__name__", "")):
        tb = tb.tb_next
    return tb or first


def _is_ours(module: str) -> bool:
    """Whether frames of this module stand between the interpreter and a handler."""
    return module.partition(".")[0] in ("node", "asyncio") and module != BUILTIN


def _clean(text: str, limit: int) -> str:
    """At most `limit` characters, without lone surrogates, which neither msgpack nor JSON can hold."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()
