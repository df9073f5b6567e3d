"""Queries: read one task by its id, pages of many, counts. Nothing here writes.

A listing is ordered newest first. For the states in `SCORED` a sorted set holds the tasks, and its scores give the
order; without a state, and for the other states, the order is that of the ids. A cursor is opaque to callers: it holds
the place in that order where the page ended.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from msgspec import Raw

from cluster import keys, session
from cluster.config import TRACE_ID, Config
from cluster.errors import BadRequest, NotFound, TaskUnreadable
from cluster.shards.answers import Listed, TaskFields
from cluster.shards.lane import Call, OnReply
from cluster.shards.shards import Shards
from cluster.shards.task import State, made_at_ms, shard_of
from node import trace_context
from node.observe import task_rates
from node.schema import AttemptJson, FailureJson, ListQuery, TaskJson

SCAN_MAX = 1_000  # ids that one call of list.lua looks at
PAGE_ROUNDS_MAX = 50  # calls per shard for one page; a page may then be short, with a cursor to go on
ROWS_AT_ONCE = 32  # tasks read together: each may hold 2 MiB, and the answers share a deadline with all other calls
COUNTS_FRESH_S = 0.25  # age up to which counts are answered again
SCORED: dict[str, Callable[[int], str]] = {  # state -> key of the sorted set that holds its tasks
    State.DEAD: keys.dead,
    State.CANCELLED: keys.cancelled,
    State.SUCCEEDED: keys.done,
    State.SCHEDULED: keys.scheduled,
    State.RETRYING: keys.scheduled,
}

T = TypeVar("T")

log = structlog.get_logger("rumor.queries")

_NULL = Raw(b"null")
_decode_line = msgspec.json.Decoder(tuple[str, int, int, int, int, str, str, str]).decode


def task_json(task_id: str, fields: TaskFields) -> TaskJson:
    """A task from its stored fields, without its history."""
    spec, state = fields.spec, fields.state
    task = TaskJson(
        id=task_id,
        type=spec.type,
        state=state,
        queue=spec.queue,
        priority=spec.level,
        data=Raw(fields.data or b"null"),
        attempt=fields.attempt,
        max_attempts=spec.max_attempts,
        delivery=fields.delivery,
        submitted_at_ms=made_at_ms(task_id),
        queued_at_ms=fields.queued_at,
        run_at_ms=fields.due if state in (State.SCHEDULED, State.RETRYING) else None,
        started_at_ms=fields.started_at,
        finished_at_ms=fields.finished_at,
        node_id=fields.node_id,
        result=Raw(fields.result) if fields.result else _NULL,
        error=Raw(fields.error) if fields.error else _NULL,
        progress=Raw(fields.progress) if fields.progress else _NULL,
        key=spec.key,
    )
    if spec.trace is not None:
        carry(task, spec.trace)
    return task


def carry(task: TaskJson, context: str) -> None:
    """Put a trace context into a task's JSON."""
    task.traceparent = trace_context.traceparent(context)
    task.tracestate = trace_context.tracestate(context) or msgspec.UNSET


