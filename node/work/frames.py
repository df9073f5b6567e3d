"""What a node and its child process say to each other: msgpack in frames, over one socket pair. Pure.

An answer names the delivery that it belongs to. So one that comes twice, or after its task has been answered for, is
dropped, and never taken for the answer of another task. A frame begins with MARK: whatever else a handler writes to
the socket shows at once.
"""

from __future__ import annotations

import struct

import msgspec

from cluster.shards.task import Claimed, Kind
from node.tasks import RETRY_MAX_S
from node.work.ending import Ending

FAILURES = (Kind.FAILED, Kind.RETRY, Kind.REJECTED)  # how else an attempt ends in a child
FRAME_MAX_BYTES = 8_388_608
MARK = b"Rumr"
HEADER = struct.Struct("!4sI")


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first frame to a child: which modules to import, and how to log."""

    modules: list[str]
    node_id: str
    log_level: str
    log_format: str
    is_traced: bool = False


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The child has imported everything, or `problem` says why it could not."""

    pid: int
    problem: str | None = None


class Progress(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """JSON that the handler of this delivery reported."""

    task_id: str
    delivery: int
    value: bytes


class Done(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The attempt of this delivery has ended; the child is idle, and so large."""

    task_id: str
    delivery: int
    ending: Ending
    memory_bytes: int = 0  # resident; 0: unknown


FromChild = Ready | Progress | Done

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(FromChild).decode
_skip_json = msgspec.json.Decoder(msgspec.Raw).decode


def frame(message: Hello | Claimed | FromChild) -> bytes:
    """A message as it goes over the socket."""
    body = _encode(message)
    return HEADER.pack(MARK, len(body)) + body


def body_length(header: bytes, most: int = FRAME_MAX_BYTES) -> int:
    """The length of the body that follows. Raises ValueError for what is no header of ours, and for too much."""
    mark, length = HEADER.unpack(header)
    if mark != MARK:
        raise ValueError(f"{header!r} is no beginning of a frame")
    if length > most:
        raise ValueError(f"a frame of {length} bytes, at most {most}")
    return int(length)


def answer(body: bytes) -> FromChild:
    """A child's message. Raises ValueError or MsgspecError for what is none: other processes read what it holds."""
    message: FromChild = _decode_answer(body)
    if isinstance(message, Progress):
        _check_json(message.value)
    elif isinstance(message, Done):
        ending = message.ending
        if ending.kind is Kind.SUCCEEDED:
            _check_json(ending.result or b"")
        elif ending.kind not in FAILURES or ending.failure is None:
            raise ValueError(f"an ending of the kind {ending.kind} that says no reason")
        if not 0 <= ending.retry_after_s <= RETRY_MAX_S:
            raise ValueError(f"a pause of {ending.retry_after_s} s")
    return message


def _check_json(text: bytes) -> None:
    _skip_json(text)
    text.decode()  # msgspec takes the inside of a string as it is
