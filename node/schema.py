"""The JSON that crosses HTTP, as types: msgspec parses requests into them and renders answers from them.

Pure. The docstrings and descriptions stand in `/openapi.json`.

Does not know: HTTP, the engine, where the bytes come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from cluster.config import QUEUE_NAME
from cluster.errors import Invalid
from cluster.shards.task import NO_DATA, TERMINAL, State

WAIT_MAX_S = 60.0
LIST_MAX = 500
EXPIRED = "expired"  # stands as the state of a first task that is past its retention
ENDED = TERMINAL | {EXPIRED}
FIELDS = ("data", "result", "error")  # what a list shows only on request
NULL = Raw(b"null")
ABSENT = Raw(NO_DATA)

Priority = Literal["low", "normal", "high"] | Annotated[int, Meta(ge=0, le=9)]
AHEAD_MAX_S = 31_536_000
Seconds = Annotated[float, Meta(ge=0, le=AHEAD_MAX_S)]
Filter = Annotated[str, Meta(min_length=1, max_length=200)]  # as long as what it is compared with, which is never empty


class BackoffJson(Struct, forbid_unknown_fields=True):
    """`backoff` of a submission: full jitter over min(max_s, base_s x factor^(n-1))."""

    base_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    factor: Annotated[float, Meta(ge=1, le=100)] | None = None
    max_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None


class Submission(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /tasks`. Fields left out come from the type's declaration, then from the configuration."""

    type: Annotated[str, Meta(min_length=1, max_length=200, description="The handler that runs it.")]
    data: Annotated[
        Raw, Meta(description="The handler's argument: any JSON. Without it the handler's default counts, else null.")
    ] = ABSENT
    queue: Annotated[
        Annotated[str, Meta(pattern=QUEUE_NAME.pattern)] | None,
        Meta(description="Queue it waits in; default: that of its type."),
    ] = None
    priority: Annotated[Priority | None, Meta(description="low, normal, high or 0 to 9 (2, 5, 8).")] = None
    key: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(
            description="Tasks with the same key share a shard, unless `unique_for_s` chooses it. Placement, no order."
        ),
    ] = None
    delay_s: Annotated[Seconds | None, Meta(description="Run no sooner than this many seconds from now.")] = None
    run_at: Annotated[
        Annotated[str, Meta(max_length=64)] | None,
        Meta(description="Run no sooner than this: RFC 3339 with an offset, at most 365 days ahead."),
    ] = None
    max_attempts: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None, Meta(description="Attempts before it is dead.")
    ] = None
    timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=604_800)] | None, Meta(description="Seconds one attempt may run.")
    ] = None
    backoff: BackoffJson | None = None
    unique_for_s: Annotated[
        Annotated[float, Meta(gt=0, le=2_592_000)] | None,
        Meta(
            description="A repeat within this time (same type, same unique_key, else same data) is the first task, "
            "whatever else it says and whatever its Idempotency-Key."
        ),
    ] = None
    unique_key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    retention_s: Annotated[
        Seconds | None, Meta(description="Seconds it stays readable once it has ended, however it ended; at least 5.")
    ] = None


class FailureJson(Struct, frozen=True):
    """Why an attempt failed, in short."""

    type: str
    message: str


class AttemptJson(Struct, frozen=True, kw_only=True):
    """How an attempt ended without success. `attempt` is null if the outcome of an earlier attempt came too late."""

    outcome: Literal["retrying", "released", "dead", "lost", "cancelled", "replayed", "refused"]
    at_ms: int
    started_at_ms: int | None
    node_id: str | None
    session: str | None
    attempt: int | None
    delivery: int
    error: FailureJson | None


class TaskJson(Struct, kw_only=True, gc=False):
    """A task, in the form that every call shows."""

    id: str
    type: str
    state: str
    queue: str
    priority: int
    data: Annotated[Raw | UnsetType, Meta(description="In a list only if `fields` names it.")] = UNSET
    attempt: int
    max_attempts: int
    delivery: int
    submitted_at_ms: Annotated[
        int | None, Meta(description="When its id was made, by the gateway's clock; all other times are Redis's.")
    ] = None
    queued_at_ms: int | None = None
    run_at_ms: int | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    node_id: str | None = None
    result: Annotated[Raw | UnsetType, Meta(description="In a list only if `fields` names it.")] = NULL
    error: Annotated[
        Raw, Meta(description="In a list type and message alone, unless `fields` names it: then the traceback too.")
    ] = NULL
    progress: Raw = NULL
    key: str | None = None
    traceparent: Annotated[
        str | UnsetType, Meta(description="Only of a task with a trace context (W3C): the ancestor of its spans.")
    ] = UNSET
    tracestate: Annotated[str | UnsetType, Meta(description="Only if one came with the submission.")] = UNSET
    trace_url: Annotated[
        str | UnsetType, Meta(description="Only in an answer about one task, if trace_url is configured.")
    ] = UNSET
    history: Annotated[
        list[AttemptJson] | UnsetType,
        Meta(description="Only in an answer about one task: its last attempts that did not succeed."),
    ] = UNSET


class Submitted(Struct, frozen=True):
    """An accepted submission. Not `is_new`: it repeats an earlier one, whose task `task` is."""

    task: TaskJson
    is_new: bool


class ErrorBody(Struct, frozen=True):
    """A stable code, what happened (with the values), and what to do."""

    code: str
    message: str
    hint: str
    may_have_happened: bool | UnsetType = UNSET  # with store_unavailable: whether the call may have been carried out


class ErrorJson(Struct, frozen=True):
    """The form of every error."""

    error: ErrorBody


class BatchJson(Struct, frozen=True):
    """The answer to `POST /tasks/batch`; `results` are in the order of the request."""

    accepted: int
    rejected: int
    results: list[Any]  # TaskJson | ErrorJson: a union that msgspec can encode, which is all that is needed


