"""The answers of the shards' scripts, as values. Pure.

`replies` makes them of what Redis answers; no other module counts positions. An answer about a batch has a list with
one code per task, in the order of the question. The few tasks of which there is more to say stand beside it, by index.

Does not know: Redis, the order of a reply, what the caller does with an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cluster.shards.task import Claimed, Lost, Spec, State


class StoreCode(StrEnum):
    """What became of one new task, in store.lua's letters."""

    QUEUED = "q"
    SCHEDULED = "s"
    CLAIMED = "c"  # stored, and claimed by the session that stored it
    STORED_BEFORE = "x"  # an earlier call stored it under this very id
    REPEAT = "i"  # its key or its unique name already stands for another task
    MISMATCH = "m"  # its key already stands for a task with another body
    QUEUE_FULL = "f"


class SettleKind(StrEnum):
    """How to commit an attempt, in settle.lua's letters."""

    SUCCEEDED = "s"
    DEAD = "d"
    RETRYING = "r"
    RELEASED = "g"  # handed back; the attempt does not count
    PARKED = "p"  # the same, because no live node has a handler for its type


class SettleCode(StrEnum):
    """What became of one outcome, in settle.lua's letters."""

    COMMITTED = "1"
    ALREADY_YOURS = "y"  # this very delivery was committed before
    REFUSED = ""  # the delivery is no longer in flight; `Settled.refused` has the state of its task


@dataclass(frozen=True, slots=True)
class QueueHead:
    """One queue of one shard: how many tasks are queued, and the best score."""

    queue: str
    count: int
    score: int


@dataclass(frozen=True, slots=True)
class Stored:
    """store.lua's answer."""

    now_ms: int
    codes: Sequence[StoreCode]
    firsts: Mapping[int, str]  # of REPEAT and MISMATCH: the id of the task that was there first
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class Noted:
    """What stands under an Idempotency-Key."""

    first: str  # id under which the first submission was made
    fingerprint: str  # of that submission, or a word for one of another kind


@dataclass(frozen=True, slots=True)
class Claims:
    """claim.lua's answer: the tasks, and how much stays queued behind them."""

    now_ms: int
    left: int
    head_score: int
    tasks: Sequence[Claimed]
    waits: Sequence[tuple[int, float]]  # (tasks, seconds): how long each of so many in a row was queued
    unreadable: Sequence[tuple[str, str]]  # (id, error) of each whose spec cannot be decoded


@dataclass(frozen=True, slots=True)
class Settled:
    """settle.lua's answer."""

    codes: Sequence[SettleCode]
    refused: Mapping[int, str]  # of REFUSED: the state of the task, or "gone"


@dataclass(frozen=True, slots=True)
class Reaped:
    """reap.lua's answer: where the tasks of one chunk went."""

    left: int  # tasks still in flight: ask again
    queued: int
    scheduled: int
    dead: Sequence[str]  # the type of each
    heads: Sequence[QueueHead]
    lost: Sequence[Lost]  # the deliveries with a trace context


@dataclass(frozen=True, slots=True)
class Swept:
    """sweep.lua's answer."""

    now_ms: int
    promoted: int
    dropped: int
    next_due_ms: int  # 0: nothing is scheduled
    sessions: Sequence[str]  # sessions with something in flight in the shard
    heads: Sequence[QueueHead]
    has_all_heads: bool = True  # in no other queue of the shard is anything queued


@dataclass(frozen=True, slots=True)
class Cancellation:
    """cancel.lua's answer: the state that the task was in. It is cancelled now unless that state is terminal."""

    was: State | None  # None: there is no such task
    session: str  # the session that ran it; "" if it did not run
    delivery: int


@dataclass(frozen=True, slots=True)
class Unparked:
    """unpark.lua's answer."""

    left: int
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class Requeued:
    """replay.lua's answer."""

    queued: int
    refused: Mapping[int, State | None]  # by index: the state that forbids it, None for no such task
    heads: Sequence[QueueHead]


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """counts.lua's answer for one shard. `states` holds all but queued."""

    states: Mapping[State, int]
    queues: Mapping[str, int]  # queue -> queued tasks
    oldest_s: Mapping[str, float]  # queue -> how long the oldest of them waits


@dataclass(frozen=True, slots=True)
class Listed:
    """list.lua's answer: (place, id) in the order of the listing."""

    reached: str  # the last place that the script looked at; "" when the shard has no more
    searched: int  # ids that it looked at
    rows: Sequence[tuple[str, str]]


class TaskFields(NamedTuple):
    """What Redis holds of one task. Times are milliseconds of Redis's clock, None where the task has none."""

    spec: Spec
    data: bytes | None  # None: it was not read, since it has a field of its own
    state: State
    attempt: int
    delivery: int
    queued_at: int | None
    due: int | None
    started_at: int | None
    finished_at: int | None
    node_id: str | None
    result: bytes | None  # None for JSON's null, and where it was not read
    error: bytes | None
    progress: bytes | None
    history: bytes = b""
