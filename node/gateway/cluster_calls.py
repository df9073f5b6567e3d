"""The calls about a node and its cluster: members, workers, events, health, metrics, the pages. Parse, call, render.

Does not know: Redis, tasks; how the engine comes by what it reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from aiohttp import hdrs, web

from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.view import View
from node.gateway import access, openapi, page, parse, sse
from node.gateway.responses import JSON_HEADERS, as_json, encode
from node.gateway.waits import OpenWaits
from node.observe.gauges import Counted, leads, served_by
from node.observe.metrics import CONTENT_TYPE as METRICS_TYPE
from node.observe.metrics import Metrics
from node.observe.timeline import Listener
from node.schema import ClusterQuery


class ClusterEngine(Protocol):
    """What these calls need of the engine."""

    @property
    def config(self) -> Config: ...
    @property
    def view(self) -> View: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def fault(self) -> str: ...
    async def counts(self) -> dict[str, Any]: ...
    async def sums(self) -> dict[str, Any]: ...
    async def workers(self) -> Sequence[dict[str, Any]]: ...
    def cluster(self, events: int) -> dict[str, Any]: ...
    def listen(self, after: str | None) -> AbstractContextManager[Listener]: ...
    def health(self) -> dict[str, Any]: ...
    def is_ready(self) -> tuple[bool, str]: ...


class ClusterCalls:
    """The handlers, each named for the `operation` of its route."""

    def __init__(self, engine: ClusterEngine, counted: Counted, waits: OpenWaits) -> None:
        self._engine = engine
        self._counted = counted
        self._waits = waits
        self._openapi = encode(openapi.document())
        self._page = page.load()
        self._docs = page.load("docs.html")

    async def workers(self, request: web.Request) -> web.Response:
        return as_json({"workers": await self._engine.workers()})

    async def cluster(self, request: web.Request) -> web.Response:
        return as_json(self._engine.cluster(parse.query(ClusterQuery, request.query).events))

    async def sums(self, request: web.Request) -> web.Response:
        return as_json(await self._engine.sums())

    async def events(self, request: web.Request) -> web.StreamResponse:
        headers = {**sse.HEADERS, **self._cors_headers(request)}
        if request.method == "HEAD":
            return web.Response(headers=headers)
        with self._engine.listen(request.headers.get("Last-Event-ID")) as listener:
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            try:
                with self._waits.hold() as wait:
                    async with wait:
                        await sse.pour(request, response, listener)
            except TimeoutError:
                await response.write(sse.BYE)  # The node shuts down.
            return response

    async def health(self, request: web.Request) -> web.Response:
        health = self._engine.health()
        return as_json(health, 503 if health["status"] == "unavailable" else 200)

    async def livez(self, request: web.Request) -> web.Response:
        fault = self._engine.fault
        return as_json({"status": "broken", "reason": fault}, 503) if fault else as_json({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        ready, reason = self._engine.is_ready()
        return as_json({"ready": ready, "reason": reason}, 200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        self._counted.forget()
        if leads(self._engine.view):
            with contextlib.suppress(StoreUnavailable):  # rumor_redis_ok says why there are no counts
                self._counted.keep(await self._engine.counts(), served_by(self._engine.view, self._engine.config))
        return web.Response(body=self._engine.metrics.render(), headers={hdrs.CONTENT_TYPE: METRICS_TYPE})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self._openapi, headers=JSON_HEADERS)

    async def page(self, request: web.Request) -> web.Response:
        accepted = request.headers.get(hdrs.ACCEPT_ENCODING, "")
        body, headers = self._page.answer(access.policy_sources(self._engine.view), "gzip" in accepted)
        return web.Response(body=body, headers=headers)

    async def docs(self, request: web.Request) -> web.Response:
        body, headers = self._docs.answer((), "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, ""))
        return web.Response(body=body, headers=headers)

    def _cors_headers(self, request: web.Request) -> Mapping[str, str]:
        return access.cors_headers(request.headers.get(hdrs.ORIGIN), self._engine.view, self._engine.config)
