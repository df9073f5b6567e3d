"""The calls that nodes make to each other: member tables, watch connections, forwarded submissions.

Does not know: the content of a sealed table or a token (vitals opens them), what a task is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec
from aiohttp import hdrs, web
from msgspec import msgpack

from cluster.config import Config
from cluster.errors import BadRequest, Forbidden, RumorError
from cluster.gossip.watch_token import HEADER as WATCH_HEADER
from cluster.swim.wire import SYNC_MAX_BYTES
from cluster.view import View
from node.gateway import batch_body
from node.gateway.batch_body import BatchRoom
from node.gateway.forward import FORWARDED, refuse_misdirected
from node.gateway.request_body import Exchanges, read_body
from node.gateway.responses import as_json, error_json
from node.gateway.server import trust
from node.gateway.waits import OpenWaits
from node.observe.tracing import Tracing
from node.schema import Forward, Forwarded, IdempotencyKeys, Submission, Submitted

FORWARDED_SIZE = 2  # largest size of a forwarded task or batch, in sizes of one that a client may send
WATCH_LOOK_S = 1.0  # time within which a watch whose client has gone is let go

_decode_forward = msgpack.Decoder(Forward).decode


class PeerVitals(Protocol):
    """What these calls hand to the vitals thread."""

    async def push_pull(self, body: bytes) -> bytes | None: ...
    def accepts_watch(self, token: str) -> bool: ...


class PeerEngine(Protocol):
    """What these calls need of the engine."""

    @property
    def config(self) -> Config: ...
    @property
    def vitals(self) -> PeerVitals: ...
    @property
    def view(self) -> View: ...
    @property
    def tracing(self) -> Tracing: ...
    async def submit(
        self,
        items: Sequence[Submission | RumorError],
        idempotency_keys: IdempotencyKeys = None,
        ids: Sequence[str] | None = None,
        trace: str | None = None,
    ) -> Sequence[Submitted | RumorError]: ...


class PeerCalls:
    """The handlers, each named for the `operation` of its route."""

    def __init__(self, engine: PeerEngine, waits: OpenWaits, batch_room: BatchRoom) -> None:
        self._engine = engine
        self._config = engine.config
        self._waits = waits
        self._batch_room = batch_room
        self._exchanges = Exchanges(SYNC_MAX_BYTES)

    async def gossip(self, request: web.Request) -> web.Response:
        answer = await self._engine.vitals.push_pull(await self._exchanges.read(request))
        if answer is None:
            raise Forbidden("this is not a sealed member table of this cluster.", "Compare the gossip keys.")
        return web.Response(body=answer, headers={hdrs.CONTENT_TYPE: "application/octet-stream"})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """A connection whose end tells the peer that this process is gone; it is held until one side stops."""
        if not self._engine.vitals.accepts_watch(request.headers.get(WATCH_HEADER, "")):
            raise Forbidden("the watch token is not one of this cluster.", "Compare the gossip keys.")
        trust(request)
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "application/octet-stream"})
        await response.prepare(request)
        try:
            with self._waits.hold() as wait:
                async with wait:
                    while request.transport is not None:
                        await asyncio.sleep(WATCH_LOOK_S)
        except TimeoutError:
            pass  # The node shuts down.
        return response

    async def take_over(self, request: web.Request) -> web.Response:
        """Store a submission for a peer that cannot reach Redis. Never forwards again."""
        refuse_misdirected(request.headers.get(FORWARDED), self._engine.view.session)
        async with self._batch_room.taken(request):
            return await self._take_over(request)

    async def _take_over(self, request: web.Request) -> web.Response:
        # Its left-out fields are written out as null, so it may be larger than a batch.
        body = await read_body(request, FORWARDED_SIZE * self._config.batch_max_bytes)
        try:
            submission = _decode_forward(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"not a forwarded submission: {error}", "Only nodes call this.") from None
        item_max_bytes = FORWARDED_SIZE * self._config.body_max_bytes
        items = await batch_body.parsed(submission.items, self._config, item_max_bytes)
        if len(items) != len(submission.ids):
            raise BadRequest(f"{len(submission.ids)} ids for {len(items)} tasks.", "Only nodes call this.")
        keys: IdempotencyKeys = submission.idempotency_keys
        count = len(items if submission.idempotency_keys is None else submission.idempotency_keys)
        if submission.batch_key is not None:
            keys, count = submission.batch_key, len(submission.batch_key.places)
        if count != len(items):
            raise BadRequest(f"{count} keys for {len(items)} tasks.", "Only nodes call this.")
        with self._engine.tracing.receiving(request.headers):
            results = await self._engine.submit(items, keys, ids=submission.ids, trace=submission.trace)
        return as_json([_forwarded(result) for result in results])


def _forwarded(result: Submitted | RumorError) -> Forwarded:
    if isinstance(result, RumorError):
        return Forwarded(error=error_json(result).error, status=result.status)
    return Forwarded(task=result.task, is_new=result.is_new)
