"""The queue's calls to Redis: one typed function for each script and plain command, with its question and its answer.

Each function makes a `Call` for a lane. The call's `on_reply` gets the answer as a value of `answers`, or the exception
that the call met. Only this module knows the order of arguments and the positions in a reply. It decides nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cluster import keys
from cluster.errors import ConfigError
from cluster.scripts import Arg
from cluster.shards.answers import (
    Cancellation,
    Claims,
    Listed,
    QueueHead,
    Reaped,
    Requeued,
    SettleCode,
    Settled,
    SettleKind,
    ShardCounts,
    StoreCode,
    Stored,
    Swept,
    TaskFields,
)
from cluster.shards.lane import Call, OnReply
from cluster.shards.task import Claimed, Lost, Spec, State

BATCH_MAX = 256  # tasks that one script handles; bounds the time that Redis is held
RETENTION_MIN_S = 5.0  # a repeated submission may arrive a second or two late: the first one's task must still be there
CLAIM_BYTES_MAX = 1_048_576  # bytes of data in the answer to one claim: many claims share one group and its deadline

_decode_spec = msgspec.msgpack.Decoder(Spec).decode


class NewTask(msgspec.Struct, gc=False):
    """One task on its way into a shard. No cycle leads through it, so the GC need not visit the many that there are."""

    id: str
    shard: int
    queue: str
    level: int
    due: int  # 0 now, < 0 in that many ms, > 0 at that ms of Redis's clock
    spec: Spec
    spec_bytes: bytes
    data: bytes
    claim: bool
    idempotency: str
    idempotency_ms: int
    fingerprint: str
    on_code: Callable[[NewTask, StoreCode | Exception, int, str], None]  # (this, code, now ms, first task's id or "")
    more: Any  # whatever on_code needs
    unique: str = ""  # the unique name of a task that has a key as well; alone it stands in `idempotency`
    unique_ms: int = 0


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one delivery on its way into its shard."""

    claimed: Claimed
    kind: SettleKind
    payload: bytes  # the result or the error as JSON
    ms: int  # retention of a terminal task; else the time until it is due again, 0 for at once


def connect(url: str) -> redis.asyncio.Redis:
    """A client that repeats no call by itself: a repeated claim claims more. Raises ConfigError for a bad URL."""
    try:
        client: redis.asyncio.Redis = redis.asyncio.from_url(
            url, socket_timeout=None, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2
        )
    except (ValueError, RedisError) as error:
        raise ConfigError(f"redis_url cannot be used: {error}.", "Write it like redis://host:6379/0") from None
    return client


