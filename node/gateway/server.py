"""The listening socket: HTTP or HTTPS in front of an application, and an answer to bytes that are not HTTP at all.

A client has HEAD_S to send the head of its request, and there is room for a bounded number of connections. The deadline
costs nothing per request, because one timer looks after all connections that still owe a head. When there is no room,
the connection that has been without a request the longest must go.

Does not know: routes, the engine. How long a body may take is `request_body`'s decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
from typing import cast

import structlog
from aiohttp import web

from cluster.config import Config
from cluster.errors import BadRequest, RumorError, TooManyConnections, TooSlow
from node.gateway import access
from node.gateway.responses import error_bytes, error_response

SHUTDOWN_S = 2.0  # time in which requests under way may end once the node stops
BACKLOG = 4096  # length of the accept queue: the kernel of a stopped process must go on accepting, or it looks dead
HEAD_S = 10.0  # time for the whole head of a request, from its first byte or from the connection's beginning
LOOK_S = 1.0  # time between two looks for connections that are over it
LINGER_S = 1.0  # time in which a refused client may still send; if we closed at once, its kernel would drop our answer
LINGERING_MAX = 64  # such clients at once; each takes an open file that Redis and gossip could need
IDLE_S = 30.0  # time without a request after which a connection may be ended to make room; else it stays for an hour
LOG_S = 10.0  # time between two log lines that there is no room
FILES_KEPT = 256  # open files kept free for the node itself: Redis, gossip, child processes, logs
ROOM_MIN = 16  # connections, however few files may be open

_log = structlog.get_logger("rumor.gateway")


async def start(app: web.Application, config: Config, sock: socket.socket | None = None) -> web.AppRunner:
    """Serve on a bound socket, or bind one; `cleanup()` of the runner that is returned ends it.

    Raises OSError when the port is taken, ConfigError when the certificate cannot be used.
    """
    tls = access.server_tls(config)
    runner = Runner(app, room_for(config.connections_max))
    await runner.setup()
    site: web.BaseSite
    if sock is not None:
        site = _Site(runner, sock, ssl_context=tls, backlog=BACKLOG)
    else:
        site = web.TCPSite(runner, config.host, config.port, ssl_context=tls, backlog=BACKLOG)
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def room_for(connections: int) -> int:
    """How many connections there is room for: as many as configured, or fewer if this process may open fewer files.

    Raises the soft limit of open files if need be; it is low only for the sake of programs that use select().
    """
    files = connections + FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        allowed = files if hard == resource.RLIM_INFINITY else min(files, hard)
        with contextlib.suppress(ValueError, OSError):  # a kernel may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
        if soft < files:
            connections = max(ROOM_MIN, soft - FILES_KEPT)
            _log.warning("connections_limited", connections=connections, open_files=soft, hint="Raise ulimit -n.")
    return connections


# The classes below use names that are private in aiohttp, because it offers no public way to do this; hence the upper
# bound of its version in setup.cfg. Before you raise that bound, look these names up in aiohttp's web_runner.py,
# web_server.py and web_protocol.py, and run tests/unit/test_gateway_server.py:
# - of a site: _backlog, _runner, _server, _sock, _ssl_context, and what SockSite.start does
# - of a runner: _kwargs, _make_server; of a server: _connections, _kwargs, _loop
# - of a request handler: _request_count (counts the heads that came), _waiter (pending while it has no request),
#   _next_keepalive_close_time less _keepalive_timeout (when its last request ended), _force_close, _loop


class _Site(web.SockSite):
    """aiohttp's site, but a client that opens a connection for TLS and sends nothing has HEAD_S, not a minute."""

    async def start(self) -> None:
        await web.BaseSite.start(self)
        tls, server = self._ssl_context, self._runner.server
        assert server is not None
        self._server = await asyncio.get_running_loop().create_server(
            server,
            sock=self._sock,
            ssl=tls,
            backlog=self._backlog,
            ssl_handshake_timeout=None if tls is None else HEAD_S,
        )


class Runner(web.AppRunner):
    """AppRunner whose connections answer malformed HTTP in the error form, too, and wait only for so long."""

    def __init__(self, app: web.Application, room: int) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        self._room = room

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(self._room, server.request_handler, request_factory=server.request_factory, **self._kwargs)


