"""Submitting: from a client's submission to a task in its shard.

A task gets its id, and with it its shard, before the first call to Redis, and store.lua stores an id once: a repeated
or forwarded call cannot make two tasks. So if the connection drops under way, this module stores once more over the
next one. A name chooses the shard (`names`), so that one script can write the task and the mappings to it. Load places
tasks without one, and those of a batch under one Idempotency-Key: `keyed_batches` has their ids.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial

from redis.exceptions import OutOfMemoryError

from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import Invalid, QueueFull, RumorError, StoreUnavailable, refused
from cluster.session import node_of
from cluster.shards.answers import StoreCode
from cluster.shards.calls import NewTask
from cluster.shards.shards import Shards
from cluster.shards.task import BUCKET_MS, LEVELS, TERMINAL, Backoff, Claimed, Ids, Spec, State, packed, shard_of
from node.observe.metrics import Metrics
from node.queue.batch_plan import Fate
from node.queue.catalog import Catalog, TaskType
from node.queue.dispatch import Dispatcher
from node.queue.key_homes import KeyHomes
from node.queue.keyed_batches import SLICE, Keyed, KeyedBatches
from node.queue.names import conflict, names_of
from node.queue.placement import Placement, shard_of_key
from node.queue.queries import Queries, carry
from node.queue.waiters import Held, Waiters
from node.schema import BackoffJson, BatchKey, IdempotencyKeys, Submission, Submitted, TaskJson, run_at_ms
from node.work.worker import New

CROWD = 512  # ids that a batch makes for one shard before it dates them later
AGAIN_WITHIN_S = 0.5  # time for storing again after a connection dropped; a peer needs the rest of a second
AGAIN_MAX = 3  # tries in that time: each lane may find anew that its connection is gone
TOGETHER_MAX = 16  # single submissions of one turn of the loop that go to one shard, by one script

_QUEUED = State.QUEUED  # bound once, as every submission needs it: `Enum.MEMBER` costs 0.1 us each time in Python 3.11
_STORE, _ALONE = Fate.STORE, Fate.ALONE
_CODE_CLAIMED, _CODE_QUEUED = StoreCode.CLAIMED, StoreCode.QUEUED

Result = Submitted | RumorError


class Submitting:
    """One node's way from submissions to stored tasks."""

    def __init__(
        self,
        config: Config,
        shards: Shards,
        dispatch: Dispatcher,
        catalog: Catalog,
        placement: Placement,
        metrics: Metrics,
        waiters: Waiters,
        queries: Queries,
    ) -> None:
        self._config = config
        self._shards = shards
        self._dispatch = dispatch
        self._catalog = catalog
        self._placement = placement
        self._metrics = metrics
        self._waiters = waiters
        self._queries = queries
        self._ids = Ids()
        self._keyed = KeyedBatches(config, shards, catalog, self._ids)
        self._homes = KeyHomes(config, shards, dispatch.store)
        self._key_ms = max(1, int(config.idempotency_s * 1000))
        self._together: dict[str, tuple[int, int]] = {}  # queue -> (shard, how many more of this turn's go there)

    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        keys: IdempotencyKeys,
        ids: Sequence[str] | None,
        trace: str | None,
        own_load: dict[str, int],
        hold_s: float = 0.0,
    ) -> list[Result]:
        """Store the submissions; a result for each, in order. Raises StoreUnavailable, with `ids` to forward under.

        `hold_s`: a single task that begins here is the result once it has ended, or as it began after that time.
        """
        try:
            return await self._submit_once(items, keys, ids, trace, own_load, hold_s)
        except StoreUnavailable as error:
            failure = error
        if isinstance(keys, BatchKey) and not keys.is_lines:
            keys = keys.going_on([True] * len(items), failure.plan)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_WITHIN_S):
                for _ in range(AGAIN_MAX):
                    if not await self._shards.comes_back():
                        break
                    # Redis may have stored it before. Under the same ids, it is stored once.
                    was_doubtful, failure.may_have_happened = failure.may_have_happened, True
                    try:
                        return await self._submit_once(items, keys, failure.ids, trace, own_load, hold_s)
                    except StoreUnavailable as error:
                        failure = error
                        failure.may_have_happened |= was_doubtful
        raise failure

    async def _submit_once(
        self,
        items: Sequence[Submission | RumorError],
        keys: IdempotencyKeys,
        ids: Sequence[str] | None,
        trace: str | None,
        own_load: dict[str, int],
        hold_s: float,
    ) -> list[Result]:
        """The same without a second try."""
        batch = _Batch(len(items), own_load, trace, self._chunk(len(items)), hold_s)
        keyed: Keyed | None = None
        singly: Sequence[str] | None = None
        obstacle = None if self._shards.is_up else self._shards.away(storing=True)
        if not isinstance(keys, BatchKey):
            singly = keys
        elif keys.is_lines:
            singly = [keys.of(n) for n in range(len(items))]
            obstacle = obstacle or await self._homes.take_for_lines(keys.key, self._key_ms)
        else:
            keyed = await self._keyed.agree(keys, items, batch.wall_ms, partial(self._place, batch=batch))
            batch.has_plan = True
        for n, item in enumerate(items):
            if n % SLICE == 0:
                if n:
                    await asyncio.sleep(0)  # a large batch must not hold up the loop: other clients wait for answers
                if keyed is not None:
                    obstacle = obstacle or keyed.obstacle
            if isinstance(item, RumorError):
                batch.results[n] = item
                continue
            task_id = ids[n] or None if ids else None
            try:
                if keyed is not None:
                    new = self._prepare_keyed(n, item, batch, keyed, task_id)
                else:
                    new = self._prepare(n, item, batch, singly[n] if singly else None, task_id)
            except RumorError as error:
                batch.results[n] = error
                continue
            batch.ids[n] = new.id
            if batch.results[n] is not None:
                continue
            batch.waiting += 1
            if obstacle is not None:
                new.on_code(new, obstacle, 0, "")
            elif new.fingerprint and (new.unique or item.key is not None):
                self._homes.store(new)
            else:
                self._dispatch.store(new)
        try:
            await batch.wait()
            if keyed is not None and batch.failure is None:
                await self._mark(keyed, batch)
        finally:
            self._answered(batch)
        if batch.held is not None:
            batch.results[0] = self._let_go(batch.held, batch.results[0])
        failure = batch.failure
        if failure is not None:  # raise a new error: a group that fails hands the same one to all its callers
            may_have_happened = batch.may_have_happened or batch.stored > 0
            plan = b"" if keyed is None else keyed.plan.encoded()
            raise StoreUnavailable(failure.message, failure.hint, may_have_happened, batch.ids, plan=plan) from failure
        self._metrics.accepted.add(batch.stored)
        return [result for result in batch.results if result is not None]

    async def _mark(self, keyed: Keyed, batch: _Batch) -> None:
        """Mark in the plan what this call stored, or found stored."""
        stored = [n for n in keyed.open if isinstance(batch.results[n], Submitted)]
        error = await self._keyed.mark(keyed, stored)
        if error is not None:
            batch.failure, batch.may_have_happened = error, True

    def _chunk(self, size: int) -> dict[str, tuple[int, int]]:
        """Where the tasks of a call go next: by queue, a shard and how many more go there.

        A batch gets a table of its own. Single submissions that arrive in the same turn of the loop share one, so that
        many clients cost few scripts.
        """
        if size > 1:
            return {}
        if not self._together:
            asyncio.get_running_loop().call_soon(self._together.clear)
        return self._together

    def _prepare_keyed(self, n: int, item: Submission, batch: _Batch, keyed: Keyed, task_id: str | None) -> NewTask:
        """The n-th task of a keyed batch; if it need not be stored, its result is set. Raises what _prepare raises."""
        fate = keyed.fates[n]
        if fate is _ALONE:
            return self._prepare(n, item, batch, keyed.key.of(n), task_id)
        task_id, shard = keyed.id(n)
        if fate is Fate.CONFLICT:
            raise conflict(task_id)
        new = self._prepare(n, item, batch, None, task_id, shard, fate is _STORE)
        if fate is Fate.REPEAT:
            batch.results[n] = Submitted(new.more[2], False)
        elif keyed.failure is not None and not isinstance(keyed.failure, StoreUnavailable):
            batch.results[n] = _not_stored(keyed.failure)
        else:
            keyed.open.append(n)
        return new

    def _prepare(
        self,
        n: int,
        item: Submission,
        batch: _Batch,
        idempotency_key: str | None,
        task_id: str | None,
        shard: int | None = None,
        may_claim: bool = False,
    ) -> NewTask:
        """The n-th task of a batch, under `task_id` if that is given. Raises Invalid, UnknownType."""
        task_type = self._catalog.get(item.type)
        if task_type is None:
            raise self._catalog.unknown(item.type)
        spec, spec_packed = self._spec(task_type, item, batch.trace)
        due = _due(item, batch.wall_ms)
        names = names_of(item, idempotency_key, self._key_ms)
        if task_id is None:
            shard = self._place(names.place, spec.queue, batch)
            task_id = self._ids.next(batch.wall_ms if batch.size <= CROWD else batch.uncrowded_ms(shard), shard)
            may_claim = True
        elif shard is None:
            shard = self._shard_named_in(task_id)
        claim = may_claim and due == 0 and shard in self._placement.mine and self._dispatch.reserve(spec.queue)
        return NewTask(
            id=task_id,
            shard=shard,
            queue=spec.queue,
            level=spec.level,
            due=due,
            spec=spec,
            packed=spec_packed,
            data=bytes(item.data),
            claim=claim,
            idempotency=names.key,
            idempotency_ms=names.key_ms,
            fingerprint=names.fingerprint,
            on_code=self._on_code,
            more=(n, batch, self._task_json(task_id, item, spec, batch)),
            unique=names.unique,
            unique_ms=names.unique_ms,
        )

    def _place(self, name: str | None, queue: str, batch: _Batch) -> int:
        """The shard of a new task: by the name that chooses it, else by load."""
        if name:
            return shard_of_key(name, self._config.shards)
        shard, left = batch.chunk.get(queue, (0, 0))
        if left == 0:
            is_batch = batch.size > 1
            left = self._placement.chunk_size(batch.size, queue) if is_batch else TOGETHER_MAX
            node, shard = self._placement.choose(queue, batch.own_load, is_batch)
            if node == self._placement.me:
                batch.own_load[queue] = batch.own_load.get(queue, 0) + left
        batch.chunk[queue] = (shard, left - 1)
        self._placement.placed(queue, shard, 1)
        return shard

    def _shard_named_in(self, task_id: str) -> int:
        """The shard of an id that another gateway chose. Raises Invalid."""
        shard = shard_of(task_id, self._config.shards)
        if shard is None:
            raise Invalid(f"{task_id!r} is not an id of this cluster.", "Let the gateway choose the id.")
        return shard

    def _task_json(self, task_id: str, item: Submission, spec: Spec, batch: _Batch) -> TaskJson:
        """The task as the answer shows it, before Redis has said what became of it."""
        task = TaskJson(
            id=task_id,
            type=item.type,
            state=_QUEUED,
            submitted_at_ms=batch.wall_ms,
            queue=spec.queue,
            priority=spec.level,
            data=item.data,
            attempt=0,
            max_attempts=spec.max_attempts,
            delivery=0,
            key=item.key,
        )
        if batch.trace is not None:
            carry(task, batch.trace)
        return task

    def _spec(self, task_type: TaskType, item: Submission, trace: str | None) -> tuple[Spec, bytes]:
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
            return task_type.spec, task_type.packed
        entry = task_type.entry
        level = entry.level
        if item.priority is not None:
            level = LEVELS[item.priority] if isinstance(item.priority, str) else item.priority
        options = (
            item.queue or entry.queue,
            level,
            entry.max_attempts if item.max_attempts is None else item.max_attempts,
            entry.timeout_s if item.timeout_s is None else item.timeout_s,
            entry.backoff if item.backoff is None else _backoff(entry.backoff, item.backoff),
        )
        if item.key is None and item.retention_s is None and trace is None:
            return task_type.own(*options)
        spec = Spec(item.type, *options, item.key, item.retention_s, trace)
        return spec, packed(spec)

    def _on_code(self, new: NewTask, code: StoreCode | Exception, now_ms: int, first: str) -> None:
        """Take over what became of one task: run it if it was claimed, and note its result."""
        n, batch, task = new.more
        if new.claim:
            self._dispatch.release(new.queue)
        if code is _CODE_QUEUED:
            task.queued_at_ms = now_ms
            batch.new(n, task)
        elif code is _CODE_CLAIMED:
            self._begin(new, task, now_ms, batch)
            batch.new(n, task)
            if batch.hold_s > 0:
                batch.waiting += 1
                batch.held = Held(self._waiters, new.id, batch.hold_s, batch.one_less)
        elif isinstance(code, StoreUnavailable):
            batch.failure = code
            batch.may_have_happened |= code.may_have_happened
        elif isinstance(code, Exception):
            batch.results[n] = _not_stored(code)
        else:
            self._on_rare_code(new, code, now_ms, first)
        if batch.waiting == 1 and not batch.has_plan:
            self._answered(batch)  # the caller goes on in the next turn, and answers in it
        batch.one_less()

    def _answered(self, batch: _Batch) -> None:
        """The call is answered in the next turn of the loop, or its caller has gone: begin what it put aside."""
        if batch.begun:
            self._dispatch.worker.begin(batch.begun)
        batch.begun = None

    def _let_go(self, held: Held, began: Result | None) -> Result | None:
        """The task as it ended; as it began if it goes on, or if the read behind the settle came before it.

        A lane sends a script again, by its text, to a Redis that has forgotten it: after all else of the group.
        """
        held.close()
        if held.waiter.read is None:
            return began
        task = self._queries.shown(held.task_id, held.waiter.read)
        return Submitted(task, True) if task.state in TERMINAL else began

    def _begin(self, new: NewTask, task: TaskJson, now_ms: int, batch: _Batch) -> None:
        session = self._dispatch.session
        task.state, task.attempt, task.delivery = State.RUNNING, 1, 1
        task.queued_at_ms = task.started_at_ms = now_ms
        task.node_id = node_of(session)
        self._metrics.claims.add("submission")
        self._dispatch.begin([Claimed(task.id, new.shard, 1, 1, new.spec, new.data, session)], batch.begun)

    def _on_rare_code(self, new: NewTask, code: StoreCode, now_ms: int, first: str) -> None:
        n, batch, task = new.more
        match code:
            case StoreCode.SCHEDULED:
                task.state = State.SCHEDULED
                task.run_at_ms = new.due if new.due > 0 else now_ms - new.due
                self._dispatch.on_due(new.shard, (task.run_at_ms - now_ms) / 1000)
                batch.new(n, task)
            case StoreCode.STORED_BEFORE:
                # An earlier try of this very submission stored it: give the answer that the earlier try did not get.
                # The earlier try of a keyed batch may be long ago, and its answer is the task as it is now.
                batch.results[n] = Submitted(task, not batch.has_plan)
            case StoreCode.REPEAT:
                task.id = first
                batch.results[n] = Submitted(task, False)
            case StoreCode.MISMATCH:
                batch.results[n] = conflict(first)
            case StoreCode.QUEUE_FULL:
                batch.results[n] = QueueFull(
                    f"queue {new.queue!r} holds {self._config.queue_limit} tasks in one shard, its limit.",
                    "Add nodes, or raise queue_limit.",
                )


