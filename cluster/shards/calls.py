"""The queue's calls to Redis: one typed function per script, each of which makes a `Call` for a lane.

Knows keys and the order of arguments; decides nothing. Answers are small facts; an exception among them goes to the
caller's `on_reply` as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cluster import keys
from cluster.errors import ConfigError
from cluster.scripts import Arg
from cluster.shards.lane import Call, Reply
from cluster.shards.task import Spec

BATCH_MAX = 256  # tasks one script handles; bounds the time Redis is held
RETENTION_MIN_S = 5.0  # a submission may be carried out twice within a second or two: the first one must still be seen
CLAIM_BYTES_MAX = 1_048_576  # of data in the answer to one claim: many claims share one group and its deadline
OnReply = Callable[[Reply], None]
TASK_FIELDS = (
    "spec",
    "data",
    "state",
    "attempt",
    "delivery",
    "queued_at",
    "due",
    "started_at",
    "finished_at",
    "session",
    "result",
    "error",
    "progress",
)
HISTORY_FIELD = "history"


@dataclass(frozen=True, slots=True)
class Head:
    """What is queued in one queue of one shard: how many, and the best score."""

    queue: str
    count: int
    score: int


class NewTask(msgspec.Struct, gc=False):
    """One task on its way into a shard. There are many at a time, and no cycle leads through one: not the GC's."""

    id: str
    shard: int
    queue: str
    level: int
    due: int  # 0 now, < 0 that many ms from now, > 0 at that ms of Redis's clock
    spec: Spec
    spec_bytes: bytes
    data: bytes
    claim: bool
    idempotency: str
    idempotency_ms: int
    fingerprint: str
    on_code: Callable[[NewTask, str | Exception, int], None]  # (this, code as in store.lua, now ms)
    more: Any  # whatever on_code needs
    unique: str = ""  # where it has an idempotency key as well; else that is it
    unique_ms: int = 0


def connect(url: str) -> redis.asyncio.Redis:
    """A client whose calls are never repeated behind our back: claiming twice is not claiming once."""
    try:
        client: redis.asyncio.Redis = redis.asyncio.from_url(
            url, socket_timeout=None, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2
        )
    except (ValueError, RedisError) as error:
        raise ConfigError(f"redis_url cannot be used: {error}.", "Write it like redis://host:6379/0") from None
    return client


def heads_of(flat: Sequence[Any]) -> list[Head]:
    """`{queue, count, head score, …}` as scripts return it."""
    return [Head(flat[n].decode(), int(flat[n + 1]), int(float(flat[n + 2]))) for n in range(0, len(flat), 3)]


