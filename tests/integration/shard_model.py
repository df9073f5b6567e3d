"""One shard in a real Redis, and beside it a model in plain Python: what the shard should be after each script.

`ShardPair` does one operation at a time to both and compares: the script's answer with the model's, then every key with
the model and with the invariants:

- each id is in exactly one of ready:*, scheduled, one inflight:*, done, dead, cancelled, and read.lua names that place;
- the buckets hold the fields of every id and no others; {sNN}:buckets is exactly the names of the buckets;
- {sNN}:sessions is exactly the sessions with a non-empty inflight hash;
- {sNN}:queues has each queue in which something is queued, and after a sweep no other but what the sweeper serves;
- attempts and deliveries are as in the model; a delivery is committed once at most;
- nothing is claimed before what is more urgent, or as urgent and older, in its queue;
- a call that comes too late changes nothing;
- there is no key that `cluster.keys` does not know, and none is left when everything was dropped.

The caller hands in the randomness, so that a seed (or Hypothesis) replays a walk. Time is that of the real Redis: each
time that a script wrote must lie between readings of Redis's clock before and after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from time import sleep
from typing import Any

import msgspec
from hiredis import pack_command
from redis.connection import Connection
from redis.exceptions import ResponseError

from cluster import keys
from cluster.scripts import script
from cluster.session import node_of
from cluster.shards.answers import QueueHead, SettleKind, TaskFields
from cluster.shards.calls import BATCH_MAX, RETENTION_MIN_S, Calls, NewTask, Settlement
from cluster.shards.lane import Call, T
from cluster.shards.task import APART_BYTES, Backoff, Claimed, Ids, Spec, packed, shard_of
from node.queue.queries import history_json

SHARD = 0x1F
SHARDS = 64
SESSIONS = ("a/018bcfe5680-00000001", "b/018bcfe5680-00000002", "a/018bcfe5999-00000003")
QUEUES = ("qa", "qb")
SERVED = "qb"  # by the node that sweeps
KEYS = ("k1", "k2", "k3")
TERMINAL = {"succeeded": "done", "dead": "dead", "cancelled": "cancelled"}
AGING_MS = 60_000
QUEUE_LIMIT = 6
LONG_MS = 10_000_000_000
HISTORY_MAX = 20
ID_CHARS = 29
NOTE = "?"  # the field of a bucket that began with many tasks
WORKER_LOST = b"WorkerLost"  # stands for the error that reap.lua writes
SCRIPTS = (
    *("store", "claim", "settle", "reap", "cancel", "replay", "purge"),
    *("sweep", "list", "counts", "progress", "read"),
)
OPERATIONS = (
    *("store",) * 5,
    *("claim",) * 5,
    *("settle",) * 6,
    *("reap",) * 2,
    *("cancel",) * 2,
    *("replay",) * 2,
    *("sweep",) * 3,
    *("progress", "counts", "list", "read", "purge", "forget_key", "rest", "late", "late"),
)
ANY_SPEC = Spec("", "", 0, 1, 1.0, Backoff(0, 1, 0))  # a spec for settling, which does not read it


@dataclass
class Task:
    """A task as it should be."""

    id: str
    spec: Spec
    data: bytes
    state: str = "queued"
    attempt: int = 0
    delivery: int = 0
    lost: int = 0
    settled: int | None = None  # the delivery that was committed last
    session: str = ""  # the session that claimed it last
    claimed_at: int = 0  # when that was
    queued_at: int | None = None
    due: int | None = None
    drop_at: int | None = None  # for a terminal task
    ended_at: int = 0  # for a terminal task
    result: bytes | None = None
    error: bytes | None = None  # of the last attempt that failed
    progress: bytes | None = None
    history: list[tuple[str, int, int, str]] = field(default_factory=list)  # outcome, attempt, delivery, session

    def remember(self, outcome: str, delivery: int | None = None, session: str = "") -> None:
        """Add a line to the history: of the attempt that runs, or of another delivery; a refusal once."""
        attempt = self.attempt if delivery is None else 0
        if not session and self.state == "running":
            session = self.session
        entry = (outcome, attempt, self.delivery if delivery is None else delivery, session)
        if outcome != "refused" or entry not in self.history:
            self.history = [*self.history, entry][-HISTORY_MAX:]

    @property
    def score(self) -> int:
        """The task's score in its queue."""
        assert self.queued_at is not None
        return self.queued_at - self.spec.level * AGING_MS


