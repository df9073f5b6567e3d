"""Reading tasks: one by id, pages of many, counts. Everything here only reads.

A listing is ordered newest first. Without a state (or for the states that only the index can tell) that is the order of
ids; dead, cancelled, succeeded and scheduled tasks have a sorted set each and list by its score. A cursor is opaque to
callers: the place in that order where the page ended.
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
from cluster.errors import BadRequest, NotFound, StoreUnavailable
from cluster.shards.answers import Listed, TaskFields
from cluster.shards.lane import Call, OnReply
from cluster.shards.shards import Shards
from cluster.shards.task import Spec, State, made_at_ms, shard_of
from node import trace_context
from node.observe import task_rates
from node.schema import AttemptJson, FailureJson, ListQuery, TaskJson

SCAN_MAX = 1_000  # ids one script call looks at
PAGE_ROUNDS_MAX = 50  # calls per shard for one page; a page may then be short, with a cursor to go on
ROWS_AT_ONCE = 32  # tasks read together: each may hold 2 MiB, and the answer shares a deadline with everybody's calls
COUNTS_FRESH_S = 0.25
SCORED: dict[str, Callable[[int], str]] = {
    State.DEAD: keys.dead,
    State.CANCELLED: keys.cancelled,
    State.SUCCEEDED: keys.done,
    State.SCHEDULED: keys.scheduled,
    State.RETRYING: keys.scheduled,
}

T = TypeVar("T")

log = structlog.get_logger("rumor.queries")

_NULL = Raw(b"null")
_decode_spec = msgspec.msgpack.Decoder(Spec).decode
_decode_line = msgspec.json.Decoder(tuple[str, int, int, int, int, str, str, str]).decode


def task_json(task_id: str, fields: TaskFields) -> TaskJson:
    """A task from its stored fields, with its history where that was read."""
    spec = _decode_spec(fields.spec)
    state = fields.state.decode()
    task = TaskJson(
        id=task_id,
        type=spec.type,
        state=state,
        queue=spec.queue,
        priority=spec.level,
        data=Raw(fields.data or b"null"),
        attempt=int(fields.attempt or 0),
        max_attempts=spec.max_attempts,
        delivery=int(fields.delivery or 0),
        submitted_at_ms=made_at_ms(task_id),
        queued_at_ms=_ms(fields.queued_at),
        run_at_ms=_ms(fields.due) if state in (State.SCHEDULED, State.RETRYING) else None,
        started_at_ms=_ms(fields.started_at),
        finished_at_ms=_ms(fields.finished_at),
        node_id=session.node_of(fields.session.decode()) if fields.session else None,
        result=Raw(fields.result) if fields.result else _NULL,
        error=Raw(fields.error) if fields.error and state != State.SUCCEEDED else _NULL,  # else an earlier attempt's
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
    """The attempts that `lua/include/history.lua` wrote down, oldest first; lines of another form are left out."""
    found = []
    for line in lines.splitlines():
        try:
            outcome, at, started, attempt, delivery, name, kind, message = _decode_line(line)
            found.append(
                AttemptJson(
                    outcome=outcome,  # type: ignore[arg-type]
                    at_ms=at,
                    started_at_ms=started or None,
                    node_id=session.node_of(name) if name else None,
                    session=name or None,
                    attempt=attempt or None,
                    delivery=delivery,
                    error=FailureJson(kind, message) if kind or message else None,
                )
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def _ms(value: bytes | None) -> int | None:
    return int(float(value)) if value else None


class Queries:
    """One node's reads."""

    def __init__(self, config: Config, shards: Shards) -> None:
        self._config = config
        self._shards = shards
        self._counts: tuple[float, dict[str, Any]] | None = None

    def shard(self, task_id: str) -> int:
        """The shard of an id. Raises NotFound for what is no id of this cluster."""
        shard = shard_of(task_id, self._config.shards)
        if shard is None:
            raise NotFound(f"there is no task {task_id!r}: that is not the form of an id.", "GET /tasks lists them.")
        return shard

    async def get(self, task_id: str, with_history: bool = False) -> TaskJson:
        """One task. Raises NotFound."""
        shard = self.shard(task_id)
        fields = await self._shards.ask(partial(self._shards.calls.read, shard, task_id, with_history=with_history))
        if fields is None:
            raise NotFound(f"there is no task {task_id!r}, or it is past its retention.", "GET /tasks lists them.")
        task = task_json(task_id, fields)
        if with_history:
            task.history = history_json(fields.history or b"")
        if with_history and self._config.trace_url and task.traceparent:
            trace_id = trace_context.trace_id(task.traceparent)
            task.trace_url = self._config.trace_url.replace(TRACE_ID, trace_id)
        return task

    async def page(self, query: ListQuery) -> tuple[list[TaskJson], str | None]:
        """A page, newest first, and the cursor of the next one."""
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
        """A page of ids of one state, for replaying, and the cursor of the next."""
        places, cursor = await self._merged(ListQuery(state=state, type=kind, limit=limit, cursor=cursor))
        return [task_id for _, task_id in places], cursor

    async def counts(self) -> dict[str, Any]:
        """Tasks by state and queue, of the whole cluster; up to COUNTS_FRESH_S old. Retrying counts as scheduled."""
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
        """What the cluster did in each of the last steps, oldest first, as the stream's sums have it."""
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
        """Ids in flight by session."""
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
        except StoreUnavailable as error:
            if error.refusal is None or not error.refusal.is_of_one_key:
                raise
            log.error("task_unreadable", task=task_id, error=error.refusal.words)
            return None

    async def _running(self, query: ListQuery) -> tuple[list[tuple[str, str]], str | None]:
        """What is in flight is bounded by the slots: take all of it."""
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
        """Merge the shards. Each says how far it looked; what lies beyond the nearest such place waits for a round."""
        scored = SCORED.get(query.state or "")
        mark = "s" if scored else "i"
        before = _place(query.cursor, mark)
        filters = (query.state or "", query.type or "", query.key or "")
        found: list[tuple[str, str]] = []
        for _ in range(PAGE_ROUNDS_MAX):
            limit = query.limit - len(found)
            parts = await asyncio.gather(
                *(self._part(s, scored, before, limit, filters) for s in range(self._config.shards))
            )
            # A shard that reached a place and may have more bounds what this round is sure of.
            bound = max((part.reached for part in parts if part.reached), key=_order, default="")
            rows = sorted((row for part in parts for row in part.rows), key=lambda row: _order(row[0]), reverse=True)
            found += [row for row in rows if not bound or _order(row[0]) >= _order(bound)][:limit]
            if len(found) == query.limit:
                return found, _cursor(mark, found[-1][0])
            if not bound:
                return found, None
            before = bound
        return found, _cursor(mark, before)

    async def _part(
        self, shard: int, scored: Callable[[int], str] | None, before: str, limit: int, filters: tuple[str, str, str]
    ) -> Listed:
        source = scored(shard) if scored else None
        return await self._shards.ask(
            partial(self._shards.calls.listing, shard, source, before, limit, SCAN_MAX, filters)
        )


def _order(place: str) -> tuple[int, str]:
    """A place's position: by id alone, or by score and then id."""
    score, space, task_id = place.rpartition(" ")
    if space and not (score.isascii() and score.isdigit()):
        raise ValueError(place)
    return (int(score), task_id) if space else (0, task_id)


def _cursor(mark: str, place: str) -> str:
    return base64.urlsafe_b64encode(f"{mark}{place}".encode()).decode().rstrip("=")


def _place(cursor: str | None, mark: str) -> str:
    """What a cursor says. Raises BadRequest for one that this listing did not give."""
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
            f"cursor is {cursor!r}: not one that this listing gave.", "Use the cursor of the page before, or none."
        ) from None
    return place
