"""The other calls of the gateway, and what HTTP itself can get wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer, unused_port

from cluster.config import Config
from cluster.view import Leader
from node.gateway import app, server
from node.gateway.cluster_calls import ClusterCalls
from node.gateway.openapi import document
from node.gateway.peer_calls import PeerCalls
from node.gateway.routes import ROUTES
from node.gateway.task_calls import TaskCalls
from node.schema import TaskJson
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until_async

Client = TestClient[Any, Any]


async def submitted(client: Client) -> dict[str, Any]:
    task: dict[str, Any] = await (await client.post("/tasks", json={"type": "noop"})).json()
    return task


async def error_of(client: Client, method: str, path: str, status: int) -> dict[str, str]:
    response = await client.request(method, path)
    answer: dict[str, dict[str, str]] = await response.json()
    assert response.status == status, answer
    assert set(answer["error"]) == {"code", "message", "hint"}
    return answer["error"]


# ---- reading


async def test_a_task_that_does_not_exist_is_404(client: Client) -> None:
    error = await error_of(client, "GET", "/tasks/nope", 404)
    assert error["code"] == "not_found"
    assert "'nope'" in error["message"]


async def test_wait_s_waits_until_the_task_is_finished(client: Client, engine: FakeEngine) -> None:
    task = await submitted(client)
    waiting = asyncio.create_task(client.get(f"/tasks/{task['id']}?wait_s=60"))
    await wait_until_async(lambda: "wait" in engine.calls, 5, "the engine was asked to wait")
    engine.tasks[task["id"]].state = "succeeded"
    engine.finished.set()
    assert (await (await waiting).json())["state"] == "succeeded"


@pytest.mark.parametrize("value", ["-1", "61", "nan", "inf", "soon", ""])
async def test_wait_s_is_0_to_60(client: Client, value: str) -> None:
    error = await error_of(client, "GET", f"/tasks/x?wait_s={value}", 400)
    assert f'wait_s is "{value}"' in error["message"]
    assert error["hint"] == "Use seconds, from 0 to 60, or leave wait_s out."


async def test_a_number_that_does_not_fit_is_told_its_range(client: Client) -> None:
    error = await error_of(client, "GET", "/tasks?limit=ten", 400)
    assert error["hint"] == "Use 1 to 500, or leave limit out."


async def test_a_list_is_paged_newest_first(client: Client) -> None:
    ids = [(await submitted(client))["id"] for _ in range(5)]
    first = await (await client.get("/tasks?limit=3")).json()
    rest = await (await client.get(f"/tasks?limit=3&cursor={first['cursor']}")).json()
    assert [task["id"] for task in first["tasks"] + rest["tasks"]] == ids[::-1]
    assert rest["cursor"] is None


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("limit=0", 'limit is "0"'),
        ("limit=501", 'limit is "501"'),
        ("limit=ten", 'limit is "ten"'),
        ("state=done", 'state is "done"'),
        ("type=", 'type is ""'),
        ("key=", 'key is ""'),
        ("state=queued&queue=", 'queue is ""'),
        ("cursor=what", "cursor is 'what'"),
        ("sate=dead", "unknown query parameter 'sate'"),
    ],
)
async def test_a_query_that_does_not_fit_is_400_and_named(client: Client, query: str, part: str) -> None:
    assert part in (await error_of(client, "GET", f"/tasks?{query}", 400))["message"]


async def test_an_unknown_query_parameter_is_told_the_known_ones(client: Client) -> None:
    error = await error_of(client, "GET", "/tasks?sate=dead", 400)
    assert error["hint"] == "Did you mean state? Known here: state, type, key, queue, fields, limit, cursor."


@pytest.mark.parametrize(("method", "path"), [("POST", "/tasks"), ("DELETE", "/dead"), ("GET", "/health")])
async def test_a_call_without_query_parameters_takes_none(client: Client, method: str, path: str) -> None:
    assert "'wait'" in (await error_of(client, method, f"{path}?wait=1", 400))["message"]


# ---- changing


async def test_cancel_answers_the_task_and_conflicts_when_it_has_ended(client: Client, engine: FakeEngine) -> None:
    task = await submitted(client)
    assert (await (await client.delete(f"/tasks/{task['id']}")).json())["state"] == "cancelled"
    engine.tasks[task["id"]].state = "succeeded"
    assert (await error_of(client, "DELETE", f"/tasks/{task['id']}", 409))["code"] == "conflict"


async def test_only_what_is_dead_can_be_tried_again(client: Client, engine: FakeEngine) -> None:
    task = await submitted(client)
    assert "queued" in (await error_of(client, "POST", f"/tasks/{task['id']}/retry", 409))["message"]
    engine.tasks[task["id"]].state = "dead"
    assert (await (await client.post(f"/tasks/{task['id']}/retry")).json())["state"] == "queued"


@pytest.mark.parametrize(
    ("body", "replayed"), [(b"", 3), (b"{}", 3), (b'{"limit": 2}', 2), (b'{"type": "process"}', 0), (b" ", 3)]
)
async def test_replay_takes_all_or_one_type_or_so_many(
    client: Client, engine: FakeEngine, body: bytes, replayed: int
) -> None:
    for _ in range(3):
        engine.tasks[(await submitted(client))["id"]].state = "dead"
    assert await (await client.post("/dead/replay", data=body)).json() == {"replayed": replayed}


@pytest.mark.parametrize("body", [b'{"limit": 0}', b'{"typ": "x"}', b"[]", b'{"limit": "2"}'])
async def test_a_replay_that_does_not_fit_replays_nothing(client: Client, engine: FakeEngine, body: bytes) -> None:
    engine.tasks[(await submitted(client))["id"]].state = "dead"
    assert (await client.post("/dead/replay", data=body)).status == 422
    assert [task.state for task in engine.tasks.values()] == ["dead"]


async def test_the_dead_can_be_removed(client: Client, engine: FakeEngine) -> None:
    engine.tasks[(await submitted(client))["id"]].state = "dead"
    assert await (await client.delete("/dead")).json() == {"removed": 1}
    assert engine.tasks == {}


# ---- the node


async def test_health_is_503_when_the_node_is_not_usable_and_livez_still_200(
    client: Client, engine: FakeEngine
) -> None:
    assert (await client.get("/health")).status == 200
    engine.redis_ok = engine.ready = False
    health = await client.get("/health")
    assert (health.status, (await health.json())["status"]) == (503, "unavailable")
    ready = await client.get("/readyz")
    assert (ready.status, await ready.json()) == (503, {"ready": False, "reason": "Redis does not answer"})
    assert (await client.get("/livez")).status == 200


async def test_metrics_name_what_outsiders_count_with(client: Client, engine: FakeEngine) -> None:
    await submitted(client)
    engine.metrics.commits.add("succeeded", 2)
    engine.view = dataclasses.replace(engine.view, leader=Leader("n1", engine.view.session, 1))
    response = await client.get("/metrics")
    text = await response.text()
    assert response.content_type == "text/plain"
    for line in (
        "rumor_tasks_accepted_total 1.0",
        'rumor_task_commits_total{outcome="succeeded"} 2.0',
        "rumor_tasks_reaped_total 0.0",
        'rumor_queued_tasks{queue="default"} 1.0',
        'rumor_vitals_events_total{event="probes"} 3.0',
        'rumor_fences_total{cause="lease"} 2.0',
        'rumor_http_requests_total{operation="submit",status="202"} 1.0',
        "rumor_redis_ok 1.0",
    ):
        assert line in text.splitlines(), line
    assert "# TYPE rumor_fences_total counter" in text
    assert "# TYPE rumor_task_refused_total counter" in text


async def test_a_node_whose_part_has_ended_for_good_is_not_alive(client: Client, engine: FakeEngine) -> None:
    engine.fault = "the task 'lane', which must never end, was cancelled"
    answer = await client.get("/livez")
    assert answer.status == 503
    assert "lane" in (await answer.json())["reason"]


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_needs_nothing_from_elsewhere(client: Client, path: str) -> None:
    response = await client.get(path)
    text = await response.text()
    assert response.content_type == "text/html"
    assert "http://" not in text
    assert "https://" not in text
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["Server"] == "rumor"


# ---- OpenAPI


async def test_openapi_describes_each_public_call_and_no_other(client: Client) -> None:
    described = await (await client.get("/openapi.json")).json()
    calls = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    assert calls == {(route.method, route.path) for route in ROUTES if route.is_public}


def test_each_pattern_in_openapi_is_one_of_json_schema() -> None:
    """There `$` is the end of the text and `\\Z` is nothing; in Python a line break may follow `$`."""
    text = json.dumps(document())
    assert r"[A-Za-z0-9_.-]{0,47}$" in text
    assert r"\Z" not in text


def test_each_reference_in_openapi_leads_somewhere() -> None:
    described = document()
    names = set(described["components"]["schemas"])

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rpartition("/")[2] in names
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(described)


def test_every_route_has_one_handler_and_every_handler_a_route() -> None:
    handlers = [name for calls in (TaskCalls, ClusterCalls, PeerCalls) for name in vars(calls) if name[0] != "_"]
    assert sorted(handlers) == sorted(route.operation for route in ROUTES)


def test_the_example_task_has_the_fields_of_a_task() -> None:
    example = document()["paths"]["/tasks"]["post"]["responses"]["202"]["content"]["application/json"]["example"]
    assert tuple(example) == TaskJson.__struct_fields__


# ---- HTTP


async def test_a_path_that_does_not_exist_is_404_in_the_error_form(client: Client) -> None:
    assert "/task" in (await error_of(client, "GET", "/task", 404))["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/tasks", "POST, GET"),
        ("PATCH", "/tasks/x", "GET, DELETE"),
        ("GET", "/dead", "DELETE"),
        ("OPTIONS", "/tasks", "POST, GET"),
        ("OPTIONS", "/tasks/batch", "POST"),
    ],
)
async def test_a_method_that_a_path_lacks_is_405_and_names_those_it_has(
    client: Client, method: str, path: str, allow: str
) -> None:
    error = await error_of(client, method, path, 405)
    assert error["code"] == "method_not_allowed"
    assert (await client.request(method, path)).headers["Allow"] == allow


async def test_head_answers_as_get_without_a_body(client: Client) -> None:
    response = await client.head("/health")
    assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize(
    "sent",
    [b"garbage\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: no\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"],
    ids=["no HTTP", "length", "version"],
)
async def test_what_is_not_http_is_400_in_the_error_form_and_ends_the_connection(sent: bytes) -> None:
    config = Config(port=unused_port())
    runner = await server.start(app.build(FakeEngine(config)), config)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
    finally:
        await runner.cleanup()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b'{"error":{"code":"bad_request"' in answer


async def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    config = Config(port=unused_port())
    runner = await server.start(app.build(FakeEngine(config)), config)
    try:
        with pytest.raises(OSError, match="in use"):
            await server.start(app.build(FakeEngine(config)), config)
    finally:
        await runner.cleanup()


# ---- shutdown


async def test_shutdown_answers_who_waits_and_lets_watches_go_at_once() -> None:
    config = Config(port=unused_port())
    engine = FakeEngine(config)
    runner = await server.start(app.build(engine), config)
    async with TestClient(TestServer(app.build(engine))) as other:
        task = await submitted(other)
    reader, writer = await asyncio.open_connection("127.0.0.1", config.port)
    writer.write(b"GET /gossip/watch HTTP/1.1\r\nHost: x\r\nRumor-Watch: good\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    waiter, ask = await asyncio.open_connection("127.0.0.1", config.port)
    ask.write(f"GET /tasks/{task['id']}?wait_s=60 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await wait_until_async(lambda: "wait" in engine.calls, 5, "the engine was asked to wait")
    async with asyncio.timeout(3):
        await runner.cleanup()
        assert (await waiter.readline()) == b"HTTP/1.1 200 OK\r\n"
        await reader.read()
    writer.close()
    ask.close()
