"""What a client may cost a node before it sends a request: time and connections are bounded."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp.test_utils import unused_port
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.config import Config
from node.gateway import app, request_body, server
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until_async

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Law = Callable[[], Coroutine[Any, Any, None]]


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[int, FakeEngine]]:
    config = Config(port=unused_port(), **settings)  # type: ignore[arg-type]
    engine = FakeEngine(config)
    runner = await server.start(app.build(engine), config)
    try:
        yield config.port, engine
    finally:
        await runner.cleanup()


async def opened(port: int, sent: bytes = b"") -> Pair:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    return reader, writer


async def to_the_end(pair: Pair) -> bytes:
    answer = await asyncio.wait_for(pair[0].read(), 5)
    pair[1].close()
    return answer


async def answer_to(pair: Pair, sent: bytes) -> bytes:
    """The status line; the rest of the answer is read, too."""
    reader, writer = pair
    writer.write(sent)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))
    return head.splitlines()[0]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((server, "HEAD_S"), (server, "LOOK_S"), (request_body, "BODY_S"), (request_body, "PAUSE_S")):
        monkeypatch.setattr(module, name, 0.1)


@pytest.mark.usefixtures("soon")
async def test_a_head_that_does_not_come_in_time_is_408() -> None:
    async with serving() as (port, _):
        slow = await opened(port, b"GET /livez HTTP/1.1\r\nHost:")
        answer = await to_the_end(slow)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b'{"error":{"code":"too_slow","message":"the head' in answer


@pytest.mark.usefixtures("soon")
async def test_a_connection_that_says_nothing_is_ended_without_a_word() -> None:
    async with serving() as (port, _):
        assert await to_the_end(await opened(port)) == b""


@pytest.mark.usefixtures("soon")
async def test_dribbling_does_not_extend_the_time_for_a_head() -> None:
    async with serving() as (port, _):
        reader, writer = await opened(port, b"GET /livez HTTP/1.1\r\n")

        async def dribble() -> None:
            while not writer.is_closing():
                writer.write(b"x: y\r\n")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await asyncio.gather(dribbling, return_exceptions=True)


@pytest.mark.usefixtures("soon")
async def test_a_kept_connection_may_be_idle_and_its_next_head_has_a_deadline_too() -> None:
    async with serving() as (port, _):
        kept = await opened(port)
        assert b" 200 " in await answer_to(kept, LIVEZ)
        assert await to_the_end(await opened(port)) == b""  # by now a silent connection has been ended
        assert await to_the_end(await opened(port)) == b""
        assert b" 200 " in await answer_to(kept, LIVEZ)
        kept[1].write(b"GET /livez")
        assert b" 408 " in await to_the_end(kept)


@pytest.mark.usefixtures("soon")
async def test_a_long_answer_is_no_slow_request() -> None:
    async with serving() as (port, engine):
        stream = await opened(port, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await stream[0].readuntil(b"retry: 500\n\n")
        task = (await engine.submit([app.parse.submission(b'{"type":"noop"}', 64)]))[0]
        waiting = await opened(port, f"GET /tasks/{task.task.id}?wait_s=60 HTTP/1.1\r\nHost: x\r\n\r\n".encode())  # type: ignore[union-attr]
        for _ in range(3):
            assert await to_the_end(await opened(port)) == b""
        engine.tasks[task.task.id].state = "succeeded"  # type: ignore[union-attr]
        engine.finished.set()
        assert b" 200 " in await waiting[0].readline()
        assert not stream[0].at_eof()
        waiting[1].close()
        stream[1].close()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch"])
async def test_a_body_that_does_not_come_in_time_is_408(path: str) -> None:
    async with serving() as (port, _):
        slow = await opened(port, f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n[".encode())
        assert b" 408 " in await slow[0].readline()
        assert b"only 1 bytes of the body came" in await asyncio.wait_for(slow[0].readuntil(b"}}\n"), 5)
        slow[1].close()


async def test_the_time_for_a_body_grows_with_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_S", 0.2)
    monkeypatch.setattr(request_body, "RATE_MIN_BYTES", 1)
    async with serving() as (port, _):
        text = b'{"type":"noop","data":"' + b"x" * 100 + b'"}'
        head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(text)
        reader, writer = await opened(port, head + text[:100])
        nothing = await opened(port, head)
        assert b" 408 " in await nothing[0].readline()  # its time is up, and that of these hundred bytes is not
        nothing[1].close()
        writer.write(text[100:])
        assert b" 202 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


@pytest.mark.usefixtures("soon")
async def test_a_stream_of_lines_that_stops_is_told_so_in_its_last_line() -> None:
    async with serving() as (port, _):
        line = b'{"type":"noop"}\n'
        head = b"POST /tasks/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        slow = await opened(port, head + b"Content-Length: 999\r\n\r\n" + line)
        answer = await asyncio.wait_for(slow[0].readuntil(b"no further line came"), 5)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"state":"queued"' in answer
        slow[1].close()


async def test_when_it_is_full_who_asks_nothing_makes_room() -> None:
    async with serving(connections_max=3) as (port, _):
        kept = await opened(port)
        await answer_to(kept, LIVEZ)
        silent = [await opened(port) for _ in range(2)]
        new = await opened(port)
        assert b" 200 " in await answer_to(new, LIVEZ)
        assert await to_the_end(silent[0]) == b""
        assert b" 200 " in await answer_to(kept, LIVEZ)
        assert b" 200 " in await answer_to(silent[1], LIVEZ)
        for _, writer in (kept, silent[1], new):
            writer.close()


async def test_when_all_are_in_use_a_further_one_is_503() -> None:
    async with serving(connections_max=2) as (port, _):
        kept = [await opened(port) for _ in range(2)]
        for connection in kept:
            await answer_to(connection, LIVEZ)
        answer = await to_the_end(await opened(port, LIVEZ))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b'"code":"too_many_connections","message":"this node holds 2 connections' in answer
        assert b"\r\nRetry-After: 1\r\n" in answer
        kept[0][1].close()

        async def is_let_in() -> bool:
            return b"HTTP/1.1 200 " in await to_the_end(
                await opened(port, LIVEZ.replace(b"x\r", b"x\r\nConnection: close\r"))
            )

        await wait_until_async(is_let_in, 5, "there is room again")
        assert b" 200 " in await answer_to(kept[1], LIVEZ)
        kept[1][1].close()


async def test_few_refused_clients_are_waited_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds an open file: a flood of them must leave enough for Redis and gossip."""
    monkeypatch.setattr(server, "LINGERING_MAX", 1)
    monkeypatch.setattr(server, "LINGER_S", 60.0)
    config = Config(port=unused_port(), connections_max=1)
    runner = await server.start(app.build(FakeEngine(config)), config)
    listening: Any = runner.server
    kept = await opened(config.port)
    await answer_to(kept, LIVEZ)
    first, second = [await opened(config.port) for _ in range(2)]
    for reader, _ in (first, second):
        assert b" 503 " in await asyncio.wait_for(reader.read(), 5)

    def is_closed() -> bool:
        second[1].write(LIVEZ)
        return second[1].is_closing()

    await wait_until_async(is_closed, 5, "it is not waited for")
    assert len(listening.lingering) == 1
    first[1].close()
    await wait_until_async(lambda: not listening.lingering, 5, "its place is free again")
    kept[1].close()
    await runner.cleanup()


