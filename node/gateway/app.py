"""The application: every route bound to its handler, with the check of the caller before it and errors behind it.

`routes` is the table of all calls. The handlers are the public methods of `task_calls`, `cluster_calls` and
`peer_calls`; a route finds its own by the name in `operation`. `Entrance` checks who calls, and makes a response of the
error that a handler raises; a handler does either itself only for an item of a batch and for the sealed calls of peers.
`Entrance` is no aiohttp middleware, because aiohttp's chain costs more than the handlers do.

Does not know: what a call does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog
from aiohttp import hdrs, web

from cluster.errors import BadRequest, MethodNotAllowed, NotFound, RumorError, StoreUnavailable, without_key
from node.gateway import access, parse
from node.gateway.batch_body import BatchRoom
from node.gateway.cluster_calls import ClusterCalls, ClusterEngine
from node.gateway.forward import Forwarder
from node.gateway.peer_calls import PeerCalls, PeerEngine, PeerVitals
from node.gateway.responses import error_response
from node.gateway.routes import CALLERS, PEERS, ROUTES, Route, methods_of
from node.gateway.server import trust
from node.gateway.task_calls import TaskCalls, TaskEngine
from node.gateway.waits import OpenWaits
from node.observe import gauges
from node.observe.redis_memory import Memory

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ExpectHandler = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
Answers = dict[tuple[str, ...], float]  # (operation, status) -> requests answered so

ELSEWHERE = Route("*", "", "elsewhere", "Any call that no route takes", {}, is_public=False)

_log = structlog.get_logger("rumor.gateway")


class GatewayVitals(PeerVitals, gauges.VitalsStats, Protocol):
    """All that the gateway needs of the vitals thread."""


class GatewayEngine(TaskEngine, ClusterEngine, PeerEngine, Protocol):
    """All that the gateway needs of the engine. Two exist: the engine itself, and the one of the tests."""

    @property
    def memory(self) -> Memory: ...
    @property
    def vitals(self) -> GatewayVitals: ...
    def slots_taken(self) -> Mapping[str, int]: ...


def build(engine: GatewayEngine) -> web.Application:
    """The application: all routes, bound to this engine."""
    answers: Answers = {}
    counted = gauges.register(engine.metrics, engine, answers)
    forwarder = Forwarder(engine.config)
    waits = OpenWaits()
    room = BatchRoom(engine.config.batch_max_bytes)
    handlers = handlers_of(
        TaskCalls(engine, forwarder, waits, room),
        ClusterCalls(engine, counted, waits),
        PeerCalls(engine, waits, room),
    )
    entrance = Entrance(engine, answers)
    app = web.Application()
    for route in ROUTES:
        handler, expect = entrance.around(route, handlers[route.operation]), entrance.expecting(route)
        app.router.add_route(route.method, route.path, handler, expect_handler=expect)
        if route.method == "GET" and route.is_public:
            app.router.add_route("HEAD", route.path, handler, expect_handler=expect)
    # `elsewhere` takes every other call, because aiohttp's own 404 and 405 do not have the error form.
    handler, expect = entrance.around(ELSEWHERE, elsewhere), entrance.expecting(ELSEWHERE)
    app.router.add_route("*", "/{path:.*}", handler, expect_handler=expect)

    async def end_waits(_: web.Application) -> None:
        waits.end_all()

    async def close(_: web.Application) -> None:
        await forwarder.close()

    app.on_shutdown.append(end_waits)
    app.on_cleanup.append(close)
    return app


def handlers_of(*calls: object) -> dict[str, Handler]:
    """The handlers by name: the public methods of these objects."""
    return {name: getattr(group, name) for group in calls for name in vars(type(group)) if name[0] != "_"}


async def elsewhere(request: web.Request) -> web.Response:
    """Refuse a call that no route takes: its method or its path is wrong."""
    allowed = methods_of(request.path)
    if allowed:
        raise MethodNotAllowed(
            f"{request.path} does not take {request.method}.", f"It takes {', '.join(allowed)}.", allowed
        )
    raise NotFound(f"there is no {request.path}.", "GET /openapi.json describes every call.")


class Entrance:
    """What stands around every handler: who may call, errors as JSON, and the count of answers."""

    def __init__(self, engine: GatewayEngine, answers: Answers) -> None:
        self._engine = engine
        self._answers = answers

    def around(self, route: Route, handler: Handler) -> Handler:
        """The handler with the check of who calls before it and errors as JSON behind it."""
        config = self._engine.config
        check = access.check_for(route.for_whom, config)
        # A token shows at once who calls. Where there is none, a caller is known once his request has come wholly.
        shows_token = bool(config.api_token) and route.for_whom == CALLERS
        opens_to_all = not config.api_token and route.for_whom != PEERS
        takes_query = route.query is not None or route is ELSEWHERE
        rejected = self._engine.metrics.rejected if route.operation == "submit" else None
        answers = self._answers
        operation = route.operation
        is_elsewhere = route is ELSEWHERE

        async def answer(request: web.Request) -> web.StreamResponse:
            is_of_a_page = hdrs.ORIGIN in request.headers
            is_preflight = is_of_a_page and is_elsewhere and request.method == "OPTIONS"
            # A browser asks before it reads, without the token that it will read with.
            if is_preflight and (headers := access.preflight_headers(self._cors_headers(request))):
                return web.Response(status=204, headers=headers)
            try:
                if check is not None:
                    check(request)
                is_known = shows_token or (opens_to_all and request.content.is_eof())
                if is_known:
                    trust(request)
                if not takes_query and request.rel_url.raw_query_string:
                    parse.no_query(request.query)
                response = await handler(request)
                if opens_to_all and not is_known:
                    trust(request)
            except RumorError as error:
                if rejected is not None:
                    rejected.add(error.code)
                if isinstance(error, StoreUnavailable) and "Idempotency-Key" not in request.headers:
                    error = without_key(error)
                response = error_response(error)
            except web.RequestPayloadError as error:
                what = " ".join(str(error).split()).removeprefix("400, message: ")
                response = error_response(
                    BadRequest(f"the body cannot be read: {what}.", "Check its encoding and length.")
                )
            except (asyncio.CancelledError, ConnectionError):
                raise  # The client or this node is going; there is nobody to answer.
            except Exception as error:
                if request.writer.output_size:
                    raise  # An answer has begun; all that is left is to end the connection.
                _log.exception("request_failed", operation=operation)
                response = error_response(
                    RumorError(f"the gateway failed: {type(error).__name__}.", "The log of this node has the details.")
                )
            if is_of_a_page and not response.prepared:
                response.headers.update(self._cors_headers(request))
            counted = (operation, str(response.status))
            answers[counted] = answers.get(counted, 0) + 1
            return response

        return answer

    def expecting(self, route: Route) -> ExpectHandler:
        """What a client hears that sends `Expect: 100-continue`: to go on, if it may call at all."""
        check = access.check_for(route.for_whom, self._engine.config)

        async def go_on(request: web.Request) -> None:
            try:
                if check is not None:
                    check(request)
            except RumorError:
                return  # `around` answers with the error, without the body.
            if request.headers[hdrs.EXPECT].lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # The answer has not begun.

        return go_on

    def _cors_headers(self, request: web.Request) -> Mapping[str, str]:
        """The headers that let the page of another node read here; none for any other origin."""
        return access.cors_headers(request.headers.get(hdrs.ORIGIN), self._engine.view, self._engine.config)
