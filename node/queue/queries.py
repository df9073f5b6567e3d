"""Queries: read one task by its id, pages of many, counts. Nothing here writes.

A listing is ordered newest first. For most states a sorted set holds the tasks, and its scores give the order
(`SCORED`, and for queued tasks the queues themselves). Without a state the order is that of the ids. A cursor is opaque
to callers: it holds the place in that order where the page ended.

Lists and counts go to Redis aside (`Shards.look`), so that they hold nobody up. What a caller may wait for, one task by
its id, takes the way of the work.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from cluster import keys, session
from cluster.config import SHARDS_MAX, TRACE_ID, Config
from cluster.errors import BadRequest, NotFound, StoreUnavailable, TaskUnreadable, unread
from cluster.shards.answers import Listed, TaskFields
from cluster.shards.lane import Call, OnReply
from cluster.shards.shards import Shards
from cluster.shards.task import State, made_at_ms, shard_of
from node import trace_context
from node.observe import task_rates
from node.observe.metrics import OTHER
from node.queue.placement import shard_of_key
from node.queue.search import SCORED_PLACE, SEARCH_MAX, Found, search
from node.queue.turns import Shared, Turns
from node.schema import FIELDS, AttemptJson, FailureJson, ListQuery, TaskJson, TaskList

READS_AT_ONCE = 32  # reads of one task each on the way of the work: at 1 MiB each, a third of the time that a call has
LISTS_AT_ONCE = 4  # lists without a filter by type or key that one node makes at a time
SEARCHES_AT_ONCE = 2  # lists with such a filter
TURNS_WAITING_MAX = 16  # callers that wait for their turn, of each kind
TURN_WITHIN_S = 2.0  # longest wait for a turn; with the page itself, less than a client waits before it asks elsewhere
PAGE_WITHIN_S = 2.0  # time after which a page is answered as far as it is
PAGE_BYTES_MAX = 2_097_152  # bytes of data, results, errors on a page; its first task is there whatever its size
ROWS_AT_ONCE = 250  # rows read together, each below some 2 KiB
WHOLE_AT_ONCE = 4  # the same with data and result, which may be 2 MiB of each task
ERROR_SHOWN = 1_000  # characters of an error's message in a summary
COUNTS_FRESH_S = 0.25  # age up to which counts are answered again
# Microseconds for which a call holds Redis, as measured where each task is in a bucket of its own.
COUNT_US = 30
LIST_US = 20
LISTED_US = 4  # for each task in the order of the listing
LOOKED_AT_US = 7  # the same where it is read, too, to filter
READ_US = 20
ROW_US = 5
WHOLE_US = 250
QUEUES_MAX = 200  # queues in the counts by name: the user's code makes them up, so their number needs a bound
STATES = ("scheduled", "retrying", "waiting", "succeeded", "dead", "cancelled", "queued", "running")
SCORED: dict[str, Callable[[int], str]] = {  # state -> key of the sorted set that holds its tasks
    State.DEAD: keys.dead,
    State.CANCELLED: keys.cancelled,
    State.SUCCEEDED: keys.done,
    State.SCHEDULED: keys.scheduled,
    State.RETRYING: keys.scheduled,
    State.WAITING: keys.waiting,
}
OWN_SET = frozenset(  # states whose tasks are in sets that hold no others
    {State.QUEUED, State.RUNNING, State.WAITING, State.SUCCEEDED, State.DEAD, State.CANCELLED}
)
FAILED = frozenset({State.DEAD, State.RETRYING})  # states whose tasks have an error

T = TypeVar("T")
Row = TaskJson | TaskUnreadable | None
Source = tuple[int, str | None]  # a shard, and the key of the sorted set to list; None: all its tasks by their ids

_NULL_TEXT = b"null"
_NULL = Raw(_NULL_TEXT)
_decode_failure = msgspec.json.Decoder(FailureJson).decode
_encode = msgspec.json.Encoder().encode
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
        submitted_at_ms=_submitted_at_ms(task_id, fields),
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


def summarize(task: TaskJson, fields: Collection[str]) -> None:
    """Take from a task what a list shows only on request: data, result, the long form of its error."""
    if "data" not in fields:
        task.data = msgspec.UNSET
    if "result" not in fields:
        task.result = msgspec.UNSET
    if "error" not in fields and bytes(task.error) != _NULL_TEXT:
        try:
            failure = _decode_failure(task.error)
        except (msgspec.DecodeError, UnicodeDecodeError):
            failure = FailureJson("", "")
        short = FailureJson(failure.type, _shortened(failure.message))
        task.error = Raw(_encode(short))


def _shortened(text: str) -> str:
    return text if len(text) <= ERROR_SHOWN else text[: ERROR_SHOWN - 1] + "…"


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
        self._counted = Shared(self._count)
        self._running_now = Shared(self._read_running)
        self._sums = Shared(self._sum_up)
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._lists = Turns(LISTS_AT_ONCE, TURNS_WAITING_MAX, TURN_WITHIN_S)
        self._searches = Turns(SEARCHES_AT_ONCE, TURNS_WAITING_MAX, TURN_WITHIN_S)

    def shard(self, task_id: str) -> int:
        """The shard of an id. Raises NotFound for a text that is no id of this cluster."""
        shard = shard_of(task_id, self._config.shards)
        if shard is None:
            raise NotFound(f"there is no task {task_id!r}: that is not the form of an id.", "GET /tasks lists them.")
        return shard

    async def get(self, task_id: str, with_history: bool = False) -> TaskJson:
        """One task, with its history on request. Raises NotFound."""
        shard = self.shard(task_id)
        try:
            async with self._reads:
                read = partial(self._shards.calls.read, shard, task_id)
                fields = await self._shards.ask(read, may_repeat=True)
        except StoreUnavailable as error:
            raise unread(error) from error
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

    async def page(self, query: ListQuery) -> TaskList:
        """A page of tasks, newest first, and how far this node looked for them. Raises TooManyReads."""
        if query.state is not None and query.state not in tuple(State):
            raise BadRequest(f"state is {query.state!r}.", f"Use one of {', '.join(State)}.")
        if query.queue is not None and query.state != State.QUEUED:
            raise BadRequest(f"queue is {query.queue!r} without state=queued.", "Add state=queued, or leave queue out.")
        fields = _fields_of(query)
        mark = _mark(query)
        before = _place(query.cursor, mark)
        async with (self._searches if any(_filters(query)) else self._lists).take():
            until_s = asyncio.get_running_loop().time() + PAGE_WITHIN_S
            if query.state == State.RUNNING:
                found = await self._search_running(query, before, until_s)
            else:
                found = await self._search(query, before, until_s)
            unreadable: list[str] = []
            tasks, used = await self._rows([task_id for _, task_id in found.rows], fields, until_s, unreadable)
        of_rest = unreadable or msgspec.UNSET
        if used < len(found.rows):
            return TaskList(tasks, _cursor(mark, found.rows[used - 1][0]), found.searched, False, of_rest)
        cursor = _cursor(mark, found.next) if found.next else None
        return TaskList(tasks, cursor, found.searched, found.is_complete, of_rest)

    async def ids(self, state: State, kind: str | None, limit: int, cursor: str | None) -> tuple[list[str], str | None]:
        """A page of ids of one state, for a replay, and the cursor of the next; an empty page may not be the last."""
        query = ListQuery(state=state, type=kind, limit=limit, cursor=cursor)
        mark = _mark(query)
        until_s = asyncio.get_running_loop().time() + PAGE_WITHIN_S
        found = await self._search(query, _place(cursor, mark), until_s)
        ids = [task_id for _, task_id in found.rows if shard_of(task_id, self._config.shards) is not None]
        return ids, _cursor(mark, found.next) if found.next else None

    async def counts(self) -> dict[str, Any]:
        """The whole cluster's tasks by state and queue, up to COUNTS_FRESH_S old."""
        now_s = asyncio.get_running_loop().time()
        if self._counts is not None and now_s - self._counts[0] <= COUNTS_FRESH_S:
            return self._counts[1]
        return await self._counted.get()

    async def _count(self) -> dict[str, Any]:
        now_s = asyncio.get_running_loop().time()
        states = dict.fromkeys(STATES, 0)
        queues: dict[str, int] = {}
        oldest_s: dict[str, float] = {}
        for counts in await self._of_each(range(self._config.shards), self._shards.calls.counts):
            for state, count in counts.states.items():
                states[state] += count
            for queue, count in counts.queues.items():
                queues[queue] = queues.get(queue, 0) + count
                oldest_s[queue] = max(oldest_s.get(queue, 0.0), counts.oldest_s[queue])
        states["queued"] = sum(queues.values())
        summary = {"states": states, "queues": queue_rows(queues, oldest_s, self._config.queue_slots)}
        self._counts = (now_s, summary)
        return summary

    async def sums(self) -> dict[str, Any]:
        """The cluster's sums of tasks for each of the last steps, oldest first, in the form of the event stream."""
        return await self._sums.get()

    async def _sum_up(self) -> dict[str, Any]:
        steps = task_rates.steps(time.time())
        summed = self._shards.calls.summed
        answers = await asyncio.gather(*(self._look(partial(summed, step), COUNT_US) for step in steps))
        rows = []
        for step, counters in zip(steps, answers, strict=True):
            rates = task_rates.report([task_rates.counted(counters)])
            del rates["types"]
            rows.append({"at_ms": 1_000 * task_rates.STEP_S * (step + 1), "window_s": task_rates.STEP_S, **rates})
        return {"sums": rows}

    async def running(self) -> dict[str, list[str]]:
        """The ids in flight, by session."""
        return await self._running_now.get()

    async def _read_running(self) -> dict[str, list[str]]:
        ids_of: dict[str, list[str]] = {}
        for running in await self._of_each(range(self._config.shards), self._shards.calls.running):
            for name, ids in running.items():
                ids_of.setdefault(name, []).extend(ids)
        return ids_of

    async def _of_each(self, shards: Sequence[int], make: Callable[[int, OnReply[T]], Call[T]]) -> list[T]:
        """The answers to the same call to each of these shards."""
        return await asyncio.gather(*(self._look(partial(make, shard), COUNT_US) for shard in shards))

    async def _look(self, make: Callable[[OnReply[T]], Call[T]], us: int) -> T:
        try:
            return await self._shards.look(make, us)
        except StoreUnavailable as error:
            raise unread(error) from error

    # ---- places

    async def _search(self, query: ListQuery, before: str, until_s: float) -> Found:
        loop = asyncio.get_running_loop()
        filters = _filters(query)
        is_filtered = any(filters)

        async def look(source: Source, before: str, limit: int, scan: int) -> Listed:
            shard, scored = source
            call = partial(self._shards.calls.listing, shard, scored, before, limit, scan, filters)
            return await self._look(call, LIST_US + scan * (LOOKED_AT_US if is_filtered else LISTED_US))

        sources = await self._sources(query)
        return await search(sources, look, before, query.limit, is_filtered, lambda: loop.time() > until_s)

    async def _sources(self, query: ListQuery) -> list[Source]:
        """Where to look. All tasks with one key are in one shard."""
        shards = self._shards_of(query.key)
        if query.state == State.QUEUED:
            counts = await self._of_each(shards, self._shards.calls.counts)
            return [
                (shard, keys.ready(shard, queue))
                for shard, counted in zip(shards, counts, strict=True)
                for queue, count in counted.queues.items()
                if count and query.queue in (None, queue)
            ]
        scored = SCORED.get(query.state or "")
        return [(shard, scored(shard) if scored else None) for shard in shards]

    def _shards_of(self, key: str | None) -> Sequence[int]:
        return range(self._config.shards) if key is None else [shard_of_key(key, self._config.shards)]

    async def _search_running(self, query: ListQuery, before: str, until_s: float) -> Found:
        """A page of the tasks in flight. They are no more than the cluster has slots: read all their ids."""
        loop = asyncio.get_running_loop()
        shards = frozenset(self._shards_of(query.key))
        in_flight = (task_id for ids in (await self.running()).values() for task_id in ids)
        here = (task_id for task_id in in_flight if shard_of(task_id, self._config.shards) in shards)
        ids = sorted((task_id for task_id in here if not before or task_id < before), reverse=True)
        if query.type is None and query.key is None:
            page = [(task_id, task_id) for task_id in ids[: query.limit]]
            return Found(page, page[-1][0] if len(ids) > len(page) else "", len(page), True)
        found: list[tuple[str, str]] = []
        for first in range(0, len(ids), ROWS_AT_ONCE):
            chunk = ids[first : first + ROWS_AT_ONCE]
            for n, task in enumerate(await self._read(chunk, False), first + 1):
                if isinstance(task, TaskJson) and query.type in (None, task.type) and query.key in (None, task.key):
                    found.append((task.id, task.id))
                    if len(found) == query.limit:
                        return Found(found, task.id if n < len(ids) else "", n, True)
            searched = first + len(chunk)
            if searched < len(ids) and (searched >= SEARCH_MAX or loop.time() > until_s):
                return Found(found, chunk[-1], searched, False)
        return Found(found, "", len(ids), True)

    # ---- rows

    async def _rows(
        self, ids: Sequence[str], fields: Collection[str], until_s: float, unreadable: list[str]
    ) -> tuple[list[TaskJson], int]:
        """The tasks of a page as far as its bytes and its time reach, and how many of the ids that is.

        Adds to `unreadable` the ids among them whose tasks cannot be read.
        """
        loop = asyncio.get_running_loop()
        is_whole = bool(fields)
        at_once = WHOLE_AT_ONCE if is_whole else ROWS_AT_ONCE
        tasks: list[TaskJson] = []
        size = 0
        for first in range(0, len(ids), at_once):
            if first and loop.time() > until_s:
                return tasks, first
            for used, task in enumerate(await self._read(ids[first : first + at_once], is_whole), first):
                if isinstance(task, TaskUnreadable):
                    unreadable.append(ids[used])
                if not isinstance(task, TaskJson):
                    continue
                summarize(task, fields)
                size += sum(len(bytes(part)) for part in (task.data, task.result, task.error, task.progress) if part)
                if size > PAGE_BYTES_MAX and used:
                    return tasks, used
                tasks.append(task)
        return tasks, len(ids)

    async def _read(self, ids: Sequence[str], is_whole: bool) -> list[Row]:
        """These tasks, in order; None in the place of one that was dropped since, an error if it cannot be read."""
        groups: dict[int, list[str]] = {}
        rows: dict[str, Row] = {}
        for n, task_id in enumerate(ids):
            shard = shard_of(task_id, self._config.shards)
            if shard is None:
                rows[task_id] = TaskUnreadable(f"{task_id!r} is not an id of this cluster.")
            else:
                groups.setdefault(n if is_whole else shard, []).append(task_id)  # whole ones may be large: one by one
        parts = (self._read_of_one_shard(group, is_whole) for group in groups.values())
        for part in await asyncio.gather(*parts):
            rows |= part
        if not is_whole:
            await self._read_long_errors(rows)
        return [rows[task_id] for task_id in ids]

    async def _read_long_errors(self, rows: dict[str, Row]) -> None:
        """Redis keeps a long error apart from what it reads for a row, and a list shows its message all the same."""
        tasks = {row.id: row for row in rows.values() if isinstance(row, TaskJson)}
        lack = [task.id for task in tasks.values() if task.state in FAILED and bytes(task.error) == _NULL_TEXT]
        for first in range(0, len(lack), WHOLE_AT_ONCE):
            chunk = lack[first : first + WHOLE_AT_ONCE]
            for task_id, whole in zip(chunk, await self._read(chunk, True), strict=True):
                if isinstance(whole, TaskJson):
                    tasks[task_id].error = whole.error
                elif whole is not None:
                    rows[task_id] = whole

    async def _read_of_one_shard(self, ids: Sequence[str], is_whole: bool) -> dict[str, Row]:
        read = partial(self._shards.calls.read_rows, self.shard(ids[0]), ids, is_whole)
        rows = await self._look(read, WHOLE_US if is_whole else READ_US + ROW_US * len(ids))
        return {
            task_id: task_json(task_id, row) if isinstance(row, TaskFields) else row
            for task_id, row in zip(ids, rows, strict=True)
        }


