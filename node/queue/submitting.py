"""Submitting: from what a client sent to a task in its shard.

A task's id, and with it the shard, is fixed before the first call to Redis, and storing is idempotent on it, so a
repeated or forwarded call cannot make two. `key`, else the `unique_for_s` fingerprint, else the Idempotency-Key chooses
the shard, so that the mappings and the task are written by one script; anything else is placed by load.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import msgspec
from msgspec import Raw
from redis.exceptions import OutOfMemoryError

from cluster.config import Config
from cluster.errors import IdempotencyConflict, Invalid, QueueFull, RumorError, StoreUnavailable, away, refused
from cluster.session import node_of
from cluster.shards.calls import NewTask
from cluster.shards.task import LEVELS, Backoff, Claimed, Ids, Spec, State, shard_of
from node.observe.metrics import Metrics
from node.queue.catalog import Catalog, Known
from node.queue.dispatch import Dispatcher
from node.queue.placement import Placement, shard_of_key
from node.queue.queries import carry
from node.schema import BackoffJson, Submission, Submitted, TaskJson, run_at_ms

SLICE = 256  # tasks of a batch prepared in one turn of the loop
TOGETHER_MAX = 16  # single submissions of one turn of the loop that go to one shard, in one script

_encode_spec = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder(order="deterministic").encode
_NULL = Raw(b"null")


Result = Submitted | RumorError


class Submitting:
    """One node's way in."""

    def __init__(
        self, config: Config, dispatch: Dispatcher, catalog: Catalog, placement: Placement, metrics: Metrics
    ) -> None:
        self._config = config
        self._dispatch = dispatch
        self._catalog = catalog
        self._placement = placement
        self._metrics = metrics
        self._ids = Ids()
        self._together: dict[str, tuple[int, int]] = {}  # queue -> (shard, how many more of this turn go there)

    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: Sequence[str] | None,
        ids: Sequence[str] | None,
        trace: str | None,
        own_load: dict[str, int],
    ) -> list[Result]:
        """Store what can be stored; in order. Raises StoreUnavailable, with `ids` to forward under."""
        batch = _Batch(len(items))
        is_up = self._dispatch.is_up
        wall_ms = time.time_ns() // 1_000_000
        chunk = self._chunk(batch.size)
        for n, item in enumerate(items):
            if n % SLICE == 0 and n:
                await asyncio.sleep(0)  # a large batch must not hold the loop: others' answers are waiting
            if isinstance(item, RumorError):
                batch.results[n] = item
                continue
            task_id = ids[n] if ids else None
            key = idempotency_keys[n] if idempotency_keys else None
            try:
                new = self._prepare(n, item, batch, key, task_id, trace, own_load, wall_ms, chunk)
            except RumorError as error:
                batch.results[n] = error
                continue
            batch.ids[n] = new.id
            batch.waiting += 1
            if is_up:
                self._dispatch.store(new)
            else:
                new.on_code(new, away(storing=True), 0)
        await batch.wait()
        failure = batch.failure
        if failure is not None:  # an error of its own: a group's failure is one object for all whose calls were in it
            maybe = batch.maybe or batch.stored > 0
            raise StoreUnavailable(failure.message, failure.hint, maybe, batch.ids) from failure
        self._metrics.accepted.add(batch.stored)
        return [result for result in batch.results if result is not None]

    def _chunk(self, size: int) -> dict[str, tuple[int, int]]:
        """Where the tasks of a submission go next: by queue, a shard and how many more go there.

        A batch has its own. Single submissions that arrive in the same turn of the loop share one, so that many
        clients cost few scripts.
        """
        if size > 1:
            return {}
        if not self._together:
            asyncio.get_running_loop().call_soon(self._together.clear)
        return self._together

    def _prepare(
        self,
        n: int,
        item: Submission,
        batch: _Batch,
        idempotency_key: str | None,
        task_id: str | None,
        trace: str | None,
        own_load: dict[str, int],
        wall_ms: int,
        chunk: dict[str, tuple[int, int]],
    ) -> NewTask:
        known = self._catalog.get(item.type)
        if known is None:
            raise self._catalog.unknown(item.type)
        spec, spec_bytes = self._spec(known, item, trace)
        queue = spec.queue
        due = _due(item)
        idempotency, lifetime_s, print_, unique = "", 0.0, "", ""
        if item.unique_for_s is not None:
            idempotency = unique = _unique(item)
            lifetime_s = item.unique_for_s
        elif item.unique_key is not None:
            raise Invalid("unique_key is given and unique_for_s is not.", "Say for how long: unique_for_s.")
        if idempotency_key is not None:
            idempotency = idempotency_key
            lifetime_s, print_ = self._config.idempotency_s, _fingerprint(item)

        shards = self._config.shards
        claim = False
        if task_id is not None:
            given = shard_of(task_id, shards)
            if given is None:
                raise Invalid(f"{task_id!r} is not an id of this cluster.", "Let the gateway choose the id.")
            shard = given
        else:
            if item.key is not None:
                shard = shard_of_key(item.key, shards)
            elif idempotency:
                shard = shard_of_key(unique or idempotency, shards)  # Both names stand beside the task.
            else:
                shard, left = chunk.get(queue, (0, 0))
                if left == 0:
                    left = self._placement.chunk_size(batch.size, queue) if batch.size > 1 else TOGETHER_MAX
                    node, shard = self._placement.choose(queue, own_load, batch.size > 1)
                    if node == self._placement.me:
                        own_load[queue] = own_load.get(queue, 0) + left
                chunk[queue] = (shard, left - 1)
                self._placement.placed(queue, shard, 1)
            task_id = self._ids.next(wall_ms, shard)
            if due == 0 and shard in self._placement.mine:
                claim = self._dispatch.reserve(queue)
        task = TaskJson(
            id=task_id,
            type=item.type,
            state=State.QUEUED,
            submitted_at_ms=wall_ms,
            queue=queue,
            priority=spec.level,
            data=item.data,
            attempt=0,
            max_attempts=spec.max_attempts,
            delivery=0,
            key=item.key,
        )
        if trace is not None:
            carry(task, trace)
        return NewTask(
            id=task_id,
            shard=shard,
            queue=queue,
            level=spec.level,
            due=due,
            spec=spec,
            spec_bytes=spec_bytes,
            data=bytes(item.data),
            claim=claim,
            idempotency=idempotency,
            idempotency_ms=max(1, int(lifetime_s * 1000)),
            fingerprint=print_,
            on_code=self._on_code,
            more=(n, batch, task),
            unique=unique if idempotency_key is not None else "",
            unique_ms=max(1, int((item.unique_for_s or 0.0) * 1000)),
        )

    def _spec(self, known: Known, item: Submission, trace: str | None) -> tuple[Spec, bytes]:
        if (
            item.queue is None
            and item.priority is None
            and item.max_attempts is None
            and item.timeout_s is None
            and item.backoff is None
            and item.key is None
            and item.retention_s is None
            and trace is None
        ):
            return known.spec, known.spec_bytes
        entry = known.entry
        level = entry.level
        if item.priority is not None:
            level = LEVELS[item.priority] if isinstance(item.priority, str) else item.priority
        spec = Spec(
            item.type,
            item.queue or entry.queue,
            level,
            entry.max_attempts if item.max_attempts is None else item.max_attempts,
            entry.timeout_s if item.timeout_s is None else item.timeout_s,
            entry.backoff if item.backoff is None else _backoff(entry.backoff, item.backoff),
            item.key,
            item.retention_s,
            trace,
        )
        return spec, _encode_spec(spec)

    def _on_code(self, new: NewTask, code: str | Exception, now_ms: int) -> None:
        """What became of one task: start it, answer it, or say why not."""
        n, batch, task = new.more
        if new.claim:
            self._dispatch.release(new.queue)
        if isinstance(code, StoreUnavailable):
            batch.failure = code
            batch.maybe |= code.may_have_happened
        elif isinstance(code, Exception):
            batch.results[n] = (
                QueueFull("Redis is out of memory and refuses to store.", "Raise maxmemory or shorten retention_s.")
                if isinstance(code, OutOfMemoryError)
                else refused(code)
            )
        elif code == "c":
            session = self._dispatch.session
            task.state, task.attempt, task.delivery = State.RUNNING, 1, 1
            task.queued_at_ms = task.started_at_ms = now_ms
            task.node_id = node_of(session)
            self._metrics.claims.add("submission")
            self._dispatch.begin([Claimed(task.id, new.shard, 1, 1, new.spec, new.data, session)])
            batch.new(n, task)
        elif code == "q":
            task.queued_at_ms = now_ms
            batch.new(n, task)
        elif code == "s":
            task.state = State.SCHEDULED
            task.run_at_ms = new.due if new.due > 0 else now_ms - new.due
            self._dispatch.on_due(new.shard, (task.run_at_ms - now_ms) / 1000)
            batch.new(n, task)
        elif code == "x":
            # Stored by an earlier try of this very submission: the caller is answered as it would have been then.
            batch.results[n] = Submitted(task, True)
        elif code == "f":
            batch.results[n] = QueueFull(
                f"queue {new.queue!r} holds {self._config.queue_limit} tasks in one shard, its limit.",
                "Add nodes, or raise queue_limit.",
            )
        elif code[0] == "i":
            task.id = code[1:]
            batch.results[n] = Submitted(task, False)
        else:
            batch.results[n] = IdempotencyConflict(
                f"this Idempotency-Key already stands for task {code[1:]}, with another body.",
                "Use a new key for a new task.",
            )
        batch.one_less()