class Calls:
    """Makes the calls of one node; holds the settings that go into them."""

    def __init__(self, aging_s: float, queue_limit: int, dead_retention_s: float) -> None:
        self._aging_ms = int(aging_s * 1000)
        self._queue_limit = queue_limit
        self._dead_ms = int(dead_retention_s * 1000)

    def store(self, shard: int, session: str, tasks: Sequence[NewTask], on_reply: OnReply[Stored]) -> Call[Stored]:
        """store.lua for up to BATCH_MAX tasks of one shard."""
        args: list[Arg] = [
            keys.task_prefix(shard),
            keys.ready_prefix(shard),
            keys.idempotency(shard, ""),
            session,
            self._aging_ms,
            self._queue_limit,
        ]
        for t in tasks:
            args += (t.id, t.queue, t.level, t.due, t.spec_bytes, t.data, "1" if t.claim else "0", t.idempotency)
            args += (
                f"{t.idempotency_ms} {t.unique_ms} {t.unique}" if t.unique else t.idempotency_ms,
                t.fingerprint,
            )
        return Call("store", _store_keys(shard, session), args, on_reply, _stored)

    def claim(
        self, shard: int, queue: str, session: str, limit: int, highest: int | None, on_reply: OnReply[Claims]
    ) -> Call[Claims]:
        """claim.lua."""
        return Call(
            "claim",
            (keys.never(shard), keys.ready(shard, queue), keys.inflight(shard, session), keys.sessions(shard)),
            [keys.task_prefix(shard), session, limit, "+inf" if highest is None else highest, CLAIM_BYTES_MAX],
            on_reply,
            partial(_claims, shard, session),
        )

    def settle(
        self, shard: int, session: str, outcomes: Sequence[Settlement], on_reply: OnReply[Settled]
    ) -> Call[Settled]:
        """settle.lua for up to BATCH_MAX outcomes of one session."""
        args: list[Arg] = [
            keys.task_prefix(shard),
            keys.ready_prefix(shard),
            session,
            self._aging_ms,
            keys.finished_channel(shard),
        ]
        for outcome in outcomes:
            claimed = outcome.claimed
            args += (claimed.id, claimed.delivery, outcome.kind, outcome.payload, outcome.ms)
        return Call(
            "settle",
            (
                keys.never(shard),
                keys.inflight(shard, session),
                keys.sessions(shard),
                keys.done(shard),
                keys.dead(shard),
                keys.scheduled(shard),
            ),
            args,
            on_reply,
            _settled,
        )

    def reap(self, shard: int, session: str, jitter: float, on_reply: OnReply[Reaped]) -> Call[Reaped]:
        """reap.lua: one chunk of what a fenced session holds."""
        return Call(
            "reap",
            (
                keys.never(shard),
                keys.inflight(shard, session),
                keys.sessions(shard),
                keys.scheduled(shard),
                keys.dead(shard),
            ),
            [
                keys.task_prefix(shard),
                keys.ready_prefix(shard),
                session,
                self._aging_ms,
                BATCH_MAX,
                jitter,
                self._dead_ms,
                keys.finished_channel(shard),
            ],
            on_reply,
            partial(_reaped, shard, session),
        )

    def cancel(
        self, shard: int, task_id: str, retention_ms: int, on_reply: OnReply[Cancellation]
    ) -> Call[Cancellation]:
        """cancel.lua; `retention_ms` is for a task without a retention of its own."""
        return Call(
            "cancel",
            (
                keys.never(shard),
                keys.task(shard, task_id),
                keys.scheduled(shard),
                keys.waiting(shard),
                keys.cancelled(shard),
                keys.sessions(shard),
            ),
            [
                task_id,
                keys.ready_prefix(shard),
                keys.inflight_prefix(shard),
                retention_ms,
                keys.finished_channel(shard),
                int(RETENTION_MIN_S * 1000),
            ],
            on_reply,
            _cancellation,
        )

    def replay(self, shard: int, ids: Sequence[str], on_reply: OnReply[Requeued]) -> Call[Requeued]:
        """replay.lua for up to BATCH_MAX ids."""
        return Call(
            "replay",
            (keys.never(shard), keys.dead(shard), keys.cancelled(shard)),
            [keys.task_prefix(shard), keys.ready_prefix(shard), self._aging_ms, *ids],
            on_reply,
            _requeued,
        )

    def expire_dead(self, shard: int, on_reply: OnReply[int]) -> Call[int]:
        """Set the score of every dead task of a shard to 0, so that sweep.lua drops it; answers how many there are."""
        return Call("", ("ZUNIONSTORE", keys.dead(shard)), [1, keys.dead(shard), "WEIGHTS", 0], on_reply)

    def sweep(self, shard: int, age_ms: int, on_reply: OnReply[Swept]) -> Call[Swept]:
        """sweep.lua; `age_ms`: while memory is short, drop tasks that ended so long ago before their time; else -1."""
        return Call(
            "sweep",
            (
                keys.never(shard),
                keys.scheduled(shard),
                keys.done(shard),
                keys.dead(shard),
                keys.cancelled(shard),
                keys.index(shard),
                keys.sessions(shard),
                keys.queues(shard),
            ),
            [keys.task_prefix(shard), keys.ready_prefix(shard), self._aging_ms, BATCH_MAX, age_ms],
            on_reply,
            _swept,
        )

    def listing(
        self,
        shard: int,
        scored: str | None,
        before: str,
        limit: int,
        scan: int,
        filters: tuple[str, str, str],
        on_reply: OnReply[Listed],
    ) -> Call[Listed]:
        """list.lua; `scored` is the key of the sorted set to list, None for the index; filters: state, type, key."""
        return Call(
            "list",
            (keys.never(shard), keys.index(shard), scored or keys.dead(shard)),
            [keys.task_prefix(shard), "scored" if scored else "index", before, limit, scan, *filters],
            on_reply,
            _listed,
        )

    def counts(self, shard: int, on_reply: OnReply[ShardCounts]) -> Call[ShardCounts]:
        """counts.lua: how many tasks of the shard are in each state and queue."""
        args: list[Arg] = [keys.ready_prefix(shard), keys.inflight_prefix(shard), "0"]
        return Call("counts", _counts_keys(shard), args, on_reply, _counts)

    def running(self, shard: int, on_reply: OnReply[dict[str, list[str]]]) -> Call[dict[str, list[str]]]:
        """counts.lua: the ids in flight in the shard, by session."""
        args: list[Arg] = [keys.ready_prefix(shard), keys.inflight_prefix(shard), "1"]
        return Call("counts", _counts_keys(shard), args, on_reply, _running)

    def read(
        self, shard: int, task_id: str, on_reply: OnReply[TaskFields | None], with_history: bool = False
    ) -> Call[TaskFields | None]:
        """The stored fields of one task, the history among them on request; None if there is no such task."""
        fields: list[Arg] = [*TaskFields._fields] if with_history else [*TaskFields._fields[:-1]]
        return Call("", ("HMGET", keys.task(shard, task_id)), fields, on_reply, _fields)

    def held(self, shard: int, session: str, on_reply: OnReply[dict[str, int]]) -> Call[dict[str, int]]:
        """The tasks that Redis holds in flight for a session in one shard: id -> delivery."""
        return Call("", ("HGETALL", keys.inflight(shard, session)), [], on_reply, _numbers)

    def is_fenced(self, session: str, on_reply: OnReply[bool]) -> Call[bool]:
        """Whether the session's tombstone is written."""
        return Call("", ("GET", keys.heartbeat(session)), [], on_reply, keys.is_tombstone)

    def tell(self, events: Sequence[bytes], keep: int, ttl_ms: int, on_reply: OnReply[int]) -> Call[int]:
        """tell.lua: events for the cluster's timeline, each as JSON."""
        args: list[Arg] = [keys.TIMELINE_CHANNEL, keep, ttl_ms, *events]
        return Call("tell", (keys.TIMELINE, keys.TIMELINE_NEVER), args, on_reply)

    def timeline(self, on_reply: OnReply[Sequence[bytes]]) -> Call[Sequence[bytes]]:
        """The cluster's timeline: each event a JSON object, oldest first."""
        return Call("", ("LRANGE", keys.TIMELINE), [0, -1], on_reply)

    def add_counts(self, step: int, counters: Mapping[str, int], ttl_ms: int, on_reply: OnReply[int]) -> Call[int]:
        """add_counts.lua: this node's counters of one step, for charts."""
        args: list[Arg] = [ttl_ms]
        for name, count in counters.items():
            args += (name, count)
        return Call("add_counts", (keys.timeline_sum(step), keys.TIMELINE_NEVER), args, on_reply)

    def summed(self, step: int, on_reply: OnReply[dict[str, int]]) -> Call[dict[str, int]]:
        """The counters of one step, summed over all nodes; empty when nothing happened."""
        return Call("", ("HGETALL", keys.timeline_sum(step)), [], on_reply, _numbers)

    def announce(self, message: bytes, on_reply: OnReply[int]) -> Call[int]:
        """A message on the timeline's channel that nobody keeps; answers how many subscribers heard it."""
        return Call("", ("PUBLISH", keys.TIMELINE_CHANNEL), [message], on_reply)

    def publish(self, session: str, message: bytes, on_reply: OnReply[int]) -> Call[int]:
        """A message to a session's own channel; best effort."""
        return Call("", ("PUBLISH", keys.wake(session)), [message], on_reply)

    def progress(
        self, shard: int, session: str, task_id: str, delivery: int, value: bytes, on_reply: OnReply[bool]
    ) -> Call[bool]:
        """progress.lua."""
        return Call(
            "progress",
            (keys.never(shard), keys.inflight(shard, session), keys.task(shard, task_id)),
            [task_id, delivery, value],
            on_reply,
            bool,
        )