class ListQuery(Struct, kw_only=True, frozen=True):
    """`GET /tasks`: filters and page."""

    state: Annotated[State | None, Meta(description="Only tasks in this state; no task is in `waiting` yet.")] = None
    type: Annotated[Filter | None, Meta(description="Only tasks of this type.")] = None
    key: Annotated[Filter | None, Meta(description="Only tasks with this key.")] = None
    queue: Annotated[Filter | None, Meta(description="With state=queued: only tasks of this queue.")] = None
    fields: Annotated[
        str | None,
        Meta(description="What each task shows beside its summary: data, result, error; with commas between them."),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=LIST_MAX, description="Tasks on a page, at most.")] = 50
    cursor: Annotated[
        Annotated[str, Meta(max_length=1024)] | None, Meta(description="The cursor of the page before.")
    ] = None


class TaskQuery(Struct, kw_only=True, frozen=True):
    """`GET /tasks/{id}`."""

    wait_s: Annotated[
        float, Meta(ge=0, le=WAIT_MAX_S, description="Answer once the task has ended, or after this time.")
    ] = 0.0


class SubmitQuery(Struct, kw_only=True, frozen=True):
    """`POST /tasks`."""

    wait_s: Annotated[
        float,
        Meta(
            ge=0,
            le=WAIT_MAX_S,
            description="Answer 200 once the task has ended, or 202 with the task as it is after this time.",
        ),
    ] = 0.0


class ClusterQuery(Struct, kw_only=True, frozen=True):
    """`GET /cluster`."""

    events: Annotated[
        int, Meta(ge=0, le=500, description="At most this many events, the latest that this node saw.")
    ] = 500


class TaskList(Struct, frozen=True):
    """A page of tasks, newest first, each in short; the last page has no cursor."""

    tasks: list[TaskJson]
    cursor: str | None
    searched: Annotated[int, Meta(description="How many tasks this call looked at.")] = 0
    complete: Annotated[
        bool,
        Meta(
            description="false: the page is shorter than it could be, because the call reached the bound of the tasks, "
            "the bytes or the time that it may take. `cursor` goes on."
        ),
    ] = True
    unreadable: Annotated[
        list[str] | UnsetType,
        Meta(
            description="Only if there are some: ids that belong on this page, but what Redis holds of their tasks "
            "cannot be read."
        ),
    ] = UNSET


class Replay(Struct, forbid_unknown_fields=True, frozen=True):
    """The body of `POST /dead/replay`; an empty one means all dead tasks."""

    type: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    limit: Annotated[int, Meta(ge=1)] | None = None


class Replayed(Struct, frozen=True):
    """The number of dead tasks that are queued again."""

    replayed: int


class Removed(Struct, frozen=True):
    """The number of dead tasks that were removed."""

    removed: int


class BatchKey(Struct, frozen=True):
    """The Idempotency-Key of a batch, and the places in the request of the items that go with it."""

    key: str
    places: list[int]
    plan: bytes = b""  # what the key stands for, as the gateway before this one proposed or found it
    is_lines: bool = False  # of a stream of lines: no two calls cut it into equal parts, so each line has its own key

    def of(self, n: int) -> str:
        """The Idempotency-Key of the n-th item, if that is on its own. No client's key has a line break."""
        return f"{self.key}\n{self.places[n]}"

    def going_on(self, kept: Sequence[bool], plan: bytes) -> BatchKey:
        """The same key with some of its items, and their plan."""
        places = [place for place, is_kept in zip(self.places, kept, strict=True) if is_kept]
        return BatchKey(self.key, places, plan, self.is_lines)


IdempotencyKeys = Sequence[str] | BatchKey | None  # one for each item, or that of the batch


class Forward(Struct, frozen=True):
    """A submission on its way from a gateway that cannot reach Redis to one that can (msgpack, node to node)."""

    ids: list[str]
    items: bytes  # JSON array of submissions: their data is JSON and stays as it is
    idempotency_keys: list[str] | None = None  # one for each item, unless there is a batch_key
    trace: str | None = None  # as a task's spec holds it
    batch_key: BatchKey | None = None


class Forwarded(Struct, frozen=True):
    """The answer to one forwarded submission (JSON, node to node): a task, or an error with its status."""

    task: TaskJson | None = None
    is_new: bool = False
    error: ErrorBody | None = None
    status: int = 0


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Instant = Annotated[datetime, Meta(tz=True)]


def run_at_ms(text: str, now_ms: int | None = None) -> int:
    """Milliseconds since 1970 of an RFC 3339 time with an offset. Raises Invalid for any other text.

    With `now_ms`, also for a time further ahead than `delay_s` may be. One that is past is as good as now.
    """
    try:
        at_ms = (msgspec.convert(text, _Instant) - _EPOCH) // timedelta(milliseconds=1)
    except msgspec.ValidationError as error:
        why = "it has no offset" if "timezone" in str(error) else "it is not an RFC 3339 time"
        raise Invalid(
            f"$.run_at is {text!r}: {why}.", "Write it like 2030-01-31T12:00:00Z or …T12:00:00+02:00."
        ) from None
    except OverflowError:
        raise Invalid(f"$.run_at is {text!r}: outside the years 1 to 9999.", "Choose another time.") from None
    if now_ms is not None and at_ms > now_ms + AHEAD_MAX_S * 1000:
        latest = datetime.fromtimestamp(now_ms // 1000 + AHEAD_MAX_S, UTC).isoformat().replace("+00:00", "Z")
        raise Invalid(
            f"$.run_at is {text!r}: more than {AHEAD_MAX_S // 86_400} days ahead.", f"Use a time up to {latest}."
        )
    return at_ms