@dataclass
class Model:
    """A shard as it should be."""

    tasks: dict[str, Task] = field(default_factory=dict)
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)  # idempotency key -> (id, fingerprint)
    inflight: dict[str, dict[str, int]] = field(default_factory=lambda: {session: {} for session in SESSIONS})
    commits: set[tuple[str, int]] = field(default_factory=set)
    published: list[str] = field(default_factory=list)

    def where(self, *states: str) -> list[Task]:
        """The tasks in these states."""
        return [task for task in self.tasks.values() if task.state in states]

    def ready(self, queue: str) -> list[Task]:
        """The tasks queued there; the first is the next to be claimed."""
        return sorted((t for t in self.where("queued") if t.spec.queue == queue), key=lambda t: (t.score, t.id))

    def head(self, queue: str) -> tuple[int, int]:
        """(count, best score) as the scripts answer them."""
        ready = self.ready(queue)
        return len(ready), ready[0].score if ready else 0

    def take(self, task: Task, session: str, now: int) -> None:
        """Put the task in flight for a session."""
        task.state, task.session, task.claimed_at = "running", session, now
        task.attempt += 1
        task.delivery += 1
        self.inflight[session][task.id] = task.delivery

    def finish(self, task: Task, state: str, drop_at: int, ms: int) -> None:
        """Make the task terminal, to be dropped `ms` later."""
        task.state, task.drop_at, task.ended_at = state, drop_at, drop_at - ms
        self.published.append(task.id)


