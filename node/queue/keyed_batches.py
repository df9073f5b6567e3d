"""Batches under an Idempotency-Key: propose a plan, learn from Redis which one stands, mark what is stored.

`batch_plan` says what a plan is and why. The plan stands in the shard of the batch's key; its tasks go wherever the
first gateway's load sent them. A gateway marks what it stored before it answers the client.

Does not know: how a task is stored, HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from cluster.config import Config
from cluster.errors import SAME_KEY, BadRequest, Invalid, RumorError, StoreUnavailable, away
from cluster.shards.answers import Noted
from cluster.shards.lane import Call, OnReply
from cluster.shards.shards import Shards
from cluster.shards.task import Ids
from node.queue import batch_plan
from node.queue.batch_plan import ALONE, HOLDS_S, KEPT_MIN_S, Fate, Plan, beside, digest, start_of
from node.queue.catalog import Catalog
from node.queue.names import BATCH, conflict, note
from node.queue.placement import shard_of_key
from node.schema import BatchKey, Submission, run_at_ms

SLICE = 256  # items of a batch that are looked at, or prepared, in one turn of the loop

_ALONE, _STORE = Fate.ALONE, Fate.STORE

T = TypeVar("T")


@dataclass(slots=True)
class Keyed:
    """One call's keyed batch. `failure`: why nobody knows which plan stands; `plan` is the proposal then."""

    key: BatchKey
    plan: Plan
    fates: Sequence[Fate]  # what becomes of each item of the call
    asked_s: float  # when Redis was asked for the plan (monotonic)
    failure: Exception | None = None
    open: list[int] = field(default_factory=list)  # numbers of the items that this call stores

    @property
    def obstacle(self) -> StoreUnavailable | None:
        """Why no task of this call may be stored now."""
        if isinstance(self.failure, StoreUnavailable):
            return self.failure
        return away(storing=True) if time.monotonic() > self.asked_s + HOLDS_S else None

    def id(self, n: int) -> tuple[str, int]:
        """The id that the plan gives to the n-th item, and its shard."""
        place = self.key.places[n]
        shard = self.plan.shards[place]
        return self.plan.ids.nth(place, shard), shard


class _Kinds:
    """What the items of one call say beside their data, which is mostly the same: each is looked at once."""

    def __init__(self, queue_of: Callable[[Submission], str]) -> None:
        self._queue_of = queue_of
        self._known: dict[tuple[object, ...], tuple[int, str]] = {}

    def of(self, item: Submission) -> tuple[int, str]:
        """The start of an item's digest, and its queue if it belongs into a plan, else ""."""
        said = beside(item)
        if said is None:
            return start_of(item), self._queue_of(item)
        known = self._known.get(said)
        if known is None:
            known = self._known[said] = start_of(item), self._queue_of(item)
        return known


