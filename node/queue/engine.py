"""The engine: one node's queue. The gateway calls it, and the vitals thread tells it what happens in the cluster.

It owns the parts (dispatcher, housekeeping, submitting, queries, waiters, placement, …) and passes the news on to them:
a new view changes the owners of shards, a tombstone has tasks to reap, a wake-up names work to claim. Everything here
runs on the main loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from random import Random
from typing import Any

import redis.asyncio
import structlog

from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import NotFound, QueueFull, RumorError, StoreUnavailable, unanswered
from cluster.kept_tasks import Nursery
from cluster.redis_client import connect
from cluster.session import node_of
from cluster.shards.answers import QueueHead
from cluster.shards.calls import Calls
from cluster.shards.shards import Shards
from cluster.shards.task import Claimed, Lost
from cluster.view import View
from cluster.vitals.thread import Vitals
from cluster.vitals.told import (
    Broken,
    Disowned,
    GivingUp,
    Happened,
    NameTaken,
    NewSession,
    NewView,
    RedisReach,
    SessionEnded,
    Told,
    Woken,
)
from node.observe import report
from node.observe.cluster_timeline import Bulletin
from node.observe.metrics import Metrics
from node.observe.recovery_time import Signs
from node.observe.redis_memory import Memory
from node.observe.task_rates import Summing
from node.observe.timeline import EVENTS_MAX, Listener, Timeline
from node.observe.tracing import OFF, Tracing
from node.queue.amending import Amending
from node.queue.balance import Balance
from node.queue.catalog import Catalog
from node.queue.dispatch import Dispatcher
from node.queue.draining import Draining
from node.queue.handlers import Handlers
from node.queue.housekeeping import Housekeeping
from node.queue.ownership import Ownership
from node.queue.placement import Placement
from node.queue.queries import Queries
from node.queue.redis_reach import Reach
from node.queue.submitting import Result, Submitting
from node.queue.upkeep import Upkeep
from node.queue.waiters import Waiters
from node.queue.waiting import Waiting
from node.queue.wakes import Cancelled, Due, Wakes, Work, parse_wake
from node.schema import EXPIRED, IdempotencyKeys, ListQuery, Submission, Submitted, TaskJson, TaskList
from node.tasks import Registry
from node.work.worker import Worker

LOAD_INTERVAL_S = 0.1  # between two reports of this node's load
FADE_INTERVAL_S = 1.0  # between two calls of `Placement.fade`
READ_TOGETHER = 256  # tasks of a repeated batch that are read at once

log = structlog.get_logger("rumor.engine")


class Engine:
    """One node's queue: its parts, and the news that passes between them."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        metrics: Metrics,
        shards_note: Sequence[dict[str, str]],
        tracing: Tracing = OFF,
    ) -> None:
        self.config = config
        self.tracing = tracing
        self.metrics = metrics
        self.client: redis.asyncio.Redis = connect(config.redis_url)
        self.vitals: Vitals
        self.view: View
        self.redis_notes = list(shards_note)
        self.timeline = Timeline(config.name, secrets.token_hex(6))
        self._signs = Signs()
        self.memory = Memory()
        self.is_draining = self.is_stopping = False
        self._rng = Random()
        self._started_s = time.monotonic()
        self.fault = ""  # why this node can work no longer, once a part of it has ended for good
        self.on_broken: Callable[[str], None] = lambda message: None
        self._kept = Nursery(self._broke_down)
        self.shards = Shards(self.client, Calls.of(config), config.shards, config.redis_timeout_s, metrics.redis_s.add)
        self._reach = Reach(config.lease_s, self.shards, partial(self._note, node_id=config.name))
        self.waiters = Waiters(self.client, self._kept, config.database)
        self.catalog = Catalog(registry, config)
        self._make_moving_parts()
        self.worker = Worker(config, registry, config.name, self.dispatch.on_outcome, self._on_progress, tracing)
        self.slots_taken = self.worker.taken  # by queue
        self.draining = Draining(config, self.worker, self.dispatch, self.shards)
        self.queries = Queries(config, self.shards)
        self.submitting = Submitting(
            *(config, self.shards, self.dispatch, self.catalog, self.placement, metrics), self.waiters, self.queries
        )
        self._waiting = Waiting(self.queries, self.waiters)
        self.amending = Amending(
            *(config, self.shards, self.queries, self.waiters, metrics),
            on_heads=self.ownership.on_heads,
            on_cancelled=self._on_cancelled,
            on_expired=self.housekeeping.look,
        )
        self.upkeep = Upkeep(config, self.client, self.catalog, self.handlers, self._on_memory)
        rates = Summing(config.name, metrics)
        self.bulletin = Bulletin(config.name, self.shards, self.client, self.timeline, self.queries.counts, rates)

    def _make_moving_parts(self) -> None:
        """Make the parts that tasks move through between Redis and the worker. Each knows those made before it."""
        config, metrics = self.config, self.metrics

        def on_heads(shard: int, heads: Sequence[QueueHead]) -> None:
            self.ownership.on_heads(shard, heads)

        self.dispatch = Dispatcher(
            config,
            self.shards,
            metrics,
            on_heads=on_heads,
            on_finished=self.waiters.finished,
            awaited=self.waiters.awaited,
            on_read=self.waiters.settled,
            on_redis=self._lanes_changed,
            on_due=lambda shard, in_s: self.ownership.on_due(shard, in_s),
            on_unknown=lambda shard, queue, in_s: self.balance.lacks_type(shard, queue, in_s),
            tracing=self.tracing,
        )
        self.housekeeping = Housekeeping(
            config,
            self.shards,
            self.dispatch,
            metrics,
            on_heads=on_heads,
            on_strangers=lambda sessions: self.vitals.consider(sessions),
            on_reaped=self._on_reaped,
            on_lost=self._on_lost,
        )
        self.wakes = Wakes(self.shards)
        self.placement = Placement(config.name, config.shards, self._rng)
        parts = (self.dispatch, self.housekeeping, self.placement, self.wakes, self._rng)
        self.balance = Balance(config, *parts, on_load=lambda load: self.vitals.set_load(load))
        neighbours = (self.dispatch, self.housekeeping, self.balance, self.wakes)
        self.ownership = Ownership(config, *neighbours, on_moved=self._on_moved)
        traffic = (self.shards, self.dispatch, self.placement, self.wakes)
        self.handlers = Handlers(config, self.catalog.own, *traffic, on_heads)

    # ---- life

    async def start(self, vitals: Vitals) -> None:
        """Begin to work. Call it after vitals has started."""
        self.vitals = vitals
        vitals.tick()  # Begins the watch: a handler that blocks the loop before the first report counts as a stall too.
        self.dispatch.session = vitals.session
        self.dispatch.is_sure = lambda: vitals.is_sure(self.dispatch.session)
        self.dispatch.start(self.worker, self._broke_down)
        self.dispatch.is_claiming = True
        self.bulletin.start(self._kept)
        self._note("node_started", self.config.name, session=vitals.session)
        self.publish_load()
        self._on_view(vitals.view)
        self._kept.keep("housekeeping", self.housekeeping.run)
        self._kept.keep("load", self._report_load)
        self._kept.keep("catalog", self.upkeep.keep_catalog)
        self._kept.keep("memory", self.upkeep.watch_memory)

    async def drain(self) -> None:
        """Stop claiming, let running tasks finish for drain_s, hand back the rest, and settle every outcome."""
        self.is_draining = True
        self.dispatch.is_claiming = False
        self.publish_load()
        self._note("node_draining", self.config.name, session=self.dispatch.session, tasks=len(self.worker.running))
        await self.vitals.leave()
        await self.draining.run()

    async def close(self) -> None:
        """End everything that start began."""
        self.is_stopping = self._waiting.is_over = True
        await self._kept.halt()
        await self.worker.close()
        await self.waiters.close()
        await self.shards.close()
        await self.client.aclose()

    def _broke_down(self, message: str) -> None:
        """A part of this node has ended for good: the node must end, so that its tasks run elsewhere."""
        if not self.fault and not self.is_stopping:
            self.fault = message
            self.on_broken(message)

    # ---- news from the vitals thread

    def hear(self, news: Told) -> None:
        """Take over one piece of news. The vitals thread hands them over in the order in which they happened."""
        match news:
            case Woken(message):  # First, since it is the most frequent.
                self._on_wake(message)
            case NewView(view):
                self._on_view(view)
            case Happened(event):
                self._on_event(event)
            case SessionEnded(session):
                self._on_dead(session)
            case Disowned(session):
                self._on_disowned(session)
            case NewSession(session):
                self._on_new_session(session)
            case RedisReach(is_ok, error, refusal):
                self._reach.beats(is_ok, error, refusal)
            case Broken(message):
                self._broke_down(message)
            case NameTaken() | GivingUp():
                pass  # These end the node itself; `node.main` hears them too.

    def _on_view(self, view: View) -> None:
        """Take over both witnesses' latest word: it decides who owns which shard, and brings the members' loads."""
        self.view, self.shards.elsewhere = view, view.refusal
        self.ownership.see(view)
        self.placement.see(view, self.ownership.owners)
        self.balance.see(view)
        if self.handlers.see(view):
            self.upkeep.look_soon()
        self.balance.steal()

    def _on_moved(self, shards: int, gained: dict[str, int]) -> None:
        self._note("shards_moved", self.config.name, shards=shards, to=gained)

    def _on_dead(self, session: str) -> None:
        """A tombstone is written: send no more wake-ups to the session, and queue again the tasks that it held."""
        self.ownership.session_ended(session)
        self.housekeeping.reap(session, range(self.config.shards))

    def _on_disowned(self, session: str) -> None:
        """This node's own session is over: stop all that was claimed under it now, whether or not Redis answers."""
        if session == self.dispatch.session:
            self.worker.stop_all("fenced")

    def _on_new_session(self, session: str) -> None:
        """This node's own session was fenced; go on under this one."""
        log.warning("fenced", was=self.dispatch.session, now=session)
        self.dispatch.renew(session)

    def _on_wake(self, message: bytes) -> None:
        """Another node says: tasks are queued or due in our shards, or a task that runs here was cancelled."""
        match parse_wake(message, self.config.shards):
            case Work(heads):
                for shard, head in heads:
                    self.dispatch.backlog.heard(shard, [head])
                    if self.housekeeping.is_looking(shard) or self.dispatch.is_asking(shard, head.queue):
                        # An answer under way may be older than this message, and would then overwrite it: ask anew.
                        self.housekeeping.look(shard)
                self.dispatch.kick()
            case Due(dues):
                for shard, in_s in dues:
                    self.housekeeping.due(shard, in_s)
            case Cancelled(task_id, delivery):
                self.worker.stop(task_id, delivery, "cancelled")

    def _on_event(self, event: dict[str, Any]) -> None:
        """Put an event on the timeline."""
        self._signs.see(event, time.monotonic())
        self.bulletin.note(event)

    def _note(self, kind: str, node_id: str, **more: Any) -> None:
        at_ms = wall_ms()
        self._on_event({"at_ms": at_ms, "kind": kind, "node_id": node_id, "by": self.config.name, **more})

    def _on_reaped(self, session: str, tasks: int) -> None:
        took_s = self._signs.took_s(session, time.monotonic())
        if took_s is not None:
            self.metrics.recovery_s.add(took_s)
        self._note("session_reaped", node_of(session), session=session, tasks=tasks)

    def _on_lost(self, session: str, lost: Sequence[Lost]) -> None:
        self.tracing.recovered(session, lost, self._signs.ago_s(session, time.monotonic()))

    def _lanes_changed(self, is_up: bool) -> None:
        self._reach.lanes(is_up)
        self.publish_load()

    def _on_progress(self, claimed: Claimed, value: bytes) -> None:
        self.shards.send(
            self.shards.calls.progress(
                claimed.shard, claimed.session, claimed.id, claimed.delivery, value, lambda answer: None
            )
        )

    def _on_cancelled(self, session: str, task_id: str, delivery: int) -> None:
        """That attempt may not commit any more: stop it, here or on the node where it runs."""
        if session == self.dispatch.session:
            self.worker.stop(task_id, delivery, "cancelled")
        else:
            self.wakes.cancelled(session, task_id, delivery)

    # ---- at intervals

    def publish_load(self) -> None:
        """Tell the other nodes this node's load, if it changed."""
        self.balance.publish(self.shards.is_up, self.is_draining, len(self.worker.running))

    async def _report_load(self) -> None:
        loop = asyncio.get_running_loop()
        ticked_s = loop.time()
        fade_s = ticked_s + FADE_INTERVAL_S
        while True:
            await asyncio.sleep(LOAD_INTERVAL_S)
            now_s = loop.time()
            self.metrics.loop_lag_s.add(max(0.0, now_s - ticked_s - LOAD_INTERVAL_S))
            ticked_s = now_s
            self.vitals.tick()
            self.publish_load()
            self.balance.offer_all(self.ownership.session_of)
            self.balance.claim_what_was_missed()
            self.handlers.unpark(self.housekeeping.owned)
            self._reach.look(self.view.refusal)
            self._mind_the_lease(time.monotonic())
            if now_s >= fade_s:
                self.placement.fade()
                fade_s = now_s + FADE_INTERVAL_S

    def _mind_the_lease(self, now_s: float) -> None:
        """Stop all attempts once Redis could not vouch for them during lease_s: by now others may run their tasks."""
        if not self._reach.is_lease_running:
            return
        stands_still = self.shards.is_up and self.view.is_refused_like_all
        if self._reach.is_lease_over(stands_still, now_s) and self.worker.running:
            log.warning("cut_from_redis_past_lease", running=len(self.worker.running))
            self.worker.stop_all("lease")

    def _on_memory(self, memory: Memory) -> None:
        self.memory = memory
        self.housekeeping.is_memory_short = memory.is_short

    # ---- what the gateway calls

    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: IdempotencyKeys = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
        hold_s: float = 0.0,
    ) -> list[Result]:
        """Store submissions, each under its Idempotency-Key or all under one; the results are in the same order.

        `hold_s`: a single task that begins here is the result once it has ended, or as it began after that time.
        Raises StoreUnavailable if Redis is away; the error has the `ids` under which to forward the submissions.
        """
        if self.memory.is_full:
            raise QueueFull(
                f"Redis uses {self.memory.used_bytes} of its {self.memory.limit_bytes} bytes; nothing was stored.",
                "Try again later. If Redis stays full, raise maxmemory or shorten retention_s.",
            )
        if any(not isinstance(item, RumorError) and self.catalog.get(item.type) is None for item in items):
            await self.upkeep.refresh_catalog()
        results = await self.submitting.submit(items, idempotency_keys, ids, trace, self.balance.own_load(), hold_s)
        repeats = [
            (n, result) for n, result in enumerate(results) if isinstance(result, Submitted) and not result.is_new
        ]
        for start in range(0, len(repeats), READ_TOGETHER):
            part = repeats[start : start + READ_TOGETHER]
            tasks = await asyncio.gather(*(self._first(repeat) for _, repeat in part))
            for (n, _), task in zip(part, tasks, strict=True):
                results[n] = task
        return results

    async def _first(self, repeat: Submitted) -> Submitted:
        """The task that a repeat stands for; its id alone if the task is past its retention."""
        try:
            return Submitted(await self.queries.get(repeat.task.id), False)
        except StoreUnavailable as error:
            if not error.why:
                raise
            raise unanswered(error.why, is_sent=True) from error  # in the words of a submission
        except NotFound:
            repeat.task.state = EXPIRED
            return repeat

    async def get(self, task_id: str) -> TaskJson:
        """One task, with its history. Raises NotFound."""
        return await self.queries.get(task_id, with_history=True)

    async def wait(self, task_id: str, wait_s: float) -> TaskJson:
        """One task, with its history: as soon as it is terminal, or as it is after `wait_s`. Raises NotFound."""
        return await self._waiting.wait(task_id, wait_s)

    async def cancel(self, task_id: str) -> TaskJson:
        """Cancel a task wherever it is. Raises NotFound, Conflict if it ended otherwise."""
        await self.amending.cancel(task_id)
        return await self.queries.get(task_id)

    async def retry(self, task_id: str) -> TaskJson:
        """Queue a dead or cancelled task again. Raises NotFound, Conflict in any other state."""
        await self.amending.retry(task_id)
        return await self.queries.get(task_id)

    async def replay(self, type: str | None, limit: int | None) -> int:
        """Queue dead tasks again, newest first; returns how many."""
        return await self.amending.replay(type, limit)

    async def purge_dead(self) -> int:
        """Drop the whole dead letter queue; returns how many tasks it held."""
        return await self.amending.purge_dead()

    async def list_tasks(self, query: ListQuery) -> TaskList:
        """A page of tasks, newest first. Raises TooManyReads."""
        return await self.queries.page(query)

    async def counts(self) -> dict[str, Any]:
        """Tasks by state and queue."""
        return await self.queries.counts()

    async def sums(self) -> dict[str, Any]:
        """The sums of tasks over the whole cluster, for each of the last steps of time."""
        return await self.queries.sums()

    async def workers(self) -> list[dict[str, Any]]:
        """The live nodes, with the tasks that each runs; if Redis is away, with this node's tasks alone."""
        try:
            running = await self.queries.running()
        except StoreUnavailable:
            running = {self.dispatch.session: list(self.worker.running)}
        return report.workers(self.view, running)

    def cluster(self, events: int = EVENTS_MAX) -> dict[str, Any]:
        """This node's view of the cluster, with the latest events that it saw itself."""
        return report.cluster(self.view, self.ownership.owners, self.timeline.own(events))

    def listen(self, after: str | None) -> AbstractContextManager[Listener]:
        """Listen to the cluster's events after that one. Raises TooManyListeners."""
        return self.bulletin.listen(after)

    def is_ready(self) -> tuple[bool, str]:
        """Whether the node is ready, with the reason. Redis must have answered lately: an open socket is not enough."""
        if self.is_draining or self.is_stopping:
            return False, "draining"
        if self.fault:
            return False, self.fault
        if reason := self._reach.why_not(self.view):
            return False, reason
        if not self.view.is_synced:
            return False, "joining"
        return True, "ready"

    def health(self) -> dict[str, Any]:
        """The state of this node and of the cluster, with its problems in words, the worst first."""
        is_up = self.shards.is_up and self.view.redis_ok
        notes = [note for note in (self.memory.note, *self.redis_notes) if note is not None]
        unhandled = report.unhandled(self.view, self.handlers.parked(self.housekeeping.owned), self.handlers.lacks)
        queues, refusal = self.dispatch.backlog.queues(), self.shards.refusal
        problems = report.problems(self.view, is_up, queues, notes, refusal, unhandled)
        is_ready, reason = self.is_ready()
        return {
            "status": report.status(problems),
            "ready": is_ready,
            "reason": reason,
            "node_id": self.config.name,
            "session": self.dispatch.session,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "leader": self.view.leader.node_id if self.view.leader else None,
            "members": report.head_count(self.view),
            "shards_owned": len(self.housekeeping.owned),
            **self.worker.health(),
            "problems": problems,
        }
