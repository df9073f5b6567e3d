"""The calls about tasks: submit, read, list, cancel, retry, replay, purge. Each handler is parse, call, render.

A submission that this node cannot store goes through a peer, and so does a read. Does not know: Redis, keys, scripts;
what a peer is, beyond that its view row has a URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import Protocol

import msgspec
from aiohttp import hdrs, web

from cluster.config import Config
from cluster.errors import (
    BadRequest,
    IdempotencyConflict,
    NotFound,
    RumorError,
    StoreUnavailable,
    TooLarge,
    TooSlow,
    without_key,
)
from cluster.view import View
from node import trace_context
from node.gateway import batch_body, forward, parse
from node.gateway.batch_body import BatchRoom
from node.gateway.request_body import read_body, read_lines
from node.gateway.responses import JSON_HEADERS, as_json, error_json, json_line
from node.gateway.waits import OpenWaits
from node.observe.metrics import Metrics
from node.observe.tracing import Tracing
from node.schema import (
    ENDED,
    EXPIRED,
    BatchJson,
    BatchKey,
    ErrorJson,
    IdempotencyKeys,
    ListQuery,
    Removed,
    Replayed,
    Submission,
    SubmitQuery,
    Submitted,
    TaskJson,
    TaskList,
    TaskQuery,
)

ANSWER_WITHIN_S = 1.0  # time after which a submission that no node can store is refused
AGAIN_S = 1.0  # pause of a submission that waits, before it reads again what no node can read
HOLD_S = (
    0.1  # time for which a submission that waits leaves the wait to the engine: most tasks that begin here end then
)
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})

_decode_task = msgspec.json.Decoder(TaskJson).decode


class TaskEngine(Protocol):
    """What these calls need of the engine."""

    @property
    def config(self) -> Config: ...
    @property
    def view(self) -> View: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def tracing(self) -> Tracing: ...
    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: IdempotencyKeys = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
        hold_s: float = 0.0,
    ) -> Sequence[Submitted | RumorError]: ...
    async def get(self, task_id: str) -> TaskJson: ...
    async def wait(self, task_id: str, wait_s: float) -> TaskJson: ...
    async def cancel(self, task_id: str) -> TaskJson: ...
    async def retry(self, task_id: str) -> TaskJson: ...
    async def replay(self, type: str | None, limit: int | None) -> int: ...
    async def purge_dead(self) -> int: ...
    async def list_tasks(self, query: ListQuery) -> TaskList: ...


class TaskCalls:
    """The handlers, each named for the `operation` of its route."""

    def __init__(
        self, engine: TaskEngine, forwarder: forward.Forwarder, waits: OpenWaits, batch_room: BatchRoom
    ) -> None:
        self._engine = engine
        self._config = engine.config
        self._nesting_max = engine.config.nesting_max
        self._body_max = engine.config.body_max_bytes
        self._forwarder = forwarder
        self._waits = waits
        self._batch_room = batch_room
        self._store = engine.tracing.sending(self._store_or_forward)
        self._forward = engine.tracing.forwarding(forwarder.submit)

    # ---- submitting

    async def submit(self, request: web.Request) -> web.Response:
        started_s = time.monotonic()
        wait_s = 0.0
        if request.rel_url.raw_query_string:
            wait_s = parse.query(SubmitQuery, request.query).wait_s
        item = parse.submission(await read_body(request, self._body_max), self._nesting_max)
        request_headers = request.headers
        key = parse.idempotency_key(request_headers.get("Idempotency-Key"))
        keys = None if key is None else [key]
        trace = trace_context.received(request_headers)
        result = (await self._store([item], keys, trace, started_s, min(wait_s, HOLD_S)))[0]
        if isinstance(result, RumorError):
            raise result
        task = result.task
        status = 202 if result.is_new else 200
        if wait_s > 0:
            task = await self._ended(request, task, started_s + wait_s)
            status = 200 if task.state in ENDED else 202
        headers = {**JSON_HEADERS, hdrs.LOCATION: "/tasks/" + task.id}
        if task.traceparent:
            headers.update(_trace_headers([task]))
        return web.Response(body=json_line(task), status=status, headers=headers)

    async def _ended(self, request: web.Request, task: TaskJson, until_s: float) -> TaskJson:
        """The task of a submission once it has ended, or as it is at `until_s` or when the node stops."""
        if task.state in ENDED:
            return task
        try:
            async with self._waiting(request):
                return await self._followed(task, until_s)
        except TimeoutError:  # The node shuts down.
            with contextlib.suppress(RumorError):
                return await self._engine.get(task.id)
            return task

    async def _followed(self, task: TaskJson, until_s: float) -> TaskJson:
        """The same while the node goes on. The task is stored, so nothing that fails from here on is an error.

        While this node cannot read the task, it asks a peer; while no peer can either, it tries again.
        """
        while True:
            left_s = max(0.0, until_s - time.monotonic())
            try:
                return await self._engine.wait(task.id, left_s)
            except NotFound:
                task.state = EXPIRED
                return task
            except RumorError:
                path = f"/tasks/{task.id}?wait_s={left_s:.3f}"
                answer = await self._forwarder.read(self._engine.view, path, until_s + ANSWER_WITHIN_S)
            if answer is not None and answer[0] == HTTPStatus.OK:
                return _decode_task(answer[1])
            if left_s == 0:
                return task
            await asyncio.sleep(min(left_s, AGAIN_S))

    async def submit_batch(self, request: web.Request) -> web.StreamResponse:
        started_s = time.monotonic()
        key = parse.idempotency_key(request.headers.get("Idempotency-Key"))
        trace = trace_context.received(request.headers)
        if request.content_type in NDJSON:
            return await self._submit_lines(request, key, trace)
        async with self._batch_room.taken(request):
            body = await read_body(request, self._config.batch_max_bytes)
            items = await batch_body.parsed(body, self._config, self._body_max)
            results = await self._store_valid(items, 0, key, trace, started_s)
            rejected = sum(isinstance(result, ErrorJson) for result in results)
            response = as_json(BatchJson(len(results) - rejected, rejected, results))
            response.headers.update(_trace_headers(results))
            return response

    async def _submit_lines(self, request: web.Request, key: str | None, trace: str | None) -> web.StreamResponse:
        """NDJSON: store and answer each chunk of lines before reading the next.

        If Redis fails before the first answer, the whole call fails; later, only the lines that it hits.
        """
        response = web.StreamResponse(headers={**JSON_HEADERS, hdrs.CONTENT_TYPE: "application/x-ndjson"})
        place = 0
        try:
            async for chunk in read_lines(request, self._body_max):
                items = await batch_body.parsed_lines(chunk, self._config, place + 1)
                try:
                    results = await self._store_valid(items, place, key, trace, time.monotonic(), is_stream=True)
                except (StoreUnavailable, IdempotencyConflict) as error:
                    if not response.prepared:
                        raise
                    told = error if key or not isinstance(error, StoreUnavailable) else without_key(error)
                    results = [error_json(told)] * len(items)
                if not response.prepared:
                    response.headers.update(_trace_headers(results))
                    await response.prepare(request)
                await response.write(b"".join(map(json_line, results)))
                place += len(chunk)
        except (TooLarge, TooSlow) as error:
            if not response.prepared:
                raise
            await response.write(json_line(error_json(error)))
            response.force_close()  # Nobody knows where the next line would begin.
        if not response.prepared:
            raise BadRequest("the body is empty.", "Send one JSON task a line.")
        return response

    async def _store_valid(
        self,
        items: Sequence[Submission | RumorError],
        first: int,
        key: str | None,
        trace: str | None,
        started_s: float,
        is_stream: bool = False,
    ) -> list[TaskJson | ErrorJson]:
        """Store the items that are submissions; each result stands in the place of its item.

        `first` is the first item's place in the request. Under an Idempotency-Key each task is known by that place. It
        is therefore the same in every repeat, whatever became of the other items and whichever node the repeat reaches.
        An array is under one key; a line of NDJSON has a key of its own, since no two calls cut them into equal chunks.
        """
        valid = [item for item in items if isinstance(item, Submission)]
        keys: IdempotencyKeys = None
        if key is not None:
            places = [place for place, item in enumerate(items, first) if isinstance(item, Submission)]
            keys = BatchKey(key, places, is_lines=is_stream)
        stored = iter(await self._store(valid, keys, trace, started_s) if valid else ())
        rejected = self._engine.metrics.rejected
        results: list[TaskJson | ErrorJson] = []
        for item in items:
            result = next(stored) if isinstance(item, Submission) else item
            if isinstance(result, RumorError):
                rejected.add(result.code)
                results.append(error_json(result))
            else:
                results.append(result.task)
        return results

    async def _store_or_forward(
        self,
        items: Sequence[Submission],
        keys: IdempotencyKeys,
        trace: str | None,
        started_s: float,
        hold_s: float = 0.0,
    ) -> Sequence[Submitted | RumorError]:
        """Store here or, when Redis does not answer, through a peer."""
        try:
            return await self._engine.submit(items, keys, trace=trace, hold_s=hold_s)
        except StoreUnavailable as error:
            if len(error.ids) != len(items) or not any(error.ids):
                raise
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + started_s + ANSWER_WITHIN_S - time.monotonic()
            # The engine gave no id to an item that it could not accept; which error that item had is lost by now.
            ids = [task_id for task_id in error.ids if task_id]
            ready = [item for task_id, item in zip(error.ids, items, strict=True) if task_id]
            if isinstance(keys, BatchKey):
                keys = keys.going_on([bool(task_id) for task_id in error.ids], error.plan)
            elif keys is not None:
                keys = [key for task_id, key in zip(error.ids, keys, strict=True) if task_id]
            submission = forward.outgoing(ids, ready, keys, trace)
            outcome = "failed"
            try:
                results = iter(await self._forward(self._engine.view, submission, error, deadline_s))
                outcome = "ok"
            finally:
                self._engine.metrics.forwarded.add(outcome, len(ready))
            return [next(results) if task_id else forward.NOT_READY for task_id in error.ids]

    # ---- reading

    async def list_tasks(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.list_tasks(parse.query(ListQuery, request.query)))

    async def get_task(self, request: web.Request) -> web.Response:
        started_s = time.monotonic()
        wait_s = parse.query(TaskQuery, request.query).wait_s
        try:
            return as_json(await self._get(request, wait_s))
        except NotFound:
            forward.refuse_misdirected(request.headers.get(forward.FORWARDED), self._engine.view.session)
            raise
        except StoreUnavailable:
            if forward.FORWARDED in request.headers:
                raise
            deadline_s = started_s + ANSWER_WITHIN_S + wait_s
            answer = await self._forwarder.read(self._engine.view, request.rel_url.raw_path_qs, deadline_s)
            if answer is None:
                raise
            return web.Response(status=answer[0], body=answer[1], headers=JSON_HEADERS)

    async def _get(self, request: web.Request, wait_s: float) -> TaskJson:
        task_id = request.match_info["id"]
        if wait_s > 0:
            try:
                async with self._waiting(request):
                    return await self._engine.wait(task_id, wait_s)
            except TimeoutError:
                pass  # The node shuts down.
        return await self._engine.get(task_id)

    @contextlib.asynccontextmanager
    async def _waiting(self, request: web.Request) -> AsyncIterator[None]:
        """Raises TimeoutError when the node stops, and ConnectionError soon after the client has gone."""
        try:
            with self._waits.hold(lambda: request.transport is None) as wait:
                async with wait:
                    yield
        except TimeoutError:
            if request.transport is None:
                raise ConnectionError("the client has gone") from None
            raise

    # ---- changing

    async def cancel(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.cancel(request.match_info["id"]))

    async def retry(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.retry(request.match_info["id"]))

    async def replay(self, request: web.Request) -> web.Response:
        selection = parse.replay(await read_body(request, self._body_max))
        return as_json(Replayed(await self._engine.replay(selection.type, selection.limit)))

    async def purge_dead(self, request: web.Request) -> web.Response:
        return as_json(Removed(await self._engine.purge_dead()))


def _trace_headers(results: Sequence[TaskJson | ErrorJson]) -> Mapping[str, str]:
    """Headers with the trace context of one call's submissions, which is that of its first task."""
    first = next((result for result in results if isinstance(result, TaskJson)), None)
    if first is None or not first.traceparent:
        return {}
    headers = {trace_context.TRACEPARENT: first.traceparent}
    return headers | {trace_context.TRACESTATE: first.tracestate} if first.tracestate else headers
