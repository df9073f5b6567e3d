"""What the shards' scripts answer, as values: `calls` makes them of Redis's replies, and nobody else counts positions.

Where one batch has one answer per task, the usual answers are a list in the order of the question, and what only an
exception has to say stands beside it by index.

Pure. Does not know: Redis, the order of a reply, what is done with an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cluster.shards.task import Claimed, Lost, State


class StoreCode(StrEnum):
    """What became of one new task, as store.lua says it."""

    QUEUED = "q"
    SCHEDULED = "s"
    CLAIMED = "c"  # by the session that stored it
    STORED_BEFORE = "x"  # under this very id
    REPEAT = "i"  # of the task that its key or its unique name stands for
    MISMATCH = "m"  # its key stands for a task with another body
    QUEUE_FULL = "f"


class SettleKind(StrEnum):
    """How an attempt is to be committed, as settle.lua takes it."""

    SUCCEEDED = "s"
    DEAD = "d"
    RETRYING = "r"
    RELEASED = "g"  # given back; the attempt does not count


class SettleCode(StrEnum):
    """What became of one outcome, as settle.lua says it."""

    COMMITTED = "1"
    ALREADY_YOURS = "y"  # committed before by this very delivery
    REFUSED = ""  # the delivery is in flight no longer; `Settled.refused` says what the task is instead


@dataclass(frozen=True, slots=True)
class QueueHead:
    """What is queued in one queue of one shard: how many tasks, and the best score."""

    queue: str
    count: int
    score: int


@dataclass(frozen=True, slots=True)
class Stored:
    """store.lua's answer."""

    now_ms: int
    codes: Sequence[StoreCode]
    firsts: Mapping[int, str]  # for REPEAT and MISMATCH: the id of the first task
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class Claims:
    """claim.lua's answer: the tasks, and what stays queued behind them."""

    now_ms: int
    left: int
    head_score: int
    tasks: Sequence[Claimed]
    waits_s: Sequence[float | None]  # how long each was queued; None where Redis does not know
    unreadable: Sequence[tuple[str, str]]  # (id, why): its spec cannot be decoded


@dataclass(frozen=True, slots=True)
class Settled:
    """settle.lua's answer."""

    codes: Sequence[SettleCode]
    refused: Mapping[int, str]  # for REFUSED: the state of the task, or "gone"


@dataclass(frozen=True, slots=True)
class Reaped:
    """reap.lua's answer: where the tasks of one chunk went."""

    left: int  # in flight still: ask again
    queued: int
    scheduled: int
    dead: int
    heads: Sequence[QueueHead]
    lost: Sequence[Lost]  # those that carry a trace context


@dataclass(frozen=True, slots=True)
class Swept:
    """sweep.lua's answer."""

    now_ms: int
    promoted: int
    dropped: int
    next_due_ms: int  # 0: nothing is scheduled
    sessions: Sequence[str]  # that hold work in the shard
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class Cancellation:
    """cancel.lua's answer: what the task was before. It is cancelled now unless that state is terminal."""

    was: State | None  # None: there is no such task
    session: str  # that ran it; "" where none did
    delivery: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """replay.lua's answer."""

    queued: int
    refused: Mapping[int, State | None]  # by index: the state that forbids it, None where there is no such task
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """counts.lua's answer for one shard. `states` holds all but queued; retrying counts as scheduled."""

    states: Mapping[State, int]
    queues: Mapping[str, int]  # queue -> queued tasks


@dataclass(frozen=True, slots=True)
class Listed:
    """list.lua's answer: (place, id) in the order of the listing."""

    reached: str  # the place that the script looked up to; "" when the shard has no more
    rows: Sequence[tuple[str, str]]


class TaskFields(NamedTuple):
    """The stored fields of one task, as Redis holds them. `Calls.read` asks for these names, in this order."""

    spec: bytes
    data: bytes | None
    state: bytes
    attempt: bytes | None
    delivery: bytes | None
    queued_at: bytes | None
    due: bytes | None
    started_at: bytes | None
    finished_at: bytes | None
    session: bytes | None
    result: bytes | None
    error: bytes | None
    progress: bytes | None
    history: bytes | None = None  # read only where it is asked for
