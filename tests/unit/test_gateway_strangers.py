"""What a caller without the token can cost a node: little memory, little time, and nobody else's place."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import pytest
from aiohttp import web

from cluster.config import Config
from cluster.errors import RumorError, TooLarge, TooSlow
from node.gateway import app, request_body, server
from tests.fake_engine import FakeEngine
from tests.unit.test_gateway_server import LIVEZ, answer_to, opened, serving, to_the_end
from tests.waiting import wait_until_async

TOKEN = "s3cret-token"
KEY = "a2" * 21 + "a="
HEAD = b"Host: 127.0.0.1\r\n"
PROOF = HEAD + b"Authorization: Bearer s3cret-token\r\n"
SUBMIT = b"POST /tasks HTTP/1.1\r\n" + PROOF + b"Content-Length: 15\r\n\r\n" + b'{"type":"noop"}'
STRANGERS = {
    "silent": b"",
    "slow head": b"GET /livez HTTP/1.1\r\nHost:",
    "idle": LIVEZ,
    "wrong token": b"GET /tasks HTTP/1.1\r\n" + HEAD + b"Authorization: Bearer guess\r\n\r\n",
    "slow body": b"POST /tasks HTTP/1.1\r\n" + HEAD + b"Content-Length: 999\r\n\r\n{",
    "slow table": b"POST /gossip HTTP/1.1\r\n" + HEAD + b"Content-Length: 999\r\n\r\nx",
    "idle, then a slow table": LIVEZ + b"POST /gossip HTTP/1.1\r\n" + HEAD + b"Content-Length: 999\r\n\r\nx",
    "forged watch": b"GET /gossip/watch HTTP/1.1\r\n" + HEAD + b"Rumor-Watch: forged\r\n\r\n",
    "expects": b"POST /tasks HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 999\r\n\r\n",
    "upgrades": b"GET /livez HTTP/1.1\r\n" + HEAD + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
}


def packed(data: bytes) -> bytes:
    """A gzip body with its head from `Content-Encoding` on."""
    body = gzip.compress(data)
    return b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


# ---- places


@pytest.mark.parametrize("sent", STRANGERS.values(), ids=STRANGERS)
async def test_strangers_who_hold_all_places_keep_nobody_out(sent: bytes) -> None:
    async with serving(connections_max=20, api_token=TOKEN, gossip_keys=(KEY,)) as (port, engine):
        known = await opened(port)
        assert b" 202 " in await answer_to(known, SUBMIT)
        strangers = [await opened(port, sent) for _ in range(100)]
        probe, client, peer = [await opened(port) for _ in range(3)]
        assert b" 200 " in await answer_to(probe, LIVEZ)
        assert b" 202 " in await answer_to(client, SUBMIT)
        table = b"POST /gossip HTTP/1.1\r\n" + HEAD + b"Content-Length: 6\r\n\r\nsealed"
        assert b" 200 " in await answer_to(peer, table)
        watch = await opened(port, b"GET /gossip/watch HTTP/1.1\r\n" + HEAD + b"Rumor-Watch: good\r\n\r\n")
        assert b" 200 " in await asyncio.wait_for(watch[0].readline(), 5)
        strangers += [await opened(port, sent) for _ in range(100)]
        assert b" 202 " in await answer_to(known, SUBMIT), "who showed the token keeps his place"
        assert b" 202 " in await answer_to(client, SUBMIT)
        assert not watch[0].at_eof(), "and who showed a seal"
        assert engine.calls == ["submit"] * 4
        for _, writer in (*strangers, known, probe, client, peer, watch):
            writer.transport.abort()


async def test_a_stranger_who_reads_no_answers_loses_his_place_at_once() -> None:
    """A mere close would wait until he reads what was written for him."""
    async with serving(connections_max=2, api_token=TOKEN) as (port, _):
        deaf = await opened(port)
        deaf[1].transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(500):
            deaf[1].write(b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n")
        others = [await opened(port) for _ in range(5)]
        assert b" 200 " in await answer_to(others[-1], LIVEZ)
        deaf[1].transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(deaf[0].read(), 5)
        for _, writer in others:
            writer.close()


# ---- bodies


async def test_nothing_is_unpacked_before_the_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    monkeypatch.setattr(request_body.zlib, "decompressobj", lambda *bits: unpacked.append(1))  # type: ignore[attr-defined]
    body = packed(b" " * 5_000_000)
    async with serving(api_token=TOKEN, gossip_keys=(KEY,)) as (port, _):
        for call in (b"POST /tasks", b"POST /tasks/batch", b"POST /gossip", b"GET /livez", b"POST /none"):
            answer = await to_the_end(await opened(port, call + b" HTTP/1.1\r\nConnection: close\r\n" + HEAD + body))
            assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 403", b"HTTP/1.1 200"))
    assert not unpacked


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(b'{"type":"noop"}'), 202),
        ("GZip", gzip.compress(b'{"type":"noop"}' + b" " * 300_000), 202),
        ("deflate", zlib.compress(b'{"type":"noop"}'), 202),
        ("deflate", zlib.compressobj(wbits=-15).compress(b"") + zlib.compress(b'{"type":"noop"}')[2:-4], 202),
        ("identity", b'{"type":"noop"}', 202),
        ("gzip", b"", 400),
        ("gzip", b"nope", 400),
        ("gzip", gzip.compress(b'{"type":"noop"}')[:-5], 400),
        ("gzip", gzip.compress(b'{"type":"noop"}') + b"more", 400),
        ("gzip", gzip.compress(b'{"type":"noop"}') * 2, 400),
        ("br", b'{"type":"noop"}', 400),
        ("gzip, gzip", gzip.compress(gzip.compress(b'{"type":"noop"}')), 400),
        ("gzip", gzip.compress(b" " * 200_000_000), 413),
    ],
    ids=map(str, range(13)),  # a gzip body holds the time at which it was made
)
async def test_a_compressed_body_is_unpacked_within_its_limit(encoding: str, body: bytes, status: int) -> None:
    head = b"POST /tasks HTTP/1.1\r\nConnection: close\r\n" + PROOF
    head += f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with serving(api_token=TOKEN) as (port, _):
        answer = await to_the_end(await opened(port, head + body))
    assert int(answer.split(b" ", 2)[1]) == status, answer


async def test_compressed_lines_are_unpacked_as_they_come() -> None:
    head = b"POST /tasks/batch HTTP/1.1\r\nConnection: close\r\nContent-Type: application/x-ndjson\r\n" + PROOF
    async with serving(api_token=TOKEN) as (port, engine):
        answer = await to_the_end(await opened(port, head + packed(b'{"type":"noop"}\n' * 30_000)))
        assert answer.count(b'"state":"queued"') == 30_000
        assert len(engine.tasks) == 30_000


class Body:
    """A body that never ends, as far as `Exchanges` looks at its request."""

    def __init__(self, declared: int | None) -> None:
        self.headers = {} if declared is None else {"Content-Length": str(declared)}
        self.content = self
        self.more = asyncio.Event()

    def is_eof(self) -> bool:
        return False

    def at_eof(self) -> bool:
        return self.more.is_set()

    async def readany(self) -> bytes:
        await self.more.wait()
        return b"sealed"


async def outcome(reading: asyncio.Task[bytes]) -> bytes | RumorError:
    try:
        return await asyncio.wait_for(reading, 5)
    except RumorError as error:
        return error


@pytest.mark.parametrize(("size", "fit"), [(10, request_body.EXCHANGES_MAX), (2_000_000, 8), (None, 8)])
async def test_when_too_many_tables_come_at_once_the_oldest_gives_way(size: int | None, fit: int) -> None:
    exchanges = request_body.Exchanges(2_000_000)
    bodies = [Body(size) for _ in range(fit + 3)]
    reads: list[asyncio.Task[bytes]] = []
    for body in bodies:
        reads.append(asyncio.ensure_future(exchanges.read(body)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    for reading in reads[:3]:
        assert isinstance(await outcome(reading), TooSlow)
    for body in bodies[3:]:
        body.more.set()
    assert [await outcome(reading) for reading in reads[3:]] == [b"sealed"] * fit
    with pytest.raises(TooLarge):
        await exchanges.read(Body(2_000_001))  # type: ignore[arg-type]


# ---- heads


def only_connection(runner: web.AppRunner) -> Any:
    """The connection that the server has, as it sees it."""
    assert runner.server is not None
    return runner.server.connections[0]


@pytest.mark.parametrize(
    "first",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
async def test_what_follows_something_that_is_no_http_is_not_kept(first: bytes) -> None:
    config = Config(port=1, api_token=TOKEN)
    runner = server.Runner(app.build(FakeEngine(config)), 10)
    await runner.setup()
    loop = asyncio.get_running_loop()
    assert runner.server is not None
    listening = await loop.create_server(runner.server, "127.0.0.1", 0)
    pair = await opened(listening.sockets[0].getsockname()[1])
    await wait_until_async(_is_there(runner), 5, "it is accepted")
    connection = only_connection(runner)
    for piece in (first, *([b"z" * 10_000] * 500)):
        connection.data_received(piece)
    assert len(connection._messages) <= 1
    assert not connection._message_tail
    await to_the_end(pair)
    listening.close()
    await runner.cleanup()


def _is_there(runner: web.AppRunner) -> Any:
    async def is_there() -> bool:
        return runner.server is not None and len(runner.server.connections) == 1

    return is_there


async def test_a_path_of_very_many_parts_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(web.UrlDispatcher, "resolve", resolve)
    async with serving(api_token=TOKEN) as (port, _):
        answer = await to_the_end(
            await opened(port, b"GET /" + b"a/" * 4000 + b" HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        )
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"not_found"' in answer


async def test_a_head_that_is_too_large_is_413() -> None:
    async with serving(api_token=TOKEN) as (port, _):
        head = b"GET /livez HTTP/1.1\r\n" + b"".join(b"X%d: %s\r\n" % (n, b"y" * 4000) for n in range(20))
        answer = await to_the_end(await opened(port, head[: server.HEAD_MAX_BYTES + 1]))
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_is_asked_for_only_if_its_sender_may_send_it() -> None:
    rest = b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n"
    async with serving(api_token=TOKEN) as (port, _):
        refused = await opened(port, b"POST /tasks HTTP/1.1\r\n" + HEAD + rest)
        assert (await asyncio.wait_for(refused[0].readline(), 5)) == b"HTTP/1.1 401 Unauthorized\r\n"
        refused[1].close()
        welcome = await opened(port, b"POST /tasks HTTP/1.1\r\n" + PROOF + rest)
        assert (await asyncio.wait_for(welcome[0].readline(), 5)) == b"HTTP/1.1 100 Continue\r\n"
        await welcome[0].readline()
        welcome[1].write(b'{"type":"noop"}')
        assert (await to_the_end(welcome)).startswith(b"HTTP/1.1 202 ")