class _Batch:
    """What one call to submit waits for."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.results: list[Result | None] = [None] * size
        self.ids = [""] * size
        self.waiting = 1  # answers to come, and the end of the preparing
        self.stored = 0
        self.failure: StoreUnavailable | None = None
        self.maybe = False  # whether any call that failed may have been carried out
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def new(self, n: int, task: TaskJson) -> None:
        self.results[n] = Submitted(task, True)
        self.stored += 1

    def one_less(self) -> None:
        self.waiting -= 1
        if self.waiting == 0 and not self._done.done():  # done: whoever waited has given up
            self._done.set_result(None)

    async def wait(self) -> None:
        self.one_less()
        await self._done


def _due(item: Submission) -> int:
    """As store.lua takes it: 0 now, < 0 that many ms from now, > 0 at that ms."""
    if item.run_at is not None:
        if item.delay_s is not None:
            raise Invalid("delay_s and run_at are both given.", "Give one of them.")
        return max(1, run_at_ms(item.run_at))
    return -int(item.delay_s * 1000) if item.delay_s else 0


def _backoff(default: Backoff, given: BackoffJson) -> Backoff:
    return Backoff(
        default.base_s if given.base_s is None else given.base_s,
        default.factor if given.factor is None else given.factor,
        default.max_s if given.max_s is None else given.max_s,
    )


def _fingerprint(item: Submission) -> str:
    """Tells whether two submissions under one Idempotency-Key are the same: their meaning, not their spelling."""
    rest = msgspec.structs.replace(item, data=_NULL)
    canonical = _encode_json([rest, msgspec.json.decode(item.data)])
    return hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _unique(item: Submission) -> str:
    what = item.unique_key if item.unique_key is not None else _encode_json(msgspec.json.decode(item.data)).decode()
    return "unique:" + hashlib.blake2b(f"{item.type}\0{what}".encode(), digest_size=16).hexdigest()
