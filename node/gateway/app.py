"""The gateway: HTTP in front of the engine. A handler is parse, call, render.

No handler builds an error body or checks who calls: `answering` does both, around every handler. There is no aiohttp
middleware, as the chain costs more than the handlers do. Does not know: Redis, keys, scripts; what a peer is, beyond
that its view row has a URL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import msgspec
import structlog
from aiohttp import hdrs, web
from msgspec import msgpack

from cluster.config import Config
from cluster.errors import (
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    RumorError,
    StoreUnavailable,
    TooLarge,
    TooSlow,
)
from cluster.gossip.watch_token import HEADER as WATCH_HEADER
from cluster.view import View
from node import trace_context
from node.gateway import access, forward, openapi, page, parse, sse
from node.gateway.request_body import lines, whole
from node.gateway.responses import JSON_HEADERS, as_json, encode, error_json, line, refusal
from node.gateway.routes import CALLERS, ROUTES, Route, methods_of
from node.observe import gauges
from node.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from node.observe.metrics import Metrics
from node.observe.redis_memory import Memory
from node.observe.timeline import Listener
from node.observe.tracing import Tracing
from node.schema import (
    BatchJson,
    ClusterQuery,
    ErrorJson,
    Forward,
    Forwarded,
    ListQuery,
    Removed,
    Replayed,
    Submission,
    Submitted,
    TaskJson,
    TaskList,
    TaskQuery,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ANSWER_WITHIN_S = 1.0  # a submission that nobody can store is refused this soon
WATCH_LOOK_S = 1.0  # how soon a watch whose client has gone is let go
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
ELSEWHERE = Route("*", "", "elsewhere", "Whatever no route takes", {}, is_public=False)

_forward = msgpack.Decoder(Forward).decode
_log = structlog.get_logger("rumor.gateway")


class Vitals(Protocol):
    """What the gateway hands to the vitals thread."""

    @property
    def stats(self) -> Mapping[str, int]: ...
    async def push_pull(self, body: bytes) -> bytes | None: ...
    def accepts_watch(self, token: str) -> bool: ...


class Engine(Protocol):
    """What the gateway calls. Two exist: the engine, and the one of the tests."""

    @property
    def config(self) -> Config: ...
    @property
    def view(self) -> View: ...
    @property
    def vitals(self) -> Vitals: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def tracing(self) -> Tracing: ...
    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
    ) -> Sequence[Submitted | RumorError]: ...
    async def get(self, task_id: str) -> TaskJson: ...
    async def wait(self, task_id: str, wait_s: float) -> TaskJson: ...
    async def cancel(self, task_id: str) -> TaskJson: ...
    async def retry(self, task_id: str) -> TaskJson: ...
    async def replay(self, type: str | None, limit: int | None) -> int: ...
    async def purge_dead(self) -> int: ...
    async def list_tasks(self, query: ListQuery) -> tuple[Sequence[TaskJson], str | None]: ...
    async def counts(self) -> dict[str, Any]: ...
    async def sums(self) -> dict[str, Any]: ...
    async def workers(self) -> Sequence[dict[str, Any]]: ...
    def cluster(self, events: int) -> dict[str, Any]: ...
    def listen(self, after: str | None) -> AbstractContextManager[Listener]: ...
    def health(self) -> dict[str, Any]: ...
    def is_ready(self) -> tuple[bool, str]: ...


def build(engine: Engine) -> web.Application:
    """The application: all routes, bound to this engine."""
    app = web.Application()
    gateway = Gateway(engine)
    for route in ROUTES:
        handler = gateway.answering(route, getattr(gateway, route.operation))
        app.router.add_route(route.method, route.path, handler)
        if route.method == "GET" and route.is_public:
            app.router.add_route("HEAD", route.path, handler)
    # Whatever no route takes comes here, so that also aiohttp's 404 and 405 have the error form.
    app.router.add_route("*", "/{path:.*}", gateway.answering(ELSEWHERE, gateway.elsewhere))
    app.on_shutdown.append(gateway.let_go)
    app.on_cleanup.append(gateway.close)
    return app


class Gateway:
    """The handlers, by the `operation` of their route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._config = engine.config
        self._nesting_max = engine.config.nesting_max
        self._body_max = engine.config.body_max_bytes
        self._check = access.guard(engine.config)
        self._forwarder = forward.Forwarder(engine.config)
        self._store = engine.tracing.sending(self._store_or_forward)
        self._forward = engine.tracing.forwarding(self._forwarder.submit)
        self._answers: dict[tuple[str, ...], float] = {}
        self._held: set[asyncio.Timeout] = set()
        self._closing = False
        self._openapi = encode(openapi.document())
        self._page = page.load()
        self._docs = page.load("docs.html")
        self._counted = gauges.register(engine.metrics, engine, self._answers)

    # ---- tasks

    async def submit(self, request: web.Request) -> web.Response:
        started_s = time.monotonic()
        item = parse.submission(await whole(request, self._body_max), self._nesting_max)
        headers = request.headers
        key = parse.idempotency_key(headers.get("Idempotency-Key"))
        keys = None if key is None else [key]
        result = (await self._store([item], keys, trace_context.received(headers), started_s))[0]
        if isinstance(result, RumorError):
            raise result
        task = result.task
        told = {**JSON_HEADERS, hdrs.LOCATION: "/tasks/" + task.id}
        if task.traceparent:
            told.update(_context([task]))
        return web.Response(body=line(task), status=202 if result.is_new else 200, headers=told)

    async def submit_batch(self, request: web.Request) -> web.StreamResponse:
        started_s = time.monotonic()
        key = parse.idempotency_key(request.headers.get("Idempotency-Key"))
        trace = trace_context.received(request.headers)
        if request.content_type in NDJSON:
            return await self._submit_lines(request, key, trace)
        body = await whole(request, self._config.batch_max_bytes)
        items = parse.batch(body, self._config.batch_max_tasks, self._nesting_max)
        results = await self._store_valid(items, 0, key, trace, started_s)
        rejected = sum(isinstance(result, ErrorJson) for result in results)
        response = as_json(BatchJson(len(results) - rejected, rejected, results))
        response.headers.update(_context(results))
        return response

    async def list_tasks(self, request: web.Request) -> web.Response:
        tasks, cursor = await self._engine.list_tasks(parse.query(ListQuery, request.query))
        return as_json(TaskList(list(tasks), cursor))

    async def get_task(self, request: web.Request) -> web.Response:
        started_s = time.monotonic()
        wait_s = parse.query(TaskQuery, request.query).wait_s
        try:
            return as_json(await self._get(request.match_info["id"], wait_s))
        except StoreUnavailable:
            if forward.FORWARDED in request.headers:
                raise
            deadline_s = started_s + ANSWER_WITHIN_S + wait_s
            answer = await self._forwarder.read(self._engine.view, request.rel_url.raw_path_qs, deadline_s)
            if answer is None:
                raise
            return web.Response(status=answer[0], body=answer[1], headers=JSON_HEADERS)

    async def cancel(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.cancel(request.match_info["id"]))

    async def retry(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.retry(request.match_info["id"]))

    async def replay(self, request: web.Request) -> web.Response:
        wanted = parse.replay(await whole(request, self._body_max))
        return as_json(Replayed(await self._engine.replay(wanted.type, wanted.limit)))

    async def purge_dead(self, request: web.Request) -> web.Response:
        return as_json(Removed(await self._engine.purge_dead()))

    # ---- the node and its cluster

    async def workers(self, request: web.Request) -> web.Response:
        return as_json({"workers": await self._engine.workers()})

    async def cluster(self, request: web.Request) -> web.Response:
        return as_json(self._engine.cluster(parse.query(ClusterQuery, request.query).events))

    async def sums(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.sums())

    async def events(self, request: web.Request) -> web.StreamResponse:
        headers = {**sse.HEADERS, **self._neighbourly(request)}
        if request.method == "HEAD":
            return web.Response(headers=headers)
        with self._engine.listen(request.headers.get("Last-Event-ID")) as listener:
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            try:
                with self._hold() as held:
                    async with held:
                        await sse.pour(request, response, listener)
            except TimeoutError:
                await response.write(sse.BYE)  # The node shuts down.
            return response

    async def health(self, request: web.Request) -> web.Response:
        health = self._engine.health()
        return as_json(health, 503 if health["status"] == "unavailable" else 200)

    async def livez(self, request: web.Request) -> web.Response:
        return as_json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        ready, reason = self._engine.is_ready()
        return as_json({"ready": ready, "reason": reason}, 200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        try:
            self._counted.keep(await self._engine.counts())
        except StoreUnavailable:
            self._counted.forget()  # rumor_redis_ok says why
        return web.Response(body=self._engine.metrics.render(), headers={hdrs.CONTENT_TYPE: METRICS_TYPE})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self._openapi, headers=JSON_HEADERS)

    async def page(self, request: web.Request) -> web.Response:
        accepted = request.headers.get(hdrs.ACCEPT_ENCODING, "")
        body, headers = self._page.answer(access.origins(self._engine.view), "gzip" in accepted)
        return web.Response(body=body, headers=headers)

    async def docs(self, request: web.Request) -> web.Response:
        body, headers = self._docs.answer((), "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""))
        return web.Response(body=body, headers=headers)

    # ---- peers

    async def gossip(self, request: web.Request) -> web.Response:
        self._require_peer(request)
        answer = await self._engine.vitals.push_pull(await whole(request, self._body_max))
        if answer is None:
            raise Forbidden("this is not a sealed member table of this cluster.", "Compare the gossip keys.")
        return web.Response(body=answer, headers={hdrs.CONTENT_TYPE: "application/octet-stream"})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """A connection whose end tells the peer that this process is gone: held until one side stops."""
        self._require_peer(request)
        if not self._engine.vitals.accepts_watch(request.headers.get(WATCH_HEADER, "")):
            raise Forbidden("the watch token is not one of this cluster.", "Compare the gossip keys.")
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/octet-stream"})
        await response.prepare(request)
        try:
            with self._hold() as held:
                async with held:
                    while request.transport is not None:
                        await asyncio.sleep(WATCH_LOOK_S)
        except TimeoutError:
            pass  # The node shuts down.
        return response

    async def take_over(self, request: web.Request) -> web.Response:
        """Store what a peer that cannot reach Redis was given. Never forwards again."""
        body = await whole(request, 2 * self._config.batch_max_bytes)  # Its left-out fields are written out as null.
        try:
            wanted = _forward(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"not a forwarded submission: {error}", "Only nodes call this.") from None
        items = parse.batch(wanted.items, self._config.batch_max_tasks, self._nesting_max)
        if len(items) != len(wanted.ids):
            raise BadRequest(f"{len(wanted.ids)} ids for {len(items)} tasks.", "Only nodes call this.")
        keys = wanted.idempotency_keys
        if keys is not None and len(keys) != len(items):
            raise BadRequest(f"{len(keys)} keys for {len(items)} tasks.", "Only nodes call this.")
        with self._engine.tracing.receiving(request.headers):
            results = await self._engine.submit(items, keys, ids=wanted.ids, trace=wanted.trace)
        return as_json([_forwarded(result) for result in results])

    async def elsewhere(self, request: web.Request) -> web.Response:
        allowed = methods_of(request.path)
        if allowed:
            raise MethodNotAllowed(
                f"{request.path} does not take {request.method}.", f"It takes {', '.join(allowed)}.", allowed
            )
        raise NotFound(f"there is no {request.path}.", "GET /openapi.json describes every call.")

    # ---- around the handlers

    def answering(self, route: Route, handler: Handler) -> Handler:
        """The handler with the check of who calls before it and errors as JSON behind it."""
        check = self._check if route.for_whom == CALLERS else None
        takes_query = route.query is not None or route is ELSEWHERE
        rejected = self._engine.metrics.rejected if route.operation == "submit" else None
        answers = self._answers
        operation = route.operation
        is_elsewhere = route is ELSEWHERE

        async def answer(request: web.Request) -> web.StreamResponse:
            is_of_a_page = hdrs.ORIGIN in request.headers
            is_preflight = is_of_a_page and is_elsewhere and request.method == "OPTIONS"
            # A browser asks before it reads, without the token that it will read with.
            if is_preflight and (leave := access.preflight(self._neighbourly(request))):
                return web.Response(status=204, headers=leave)
            try:
                if check is not None:
                    check(request)
                if not takes_query and request.rel_url.raw_query_string:
                    parse.no_query(request.query)
                response = await handler(request)
            except RumorError as error:
                if rejected is not None:
                    rejected.add(error.code)
                response = refusal(error)
            except web.RequestPayloadError as error:
                what = " ".join(str(error).split()).removeprefix("400, message: ")
                response = refusal(BadRequest(f"the body cannot be read: {what}.", "Check its encoding and length."))
            except (asyncio.CancelledError, ConnectionError):
                raise  # The client or this node is going; there is nobody to answer.
            except Exception as error:
                if request.writer.output_size:
                    raise  # An answer has begun; all that is left is to end the connection.
                _log.exception("request_failed", operation=operation)
                response = refusal(
                    RumorError(f"the gateway failed: {type(error).__name__}.", "The log of this node has the details.")
                )
            if is_of_a_page and not response.prepared:
                response.headers.update(self._neighbourly(request))
            counted = (operation, str(response.status))
            answers[counted] = answers.get(counted, 0) + 1
            return response

        return answer

    async def let_go(self, app: web.Application) -> None:
        """Shutdown: end what only waits, so that it does not hold up the rest."""
        self._closing = True
        for held in self._held:
            held.reschedule(asyncio.get_running_loop().time())

    async def close(self, app: web.Application) -> None:
        await self._forwarder.close()

    @contextmanager
    def _hold(self) -> Iterator[asyncio.Timeout]:
        """A wait without an end of its own, which `let_go` ends with TimeoutError."""
        held = asyncio.timeout(0 if self._closing else None)
        self._held.add(held)
        try:
            yield held
        finally:
            self._held.discard(held)

    def _neighbourly(self, request: web.Request) -> Mapping[str, str]:
        """What lets the page of another node read here; nothing for any other origin."""
        return access.neighbourly(request.headers.get(hdrs.ORIGIN), self._engine.view, self._config)

    def _require_peer(self, request: web.Request) -> None:
        """Without a gossip key nothing is sealed: then only this machine may gossip, unless told otherwise.

        Nor may a web page that makes a browser on this machine send it.
        """
        config = self._config
        if access.is_cross_site(request.headers, request.headers.get(hdrs.HOST, "")):
            raise Forbidden("a web page may not gossip.", "Only nodes call this.")
        if config.gossip_keys or config.gossip_key_file or config.insecure or access.is_loopback(request):
            return
        raise Forbidden("this node has no gossip key and takes gossip from its own machine only.", "Set gossip_keys.")

    async def _get(self, task_id: str, wait_s: float) -> TaskJson:
        if wait_s == 0:
            return await self._engine.get(task_id)
        try:
            with self._hold() as held:
                async with held:
                    return await self._engine.wait(task_id, wait_s)
        except TimeoutError:
            return await self._engine.get(task_id)

    async def _store_or_forward(
        self, items: Sequence[Submission], keys: Sequence[str] | None, trace: str | None, started_s: float
    ) -> Sequence[Submitted | RumorError]:
        """Store here, or, when Redis does not answer, through a peer."""
        try:
            return await self._engine.submit(items, keys, trace=trace)
        except StoreUnavailable as error:
            if len(error.ids) != len(items) or not any(error.ids):
                raise
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + started_s + ANSWER_WITHIN_S - time.monotonic()
            # An item without an id was not acceptable here; which error it had is not known any more.
            ids = [task_id for task_id in error.ids if task_id]
            ready = [item for task_id, item in zip(error.ids, items, strict=True) if task_id]
            if keys is not None:
                keys = [key for task_id, key in zip(error.ids, keys, strict=True) if task_id]
            wanted = forward.outgoing(ids, ready, keys, trace)
            outcome = "failed"
            try:
                results = iter(await self._forward(self._engine.view, wanted, error, deadline_s))
                outcome = "ok"
            finally:
                self._engine.metrics.forwarded.add(outcome, len(ready))
            return [next(results) if task_id else forward.NOT_READY for task_id in error.ids]

    async def _store_valid(
        self,
        items: Sequence[Submission | RumorError],
        first: int,
        key: str | None,
        trace: str | None,
        started_s: float,
    ) -> list[TaskJson | ErrorJson]:
        """Store those that are submissions; each result in the place of its item.

        `first` is the first item's place in the request. Under an Idempotency-Key each task's own key is made of its
        place, so that it is the same in every repeat, whatever became of the others and through whichever node.
        """
        valid = [item for item in items if isinstance(item, Submission)]
        keys = None
        if key is not None:
            places = [place for place, item in enumerate(items, first) if isinstance(item, Submission)]
            keys = [f"{key}\n{place}" for place in places]  # no client's key has a line break
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

    async def _submit_lines(self, request: web.Request, key: str | None, trace: str | None) -> web.StreamResponse:
        """NDJSON: each chunk of lines is stored and answered before the next is read.

        Trouble with Redis before the first answer is an error of the call; later it is one of each line it hits.
        """
        response = web.StreamResponse(headers={**JSON_HEADERS, hdrs.CONTENT_TYPE: "application/x-ndjson"})
        place = 0
        try:
            async for chunk in lines(request, self._body_max):
                items = parse.lines(chunk, self._nesting_max, place + 1)
                try:
                    results = await self._store_valid(items, place, key, trace, time.monotonic())
                except StoreUnavailable as error:
                    if not response.prepared:
                        raise
                    results = [error_json(error)] * len(items)
                if not response.prepared:
                    response.headers.update(_context(results))
                    await response.prepare(request)
                await response.write(b"".join(map(line, results)))
                place += len(chunk)
        except (TooLarge, TooSlow) as error:
            if not response.prepared:
                raise
            await response.write(line(error_json(error)))
            response.force_close()  # Where the next line would begin is not known.
        if not response.prepared:
            raise BadRequest("the body is empty.", "Send one JSON task a line.")
        return response


def _context(results: Sequence[TaskJson | ErrorJson]) -> Mapping[str, str]:
    """Headers with the trace context of what was submitted in one call: that of its first task."""
    first = next((result for result in results if isinstance(result, TaskJson)), None)
    if first is None or not first.traceparent:
        return {}
    headers = {trace_context.TRACEPARENT: first.traceparent}
    return headers | {trace_context.TRACESTATE: first.tracestate} if first.tracestate else headers


def _forwarded(result: Submitted | RumorError) -> Forwarded:
    if isinstance(result, RumorError):
        return Forwarded(error=error_json(result).error, status=result.status)
    return Forwarded(task=result.task, is_new=result.is_new)