class _Batch:
    """One call of `submit`: what its tasks share, their results, and the answers it waits for."""

    def __init__(
        self,
        size: int,
        own_load: dict[str, int],
        trace: str | None,
        chunk: dict[str, tuple[int, int]],
        hold_s: float,
    ) -> None:
        self.size = size
        self.hold_s = hold_s
        self.held: Held | None = None
        self.own_load = own_load  # this node's load by queue, with the tasks placed here since
        self.trace = trace
        self.has_plan = False  # whether it is under one Idempotency-Key
        self.chunk = chunk  # queue -> (shard, how many more of its tasks go there)
        self.wall_ms = wall_ms()
        self.crowd: dict[int, int] = {}  # by shard: ids made, in a large batch
        self.results: list[Result | None] = [None] * size
        self.begun: list[New] | None = [] if hold_s == 0 else None  # attempts that wait until the call is answered
        self.ids = [""] * size
        self.waiting = 1  # answers to come, and 1 until all tasks are prepared
        self.stored = 0
        self.failure: StoreUnavailable | None = None
        self.may_have_happened = False  # whether Redis may have carried out any of the calls that failed
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def new(self, n: int, task: TaskJson) -> None:
        self.results[n] = Submitted(task, True)
        self.stored += 1

    def uncrowded_ms(self, shard: int) -> int:
        """The time for the shard's next id: after each CROWD ids a later one, so that no bucket gets very many tasks.

        Tasks with one `key` share a shard, and lists read a whole bucket at once.
        """
        count = self.crowd[shard] = self.crowd.get(shard, 0) + 1
        return self.wall_ms + BUCKET_MS * (count // CROWD)

    def one_less(self) -> None:
        self.waiting -= 1
        if self.waiting == 0 and not self._done.done():  # it is done already if the caller has given up
            self._done.set_result(None)

    async def wait(self) -> None:
        self.one_less()
        await self._done


def _not_stored(error: Exception) -> RumorError:
    """The error for a task that Redis refused to store."""
    if isinstance(error, OutOfMemoryError):
        return QueueFull("Redis is out of memory and refuses to store.", "Raise maxmemory or shorten retention_s.")
    return refused(error)


def _due(item: Submission, now_ms: int) -> int:
    """The time as store.lua takes it: 0 now, < 0 in that many ms, > 0 at that ms. Raises Invalid."""
    if item.run_at is not None:
        if item.delay_s is not None:
            raise Invalid("delay_s and run_at are both given.", "Give one of them.")
        return max(1, run_at_ms(item.run_at, now_ms))
    return -int(item.delay_s * 1000) if item.delay_s else 0


def _backoff(default: Backoff, own: BackoffJson) -> Backoff:
    return Backoff(
        default.base_s if own.base_s is None else own.base_s,
        default.factor if own.factor is None else own.factor,
        default.max_s if own.max_s is None else own.max_s,
    )
