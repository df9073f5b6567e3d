"""An engine that keeps tasks in a dict; the gateway's tests and its benchmark run against it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from cluster.config import Config
from cluster.errors import BadRequest, Conflict, NotFound, RumorError, StoreUnavailable, UnknownType
from cluster.load import Load, Meta
from cluster.shards.task import LEVELS, Ids
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, RedisWord, Verdict, View
from node.observe.metrics import Metrics
from node.observe.redis_memory import Memory
from node.observe.timeline import Listener, Timeline
from node.observe.tracing import OFF
from node.queue.queries import carry
from node.schema import BatchKey, IdempotencyKeys, ListQuery, Submission, Submitted, TaskJson, TaskList, run_at_ms

SHARDS = 64
TYPES = frozenset({"process", "noop"})


class FakeVitals:
    """Accepts bodies that begin with "sealed"."""

    def __init__(self) -> None:
        self.stats = {"probes": 3, "fences_lease": 2}

    async def push_pull(self, body: bytes) -> bytes | None:
        return b"sealed answer" if body.startswith(b"sealed") else None

    def accepts_watch(self, token: str) -> bool:
        return token == "good"


class FakeEngine:
    """Stores at once; `redis_ok` False makes it a node that cannot reach Redis."""

    def __init__(self, config: Config | None = None, peers: Sequence[Peer] = ()) -> None:
        self.config = config or Config(node_id="n1", port=5001)
        self.metrics = Metrics()
        self.memory = Memory()
        self.tracing = OFF
        self.vitals = FakeVitals()
        self.tasks: dict[str, TaskJson] = {}
        self.keys: dict[str, str] = {}
        self.calls: list[str] = []
        self.traces: list[str | None] = []
        self.redis_ok = True
        self.maybe = True  # may_have_happened of a submission that Redis did not answer
        self.ready = True
        self.fault = ""
        self.broken = False
        self.finished = asyncio.Event()
        self.waiting = 0  # calls of `wait` under way
        me = self.config.node_id or "n1"
        self.view = View(me, f"{me}/00000000001-00000001", tuple(peers), None, 0, True, True)
        self.timeline = Timeline("n1", "life1")
        self._ids = Ids(1)

    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: IdempotencyKeys = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
        hold_s: float = 0.0,
    ) -> list[Submitted | RumorError]:
        self.calls.append("submit")
        self.traces.append(trace)
        if self.broken:
            raise ZeroDivisionError("a bug of ours")
        fixed = list(ids) if ids else [self._ids.next(1_800_000_000_000, n % SHARDS) for n in range(len(items))]
        if not self.redis_ok:
            is_known = [not isinstance(item, RumorError) and item.type in TYPES for item in items]
            raise StoreUnavailable(
                "Redis gave no answer within 0.8 s.",
                may_have_happened=self.maybe,
                ids=[task_id * ready for task_id, ready in zip(fixed, is_known, strict=True)],
            )
        if isinstance(idempotency_keys, BatchKey):
            idempotency_keys = [idempotency_keys.of(n) for n in range(len(items))]
        keys = idempotency_keys or [None] * len(items)
        return [self._store(*row, trace) for row in zip(items, fixed, keys, strict=True)]

    def _store(
        self, item: Submission | RumorError, task_id: str, idempotency_key: str | None, trace: str | None
    ) -> Submitted | RumorError:
        if isinstance(item, RumorError):
            return item
        if item.type not in TYPES:
            return UnknownType(f"no node knows the type {item.type!r}.", "Known: noop, process.")
        if idempotency_key is not None and idempotency_key in self.keys:
            return Submitted(self.tasks[self.keys[idempotency_key]], False)
        if item.run_at is not None:
            try:
                run_at_ms(item.run_at)
            except RumorError as error:
                return error
        level = LEVELS[item.priority] if isinstance(item.priority, str) else item.priority
        task = TaskJson(
            id=task_id,
            type=item.type,
            state="queued",
            queue=item.queue or "default",
            priority=5 if level is None else level,
            data=item.data,
            attempt=0,
            max_attempts=5,
            delivery=0,
        )
        if trace is not None:
            carry(task, trace)
        self.tasks[task_id] = task
        if idempotency_key is not None:
            self.keys[idempotency_key] = task_id
        self.metrics.accepted.add()
        return Submitted(task, True)

    async def get(self, task_id: str) -> TaskJson:
        self.calls.append("get")
        if not self.redis_ok:
            raise StoreUnavailable("Redis gave no answer within 0.8 s.")
        if task_id not in self.tasks:
            raise NotFound(f"there is no task {task_id!r}.")
        return self.tasks[task_id]

    async def wait(self, task_id: str, wait_s: float) -> TaskJson:
        self.calls.append("wait")
        if not self.redis_ok:
            raise StoreUnavailable("Redis gave no answer within 0.8 s.")
        self.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self.finished.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return await self.get(task_id)

    async def cancel(self, task_id: str) -> TaskJson:
        task = await self.get(task_id)
        if task.state == "succeeded":
            raise Conflict(f"{task_id} has succeeded.", "It cannot be cancelled.")
        task.state = "cancelled"
        return task

    async def retry(self, task_id: str) -> TaskJson:
        task = await self.get(task_id)
        if task.state != "dead":
            raise Conflict(f"{task_id} is {task.state}.", "Only dead or cancelled tasks can be tried again.")
        task.state = "queued"
        return task

    async def replay(self, type: str | None, limit: int | None) -> int:
        dead = [task for task in self.tasks.values() if task.state == "dead" and type in (None, task.type)]
        for task in dead[:limit]:
            task.state = "queued"
        return len(dead[:limit])

    async def purge_dead(self) -> int:
        dead = [task.id for task in self.tasks.values() if task.state == "dead"]
        for task_id in dead:
            del self.tasks[task_id]
        return len(dead)

    async def list_tasks(self, query: ListQuery) -> TaskList:
        if query.cursor is not None and query.cursor not in self.tasks:
            raise BadRequest(f"cursor is {query.cursor!r}: not one of ours.", "Use the cursor of the page before.")
        newest = sorted(self.tasks, reverse=True)
        after = [task_id for task_id in newest if query.cursor is None or task_id < query.cursor]
        page = [self.tasks[task_id] for task_id in after[: query.limit]]
        return TaskList(page, page[-1].id if len(after) > query.limit else None, len(page), True)

    async def counts(self) -> dict[str, Any]:
        return {"states": {"queued": len(self.tasks)}, "queues": {"default": {"queued": len(self.tasks)}}}

    def slots_taken(self) -> dict[str, int]:
        return {"default": 3}

    async def sums(self) -> dict[str, Any]:
        return {"sums": []}

    async def workers(self) -> Sequence[dict[str, Any]]:
        return [{"node_id": "n1"}]

    def listen(self, after: str | None) -> AbstractContextManager[Listener]:
        return self.timeline.listen(after)

    def cluster(self, events: int = 500) -> dict[str, Any]:
        return {
            "node_id": "n1",
            "session": self.view.session,
            "members": [],
            "leader": None,
            "shards": {},
            "events": self.timeline.own(events),
        }

    def health(self) -> dict[str, Any]:
        return {"status": "ok" if self.redis_ok else "unavailable", "problems": []}

    def is_ready(self) -> tuple[bool, str]:
        return self.ready, "ready" if self.ready else "Redis does not answer"


def peer(
    node_id: str, port: int, *, redis: RedisWord = RedisWord.UNKNOWN, reaches: bool = True, rtt_s: float = 0.001
) -> Peer:
    """A row of the view: a live peer that says whether it reaches Redis."""
    return Peer(
        node_id=node_id,
        session=f"{node_id}/00000000001-00000001",
        host="127.0.0.1",
        port=port,
        state=MemberState.ALIVE,
        evidence=Evidence.NONE,
        by="",
        incarnation=0,
        rtt_s=rtt_s,
        redis=redis,
        redis_age_s=None,
        verdict=Verdict.HEALTHY,
        load=Load(reaches, False, False, {}),
        meta=Meta({"default": 1}),
    )