def history_json(lines: bytes) -> list[AttemptJson]:
    """The attempts that `lua/include/history.lua` wrote down, oldest first, without lines of another form."""
    attempts = []
    for line in lines.splitlines():
        try:
            outcome, at, started, attempt, delivery, name, kind, message = _decode_line(line)
            attempts.append(
                AttemptJson(
                    outcome=outcome,  # type: ignore[arg-type]
                    at_ms=at,
                    started_at_ms=started or None,
                    node_id=session.node_of(name) if name else None,
                    session=name if "/" in name else None,
                    attempt=attempt or None,
                    delivery=delivery,
                    error=FailureJson(kind, message) if kind or message else None,
                )
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return attempts


class Queries:
    """One node's reads of tasks."""

    def __init__(self, config: Config, shards: Shards) -> None:
        self._config = config
        self._shards = shards
        self._counts: tuple[float, dict[str, Any]] | None = None

    def shard(self, task_id: str) -> int:
        """The shard of an id. Raises NotFound for a text that is no id of this cluster."""
        shard = shard_of(task_id, self._config.shards)
        if shard is None:
            raise NotFound(f"there is no task {task_id!r}: that is not the form of an id.", "GET /tasks lists them.")
        return shard

    async def get(self, task_id: str, with_history: bool = False) -> TaskJson:
        """One task, with its history on request. Raises NotFound."""
        shard = self.shard(task_id)
        fields = await self._shards.ask(partial(self._shards.calls.read, shard, task_id, with_history=with_history))
        if fields is None:
            raise NotFound(f"there is no task {task_id!r}, or it is past its retention.", "GET /tasks lists them.")
        return self.shown(task_id, fields) if with_history else task_json(task_id, fields)

    def shown(self, task_id: str, fields: TaskFields) -> TaskJson:
        """A task as the answer about one task shows it: with its history, and a link to its trace."""
        task = task_json(task_id, fields)
        task.history = history_json(fields.history)
        if self._config.trace_url and task.traceparent:
            trace_id = trace_context.trace_id(task.traceparent)
            task.trace_url = self._config.trace_url.replace(TRACE_ID, trace_id)
        return task

    async def page(self, query: ListQuery) -> tuple[list[TaskJson], str | None]:
        """A page of tasks, newest first, and the cursor of the next."""
        if query.state is not None and query.state not in tuple(State):
            raise BadRequest(f"state is {query.state!r}.", f"Use one of {', '.join(State)}.")
        if query.state == State.RUNNING:
            places, cursor = await self._running(query)
        else:
            places, cursor = await self._merged(query)
        rows: list[TaskJson | None] = []
        for n in range(0, len(places), ROWS_AT_ONCE):
            rows += await asyncio.gather(*(self._row(task_id) for _, task_id in places[n : n + ROWS_AT_ONCE]))
        return [task for task in rows if task is not None], cursor

    async def ids(self, state: State, kind: str | None, limit: int, cursor: str | None) -> tuple[list[str], str | None]:
        """A page of ids of one state, for a replay, and the cursor of the next."""
        places, cursor = await self._merged(ListQuery(state=state, type=kind, limit=limit, cursor=cursor))
        return [task_id for _, task_id in places], cursor

    async def counts(self) -> dict[str, Any]:
        """The whole cluster's tasks by state and queue, up to COUNTS_FRESH_S old. Retrying tasks count as scheduled."""
        now_s = asyncio.get_running_loop().time()
        if self._counts is None or now_s - self._counts[0] > COUNTS_FRESH_S:
            states = dict.fromkeys(("scheduled", "waiting", "succeeded", "dead", "cancelled", "queued", "running"), 0)
            queues: dict[str, int] = {}
            for counts in await self._all_shards(self._shards.calls.counts):
                for state, count in counts.states.items():
                    states[state] += count
                for queue, count in counts.queues.items():
                    queues[queue] = queues.get(queue, 0) + count
            states["queued"] = sum(queues.values())
            self._counts = (now_s, {"states": states, "queues": {q: {"queued": n} for q, n in sorted(queues.items())}})
        return self._counts[1]

    async def sums(self) -> dict[str, Any]:
        """The cluster's sums of tasks for each of the last steps, oldest first, in the form of the event stream."""
        steps = task_rates.steps(time.time())
        summed = self._shards.calls.summed
        answers = await asyncio.gather(*(self._shards.ask(partial(summed, step)) for step in steps))
        rows = []
        for step, counters in zip(steps, answers, strict=True):
            rates = task_rates.report([task_rates.counted(counters)])
            del rates["types"]
            rows.append({"at_ms": 1_000 * task_rates.STEP_S * (step + 1), "window_s": task_rates.STEP_S, **rates})
        return {"sums": rows}

    async def running(self) -> dict[str, list[str]]:
        """The ids in flight, by session."""
        ids_of: dict[str, list[str]] = {}
        for running in await self._all_shards(self._shards.calls.running):
            for name, ids in running.items():
                ids_of.setdefault(name, []).extend(ids)
        return ids_of

    async def _all_shards(self, make: Callable[[int, OnReply[T]], Call[T]]) -> list[T]:
        """The same call to every shard."""
        return await asyncio.gather(*(self._shards.ask(partial(make, shard)) for shard in range(self._config.shards)))

    async def _row(self, task_id: str) -> TaskJson | None:
        try:
            return await self.get(task_id)
        except NotFound:
            return None  # dropped since the page was made
        except TaskUnreadable as error:
            log.error("task_unreadable", task=task_id, error=error.message)
            return None

    async def _running(self, query: ListQuery) -> tuple[list[tuple[str, str]], str | None]:
        """A page of the tasks in flight. They are no more than the cluster has slots: read all of them."""
        ids = sorted((task_id for ids in (await self.running()).values() for task_id in ids), reverse=True)
        before = _place(query.cursor, "i")
        places: list[tuple[str, str]] = []
        for task_id in ids:
            if before and task_id >= before:
                continue
            if query.type is not None or query.key is not None:
                task = await self._row(task_id)
                if task is None or query.type not in (None, task.type) or query.key not in (None, task.key):
                    continue
            places.append((task_id, task_id))
            if len(places) == query.limit:
                return places, _cursor("i", task_id)
        return places, None

    async def _merged(self, query: ListQuery) -> tuple[list[tuple[str, str]], str | None]:
        """A page merged from all shards, in rounds. Each shard says how far it looked.

        A round may use only the rows up to the nearest of these places: beyond it, a shard may have more.
        """
        scored = SCORED.get(query.state or "")
        mark = "s" if scored else "i"
        before = _place(query.cursor, mark)
        filters = (query.state or "", query.type or "", query.key or "")
        page: list[tuple[str, str]] = []
        for _ in range(PAGE_ROUNDS_MAX):
            limit = query.limit - len(page)
            parts = await asyncio.gather(
                *(self._part(s, scored, before, limit, filters) for s in range(self._config.shards))
            )
            bound = max((part.reached for part in parts if part.reached), key=_order, default="")
            rows = sorted((row for part in parts for row in part.rows), key=lambda row: _order(row[0]), reverse=True)
            page += [row for row in rows if not bound or _order(row[0]) >= _order(bound)][:limit]
            if len(page) == query.limit:
                return page, _cursor(mark, page[-1][0])
            if not bound:
                return page, None
            before = bound
        return page, _cursor(mark, before)

    async def _part(
        self, shard: int, scored: Callable[[int], str] | None, before: str, limit: int, filters: tuple[str, str, str]
    ) -> Listed:
        source = scored(shard) if scored else None
        return await self._shards.ask(
            partial(self._shards.calls.listing, shard, source, before, limit, SCAN_MAX, filters)
        )


def _order(place: str) -> tuple[int, str]:
    """A sort key for a place: by id alone, or by score and then id. Raises ValueError if it is neither."""
    score, space, task_id = place.rpartition(" ")
    if space and not (score.isascii() and score.isdigit()):
        raise ValueError(place)
    return (int(score), task_id) if space else (0, task_id)


def _cursor(mark: str, place: str) -> str:
    return base64.urlsafe_b64encode(f"{mark}{place}".encode()).decode().rstrip("=")


def _place(cursor: str | None, mark: str) -> str:
    """The place in a cursor, "" without one. Raises BadRequest for a cursor that this listing did not give."""
    if not cursor:
        return ""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        place = text[1:]
        _order(place)
        if text[:1] != mark or not place.isascii() or not place:
            raise ValueError(cursor)
    except ValueError:
        raise BadRequest(
            f"cursor is {cursor!r}: this listing gave no such cursor.", "Use the cursor of the page before, or none."
        ) from None
    return place
