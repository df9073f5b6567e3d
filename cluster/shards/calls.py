"""The queue's calls to Redis: one typed function for each script and plain command, with its question and its answer.

Each function makes a `Call` for a lane. The call's `on_reply` gets the answer as a value of `answers`, or the exception
that the call met. Only this module knows the order of arguments, and `replies` the positions in a reply. It decides
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import msgspec

from cluster import keys
from cluster.config import Config
from cluster.errors import TaskUnreadable
from cluster.scripts import Arg
from cluster.shards import redis_clock, replies
from cluster.shards.answers import (
    Cancellation,
    Claims,
    Listed,
    Noted,
    Reaped,
    Requeued,
    Settled,
    SettleKind,
    ShardCounts,
    StoreCode,
    Stored,
    Swept,
    TaskFields,
    Unparked,
)
from cluster.shards.lane import Call, OnReply, T
from cluster.shards.task import APART_BYTES, Claimed, Spec, apart

BATCH_MAX = 256  # tasks that one script handles; bounds the time that Redis is held
NAMES_MAX = 256  # queues of a shard that one sweep looks at, beside those that its node serves
# The shortest stay of a finished task. A repeated submission may arrive a second or two late, and Redis may carry out
# the first one's call as late as `redis_clock.carried_out_within_s` says: the other's task must still be there.
RETENTION_MIN_S = 5.0
TIMEOUT_S = 0.8  # a lane's usual deadline
CLAIM_BYTES_MAX = 1_048_576  # bytes of data in the answer to one claim: many claims share one group and its deadline


class NewTask(msgspec.Struct, gc=False):
    """One task on its way into a shard. No cycle leads through it, so the GC need not visit the many that there are."""

    id: str
    shard: int
    queue: str
    level: int
    due: int  # 0 now, < 0 in that many ms, > 0 at that ms of Redis's clock
    spec: Spec
    packed: bytes  # the spec, as `task.packed` makes it
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


class Calls:
    """Makes the calls of one node; holds the settings that go into them, and the number of the Redis database."""

    def __init__(
        self,
        aging_s: float,
        queue_limit: int,
        dead_retention_s: float,
        served: Iterable[str] = (),
        timeout_s: float = TIMEOUT_S,
        database: int = 0,
    ) -> None:
        self.retention_min_s = max(RETENTION_MIN_S, 1.0 + redis_clock.carried_out_within_s(timeout_s))
        self.database = database
        self._aging_ms = int(aging_s * 1000)
        self._queue_limit = queue_limit
        self._dead_ms = int(dead_retention_s * 1000)
        self._served = tuple(served)  # queues that this node serves

    @classmethod
    def of(cls, config: Config) -> Calls:
        """The calls of a node with these settings."""
        limits = (config.priority_aging_s, config.queue_limit, config.dead_retention_s)
        return cls(*limits, config.queue_slots, config.redis_timeout_s, config.database)

    def kept_ms(self, own_s: float | None, usual_s: float) -> int:
        """How long a task stays once it has ended: its own retention, else the usual one; never below the least."""
        return int(max(usual_s if own_s is None else own_s, self.retention_min_s) * 1000)

    def store(self, shard: int, session: str, tasks: Sequence[NewTask], on_reply: OnReply[Stored]) -> Call[Stored]:
        """store.lua for up to BATCH_MAX tasks of one shard."""
        args: list[Arg] = [
            keys.bucket_prefix(shard),
            keys.ready_prefix(shard),
            keys.idempotency(shard, ""),
            session,
            self._aging_ms,
            self._queue_limit,
        ]
        run: tuple[str, int, int, str] | None = None
        count_at = 0
        for t in tasks:
            is_apart = len(t.data) > APART_BYTES
            kind = _STORE_KINDS[t.claim, is_apart, t.idempotency != ""]
            if (t.queue, t.level, t.due, kind) == run:
                args[count_at] += 1  # type: ignore[operator]
            else:
                run = (t.queue, t.level, t.due, kind)
                args += (*run, 1)
                count_at = len(args) - 1
            args += (t.id, apart(t.packed), t.data) if is_apart else (t.id, t.packed + t.data)
            if t.idempotency:
                key_ms = f"{t.idempotency_ms} {t.unique_ms} {t.unique}" if t.unique else t.idempotency_ms
                args += (t.idempotency, key_ms, t.fingerprint)
        return Call("store", _store_keys(shard, session), args, on_reply, partial(replies.stored, len(tasks)))

    def plan(
        self, shard: int, key: str, plan: bytes, note: str, ttl_ms: int, on_reply: OnReply[bytes | Noted]
    ) -> Call[bytes | Noted]:
        """plan.lua: the plan that stood there before, b"" if this one stands now, or for what else the key stands."""
        script_keys = (keys.never(shard), keys.batch(shard, key), keys.idempotency(shard, key))
        return Call("plan", script_keys, [plan, ttl_ms, note], on_reply, replies.plan)

    def reserve(
        self, shard: int, key: str, note: str, ttl_ms: int, on_reply: OnReply[Noted | None]
    ) -> Call[Noted | None]:
        """reserve.lua: what the key stood for before, None if the note stands now."""
        script_keys = (keys.never(shard), keys.idempotency(shard, key))
        return Call("reserve", script_keys, [note, ttl_ms], on_reply, replies.noted)

    def mark(
        self, shard: int, key: str, first_id: str, runs: Sequence[tuple[int, bytes]], on_reply: OnReply[bool]
    ) -> Call[bool]:
        """mark.lua; runs: (offset in the plan, marks)."""
        args: list[Arg] = [first_id]
        for run in runs:
            args += run
        return Call("mark", (keys.never(shard), keys.batch(shard, key)), args, on_reply, bool)

    def claim(
        self, shard: int, queue: str, session: str, limit: int, highest: int | None, on_reply: OnReply[Claims]
    ) -> Call[Claims]:
        """claim.lua."""
        return Call(
            "claim",
            _claim_keys(shard, queue, session),
            [
                keys.bucket_prefix(shard),
                session,
                limit,
                "+inf" if highest is None else highest,
                CLAIM_BYTES_MAX,
                self._aging_ms,
            ],
            on_reply,
            partial(replies.claims, shard, session),
        )

    def settle(
        self, shard: int, session: str, outcomes: Sequence[Settlement], on_reply: OnReply[Settled]
    ) -> Call[Settled]:
        """settle.lua for up to BATCH_MAX outcomes of one session."""
        script_keys, head = _settle_head(shard, session, self.database)
        args: list[Arg] = [*head, self._aging_ms]
        kind, delivery, ms, count_at = None, 0, 0, 0
        for outcome in outcomes:
            claimed = outcome.claimed
            if outcome.kind is kind and claimed.delivery == delivery and outcome.ms == ms:
                args[count_at] += 1  # type: ignore[operator]
            else:
                kind, delivery, ms = outcome.kind, claimed.delivery, outcome.ms
                args += (kind, delivery, ms, 1)
                count_at = len(args) - 1
            args += (claimed.id, outcome.payload)
        return Call(
            "settle",
            script_keys,
            args,
            on_reply,
            replies.settled,
        )

    def reap(
        self, shard: int, session: str, jitter: float, on_reply: OnReply[Reaped], fenced_ms: int = keys.UNDATED_MS
    ) -> Call[Reaped]:
        """reap.lua: one chunk of what a session holds that was fenced at that ms of Redis's clock."""
        return Call(
            "reap",
            (
                keys.never(shard),
                keys.inflight(shard, session),
                keys.sessions(shard),
                keys.scheduled(shard),
                keys.dead(shard),
                keys.queues(shard),
                keys.retrying(shard),
            ),
            [
                keys.bucket_prefix(shard),
                keys.ready_prefix(shard),
                session,
                self._aging_ms,
                BATCH_MAX,
                jitter,
                self._dead_ms,
                keys.finished_channel(shard, self.database),
                int(self.retention_min_s * 1000),
                fenced_ms,
            ],
            on_reply,
            partial(replies.reaped, shard, session),
        )

    def cancel(
        self, shard: int, task_id: str, retention_ms: int, on_reply: OnReply[Cancellation]
    ) -> Call[Cancellation]:
        """cancel.lua; `retention_ms` is for a task without a retention of its own."""
        return Call(
            "cancel",
            (
                keys.never(shard),
                keys.scheduled(shard),
                keys.waiting(shard),
                keys.cancelled(shard),
                keys.sessions(shard),
                keys.retrying(shard),
            ),
            [
                task_id,
                keys.bucket_prefix(shard),
                keys.ready_prefix(shard),
                keys.inflight_prefix(shard),
                retention_ms,
                keys.finished_channel(shard, self.database),
                int(self.retention_min_s * 1000),
            ],
            on_reply,
            replies.cancellation,
        )

    def replay(self, shard: int, ids: Sequence[str], on_reply: OnReply[Requeued]) -> Call[Requeued]:
        """replay.lua for up to BATCH_MAX ids."""
        return Call(
            "replay",
            (
                keys.never(shard),
                keys.dead(shard),
                keys.cancelled(shard),
                keys.sessions(shard),
                keys.queues(shard),
            ),
            [
                keys.bucket_prefix(shard),
                keys.ready_prefix(shard),
                keys.inflight_prefix(shard),
                self._aging_ms,
                *ids,
            ],
            on_reply,
            replies.requeued,
        )

    def unpark(self, shard: int, parked: str, limit: int, on_reply: OnReply[Unparked]) -> Call[Unparked]:
        """unpark.lua for tasks of such a queue, up to BATCH_MAX."""
        return Call(
            "unpark",
            (keys.never(shard), keys.ready(shard, parked), keys.queues(shard)),
            [keys.bucket_prefix(shard), keys.ready_prefix(shard), self._aging_ms, min(limit, BATCH_MAX)],
            on_reply,
            replies.unparked,
        )

    def purge(self, shard: int, on_reply: OnReply[int]) -> Call[int]:
        """purge.lua: sweep.lua drops every dead task of the shard from now on; answers how many there are."""
        return Call("purge", (keys.never(shard), keys.dead(shard)), [], on_reply)

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
                keys.buckets(shard),
                keys.sessions(shard),
                keys.queues(shard),
                keys.retrying(shard),
            ),
            [
                keys.bucket_prefix(shard),
                keys.ready_prefix(shard),
                self._aging_ms,
                BATCH_MAX,
                age_ms,
                NAMES_MAX,
                *self._served,
            ],
            on_reply,
            replies.swept,
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
        """list.lua; `scored` is the key of the sorted set to list, None for the ids; filters: state, type, key."""
        return Call(
            "list",
            (keys.never(shard), keys.buckets(shard), scored or keys.dead(shard), keys.sessions(shard)),
            [
                keys.bucket_prefix(shard),
                keys.inflight_prefix(shard),
                before,
                "scored" if scored else "ids",
                limit,
                scan,
                *filters,
            ],
            on_reply,
            replies.listed,
        )

    def counts(self, shard: int, on_reply: OnReply[ShardCounts]) -> Call[ShardCounts]:
        """counts.lua: how many tasks of the shard are in each state and queue."""
        return Call("counts", _counts_keys(shard), self._counts_args(shard, "0"), on_reply, replies.counts)

    def running(self, shard: int, on_reply: OnReply[dict[str, list[str]]]) -> Call[dict[str, list[str]]]:
        """counts.lua: the ids in flight in the shard, by session."""
        return Call("counts", _counts_keys(shard), self._counts_args(shard, "1"), on_reply, replies.running)

    def _counts_args(self, shard: int, ids: str) -> list[Arg]:
        prefixes = [keys.ready_prefix(shard), keys.inflight_prefix(shard), ids, keys.bucket_prefix(shard)]
        return [*prefixes, self._aging_ms]

    def read(self, shard: int, task_id: str, on_reply: OnReply[TaskFields | None]) -> Call[TaskFields | None]:
        """read.lua for one task, with all that it has; None if there is none."""
        return self._read(shard, (task_id,), True, on_reply, partial(replies.fields_of_one, self._aging_ms))

    def read_rows(
        self, shard: int, ids: Sequence[str], whole: bool, on_reply: OnReply[list[TaskFields | TaskUnreadable | None]]
    ) -> Call[list[TaskFields | TaskUnreadable | None]]:
        """read.lua for up to BATCH_MAX tasks; unless `whole`, without data, results and errors above APART_BYTES."""
        return self._read(shard, ids, whole, on_reply, partial(replies.fields_of_rows, self._aging_ms))

    def _read(
        self, shard: int, ids: Sequence[str], whole: bool, on_reply: OnReply[T], decode: Callable[[Any], T]
    ) -> Call[T]:
        prefixes = [keys.bucket_prefix(shard), keys.ready_prefix(shard), keys.inflight_prefix(shard)]
        args: list[Arg] = [*prefixes, "1" if whole else "0", *ids]
        return Call("read", (keys.never(shard), keys.sessions(shard), keys.scheduled(shard)), args, on_reply, decode)

    def held(self, shard: int, session: str, on_reply: OnReply[dict[str, int]]) -> Call[dict[str, int]]:
        """The tasks that Redis holds in flight for a session in one shard: id -> delivery."""
        return Call("", ("HGETALL", keys.inflight(shard, session)), [], on_reply, replies.deliveries)

    def fenced_ms(self, session: str, on_reply: OnReply[int | None]) -> Call[int | None]:
        """When the session's tombstone was written, by Redis's clock; None if none stands there."""
        return Call("", ("GET", keys.heartbeat(session)), [], on_reply, keys.fenced_ms)

    def tell(self, events: Sequence[bytes], keep: int, ttl_ms: int, on_reply: OnReply[int]) -> Call[int]:
        """tell.lua: events for the cluster's timeline, each as JSON."""
        args: list[Arg] = [keys.timeline_channel(self.database), keep, ttl_ms, *events]
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
        return Call("", ("HGETALL", keys.timeline_sum(step)), [], on_reply, replies.numbers)

    def announce(self, message: bytes, on_reply: OnReply[int]) -> Call[int]:
        """A message on the timeline's channel that nobody keeps; answers how many subscribers heard it."""
        return Call("", ("PUBLISH", keys.timeline_channel(self.database)), [message], on_reply)

    def publish(self, session: str, message: bytes, on_reply: OnReply[int]) -> Call[int]:
        """A message to a session's own channel; best effort."""
        return Call("", ("PUBLISH", keys.wake(session)), [message], on_reply)

    def progress(
        self, shard: int, session: str, task_id: str, delivery: int, value: bytes, on_reply: OnReply[bool]
    ) -> Call[bool]:
        """progress.lua."""
        return Call(
            "progress",
            (keys.never(shard), keys.inflight(shard, session)),
            [keys.bucket_prefix(shard), task_id, delivery, value],
            on_reply,
            bool,
        )