async def test_when_it_is_full_what_is_idle_for_long_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.0)
    async with serving(connections_max=1) as (port, _):
        kept = await opened(port)
        await answer_to(kept, LIVEZ)
        new = await opened(port)
        assert b" 200 " in await answer_to(new, LIVEZ)
        assert await to_the_end(kept) == b""
        new[1].close()


def test_there_is_room_for_as_many_as_may_have_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert server.room_for(500) == 500
    assert server.room_for(2000) == 2000
    assert limits == [(1024, 4096), (2000 + server.FILES_KEPT, 4096)]
    assert server.room_for(10_000) == 4096 - server.FILES_KEPT


async def test_a_body_that_is_not_what_it_says_is_400_in_a_line_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (port, _):
        head = b"POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
        head += b"Connection: close\r\nContent-Length: 4\r\n\r\n"
        answer = await to_the_end(await opened(port, head + b"nope"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"message":"the body cannot be read: Can not decode content-encoding: gzip."' in answer
    assert not caplog.records


ON_ANY_LOOP = (
    test_when_it_is_full_who_asks_nothing_makes_room,
    test_when_all_are_in_use_a_further_one_is_503,
)
ON_ANY_LOOP_SOON = (
    test_a_head_that_does_not_come_in_time_is_408,
    test_a_connection_that_says_nothing_is_ended_without_a_word,
    test_a_kept_connection_may_be_idle_and_its_next_head_has_a_deadline_too,
)


@pytest.mark.parametrize("law", ON_ANY_LOOP)
def test_who_finds_no_room_is_told_so_on_the_loop_that_nodes_run_on(law: Law) -> None:
    """uvloop has transports of its own."""
    uvloop.run(law())


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("law", ON_ANY_LOOP_SOON)
def test_slow_heads_are_bounded_on_the_loop_that_nodes_run_on(law: Law) -> None:
    uvloop.run(law())


def self_signed(folder: Path) -> tuple[str, str]:
    """Paths of a certificate for 127.0.0.1 and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    cert = builder.add_extension(here, critical=False).sign(key, hashes.SHA256())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_with_tls_who_says_nothing_is_ended_and_who_finds_no_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], None]
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.5)
    cert, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=cert)

    async def scenario() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        config = Config(port=sock.getsockname()[1], connections_max=1, tls_cert=cert, tls_key=key)
        runner = await server.start(app.build(FakeEngine(config)), config, sock)
        silent = await opened(config.port)
        kept = await asyncio.open_connection("127.0.0.1", config.port, ssl=trust)
        assert b" 200 " in await answer_to(kept, LIVEZ)
        assert await to_the_end(silent) == b""
        further = await asyncio.open_connection("127.0.0.1", config.port, ssl=trust)
        assert b'"code":"too_many_connections"' in await to_the_end(further)
        kept[1].close()
        await runner.cleanup()

    run(scenario())
