"""`POST /tasks?wait_s=`: one request from the submission to the result. Also what ends a wait: the node, the client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer, unused_port
from structlog.testing import capture_logs

from cluster.config import Config
from node.gateway import app, server, waits
from tests.fake_engine import FakeEngine, peer
from tests.waiting import wait_until_async

Client = TestClient[Any, Any]
NOOP = {"type": "noop"}


async def waiting(client: Client, engine: FakeEngine, **more: Any) -> asyncio.Task[Any]:
    """A submission that waits for its task by now."""
    call = asyncio.create_task(client.post("/tasks?wait_s=60", json=NOOP, **more))
    await wait_until_async(lambda: engine.waiting == 1, 5, "the engine waits")
    return call


def end_all(engine: FakeEngine, state: str) -> None:
    for task in engine.tasks.values():
        task.state = state
    engine.finished.set()


@pytest.mark.parametrize("state", ["succeeded", "dead", "cancelled"])
async def test_a_submission_that_waits_is_answered_200_with_the_task_that_ended(
    client: Client, engine: FakeEngine, state: str
) -> None:
    call = await waiting(client, engine)
    end_all(engine, state)
    response = await call
    task = await response.json()
    assert (response.status, task["state"]) == (200, state)
    assert response.headers["Location"] == f"/tasks/{task['id']}"


async def test_a_submission_whose_time_is_up_is_answered_202_with_the_task_as_it_is(
    client: Client, engine: FakeEngine
) -> None:
    response = await client.post("/tasks?wait_s=0.05", json={**NOOP, "delay_s": 60})
    assert (response.status, (await response.json())["state"]) == (202, "queued")
    response = await client.post("/tasks?wait_s=0", json=NOOP)
    assert response.status == 202
    assert engine.calls.count("wait") == 1, "0 s is no wait"


@pytest.mark.parametrize("value", ["-1", "61", "nan", "inf", "soon", ""])
async def test_a_wait_s_that_does_not_fit_is_400_and_stores_nothing(
    client: Client, engine: FakeEngine, value: str
) -> None:
    response = await client.post(f"/tasks?wait_s={value}", json=NOOP)
    assert (response.status, engine.calls) == (400, [])
    assert f'wait_s is "{value}"' in (await response.json())["error"]["message"]


async def test_a_misspelt_wait_s_is_told_the_right_one(client: Client, engine: FakeEngine) -> None:
    response = await client.post("/tasks?wait=5", json=NOOP)
    assert (response.status, engine.calls) == (400, [])
    assert (await response.json())["error"]["hint"] == "Did you mean wait_s? Known here: wait_s."


async def test_a_batch_does_not_wait_and_says_what_does(client: Client, engine: FakeEngine) -> None:
    response = await client.post("/tasks/batch?wait_s=5", json=[NOOP])
    assert (response.status, engine.calls) == (400, [])
    assert "GET /tasks/{id}?wait_s=20" in (await response.json())["error"]["hint"]


async def test_a_repeat_waits_for_the_first_task(client: Client, engine: FakeEngine) -> None:
    key = {"Idempotency-Key": "k"}
    first = await (await client.post("/tasks", json=NOOP, headers=key)).json()
    response = await client.post("/tasks?wait_s=0.05", json=NOOP, headers=key)
    assert (response.status, (await response.json())["id"]) == (202, first["id"]), "it has not ended"
    call = await waiting(client, engine, headers=key)
    end_all(engine, "succeeded")
    response = await call
    assert (response.status, (await response.json())["id"]) == (200, first["id"])


async def test_a_repeat_of_a_task_that_is_past_its_retention_does_not_wait(client: Client, engine: FakeEngine) -> None:
    key = {"Idempotency-Key": "k"}
    await client.post("/tasks", json=NOOP, headers=key)
    end_all(engine, "expired")
    response = await client.post("/tasks?wait_s=60", json=NOOP, headers=key)
    assert (response.status, (await response.json())["state"]) == (200, "expired")
    assert "wait" not in engine.calls


async def test_a_task_that_is_dropped_during_the_wait_is_expired(client: Client, engine: FakeEngine) -> None:
    call = await waiting(client, engine)
    engine.tasks.clear()
    engine.finished.set()
    response = await call
    assert (response.status, (await response.json())["state"]) == (200, "expired")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_client_that_goes_away_ends_its_wait_and_no_other(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """The log says nothing of it."""
    monkeypatch.setattr(waits, "LOOK_S", 0.01)
    config = Config(port=unused_port())
    runner = await server.start(app.build(engine), config)
    try:
        async with TestClient(TestServer(app.build(engine))) as other:
            task = await (await other.post("/tasks", json=NOOP)).json()
        path = f"/tasks/{task['id']}" if method == "GET" else "/tasks"
        head = f"{method} {path}?wait_s=60 HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n".encode()
        connections = [await asyncio.open_connection("127.0.0.1", config.port) for _ in range(3)]
        for _, writer in connections:
            writer.write(head + b'{"type": "noop"}')
        await wait_until_async(lambda: engine.waiting == 3, 5, "all wait")
        with capture_logs() as lines:
            for _, writer in connections[:2]:
                writer.close()
            await wait_until_async(lambda: engine.waiting == 1, 5, "two waits have ended")
        end_all(engine, "succeeded")
        reader, writer = connections[2]
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
    finally:
        await runner.cleanup()
    assert [line["event"] for line in lines] + caplog.messages == []


async def test_a_node_that_stops_answers_202_with_the_task_as_it_is(engine: FakeEngine) -> None:
    config = Config(port=unused_port())
    runner = await server.start(app.build(engine), config)
    reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
    writer.write(b'POST /tasks?wait_s=60 HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"type": "noop"}')
    await wait_until_async(lambda: engine.waiting == 1, 5, "the engine waits")
    async with asyncio.timeout(3):
        await runner.cleanup()
        assert (await reader.readline()) == b"HTTP/1.1 202 Accepted\r\n"
        assert b'"state":"queued"' in await reader.read()
    writer.close()


async def test_a_node_without_redis_forwards_the_submission_and_waits_at_the_peer() -> None:
    far = FakeEngine(Config(node_id="n2", port=5002))
    async with TestServer(app.build(far)) as near:
        engine = FakeEngine(Config(node_id="n1", port=5001), [peer("n2", near.port or 0)])
        engine.redis_ok = False
        async with TestClient(TestServer(app.build(engine))) as client:
            call = asyncio.create_task(client.post("/tasks?wait_s=60", json=NOOP))
            await wait_until_async(lambda: far.waiting == 1, 5, "the peer waits")
            end_all(far, "succeeded")
            response = await call
            task = await response.json()
            assert (response.status, task["state"]) == (200, "succeeded")
            assert list(far.tasks) == [task["id"]]


async def test_a_node_that_loses_redis_during_the_wait_waits_at_a_peer_or_says_what_it_knows() -> None:
    """The task is stored: a 503 would say otherwise."""
    far = FakeEngine(Config(node_id="n2", port=5002))
    async with TestServer(app.build(far)) as near:
        engine = FakeEngine(Config(node_id="n1", port=5001), [peer("n2", near.port or 0)])
        async with TestClient(TestServer(app.build(engine))) as client:
            call = await waiting(client, engine)
            far.tasks = engine.tasks
            engine.redis_ok = False
            engine.finished.set()
            await wait_until_async(lambda: far.waiting == 1, 5, "the peer waits")
            end_all(far, "dead")
            response = await call
            assert (response.status, (await response.json())["state"]) == (200, "dead")
            far.redis_ok = False
            engine.redis_ok = True
            engine.finished.clear()
            call = asyncio.create_task(client.post("/tasks?wait_s=0.3", json=NOOP))
            await wait_until_async(lambda: engine.waiting == 1, 5, "the engine waits")
            engine.redis_ok = False
            engine.finished.set()
            response = await call
            assert (response.status, (await response.json())["state"]) == (202, "queued")
