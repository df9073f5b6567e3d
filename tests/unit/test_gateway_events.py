"""GET /events over HTTP: resumed by id, quiet clients get comments, slow ones are let go, shutdown does not wait."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, unused_port

from cluster.config import Config
from node.gateway import app, server, sse
from node.observe.timeline import DROPPED, LISTENERS_MAX, WAITING_MAX
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until_async

Client = TestClient[Any, Any]


def died(at_ms: int) -> dict[str, Any]:
    return {"at_ms": at_ms, "kind": "member_dead", "node_id": "n2", "by": "n1"}


async def until(response: ClientResponse, part: bytes) -> bytes:
    """The bytes that came, up to and with `part`."""
    received = b""
    async with asyncio.timeout(5):
        while part not in received:
            more = await response.content.readany()
            assert more, f"ended before {part!r}: {received!r}"
            received += more
    return received


async def test_events_are_streamed_with_ids_that_resume(client: Client, engine: FakeEngine) -> None:
    engine.timeline.add(died(7))
    async with client.get("/events") as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        first = await until(response, b'"at_ms":7')
        assert b"id: life1.1\nevent: member\n" in first
        engine.timeline.add(died(8))
        await until(response, b'"at_ms":8')
    engine.timeline.add(died(9))
    async with client.get("/events", headers={"Last-Event-ID": "life1.2"}) as response:
        rest = await until(response, b'"at_ms":9')
        assert b'"at_ms":7' not in rest
        assert b'"at_ms":8' not in rest


async def test_silence_is_told_by_a_comment(client: Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.05)
    async with client.get("/events") as response:
        await until(response, sse.SILENCE)


async def test_a_client_that_is_gone_is_forgotten(client: Client, engine: FakeEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(sse, "SILENCE_S", 0.02)
    async with client.get("/events") as response:
        await until(response, b"retry")
        assert engine.timeline.listeners == 1
        response.close()
    await wait_until_async(lambda: engine.timeline.listeners == 0, 5, "nobody listens")


async def test_a_client_that_is_too_slow_is_told_so_and_ended(client: Client, engine: FakeEngine) -> None:
    async with client.get("/events") as response:
        await until(response, b"retry")
        for n in range(WAITING_MAX + 1):  # in one turn of the loop: nothing is written in between
            engine.timeline.add(died(n))
        assert await response.content.read() == DROPPED


async def test_a_client_that_does_not_read_at_all_is_let_go(engine: FakeEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(sse, "SEND_WITHIN_S", 0.2)
    config = Config(port=unused_port())
    runner = await server.start(app.build(engine), config)
    _, writer = await asyncio.open_connection("127.0.0.1", config.port, limit=1024)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await wait_until_async(lambda: engine.timeline.listeners == 1, 5, "it listens")

    async def flood() -> bool:
        engine.timeline.say("task", "x" * 200_000)
        return engine.timeline.listeners == 0

    await wait_until_async(flood, 10, "it is let go")
    writer.close()
    await runner.cleanup()


async def test_one_listener_too_many_is_429(client: Client, engine: FakeEngine) -> None:
    contexts = [engine.timeline.listen(None) for _ in range(LISTENERS_MAX)]
    for context in contexts:
        context.__enter__()
    response = await client.get("/events")
    assert (response.status, (await response.json())["error"]["code"]) == (429, "too_many_listeners")
    for context in contexts:
        context.__exit__(None, None, None)


async def test_head_answers_at_once(client: Client) -> None:
    assert (await client.head("/events")).status == 200


async def test_shutdown_ends_streams_at_once_and_says_so(engine: FakeEngine) -> None:
    config = Config(port=unused_port())
    runner = await server.start(app.build(engine), config)
    reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
    writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"retry: 500\n\n")
    async with asyncio.timeout(1):
        await runner.cleanup()
        assert sse.BYE.strip() in await reader.read()
    writer.close()


async def test_the_cluster_is_told_with_as_many_events_as_wanted(client: Client, engine: FakeEngine) -> None:
    for n in range(3):
        engine.timeline.add(died(n))
    for query, times in (("", [0, 1, 2]), ("?events=2", [1, 2]), ("?events=0", [])):
        answer = await (await client.get(f"/cluster{query}")).json()
        assert [event["at_ms"] for event in answer["events"]] == times
