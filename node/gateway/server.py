"""The listening socket: HTTP or HTTPS in front of an application, and an answer to bytes that are not HTTP at all.

A client has HEAD_S to send the head of its request, and there is room for a bounded number of connections. The deadline
costs nothing per request, because one timer looks after all connections that still owe a head.

When there is no room, the oldest connection whose caller is a stranger must go, whatever it does. So strangers can hold
every connection and still keep nobody out: each new one, be it a peer's, a probe's or a client's, finds room, and keeps
it once its caller has shown the token or a peer's seal (`known`).

Does not know: routes, the engine. How long a body may take is `request_body`'s decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import structlog
from aiohttp import web
from aiohttp.web_protocol import _ErrInfo

from cluster.config import Config
from cluster.errors import BadRequest, NotFound, RumorError, TooLarge, TooManyConnections, TooSlow
from node.gateway import access
from node.gateway.responses import error_bytes, error_response

SHUTDOWN_S = 2.0  # time in which requests under way may end once the node stops
BACKLOG = 4096  # length of the accept queue: the kernel of a stopped process must go on accepting, or it looks dead
HEAD_S = 10.0  # time for the whole head of a request, from its first byte or from the connection's beginning
LOOK_S = 1.0  # time between two looks for connections that are over it
LINGER_S = 1.0  # time in which a refused client may still send; if we closed at once, its kernel would drop our answer
HEAD_MAX_BYTES = 65_536  # size of a whole head; a browser with all its cookies stays below
LINGERING_MAX = 64  # such clients at once; each takes an open file that Redis and gossip could need
IDLE_S = 30.0  # time without a request after which a connection may be ended to make room; else it stays for an hour
LOG_S = 10.0  # time between two log lines that there is no room
PARTS_MAX = 16  # slashes in a path; no call has more than four
FILES_KEPT = 256  # open files kept free for the node itself: Redis, gossip, child processes, logs
ROOM_MIN = 16  # connections, however few files may be open

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

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


def trust(request: web.Request) -> None:
    """The caller of this request has shown who he is: when there is no room, his connection stays."""
    connection = request.protocol
    if isinstance(connection, _Connection):
        connection.trust()


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
#   _next_keepalive_close_time less _keepalive_timeout (when its last request ended), _force_close, _loop,
#   _upgraded (the last head asks for another protocol), _message_tail (what came behind it), _close (read no more, and
#   close after the answer), _messages (what was parsed and waits for its handler; an _ErrInfo where it is no HTTP)


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
        # Nothing is unpacked before its caller is known: `request_body` does it, and aiohttp would do it on arrival.
        super().__init__(app, access_log=None, shutdown_timeout=SHUTDOWN_S, auto_decompress=False)
        self._room = room

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        return _Server(
            self._room, _shallow(server.request_handler), request_factory=server.request_factory, **self._kwargs
        )


def _shallow(handler: Handler) -> Handler:
    """The same handler, but a path with very many parts is refused at once: aiohttp looks it up part by part."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if request.rel_url.raw_path.count("/") > PARTS_MAX:
            return error_response(NotFound("there is no such path.", "GET /openapi.json describes every call."))
        return await handler(request)

    return handle


class _Server(web.Server):
    """All connections of one node: who owes a head, who was refused, and whether there is room."""

    def __init__(self, room: int, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.room = room
        self.headless: dict[_Connection, float] = {}  # connection that owes a head -> its deadline, in order
        self.strangers: dict[_Connection, None] = {}  # connections whose callers have shown nothing, the oldest first
        self.lingering: dict[_Connection, asyncio.TimerHandle] = {}  # refused, and not closed yet
        self._look: asyncio.TimerHandle | None = None
        self._sought_idle_s = self._logged_full_s = -math.inf  # when it did either for the last time

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def has_room(self) -> bool:
        """Whether one more connection may come. If need be, ends the oldest of a stranger, or those idle for long."""
        if len(self._connections) < self.room:
            return True
        if self.strangers:
            self._end(next(iter(self.strangers)), self.full())
            return True
        if self.headless:
            self._end(next(iter(self.headless)), self.full())
            return True
        return self._end_idle()

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

    def end_large(self, connection: _Connection) -> None:
        """End a connection whose head is too large."""
        self._end(connection, TooLarge(f"the head of the request is over {HEAD_MAX_BYTES:,} bytes.", "Send less."))

    def _end(self, connection: _Connection, error: RumorError) -> None:
        self.strangers.pop(connection, None)
        connection.end(error if self.headless.pop(connection, None) is not None else None)

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

    __slots__ = ("_has_begun", "_head_bytes", "_server")

    def __init__(self, server: _Server, **kwargs: object) -> None:
        super().__init__(server, **kwargs)  # type: ignore[arg-type]
        self._server = server
        self._has_begun = False  # whether part of a head has come
        self._head_bytes = 0  # of that part

    def trust(self) -> None:
        """The caller is no stranger: when there is no room, this connection stays while it is in use."""
        self._server.strangers.pop(self, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        if not server.has_room():
            self._refuse(transport)
            return
        super().connection_made(transport)
        server.strangers[self] = None
        server.wait_for(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.headless.pop(self, None)
        self._server.strangers.pop(self, None)
        lingers = self._server.lingering.pop(self, None)
        if lingers is not None:
            lingers.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        requests = self._request_count
        super().data_received(data)
        if self._upgraded or (self._messages and isinstance(self._messages[-1][0], _ErrInfo)):
            # This is no HTTP, or no longer: no call takes an upgrade or a CONNECT. Answer it and read no further, since
            # aiohttp would keep what follows, or an error for each piece of it.
            self._message_tail = b""
            self._close = True
        if self._request_count != requests:
            self._has_begun = False
            self._head_bytes = 0
            self._server.headless.pop(self, None)
        elif data and self._waiter is not None and not self._waiter.done():
            self._has_begun = True
            self._head_bytes += len(data)
            if self not in self._server.headless:
                self._server.wait_for(self)
            if self._head_bytes > HEAD_MAX_BYTES:
                self._server.end_large(self)

    def end(self, error: RumorError | None) -> None:
        """End it now. A client that began a head is told why; the others only opened a connection in advance."""
        transport = self.transport
        if transport is not None:
            if self._has_begun and error is not None:
                transport.write(error_bytes(error))
            if transport.get_write_buffer_size():
                transport.abort()  # A close would wait for a client that does not read, perhaps for ever.
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