def queue_rows(
    queued: Mapping[str, int], oldest_s: Mapping[str, float], served: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The counts of each queue by name: of those served here and the fullest ones; the others together are "other"."""
    ranked = sorted(queued, key=lambda queue: (queue not in served, -queued[queue], queue))
    rows = {queue: {"queued": queued[queue], "oldest_s": oldest_s[queue]} for queue in sorted(ranked[:QUEUES_MAX])}
    for queue in ranked[QUEUES_MAX:]:
        rest = rows.setdefault(OTHER, {"queued": 0, "oldest_s": 0.0})
        rest["queued"] += queued[queue]
        rest["oldest_s"] = max(rest["oldest_s"], oldest_s[queue])
    return rows


def _submitted_at_ms(task_id: str, fields: TaskFields) -> int:
    """From the id; a large batch dates some ids later than it came, but none is queued before it is submitted."""
    made_ms = made_at_ms(task_id)
    is_first = fields.queued_at is not None and fields.delivery <= 1
    return min(made_ms, fields.queued_at or made_ms) if is_first else made_ms


def _fields_of(query: ListQuery) -> Collection[str]:
    fields = [name.strip() for name in (query.fields or "").split(",") if name.strip()]
    for name in fields:
        if name not in FIELDS:
            raise BadRequest(
                f"fields is {name[:80]!r}: there is no such field.",
                f"Use {', '.join(FIELDS)}, with commas between them.",
            )
    return fields


def _filters(query: ListQuery) -> tuple[str, str, str]:
    """State, type and key that each task must be looked at for; "" for any."""
    is_in_own_set = query.state is None or query.state in OWN_SET
    return "" if is_in_own_set else str(query.state), query.type or "", query.key or ""


def _mark(query: ListQuery) -> str:
    """The first letter of a listing's cursors: whether its places have a score or are ids."""
    return "s" if query.state in SCORED or query.state == State.QUEUED else "i"


def _cursor(mark: str, place: str) -> str:
    return base64.urlsafe_b64encode(f"{mark}{place}".encode()).decode().rstrip("=")


def _place(cursor: str | None, mark: str) -> str:
    """The place in a cursor, "" without one. Raises BadRequest for a cursor that this listing did not give."""
    if not cursor:
        return ""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        place = text[1:]
        # A set may hold what is no id of ours, and a page may end there.
        is_place = SCORED_PLACE.match(place) if mark == "s" else shard_of(place, SHARDS_MAX) is not None
        if text[:1] != mark or not is_place:
            raise ValueError(cursor)
    except ValueError:
        raise BadRequest(
            f"cursor is {cursor!r}: this listing gave no such cursor.", "Use the cursor of the page before, or none."
        ) from None
    return place
