"""Wake-ups: messages from node to node, on the channel of the receiver's session. Best effort; the sweep is the net.

There are three: work is queued in your shards, something there is due at a time, a task that you run was cancelled.
All work for one session that comes up in one turn of the loop travels as one message, and so do all due times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from cluster.shards.answers import QueueHead
from cluster.shards.shards import Shards

log = structlog.get_logger("rumor.wakes")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, list[Any]]).decode


@dataclass(frozen=True, slots=True)
class Work:
    """Work is queued in the receiver's shards: (shard, head of a queue)."""

    heads: list[tuple[int, QueueHead]]


@dataclass(frozen=True, slots=True)
class Due:
    """Something is due in the receiver's shards: (shard, in how many seconds)."""

    dues: list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A delivery that the receiver runs may no longer be committed."""

    task_id: str
    delivery: int


def parse_wake(message: bytes, shards: int) -> Work | Due | Cancelled | None:
    """The meaning of a message that `Wakes` sent; None, and a log line, for any other message."""
    try:
        kind, rows = _decode(message)
        match kind:
            case "w":
                return Work([(_shard(s, shards), QueueHead(str(q), int(n), int(score))) for s, q, n, score in rows])
            case "d":
                return Due([(_shard(shard, shards), max(0, int(ms)) / 1000) for shard, ms in rows])
            case "c":
                task_id, delivery = rows
                return Cancelled(str(task_id), int(delivery))
        raise ValueError(f"unknown kind {kind!r}")
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError, OverflowError) as error:
        log.warning("wake_malformed", error=str(error))
        return None


def _shard(value: Any, shards: int) -> int:
    shard = int(value)
    if not 0 <= shard < shards:
        raise ValueError(f"no shard {shard}")
    return shard


class Wakes:
    """Collects this node's wake-ups and sends them."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._work: dict[str, dict[tuple[int, str], QueueHead]] = {}  # session -> (shard, queue) -> its head
        self._dues: dict[str, dict[int, float]] = {}  # session -> shard -> loop time
        self._is_send_due = False  # whether `_send` is scheduled

    def work(self, session: str, shard: int, heads: Sequence[QueueHead]) -> None:
        """Tell a session the heads of a shard's queues, but for those without tasks."""
        for head in heads:
            if head.count:
                self._work.setdefault(session, {})[shard, head.queue] = head
                self._send_soon()

    def due(self, session: str, shard: int, in_s: float) -> None:
        """Tell a session when something in a shard is due."""
        at_s = asyncio.get_running_loop().time() + in_s
        dues = self._dues.setdefault(session, {})
        dues[shard] = min(at_s, dues.get(shard, at_s))
        self._send_soon()

    def cancelled(self, session: str, task_id: str, delivery: int) -> None:
        """Tell a session, at once, that a task which it runs was cancelled."""
        self._tell(session, ("c", [task_id, delivery]))

    def _send_soon(self) -> None:
        if not self._is_send_due:
            self._is_send_due = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._is_send_due = False
        now_s = asyncio.get_running_loop().time()
        work, self._work = self._work, {}
        for session, heads in work.items():
            self._tell(session, ("w", [(shard, h.queue, h.count, h.score) for (shard, _), h in heads.items()]))
        dues, self._dues = self._dues, {}
        for session, shards in dues.items():
            self._tell(session, ("d", [(shard, int(1000 * (at_s - now_s))) for shard, at_s in shards.items()]))

    def _tell(self, session: str, message: tuple[str, Any]) -> None:
        self._shards.send(self._shards.calls.publish(session, _encode(message), _ignore))


def _ignore(_: int | Exception) -> None:
    """Take no notice of the answer: wake-ups are best effort."""
