"""The listening socket: HTTP or HTTPS in front of an application, also for what is not HTTP at all.

A client has HEAD_S to say what it wants, and there is room for a bounded number of clients. What waits for a head costs
whoever sends one in time nothing: a deadline is looked at by one timer for all. When there is no room, the connection
that has been the longest without a request makes it.

Does not know: routes, the engine. How long a body may take is `request_body`'s to say.
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

SHUTDOWN_S = 2.0  # requests under way may end in this time once the node stops
BACKLOG = 4096  # a stopped process whose accept queue is full must still look like one whose kernel answers
HEAD_S = 10.0  # for the whole head of a request, from its first byte, or from the connection's beginning
LOOK_S = 1.0  # between two looks at who is over it
LINGER_S = 1.0  # a refused client may still send this long: closed at once, its kernel would drop our answer
LINGERING_MAX = 64  # such clients at once; what is open for them, Redis and gossip could not have
IDLE_S = 30.0  # after which a kept connection makes room, when there is none; otherwise it may stay for an hour
LOG_S = 10.0  # between two lines that there is no room
FILES_KEPT = 256  # open files that are not clients': Redis, gossip, child processes, logs
ROOM_MIN = 16

_log = structlog.get_logger("rumor.gateway")


async def start(app: web.Application, config: Config, sock: socket.socket | None = None) -> web.AppRunner:
    """Serve on a bound socket, or bind one; `cleanup()` of what is returned ends it.

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
    """For how many connections there is room: as many as wanted, or as this process may have open files.

    The soft limit is raised for it; it is low for the sake of programs that use select().
    """
    wanted = connections + FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # a kernel may have a lower one than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
        if soft < wanted:
            connections = max(ROOM_MIN, soft - FILES_KEPT)
            _log.warning("connections_limited", connections=connections, open_files=soft, hint="Raise ulimit -n.")
    return connections


class _Site(web.SockSite):
    """As aiohttp's, but who opens a connection for TLS and says nothing has HEAD_S, too, instead of a minute."""

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
    """AppRunner whose connections answer malformed HTTP in the error form, too, and do not wait for ever."""

    def __init__(self, app: web.Application, room: int) -> None:
        super().__init__(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        self._room = room

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(self._room, made.request_handler, request_factory=made.request_factory, **self._kwargs)


class _Server(web.Server):
    def __init__(self, room: int, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.room = room
        self.headless: dict[_Connection, float] = {}  # still to say what they want -> when their time is up, in order
        self.lingering: dict[_Connection, asyncio.TimerHandle] = {}  # refused, and not closed yet
        self._look: asyncio.TimerHandle | None = None
        self._sought_s = self._refused_s = -math.inf

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def has_room(self) -> bool:
        """Whether one more may come: also by ending the connection that has been without a request the longest."""
        if len(self._connections) < self.room:
            return True
        if not self.headless:
            return self._end_idle()
        self._end(next(iter(self.headless)), self.full())
        return True

    def refused(self) -> TooManyConnections:
        """The same, for one that nobody made room for; logged now and then, not for each of very many."""
        now_s = self._loop.time()
        if now_s - self._refused_s > LOG_S:
            self._refused_s = now_s
            _log.warning("connections_refused", connections=self.room, hint="Raise connections_max, or add nodes.")
        return self.full()

    def full(self) -> TooManyConnections:
        """What is said to whoever finds no room."""
        return TooManyConnections(
            f"this node holds {self.room:,} connections, its limit.",
            "Ask another node, close what is idle, or raise connections_max.",
        )

    def wait_for(self, connection: _Connection) -> None:
        """It has to say what it wants, from now on."""
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
            connection, until_s = next(iter(self.headless.items()))
            if until_s > now_s:
                self._look = self._loop.call_later(LOOK_S, self._end_late)
                return
            late = f"the head of the request did not come within {HEAD_S:g} s."
            self._end(connection, TooSlow(late, "Send it in one go."))

    def _end(self, connection: _Connection, why: RumorError) -> None:
        del self.headless[connection]
        connection.end_headless(why)

    def _end_idle(self) -> bool:
        """End what is kept and was not used of late; whether there was any. It looks at all, so only now and then."""
        now_s = self._loop.time()
        if now_s - self._sought_s < LOOK_S:
            return False
        self._sought_s = now_s
        idle = [one for one in self._connections if isinstance(one, _Connection) and one.idle_s(now_s) > IDLE_S]
        for connection in idle:
            connection.force_close()
        return bool(idle)


class _Connection(web.RequestHandler):
    __slots__ = ("_has_begun", "_server")

    def __init__(self, server: _Server, **kwargs: object) -> None:
        super().__init__(server, **kwargs)  # type: ignore[arg-type]
        self._server = server
        self._has_begun = False  # a head, which is not complete

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

    def end_headless(self, why: RumorError) -> None:
        """Say why to whoever began a head; others only opened a connection, in advance."""
        if self._has_begun and self.transport is not None:
            self.transport.write(error_bytes(why))
        self.force_close()

    def idle_s(self, now_s: float) -> float:
        """For how long it has been kept without a request; 0 while there is one."""
        if self._waiter is None or self._waiter.done():
            return 0.0
        return now_s - (self._next_keepalive_close_time - self._keepalive_timeout)

    def _refuse(self, transport: asyncio.BaseTransport) -> None:
        """Say that there is no room. `transport` is not ours to keep: nothing that this client sends is read."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self._force_close = True
        transport.write(error_bytes(self._server.refused()))
        lingering = self._server.lingering
        if transport.can_write_eof() and len(lingering) < LINGERING_MAX:
            transport.write_eof()
            lingering[self] = self._loop.call_later(LINGER_S, transport.abort)
        else:
            transport.close()

    def log_exception(self, *args: object, **kwargs: object) -> None:
        """A body that cannot be read was answered already; aiohttp meets its error again when it reads the rest."""
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
            raise ConnectionError("an answer has begun; there is no way to say that it failed")
        if status == 400:
            # The parser points with a caret on a line of its own, which means nothing inside JSON.
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