class KeyedBatches:
    """One node's traffic about plans."""

    def __init__(self, config: Config, shards: Shards, catalog: Catalog, ids: Ids) -> None:
        self._config = config
        self._shards = shards
        self._catalog = catalog
        self._ids = ids

    async def agree(
        self,
        key: BatchKey,
        items: Sequence[Submission | RumorError],
        wall_ms: int,
        shard_for: Callable[[str | None, str], int],
    ) -> Keyed:
        """The plan that stands for the key: the one that stood there before, else one for these items.

        `shard_for` chooses the shard of the next task with that `key`, if it has one, of a queue. Raises
        IdempotencyConflict if the key stands for no batch.
        """
        kinds = _Kinds(self._queue_by_plan)
        digests: list[int] | None = None  # of a proposal of our own
        if key.plan:
            plan = self._read(key.plan)
        else:
            plan, digests = await self._propose(key, items, wall_ms, shard_for, kinds)
        failure: Exception | None = None
        asked_s = time.monotonic()
        if self._shards.is_up:
            shard = shard_of_key(key.key, self._config.shards)
            ttl_ms = max(1, int(self._config.idempotency_s * 1000))
            noted = note(plan.ids.nth(0, plan.shards[0] if plan.shards else 0), BATCH)
            answer = await self._ask(partial(self._shards.calls.plan, shard, key.key, plan.encoded(), noted, ttl_ms))
            if isinstance(answer, Exception):
                failure = answer
            elif isinstance(answer, Noted):
                raise conflict(answer.first, answer.fingerprint)
            elif answer:
                plan, digests = self._read(answer), None
        else:
            failure = self._shards.away(storing=True)
        if digests is not None:
            fates = [_ALONE if digest == ALONE else _STORE for digest in digests]
        else:
            fates = await self._fates(key, items, plan, kinds)
        return Keyed(key, plan, fates, asked_s, failure)

    async def mark(self, keyed: Keyed, stored: Sequence[int]) -> StoreUnavailable | None:
        """Mark these items, whose tasks are stored; the error if they could not be marked."""
        runs = batch_plan.runs(keyed.key.places[n] for n in stored)
        if not runs:
            return None
        key, first_id = keyed.key.key, keyed.plan.ids.first
        shard = shard_of_key(key, self._config.shards)
        answer = await self._ask(partial(self._shards.calls.mark, shard, key, first_id, runs))
        if not isinstance(answer, Exception):
            return None
        return StoreUnavailable(
            f"the tasks are stored, but Redis did not note it: {answer}",
            SAME_KEY,
        )

    async def _propose(
        self,
        key: BatchKey,
        items: Sequence[Submission | RumorError],
        wall_ms: int,
        shard_for: Callable[[str | None, str], int],
        kinds: _Kinds,
    ) -> tuple[Plan, list[int]]:
        """A plan for these items, and their digests."""
        digests: list[int] = []
        shards: list[int] = []
        for n, item in enumerate(items):
            if n % SLICE == 0 and n:
                await asyncio.sleep(0)  # a large batch must not hold up the loop
            if isinstance(item, Submission) and (kind := kinds.of(item))[1]:
                digests.append(digest(item, kind[0]))
                shards.append(shard_for(item.key, kind[1]))
            else:
                digests.append(ALONE)
                shards.append(0)
        ids = self._ids.reserve(wall_ms, max(1, key.places[-1] + 1 if key.places else 0))
        return batch_plan.proposal(ids, key.places, shards, digests), digests

    async def _fates(
        self, key: BatchKey, items: Sequence[Submission | RumorError], plan: Plan, kinds: _Kinds
    ) -> list[Fate]:
        """What a plan that stood there before says of each item."""
        fates: list[Fate] = []
        for n, (place, item) in enumerate(zip(key.places, items, strict=True)):
            if n % SLICE == 0 and n:
                await asyncio.sleep(0)
            if isinstance(item, Submission) and plan.has(place):
                fates.append(plan.fate(place, digest(item, kinds.of(item)[0])))
            else:
                fates.append(_ALONE)
        return fates

    def _queue_by_plan(self, item: Submission) -> str:
        """The queue of an item that belongs into a plan; "" for one that is on its own (see `batch_plan`)."""
        if item.unique_for_s is not None or item.unique_key is not None:
            return ""
        retention_s = self._config.retention_s if item.retention_s is None else item.retention_s
        task_type = self._catalog.get(item.type)
        if retention_s < KEPT_MIN_S or task_type is None:
            return ""
        if item.run_at is not None:
            try:
                run_at_ms(item.run_at)
            except Invalid:
                return ""
            if item.delay_s is not None:
                return ""
        return item.queue or task_type.entry.queue

    async def _ask(self, make: Callable[[OnReply[T]], Call[T]]) -> T | Exception:
        """The answer, or the exception that the call met: Redis's refusal, or StoreUnavailable."""
        future: asyncio.Future[T | Exception] = asyncio.get_running_loop().create_future()

        def answered(answer: T | Exception) -> None:
            if not future.done():  # it is done if the caller has given up
                future.set_result(answer)

        self._shards.send(make(answered))
        return await future

    def _read(self, value: bytes) -> Plan:
        try:
            plan = batch_plan.decoded(value)
            if max(plan.shards, default=0) < self._config.shards:
                return plan
            why = "it names a shard that is none"
        except ValueError as error:
            why = str(error)
        raise BadRequest(f"what stands for this Idempotency-Key is no plan: {why}.", "Use another key.")