def _store_keys(shard: int, session: str) -> tuple[str, ...]:
    return (
        keys.never(shard),
        keys.index(shard),
        keys.scheduled(shard),
        keys.sessions(shard),
        keys.inflight(shard, session),
        keys.queues(shard),
    )


def _counts_keys(shard: int) -> tuple[str, ...]:
    return (
        keys.never(shard),
        keys.queues(shard),
        keys.scheduled(shard),
        keys.waiting(shard),
        keys.sessions(shard),
        keys.done(shard),
        keys.dead(shard),
        keys.cancelled(shard),
    )


# ---- from replies to answers, in the order of the headers in `lua/`

_STORE_CODES = {code.value.encode(): code for code in StoreCode}
_NAMES_FIRST = StoreCode.REPEAT  # stands for REPEAT and MISMATCH until their letter is read
_REFUSED = SettleCode.REFUSED
_SETTLE_CODES = {code.value.encode(): code for code in SettleCode if code is not _REFUSED}
_COUNTED = (State.SCHEDULED, State.WAITING, State.SUCCEEDED, State.DEAD, State.CANCELLED)


def _heads(flat: Sequence[Any]) -> list[QueueHead]:
    return [QueueHead(flat[n].decode(), flat[n + 1], int(float(flat[n + 2]))) for n in range(0, len(flat), 3)]


