"""The listening socket: HTTP or HTTPS in front of an application, also for what is not HTTP at all.

Does not know: routes, the engine.
"""

from __future__ import annotations

import socket

import structlog
from aiohttp import web

from cluster.config import Config
from cluster.errors import BadRequest, RumorError
from node import guard
from node.answer import refusal

SHUTDOWN_S = 2.0  # requests under way may end in this time once the node stops
BACKLOG = 4096  # a stopped process whose accept queue is full must still look like one whose kernel answers

_log = structlog.get_logger("rumor.gateway")


async def start(app: web.Application, config: Config, sock: socket.socket | None = None) -> web.AppRunner:
    """Serve on a bound socket, or bind one; `cleanup()` of what is returned ends it.

    Raises OSError when the port is taken, ConfigError when the certificate cannot be used.
    """
    tls = guard.server_tls(config)
    runner = Runner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    site: web.BaseSite
    if sock is not None:
        site = web.SockSite(runner, sock, ssl_context=tls, backlog=BACKLOG)
    else:
        site = web.TCPSite(runner, config.host, config.port, ssl_context=tls, backlog=BACKLOG)
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


class Runner(web.AppRunner):
    """AppRunner whose connections answer malformed HTTP in the error form, too."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

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
            response = refusal(
                BadRequest(
                    f"this is not HTTP/1.1: {what}.", "Send HTTP/1.1; for https, give the node tls_cert and tls_key."
                )
            )
        else:
            _log.error("connection_failed", status=status, exc_info=exc)
            response = refusal(RumorError("the gateway failed.", "The log of this node has the details."))
        response.force_close()
        return response