class Calls:
    """Makes the calls of one node; holds what every call needs."""

    def __init__(self, aging_s: float, queue_limit: int, dead_retention_s: float) -> None:
        self._aging_ms = int(aging_s * 1000)
        self._queue_limit = queue_limit
        self._dead_ms = int(dead_retention_s * 1000)

    def store(self, shard: int, session: str, tasks: Sequence[NewTask], on_reply: OnReply) -> Call:
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
        return Call("store", _store_keys(shard, session), args, on_reply)

    def claim(self, shard: int, queue: str, session: str, limit: int, highest: int | None, on_reply: OnReply) -> Call:
        """claim.lua."""
        return Call(
            "claim",
            (keys.never(shard), keys.ready(shard, queue), keys.inflight(shard, session), keys.sessions(shard)),
            [keys.task_prefix(shard), session, limit, "+inf" if highest is None else highest, CLAIM_BYTES_MAX],
            on_reply,
        )

    def settle(self, shard: int, session: str, outcomes: Sequence[tuple[Arg, ...]], on_reply: OnReply) -> Call:
        """settle.lua for up to BATCH_MAX outcomes `(id, delivery, kind, payload, ms)`."""
        args: list[Arg] = [
            keys.task_prefix(shard),
            keys.ready_prefix(shard),
            session,
            self._aging_ms,
            keys.finished_channel(shard),
        ]
        for outcome in outcomes:
            args += outcome
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
        )

    def reap(self, shard: int, session: str, jitter: float, on_reply: OnReply) -> Call:
        """reap.lua: one chunk of a fenced session."""
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
        )

    def cancel(self, shard: int, task_id: str, retention_ms: int, on_reply: OnReply) -> Call:
        """cancel.lua; `retention_ms` for a task that brought none of its own."""
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
        )

    def replay(self, shard: int, ids: Sequence[str], on_reply: OnReply) -> Call:
        """replay.lua for up to BATCH_MAX ids."""
        return Call(
            "replay",
            (keys.never(shard), keys.dead(shard), keys.cancelled(shard)),
            [keys.task_prefix(shard), keys.ready_prefix(shard), self._aging_ms, *ids],
            on_reply,
        )

    def expire_dead(self, shard: int, on_reply: OnReply) -> Call:
        """Put all dead tasks of a shard past their retention, for keep.lua to drop; answers their number."""
        return Call("", ("ZUNIONSTORE", keys.dead(shard)), [1, keys.dead(shard), "WEIGHTS", 0], on_reply)

    def keep(self, shard: int, age_ms: int, on_reply: OnReply) -> Call:
        """keep.lua; `age_ms`: tasks that finished so long ago go before their time, -1 while memory is not short."""
        return Call(
            "keep",
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
        )

    def list(
        self,
        shard: int,
        scored: str | None,
        before: str,
        limit: int,
        scan: int,
        filters: tuple[str, str, str],
        on_reply: OnReply,
    ) -> Call:
        """list.lua; `scored` is the key of the sorted set to list, None lists the index; filters: state, type, key."""
        return Call(
            "list",
            (keys.never(shard), keys.index(shard), scored or keys.dead(shard)),
            [keys.task_prefix(shard), "scored" if scored else "index", before, limit, scan, *filters],
            on_reply,
        )

    def counts(self, shard: int, with_ids: bool, on_reply: OnReply) -> Call:
        """counts.lua."""
        return Call(
            "counts",
            (
                keys.never(shard),
                keys.queues(shard),
                keys.scheduled(shard),
                keys.waiting(shard),
                keys.sessions(shard),
                keys.done(shard),
                keys.dead(shard),
                keys.cancelled(shard),
            ),
            [keys.ready_prefix(shard), keys.inflight_prefix(shard), "1" if with_ids else "0"],
            on_reply,
        )

    def read(self, shard: int, task_id: str, on_reply: OnReply, with_history: bool = False) -> Call:
        """The fields of one task, in the order of TASK_FIELDS; the history, if wanted, after them."""
        fields: list[Arg] = [*TASK_FIELDS, HISTORY_FIELD] if with_history else list(TASK_FIELDS)
        return Call("", ("HMGET", keys.task(shard, task_id)), fields, on_reply)

    def held(self, shard: int, session: str, on_reply: OnReply) -> Call:
        """What Redis holds in flight for a session in one shard: flat id, delivery, …"""
        return Call("", ("HGETALL", keys.inflight(shard, session)), [], on_reply)

    def tombstone(self, session: str, on_reply: OnReply) -> Call:
        """The heartbeat of a session: its value, or None."""
        return Call("", ("GET", keys.heartbeat(session)), [], on_reply)

    def tell(self, events: Sequence[bytes], keep: int, ttl_ms: int, on_reply: OnReply) -> Call:
        """tell.lua: events for the cluster's timeline, each as JSON."""
        args: list[Arg] = [keys.TIMELINE_CHANNEL, keep, ttl_ms, *events]
        return Call("tell", (keys.TIMELINE, keys.TIMELINE_NEVER), args, on_reply)

    def timeline(self, on_reply: OnReply) -> Call:
        """What the cluster's timeline holds: a JSON object an event, oldest first."""
        return Call("", ("LRANGE", keys.TIMELINE), [0, -1], on_reply)

    def add(self, step: int, counters: Mapping[str, int], ttl_ms: int, on_reply: OnReply) -> Call:
        """add.lua: what this node counted in a step, for charts."""
        args: list[Arg] = [ttl_ms]
        for name, count in counters.items():
            args += (name, count)
        return Call("add", (keys.timeline_sum(step), keys.TIMELINE_NEVER), args, on_reply)

    def summed(self, step: int, on_reply: OnReply) -> Call:
        """What all nodes counted in a step: flat counter, how many, …; empty when nothing happened."""
        return Call("", ("HGETALL", keys.timeline_sum(step)), [], on_reply)

    def announce(self, message: bytes, on_reply: OnReply) -> Call:
        """A message on the timeline's channel that is not kept; answers how many heard it."""
        return Call("", ("PUBLISH", keys.TIMELINE_CHANNEL), [message], on_reply)

    def publish(self, session: str, message: bytes, on_reply: OnReply) -> Call:
        """A message to a session's own channel; best effort."""
        return Call("", ("PUBLISH", keys.wake(session)), [message], on_reply)

    def progress(self, shard: int, session: str, task_id: str, delivery: int, value: bytes, on_reply: OnReply) -> Call:
        """progress.lua."""
        return Call(
            "progress",
            (keys.never(shard), keys.inflight(shard, session), keys.task(shard, task_id)),
            [task_id, delivery, value],
            on_reply,
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