def _numbers(flat: Sequence[bytes]) -> dict[str, int]:
    return {flat[n].decode(): int(flat[n + 1]) for n in range(0, len(flat), 2)}


def _state(raw: bytes) -> State | None:
    return State(raw.decode()) if raw else None


def _stored(reply: Any) -> Stored:
    now_ms, raws, heads = reply
    codes = [_STORE_CODES.get(raw, _NAMES_FIRST) for raw in raws]
    firsts: dict[int, str] = {}
    if _NAMES_FIRST in codes:  # a letter followed by the first task's id
        firsts = {n: raws[n][1:].decode() for n, code in enumerate(codes) if code is _NAMES_FIRST}
        codes = [_STORE_CODES[raw[:1]] for raw in raws]
    return Stored(now_ms, codes, firsts, _heads(heads))


def _claims(shard: int, session: str, reply: Any) -> Claims:
    now_ms, left, head_score, flat = reply
    tasks: list[Claimed] = []
    waits_s: list[float | None] = []
    unreadable: list[tuple[str, str]] = []
    for n in range(0, len(flat), 7):
        raw_id, delivery, attempt, packed, data, queued_at_ms, lost = flat[n : n + 7]
        task_id = raw_id.decode()
        try:
            spec = _decode_spec(packed)
        except msgspec.DecodeError as error:
            unreadable.append((task_id, str(error)))
            continue
        tasks.append(Claimed(task_id, shard, delivery, attempt, spec, data, session, int(lost)))
        waits_s.append(max(0.0, (now_ms - float(queued_at_ms)) / 1000) if queued_at_ms else None)
    return Claims(now_ms, left, int(float(head_score)), tasks, waits_s, unreadable)


def _settled(reply: Sequence[bytes]) -> Settled:
    codes = [_SETTLE_CODES.get(raw, _REFUSED) for raw in reply]
    refused: dict[int, str] = {}
    if _REFUSED in codes:
        refused = {n: reply[n].decode() for n, code in enumerate(codes) if code is _REFUSED}
    return Settled(codes, refused)


def _reaped(shard: int, session: str, reply: Any) -> Reaped:
    left, queued, scheduled, dead, heads, rows = reply
    lost: list[Lost] = []
    for n in range(0, len(rows), 6):
        task_id, delivery, attempt, ran_ms, packed, outcome = rows[n : n + 6]
        # A spec that cannot be decoded costs its task's span, and not the rest of the answer.
        with contextlib.suppress(msgspec.DecodeError):
            claimed = Claimed(task_id.decode(), shard, delivery, attempt, _decode_spec(packed), b"null", session)
            lost.append(Lost(claimed, ran_ms / 1000, State(outcome.decode())))
    return Reaped(left, queued, scheduled, dead, _heads(heads), lost)


def _swept(reply: Any) -> Swept:
    now_ms, promoted, dropped, next_due_ms, sessions, heads = reply
    return Swept(now_ms, promoted, dropped, next_due_ms, [raw.decode() for raw in sessions], _heads(heads))


def _cancellation(reply: Any) -> Cancellation:
    was, session, delivery = reply
    return Cancellation(_state(was), session.decode(), delivery)


def _requeued(reply: Any) -> Requeued:
    codes, heads = reply
    refused = {n: _state(code) for n, code in enumerate(codes) if code != b"1"}
    return Requeued(len(codes) - len(refused), refused, _heads(heads))


def _counts(reply: Any) -> ShardCounts:
    *numbers, queues, flights = reply
    states = dict(zip(_COUNTED, numbers, strict=True))
    states[State.RUNNING] = sum(flights[1::2])
    return ShardCounts(states, {queues[n].decode(): queues[n + 1] for n in range(0, len(queues), 2)})


def _running(reply: Any) -> dict[str, list[str]]:
    flights = reply[-1]
    return {flights[n].decode(): [raw.decode() for raw in flights[n + 1]] for n in range(0, len(flights), 2)}


def _listed(reply: Any) -> Listed:
    reached, flat = reply
    return Listed(reached.decode(), [(flat[n].decode(), flat[n + 1].decode()) for n in range(0, len(flat), 2)])


def _fields(reply: Sequence[bytes | None]) -> TaskFields | None:
    spec, data, state, *rest = reply
    return None if spec is None or state is None else TaskFields(spec, data, state, *rest)