class ShardPair:
    """The shard and its model."""

    def __init__(self, port: int, seed: int) -> None:
        self._redis = Connection(host="127.0.0.1", port=port, protocol=2)
        self._listener = Connection(host="127.0.0.1", port=port, protocol=2)
        self._calls = Calls(AGING_MS / 1000, QUEUE_LIMIT, LONG_MS / 1000, [SERVED])
        self._ids = Ids(seed)
        self._dropped: list[str] = []
        self._finished: list[bytes] = []
        self._times = (0, 0)
        self._first: dict[str, float] = {}  # by queue: the score that a new task needs to be claimed at once
        self.model = Model()
        self.trail: list[str] = []
        self._talk([("FLUSHALL",), *(("SCRIPT", "LOAD", script(name).text) for name in SCRIPTS)])
        self._listener.send_command("SUBSCRIBE", keys.finished_channel(SHARD, 0))
        self._listener.read_response()

    def close(self) -> None:
        """End both connections."""
        self._redis.disconnect()
        self._listener.disconnect()

    def do(self, operation: str, rng: Random) -> None:
        """Do one operation on both, and compare."""
        self.trail.append(operation)
        getattr(self, operation)(rng)
        self.check()

    # ---- operations: choose, call, expect

    def store(self, rng: Random) -> None:
        """New tasks of every kind, some of them under ids that are used already."""
        news = [self._new(rng) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.1:
            news.append(msgspec.structs.replace(self._new(rng), id=news[0].id))
        session = rng.choice(SESSIONS)
        answer = self._call(self._calls.store(SHARD, session, news, _nobody))
        room = {queue: QUEUE_LIMIT - self.model.head(queue)[0] for queue in QUEUES}
        self._first = {queue: self._first_in(queue, news, answer.now_ms) for queue in QUEUES}
        codes = [code + answer.firsts.get(n, "") for n, code in enumerate(answer.codes)]
        assert codes == [self._expect_stored(new, session, answer.now_ms, room) for new in news]
        self._expect_heads(answer.heads, {new.queue for new in news})

    def _first_in(self, queue: str, news: Sequence[NewTask], now: int) -> float:
        """The score that a new task must have to be claimed at once: better than all that is queued there already.

        It must also be as good as what the same call queues (or would queue, if it were not stored before).
        """
        count, head = self.model.head(queue)
        along = [new.level for new in news if new.queue == queue and not new.claim and -1 < new.due <= now]
        return min(head - 1 if count else float("inf"), now - max(along) * AGING_MS if along else float("inf"))

    def _new(self, rng: Random) -> NewTask:
        used_ids = list(self.model.tasks) + self._dropped
        again = used_ids and rng.random() < 0.15
        task_id = rng.choice(used_ids) if again else self._ids.next(1_700_000_000_000 + len(used_ids), SHARD)
        due = rng.choice((0, 0, 0, 0, 1, -1, -2, -LONG_MS, 4_000_000_000_000))
        queue, level, key = rng.choice(QUEUES), rng.randint(0, 9), rng.choice((None, "user:1"))
        wait_s = rng.choice((0.0, 0.001, 1000.0))
        backoff, retention_s = Backoff(wait_s, 2.0, 1e6), rng.choice((None, None, 0.0, 1e6))
        kind, attempts = rng.choice(("noop", "mail")), rng.randint(1, 3)
        spec = Spec(kind, queue, level, attempts, 60.0, backoff, key, retention_s)
        data = b'{"n": %d%s}' % (rng.randint(0, 9), b" " * rng.choice((0, 0, 0, APART_BYTES)))
        idempotency = rng.choice((*KEYS, "", "", "", ""))
        print_ = rng.choice(("f1", "f1", "f2 with space"))
        claim = due == 0 and rng.random() < 0.3
        return NewTask(
            *(task_id, SHARD, queue, level, due, spec, packed(spec), data, claim, idempotency, LONG_MS, print_),
            lambda *_: None,
            None,
            unique=rng.choice((*KEYS, "", "")) if idempotency else "",
            unique_ms=LONG_MS,
        )

    def _expect_stored(self, new: NewTask, session: str, now: int, room: dict[str, int]) -> str:
        if new.id in self.model.tasks:
            return "x"
        if new.idempotency in self.model.keys:
            first, print_ = self.model.keys[new.idempotency]
            return ("i" if print_ == new.fingerprint else "m") + first
        if new.unique in self.model.keys:
            first, _ = self.model.keys[new.unique]
            self.model.keys[new.idempotency] = (first, new.fingerprint)
            return "i" + first
        is_next = new.claim and now - new.level * AGING_MS <= self._first[new.queue]
        if 0 <= new.due <= now and not is_next and room[new.queue] <= 0:
            return "f"
        if new.idempotency:
            self.model.keys[new.idempotency] = (new.id, new.fingerprint)
        if new.unique:
            self.model.keys[new.unique] = (new.id, "")
        task = self.model.tasks[new.id] = Task(new.id, new.spec, new.data)
        due = now - new.due if new.due < 0 else new.due
        if due > now:
            task.state, task.due = "scheduled", due
            return "s"
        task.queued_at = now
        if is_next:
            self.model.take(task, session, now)
            return "c"
        room[new.queue] -= 1
        return "q"

    def claim(self, rng: Random) -> None:
        """A claim by any session, also by one that was reaped."""
        session, queue, limit = rng.choice(SESSIONS), rng.choice(QUEUES), rng.randint(1, 4)
        ready = self.model.ready(queue)
        highest = rng.choice(ready).score + rng.choice((-1, 0, 0, 1)) if ready and rng.random() < 0.4 else None
        answer = self._call(self._calls.claim(SHARD, queue, session, limit, highest, _nobody))
        assert self._times[0] <= answer.now_ms <= self._times[1]
        taken = [task for task in ready if highest is None or task.score <= highest][:limit]
        assert [claimed.id for claimed in answer.tasks] == [task.id for task in taken], "best first, within the limit"
        waits_s = [wait_s for tasks, wait_s in answer.waits for _ in range(tasks)]
        for task, claimed, wait_s in zip(taken, answer.tasks, waits_s, strict=True):
            self.model.take(task, session, answer.now_ms)
            assert (claimed.shard, claimed.session) == (SHARD, session)
            assert (claimed.delivery, claimed.attempt, claimed.lost) == (task.delivery, task.attempt, task.lost)
            assert (claimed.spec, claimed.data) == (task.spec, task.data)
            assert wait_s == (answer.now_ms - task.queued_at) / 1000
        assert (answer.left, answer.head_score) == self.model.head(queue)

    def settle(self, rng: Random) -> None:
        """Outcomes reported by one session: right, of another session, of an older delivery, twice, of a gone task."""
        session = rng.choice(SESSIONS)
        rows = []
        for _ in range(rng.randint(1, 4)):
            held = self.model.inflight[session if rng.random() < 0.8 else rng.choice(SESSIONS)]
            if held and rng.random() < 0.85:
                task_id, delivery = rng.choice(list(held.items()))
                delivery += rng.choice((0,) * 8 + (-1, 1))
            else:
                task_id = rng.choice([*self.model.tasks, *self._dropped, "unknown-1f"])
                delivery = self.model.tasks[task_id].delivery if task_id in self.model.tasks else 1
            kind = rng.choice("ssddrrgg")
            ms = rng.choice((0, 1, 2, LONG_MS))
            rows.append((task_id, delivery, kind, b"" if kind == "g" else _payload(rng, kind), ms))
            if rng.random() < 0.1:
                rows.append((task_id, delivery, rng.choice("sdrg"), b"1", ms))
        answer = self._call(self._calls.settle(SHARD, session, [_ended(*row) for row in rows], _nobody))
        codes = [code or answer.refused[n] for n, code in enumerate(answer.codes)]
        assert codes == [self._expect_settled(session, *row) for row in rows], rows

    def _expect_settled(self, session: str, task_id: str, delivery: int, kind: str, payload: bytes, ms: int) -> str:
        task = self.model.tasks.get(task_id)
        if self.model.inflight[session].get(task_id) != delivery:
            if task is not None and task.settled != delivery:
                task.remember("refused", delivery, session)
            return "gone" if task is None else "y" if task.settled == delivery else task.state
        assert task is not None
        assert (task_id, delivery) not in self.model.commits, "a delivery is committed once"
        self.model.commits.add((task_id, delivery))
        del self.model.inflight[session][task_id]
        task.settled = delivery
        if kind != "s":
            task.remember({"d": "dead", "r": "retrying", "g": "released"}[kind])
        if kind in "dr":
            task.error = payload
        if kind == "s":
            task.result = payload
            self.model.finish(task, "succeeded", self._time_of("done", task, ms), ms)
        elif kind == "d":
            self.model.finish(task, "dead", self._time_of("dead", task, ms), ms)
        elif kind == "r" or ms > 0:
            task.state, task.due = "retrying", self._time_of("scheduled", task, ms)
            task.attempt -= kind == "g"
        else:
            task.state = "queued"
            task.attempt -= 1
        return "1"

    def reap(self, rng: Random) -> None:
        """Reap a session, as after a fence; it may claim again and be reaped again."""
        session, limit, jitter = rng.choice(SESSIONS), rng.choice((1, 2, 256, 256)), rng.random()
        claimed_at = [self.model.tasks[task_id].claimed_at for task_id in self.model.inflight[session]]
        fenced_ms = rng.choice((keys.UNDATED_MS, *claimed_at, *(at - 1 for at in claimed_at)))
        call = self._calls.reap(SHARD, session, jitter, _nobody, fenced_ms)
        assert call.args[4] == 256
        call.args[4] = limit
        answer = self._call(call)
        assert answer.lost == [], "no task here has a trace context"
        held = self.model.inflight[session]
        still = {raw.decode() for raw in self._talk([("HKEYS", keys.inflight(SHARD, session))])[0]}
        taken = [self.model.tasks[task_id] for task_id in held if task_id not in still]
        assert len(taken) == min(limit, len(held))
        assert answer.left == len(held) - len(taken)
        moved = {"queued": 0, "retrying": 0, "dead": 0}
        order = [raw.decode() for raw in self._published(len(self.model.published))]
        for task in sorted(taken, key=lambda t: order.index(t.id) if t.id in order else -1):
            del held[task.id]
            if task.claimed_at > fenced_ms:  # it never started
                task.remember("released")
                task.state = "queued"
                task.attempt -= 1
                moved["queued"] += 1
                continue
            task.lost += 1
            task.remember("dead" if task.attempt >= task.spec.max_attempts else "lost")
            if task.attempt >= task.spec.max_attempts:
                task.error = WORKER_LOST
                ms = _retention(task, LONG_MS)
                self.model.finish(task, "dead", self._time_of("dead", task, ms), ms)
            elif task.lost == 1:
                task.state = "queued"
            else:
                most_ms = int(1000 * task.spec.backoff.base_s * 2.0 ** (task.lost - 2))
                task.state, task.due = "retrying", self._time_of("scheduled", task, 0, most_ms)
            moved[task.state] += 1
        assert (answer.queued, answer.scheduled, len(answer.dead)) == tuple(moved.values())
        assert sorted(answer.dead) == sorted(task.spec.type for task in taken if task.state == "dead")
        self._expect_heads(answer.heads, {task.spec.queue for task in taken if task.state == "queued"})

    def cancel(self, rng: Random) -> None:
        """Cancel a task in any state, or an id without a task."""
        task_id = rng.choice([*self.model.tasks, *self._dropped, "unknown-1f"])
        ms = rng.choice((0, 1, LONG_MS))
        answer = self._call(self._calls.cancel(SHARD, task_id, ms, _nobody))
        task = self.model.tasks.get(task_id)
        if task is None or task.state in TERMINAL:
            assert (answer.was, answer.session, answer.delivery) == (task.state if task else None, "", 0)
            return
        is_running = task.state == "running"
        assert (answer.was, answer.session) == (task.state, task.session if is_running else "")
        assert answer.delivery == task.delivery
        if is_running:
            del self.model.inflight[task.session][task_id]
        task.remember("cancelled")
        self._cancelled(task, ms)

    def _cancelled(self, task: Task, ms: int) -> None:
        ms = _retention(task, ms)
        self.model.finish(task, "cancelled", self._time_of("cancelled", task, ms), ms)

    def replay(self, rng: Random) -> None:
        """Replay dead and cancelled tasks, and some that are neither."""
        ended = [task.id for task in self.model.where("dead", "cancelled")]
        ids = [rng.choice(ended or ["unknown-1f"]) for _ in range(rng.randint(1, 3))]
        ids.append(rng.choice([*self.model.tasks, *self._dropped, "unknown-1f"]))
        answer = self._call(self._calls.replay(SHARD, ids, _nobody))
        queued, refused, queues = 0, {}, set()
        for n, task_id in enumerate(ids):
            task = self.model.tasks.get(task_id)
            if task is None or task.state not in ("dead", "cancelled"):
                refused[n] = task.state if task else None
                continue
            task.remember("replayed")
            task.session = ""
            task.state, task.attempt, task.lost, task.result, task.progress = "queued", 0, 0, None, None
            task.error = None
            queues.add(task.spec.queue)
            (fields,) = self._read([task_id])
            assert fields is not None
            assert fields.queued_at is not None
            task.queued_at = fields.queued_at
            assert self._times[0] <= task.queued_at <= self._times[1]
            queued += 1
        assert (answer.queued, answer.refused) == (queued, refused)
        self._expect_heads(answer.heads, queues)

    def sweep(self, rng: Random, age_ms: int | None = None) -> None:
        """Promote and drop, often in small steps."""
        age_ms = rng.choice((-1, -1, -1, 0, 2, LONG_MS)) if age_ms is None else age_ms
        call = self._calls.sweep(SHARD, age_ms, _nobody)
        assert call.args[3] == 256
        assert call.args[5:] == [256, SERVED]
        limit = call.args[3] = rng.choice((1, 2, 256, 256))
        names = call.args[5] = rng.choice((1, 256, 256))
        known = {raw.decode() for raw in self._talk([("SMEMBERS", keys.queues(SHARD))])[0]}
        answer = self._call(call)
        by_due = sorted(self.model.where("scheduled", "retrying"), key=lambda t: (t.due, t.id))
        due = [task for task in by_due if task.due is not None and task.due <= answer.now_ms][:limit]
        assert answer.promoted == len(due)
        for task in due:
            task.state, task.queued_at = "queued", answer.now_ms
        most = 0
        for state in TERMINAL:
            old = sorted((t for t in self.model.where(state)), key=lambda t: (t.drop_at, t.id))[:limit]
            ended_by = -1 if state == "dead" or age_ms < 0 else answer.now_ms - age_ms
            old = [t for t in old if t.ended_at <= ended_by or (t.drop_at is not None and t.drop_at <= answer.now_ms)]
            most = max(most, len(old))
            for task in old:
                del self.model.tasks[task.id]
                self._dropped.append(task.id)
                self.model.commits -= {commit for commit in self.model.commits if commit[0] == task.id}
        assert answer.dropped == most
        assert answer.next_due_ms == min((t.due or 0 for t in self.model.where("scheduled", "retrying")), default=0)
        assert sorted(answer.sessions) == sorted(s for s, held in self.model.inflight.items() if held)
        queues = {head.queue for head in answer.heads}
        queued = {task.spec.queue for task in self.model.where("queued")}
        known |= {task.spec.queue for task in due}
        assert answer.has_all_heads == (len(known) <= names)
        assert SERVED in queues
        if answer.has_all_heads:
            assert queued <= queues
            left = {raw.decode() for raw in self._talk([("SMEMBERS", keys.queues(SHARD))])[0]}
            assert queued <= left <= queued | {SERVED}
        self._expect_heads(answer.heads, queues)

    def progress(self, rng: Random) -> None:
        """Keep a running task's progress, but not that of another delivery."""
        session = rng.choice(SESSIONS)
        task_id = rng.choice([*self.model.tasks, *self._dropped, "unknown-1f"])
        delivery = rng.choice((1, 2, self.model.inflight[session].get(task_id, 3)))
        value = b"%d" % rng.randint(0, 9)
        kept = self._call(self._calls.progress(SHARD, session, task_id, delivery, value, _nobody))
        assert kept == (self.model.inflight[session].get(task_id) == delivery)
        if kept:
            self.model.tasks[task_id].progress = value

    def counts(self, rng: Random) -> None:
        """Count the tasks of each state, or list the ids in flight."""
        held = {session: sorted(ids) for session, ids in self.model.inflight.items() if ids}
        if rng.random() < 0.5:
            running = self._call(self._calls.running(SHARD, _nobody))
            assert {session: sorted(ids) for session, ids in running.items()} == held
            return
        answer = self._call(self._calls.counts(SHARD, _nobody))
        assert answer.states == {
            **{
                state: len(self.model.where(state))
                for state in ("scheduled", "retrying", "waiting", "succeeded", "dead", "cancelled")
            },
            "running": sum(map(len, held.values())),
        }
        assert {queue: count for queue, count in answer.queues.items() if count} == {
            queue: len(self.model.ready(queue)) for queue in QUEUES if self.model.ready(queue)
        }
        for queue, ready in ((queue, self.model.ready(queue)) for queue in QUEUES):
            if len(ready) <= 8:
                oldest_ms = min((task.queued_at or 0 for task in ready), default=None)
                ages = [0.0 if oldest_ms is None else (at - oldest_ms) / 1000 for at in self._times]
                assert ages[0] <= answer.oldest_s.get(queue, 0.0) <= ages[1]

    def list(self, rng: Random) -> None:
        """Page through everything, or through one state, one type, one key."""
        state = rng.choice(("", "", "queued", "running", "dead", "cancelled", "succeeded", "scheduled", "retrying"))
        kind, key = rng.choice(("", "", "mail")), rng.choice(("", "", "user:1"))
        limit, scan = rng.randint(1, 3), rng.choice((1, 2, 5, 1000))
        zset = {"scheduled": "scheduled", "retrying": "scheduled", **TERMINAL}.get(state)
        source = getattr(keys, zset)(SHARD) if zset else None
        listed: list[str] = []
        before, pages = "", 0
        while True:
            answer = self._call(self._calls.listing(SHARD, source, before, limit, scan, (state, kind, key), _nobody))
            assert len(answer.rows) <= limit
            listed += [task_id for _, task_id in answer.rows]
            pages += 1
            if not answer.reached:
                break
            assert answer.reached != before, "every call gets on"
            before = answer.reached
        expected = [
            task
            for task in self.model.tasks.values()
            if state in ("", task.state) and kind in ("", task.spec.type) and key in ("", task.spec.key)
        ]
        if zset:
            expected.sort(key=lambda t: (t.due if zset == "scheduled" else t.drop_at, t.id), reverse=True)
        else:
            expected.sort(key=lambda t: t.id, reverse=True)
        assert listed == [task.id for task in expected], (state, kind, key, limit, scan, pages)

    def purge(self, _: Random) -> None:
        """Purge the dead letter queue: the next sweep drops its tasks."""
        dead = self.model.where("dead")
        assert self._call(self._calls.purge(SHARD, _nobody)) == len(dead)
        for task in dead:
            task.drop_at = 0

    def late(self, rng: Random) -> None:
        """A call that comes a moment too late is refused; `check` sees that it changed nothing."""
        ids = [*self.model.tasks, *self._dropped, "unknown-1f"]
        session, task_id, queue = rng.choice(SESSIONS), rng.choice(ids), rng.choice(QUEUES)
        delivery = self.model.inflight[session].get(task_id, 1)
        call: Call[Any] = rng.choice(
            (
                self._calls.store(SHARD, session, [self._new(rng)], _nobody),
                self._calls.claim(SHARD, queue, session, 4, None, _nobody),
                self._calls.reap(SHARD, session, 0.5, _nobody),
                self._calls.cancel(SHARD, task_id, 1, _nobody),
                self._calls.replay(SHARD, ids[:BATCH_MAX], _nobody),
                self._calls.purge(SHARD, _nobody),
                self._calls.sweep(SHARD, 0, _nobody),
                self._calls.progress(SHARD, session, task_id, delivery, b"0", _nobody),
            )
        )
        now_ms = _ms(self._talk([("TIME",)])[0])
        time, reply = self._talk([("TIME",), call.command(now_ms - 1)])
        assert isinstance(reply, ResponseError)
        assert int(str(reply).removeprefix("LATE ")) >= _ms(time)

    def forget_key(self, rng: Random) -> None:
        """Let the time of an Idempotency-Key be up."""
        key = rng.choice(KEYS)
        self._talk([("DEL", keys.idempotency(SHARD, key))])
        self.model.keys.pop(key, None)

    def rest(self, _: Random) -> None:
        """Wait until tasks that are due in a moment are due."""
        sleep(0.003)

    # ---- the end

    def drop_everything(self) -> None:
        """Cancel all tasks that have not ended, and drop all: only names of queues that are served stay."""
        for task in list(self.model.tasks.values()):
            if task.state not in TERMINAL:
                self._call(self._calls.cancel(SHARD, task.id, 0, _nobody))
                if task.state == "running":
                    del self.model.inflight[task.session][task.id]
                task.remember("cancelled")
                self._cancelled(task, 0)
        self.check()
        rng = Random(1)
        self.purge(rng)
        while self.model.tasks:
            self.sweep(rng, 0)
        while self._talk([("SISMEMBER", keys.queues(SHARD), "qa")]) == [1]:
            self.sweep(rng, 0)
        self._talk([("DEL", *(keys.idempotency(SHARD, key) for key in KEYS))])
        self.model.keys.clear()
        self.check()
        left = {raw.decode() for raw in self._talk([("KEYS", "*")])[0]}
        assert left <= {keys.queues(SHARD)}
        assert [raw.decode() for raw in self._published(0)] == self.model.published, "each end was told, in order"

    # ---- comparing

    def check(self) -> None:
        """Compare every key with the model and the invariants."""
        names = [raw.decode() for raw in self._talk([("KEYS", "*")])[0]]
        reads, places = [], dict[str, list[str]]()
        buckets: dict[str, set[str]] = {}
        inflight: dict[str, dict[str, int]] = {}
        sets: dict[str, set[str]] = {}
        mappings: dict[str, tuple[str, str]] = {}
        for name in names:
            kind = name.removeprefix(keys.tag(SHARD) + ":").partition(":")[0]
            assert name.startswith(keys.tag(SHARD)), name
            reads.append((READS[kind], name, *(("0", "-1", "WITHSCORES") if READS[kind] == "ZRANGE" else ())))
        for name, reply in zip(names, self._talk(reads), strict=True):
            kind, _, rest = name.removeprefix(keys.tag(SHARD) + ":").partition(":")
            if kind == "tasks":
                buckets[rest] = {raw.decode() for raw in reply} - {NOTE}
            elif kind == "inflight":
                inflight[rest] = {reply[n].decode(): int(reply[n + 1].split()[1]) for n in range(0, len(reply), 2)}
                for task_id in inflight[rest]:
                    places.setdefault(task_id, []).append(f"inflight:{rest}")
            elif kind == "idem":
                first, _, print_ = reply.decode().partition(" ")
                mappings[rest] = (first, print_)
            elif READS[kind] == "SMEMBERS":
                sets[kind] = {raw.decode() for raw in reply}
            else:
                ids = {reply[n].decode(): int(float(reply[n + 1])) for n in range(0, len(reply), 2)}
                sets[kind] = sets.get(kind, set()) | set(ids)
                for task_id, score in ids.items() if kind != "buckets" else ():
                    places.setdefault(task_id, []).append(f"{kind}:{rest}@{score}" if rest else f"{kind}@{score}")
        model = self.model
        assert places == {task.id: [_place(task)] for task in model.tasks.values()}
        assert set(buckets) == sets.get("buckets", set())
        for name, fields in buckets.items():
            of = {field_name[:ID_CHARS] for field_name in fields}
            assert all(task_id.startswith(name) for task_id in of)
            assert of <= fields
            assert of <= set(model.tasks), "no field is left of a task that was dropped"
        assert {name[:ID_CHARS] for of in buckets.values() for name in of} == set(model.tasks)
        assert inflight == {session: held for session, held in model.inflight.items() if held}
        assert sets.get("sessions", set()) == set(inflight)
        assert sets.get("retrying", set()) == {task.id for task in model.where("retrying")}
        assert mappings == model.keys
        assert sets.get("queues", set()) >= {task.spec.queue for task in model.where("queued")}
        for task, stored in zip(model.tasks.values(), self._read(list(model.tasks)), strict=True):
            assert stored is not None
            _compare(task, stored)

    def read(self, rng: Random) -> None:
        """Read the rows of a list: like whole tasks, without what has a field of its own; None for one that is gone."""
        ids = [*self.model.tasks, *self._dropped[-3:]]
        rng.shuffle(ids)
        rows = self._call(self._calls.read_rows(SHARD, ids[:BATCH_MAX], False, _nobody)) if ids else []
        for task_id, row, whole in zip(ids, rows, self._read(ids), strict=True):
            task = self.model.tasks.get(task_id)
            if task is None:
                assert row is whole is None
                continue
            assert row is not None
            assert whole is not None
            assert row.data == (task.data if len(task.data) <= APART_BYTES else None)
            expected = whole._replace(data=row.data, progress=None, history=b"")
            if len(whole.result or b"") > APART_BYTES or len(whole.error or b"") > APART_BYTES:
                expected = expected._replace(result=None, error=None)
            assert row == expected

    def _read(self, ids: Sequence[str]) -> list[TaskFields | None]:
        reads = [self._calls.read(SHARD, task_id, _nobody) for task_id in ids]
        replies = self._talk([call.command() for call in reads])
        return [call.decode(reply) for call, reply in zip(reads, replies, strict=True)]

    def _expect_heads(self, heads: Sequence[QueueHead], queues: set[str]) -> None:
        assert {head.queue: (head.count, head.score) for head in heads} == {
            queue: self.model.head(queue) for queue in queues
        }

    def _time_of(self, zset: str, task: Task, ms: int, most_ms: int | None = None) -> int:
        """The score that a script gave a task: its own time, which lies within the call, plus `ms` (to `most_ms`)."""
        score = int(float(self._talk([("ZSCORE", getattr(keys, zset)(SHARD), task.id)])[0]))
        assert self._times[0] + ms <= score <= self._times[1] + max(ms, most_ms or 0)
        return score

    def _published(self, after: int) -> list[bytes]:
        """The ids that the scripts have published as finished, from the n-th on."""
        while self._listener.can_read(timeout=0):
            self._finished += self._listener.read_response()[2].split(b" ")
        return self._finished[after:]

    def _call(self, call: Call[T]) -> T:
        before, reply, after = self._talk([("TIME",), call.command(), ("TIME",)])
        self._times = (_ms(before), _ms(after))
        if isinstance(reply, Exception):
            raise reply
        return call.decode(reply)

    def _talk(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        self._redis.send_packed_command([pack_command(command) for command in commands])
        return [self._reply() for _ in commands]

    def _reply(self) -> Any:
        try:
            return self._redis.read_response()
        except ResponseError as error:
            return error


def _compare(task: Task, fields: TaskFields) -> None:
    """What Redis says of a task against what the model says."""
    assert fields.state == task.state
    assert (fields.attempt, fields.delivery) == (task.attempt, task.delivery)
    assert (fields.spec, fields.data) == (task.spec, task.data)
    assert fields.progress == task.progress
    history = history_json(fields.history)
    assert [(a.outcome, a.attempt or 0, a.delivery, a.session or "") for a in history] == task.history
    if task.state in ("queued", "running"):
        assert fields.queued_at == task.queued_at
    if task.state == "running":
        assert fields.node_id == node_of(task.session)
        assert fields.started_at is not None
    if task.state in ("scheduled", "retrying"):
        assert fields.due == task.due
    if task.state == "succeeded":
        assert fields.result == (task.result or None)
    else:
        error = WORKER_LOST if b"WorkerLost" in (fields.error or b"") else fields.error
        assert (fields.result, error) == (None, task.error)
    if task.state in TERMINAL:
        assert fields.finished_at == task.ended_at
    assert shard_of(task.id, SHARDS) == SHARD


READS = {  # every kind of key that a shard may have
    "tasks": "HKEYS",
    "inflight": "HGETALL",
    "idem": "GET",
    "queues": "SMEMBERS",
    "retrying": "SMEMBERS",
    "sessions": "SMEMBERS",
    **dict.fromkeys(("ready", "scheduled", "done", "dead", "cancelled", "buckets"), "ZRANGE"),
}


def _retention(task: Task, ms: int) -> int:
    """The task's own retention counts, but not below the shortest stay of all tasks."""
    own = task.spec.retention_s
    return ms if own is None else max(int(1000 * own), int(1000 * RETENTION_MIN_S))


def _place(task: Task) -> str:
    """The one place where a task in this state stands."""
    if task.state == "queued":
        return f"ready:{task.spec.queue}@{task.score}"
    if task.state == "running":
        return f"inflight:{task.session}"
    if task.state in TERMINAL:
        return f"{TERMINAL[task.state]}@{task.drop_at}"
    return f"scheduled@{task.due}"


def _ms(time: Sequence[bytes]) -> int:
    return int(time[0]) * 1000 + int(time[1]) // 1000


def _ended(task_id: str, delivery: int, kind: str, payload: bytes, ms: int) -> Settlement:
    return Settlement(Claimed(task_id, SHARD, delivery, 0, ANY_SPEC, b""), SettleKind(kind), payload, ms)


def _payload(rng: Random, kind: str) -> bytes:
    """A result or an error; some are so large that they have a field of their own, and some results are null."""
    small = b'"%d"' % rng.randint(0, 99)
    return rng.choice((small, b"" if kind == "s" else small, b'"%s"' % (b"x" * APART_BYTES)))


def _nobody(_: Any) -> None:
    """Do nothing: `_call` reads the answer itself."""