# Nearly every group has a claim and a settle: their keys are made once for each shard, queue and session.
@lru_cache(maxsize=4096)
def _claim_keys(shard: int, queue: str, session: str) -> tuple[str, ...]:
    return (keys.never(shard), keys.ready(shard, queue), keys.inflight(shard, session), keys.sessions(shard))


@lru_cache(maxsize=4096)
def _settle_head(shard: int, session: str, database: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys of a settle, and its first arguments."""
    script_keys = (
        keys.never(shard),
        keys.inflight(shard, session),
        keys.sessions(shard),
        keys.done(shard),
        keys.dead(shard),
        keys.scheduled(shard),
        keys.queues(shard),
        keys.retrying(shard),
    )
    prefixes = (keys.bucket_prefix(shard), keys.ready_prefix(shard), keys.inflight_prefix(shard))
    return script_keys, (*prefixes, keys.finished_channel(shard, database), session)


def _store_keys(shard: int, session: str) -> tuple[str, ...]:
    return (
        keys.never(shard),
        keys.buckets(shard),
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
        keys.retrying(shard),
    )


_STORE_KINDS = {  # whether it is claimed, has data apart, has a key
    (claim, data, key): ("c" if claim else "q") + "d" * data + "k" * key
    for claim in (False, True)
    for data in (False, True)
    for key in (False, True)
}