class _Server(web.Server):
    """All connections of one node: who owes a head, who was refused, and whether there is room."""

    def __init__(self, room: int, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.room = room
        self.headless: dict[_Connection, float] = {}  # connection that owes a head -> its deadline, in order
        self.lingering: dict[_Connection, asyncio.TimerHandle] = {}  # refused, and not closed yet
        self._look: asyncio.TimerHandle | None = None
        self._sought_idle_s = self._logged_full_s = -math.inf  # when it did either for the last time

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def has_room(self) -> bool:
        """Whether one more connection may come. If need be, ends the one that has had no request for the longest."""
        if len(self._connections) < self.room:
            return True
        if not self.headless:
            return self._end_idle()
        self._end(next(iter(self.headless)), self.full())
        return True

    def refused(self) -> TooManyConnections:
        """The error for a client that found no room. Logged now and then, since there may be very many of them."""
        now_s = self._loop.time()
        if now_s - self._logged_full_s > LOG_S:
            self._logged_full_s = now_s
            _log.warning("connections_refused", connections=self.room, hint="Raise connections_max, or add nodes.")
        return self.full()

    def full(self) -> TooManyConnections:
        """The error that says that there is no room."""
        return TooManyConnections(
            f"this node holds {self.room:,} connections, its limit.",
            "Ask another node, close idle connections, or raise connections_max.",
        )

    def wait_for(self, connection: _Connection) -> None:
        """The connection owes the head of a request from now on."""
        self.headless[connection] = self._loop.time() + HEAD_S
        if self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._end_late)

    async def shutdown(self, timeout: float | None = None) -> None:
        if self._look is not None:
            self._look.cancel()
        await super().shutdown(timeout)

    def _end_late(self) -> None:
        self._look = None
        now_s = self._loop.time()
        while self.headless:
            connection, deadline_s = next(iter(self.headless.items()))
            if deadline_s > now_s:
                self._look = self._loop.call_later(LOOK_S, self._end_late)
                return
            message = f"the head of the request did not come within {HEAD_S:g} s."
            self._end(connection, TooSlow(message, "Send it in one go."))

    def _end(self, connection: _Connection, error: RumorError) -> None:
        del self.headless[connection]
        connection.end_headless(error)

    def _end_idle(self) -> bool:
        """End all idle connections; whether there was one. Costs a look at each, so at most once in LOOK_S."""
        now_s = self._loop.time()
        if now_s - self._sought_idle_s < LOOK_S:
            return False
        self._sought_idle_s = now_s
        connections = (c for c in self._connections if isinstance(c, _Connection))
        idle = [connection for connection in connections if connection.idle_s(now_s) > IDLE_S]
        for connection in idle:
            connection.force_close()
        return bool(idle)


class _Connection(web.RequestHandler):
    """One client's connection."""

    __slots__ = ("_has_begun", "_server")

    def __init__(self, server: _Server, **kwargs: object) -> None:
        super().__init__(server, **kwargs)  # type: ignore[arg-type]
        self._server = server
        self._has_begun = False  # whether part of a head has come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        if not server.has_room():
            self._refuse(transport)
            return
        super().connection_made(transport)
        server.wait_for(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.headless.pop(self, None)
        lingers = self._server.lingering.pop(self, None)
        if lingers is not None:
            lingers.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests = self._request_count
        super().data_received(data)
        if self._request_count != requests:
            self._has_begun = False
            self._server.headless.pop(self, None)
        elif data and self._waiter is not None and not self._waiter.done():
            self._has_begun = True
            if self not in self._server.headless:
                self._server.wait_for(self)

    def end_headless(self, error: RumorError) -> None:
        """End it; a client that began a head is told why. The others only opened a connection in advance."""
        if self._has_begun and self.transport is not None:
            self.transport.write(error_bytes(error))
        self.force_close()

    def idle_s(self, now_s: float) -> float:
        """Seconds since its last request ended; 0 while there is a request."""
        if self._waiter is None or self._waiter.done():
            return 0.0
        return now_s - (self._next_keepalive_close_time - self._keepalive_timeout)

    def _refuse(self, transport: asyncio.BaseTransport) -> None:
        """Answer that there is no room, without keeping `transport`: nothing that this client sends is read."""
        transport = cast(asyncio.Transport, transport)  # uvloop's transports do not inherit from it
        self._force_close = True
        transport.write(error_bytes(self._server.refused()))
        lingering = self._server.lingering
        if transport.can_write_eof() and len(lingering) < LINGERING_MAX:
            transport.write_eof()
            lingering[self] = self._loop.call_later(LINGER_S, transport.abort)
        else:
            transport.close()

    def log_exception(self, *args: object, **kwargs: object) -> None:
        """Skip the error of an unreadable body: it was answered, and aiohttp only meets it again in the rest."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size:
            raise ConnectionError("an answer has begun; it is too late to say that it failed")
        if isinstance(exc, ConnectionError) and request.transport is None:
            raise exc  # The client has gone, which is its right: aiohttp ends the connection and logs nothing.
        if status == 400:
            # The parser's message has a line with nothing but a caret, which means nothing inside JSON.
            what = " ".join(line.strip() for line in (message or "malformed").splitlines() if line.strip(" ^"))
            response = error_response(
                BadRequest(
                    f"this is not HTTP/1.1: {what}.", "Send HTTP/1.1; for https, give the node tls_cert and tls_key."
                )
            )
        else:
            _log.error("connection_failed", status=status, exc_info=exc)
            response = error_response(RumorError("the gateway failed.", "The log of this node has the details."))
        response.force_close()
        return response
