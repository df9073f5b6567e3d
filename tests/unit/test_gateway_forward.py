"""Without Redis a gateway hands submissions and reads to a peer that has it: once, under the ids fixed before."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer, unused_port

from cluster.config import Config
from cluster.errors import StoreUnavailable, refused
from cluster.shards.task import NO_DATA
from cluster.swim.events import MemberState
from cluster.view import Peer, RedisWord, View
from node.gateway import app, parse
from node.gateway.forward import Forwarder, candidates, outgoing
from node.schema import Forward
from tests.fake_engine import FakeEngine, peer

Client = TestClient[Any, Any]


@pytest.fixture
async def near() -> AsyncIterator[TestServer]:
    """A peer that reaches Redis."""
    server = TestServer(app.build(FakeEngine(Config(node_id="n2", port=5002, api_token="t"))))
    await server.start_server()
    yield server
    await server.close()


async def cut_off(*peers: Peer, token: str = "t") -> Client:
    """A client of a node that cannot reach Redis."""
    engine = FakeEngine(Config(node_id="n1", port=5001, api_token=token), peers)
    engine.redis_ok = False
    client = Client(TestServer(app.build(engine)), headers={"Authorization": f"Bearer {token}"})
    await client.start_server()
    return client


async def test_a_submission_is_stored_by_a_peer_under_the_id_fixed_before(near: TestServer) -> None:
    client = await cut_off(peer("n2", near.port or 0))
    try:
        response = await client.post("/tasks", json={"type": "noop", "data": {"a": 1}, "delay_s": 1.5})
        task = await response.json()
        assert (response.status, task["data"]) == (202, {"a": 1})
        read = await client.get(response.headers["Location"])
        assert await read.json() == task
        assert (await client.get("/tasks/nope")).status == 404
    finally:
        await client.close()


async def test_a_repeat_found_by_the_peer_is_a_repeat_here(near: TestServer) -> None:
    client = await cut_off(peer("n2", near.port or 0))
    try:
        answers = [await client.post("/tasks", json={"type": "noop"}, headers={"Idempotency-Key": "k"}) for _ in "12"]
        assert [answer.status for answer in answers] == [202, 200]
    finally:
        await client.close()


async def test_a_batch_is_forwarded_whole_and_each_error_keeps_its_place(near: TestServer) -> None:
    client = await cut_off(peer("n2", near.port or 0))
    try:
        batch = [
            {"type": "noop", "data": 0},
            {"type": 5},
            {"type": "noop", "run_at": "x"},
            {"type": "nix"},
            {"type": "noop"},
        ]
        answer = await (await client.post("/tasks/batch", json=batch)).json()
        assert (answer["accepted"], answer["rejected"]) == (2, 3)
        codes = [(result["error"] or {}).get("code") for result in answer["results"]]
        assert codes == [None, "invalid", "invalid", "store_unavailable", None]
    finally:
        await client.close()


async def test_a_forwarded_task_of_a_batch_keeps_the_key_of_its_place(near: TestServer) -> None:
    """A repeat through a node that reaches Redis gives the same task, although another one was left out before."""
    batch = [{"type": "noop", "data": 0}, {"type": "nix"}, {"type": "noop", "data": 2}]
    headers = {"Idempotency-Key": "k", "Authorization": "Bearer t"}
    client = await cut_off(peer("n2", near.port or 0))
    direct = aiohttp.ClientSession(headers=headers)
    try:
        ids = []
        for post, url in ((client.post, "/tasks/batch"), (direct.post, str(near.make_url("/tasks/batch")))):
            answer = await (await post(url, json=batch, headers=headers)).json()
            ids.append([row.get("id") for row in answer["results"]])
        assert ids[0] == ids[1]
        assert None not in (ids[0][0], ids[0][2])
    finally:
        await client.close()
        await direct.close()


async def test_a_503_does_not_say_that_nothing_was_stored_when_a_peer_gave_no_answer() -> None:
    """A client that hears that nothing happened sends the task again without a second thought."""
    arrived = asyncio.Event()

    async def take_and_fall_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(take_and_fall_silent, "127.0.0.1", 0)
    engine = FakeEngine(Config(node_id="n1", port=5001), [peer("n2", silent.sockets[0].getsockname()[1], rtt_s=0.0)])
    engine.redis_ok = engine.maybe = False
    client = Client(TestServer(app.build(engine)))
    await client.start_server()
    try:
        answer = await client.post("/tasks", json={"type": "noop"})
        assert answer.status == 503
        assert arrived.is_set()
        error = (await answer.json())["error"]
        assert error["may_have_happened"] is True
        assert error["message"].endswith("a peer that was to do so gave no clear answer: it may be stored.")
        engine.view = replace(engine.view, members=(peer("n2", unused_port()),))
        answer = await client.post("/tasks", json={"type": "noop"})
        error = (await answer.json())["error"]
        assert error["may_have_happened"] is False, "it was not even sent"
        assert error["message"].endswith("No peer that reaches Redis took it over.")
    finally:
        await client.close()
        silent.close()


async def test_a_refusal_of_redis_keeps_its_hint_when_no_peer_helps() -> None:
    """It lasts until somebody mends Redis: that the call may be sent again is the lesser news."""
    refusal = refused(Exception("WRONGPASS invalid username-password pair"))
    engine = FakeEngine(Config(node_id="n1", port=5001))
    with pytest.raises(StoreUnavailable, match="No peer that reaches Redis") as told:
        await Forwarder(engine.config).submit(engine.view, Forward([], b"[]"), refusal, 0.0)
    assert told.value.hint == refusal.hint
    assert not told.value.may_have_happened


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch"])
async def test_only_who_sent_a_key_is_told_to_repeat_it(path: str) -> None:
    engine = FakeEngine(Config(node_id="n1", port=5001))
    engine.redis_ok = False
    body = {"type": "noop"} if path == "/tasks" else [{"type": "noop"}]
    async with TestClient(TestServer(app.build(engine))) as client:
        hints = []
        for headers, engine.maybe in (({"Idempotency-Key": "k"}, True), ({}, True), ({}, False)):
            answer = await client.post(path, json=body, headers=headers)
            assert answer.status == 503
            hints.append((await answer.json())["error"]["hint"])
    assert hints == [
        "Send it again with the same Idempotency-Key: it cannot be stored twice.",
        "Look before you send it again. Under an Idempotency-Key, a submission can be repeated safely.",
        "Send it again in a moment.",
    ]


async def test_a_peer_that_does_not_reach_redis_either_never_forwards_again() -> None:
    far = FakeEngine(Config(node_id="n2", port=5002, api_token="t"), [peer("n3", unused_port())])
    far.redis_ok = False
    server = TestServer(app.build(far))
    await server.start_server()
    client = await cut_off(peer("n2", server.port or 0))
    try:
        response = await client.post("/tasks", json={"type": "noop"})
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        assert "Idempotency-Key" in (await response.json())["error"]["hint"]
        assert far.calls == ["submit"]
        assert (await client.get("/tasks/x")).status == 503
        assert far.calls == ["submit", "get"]
    finally:
        await client.close()
        await server.close()


async def test_a_node_that_took_over_a_peers_port_is_asked_for_nothing() -> None:
    """Perhaps it is of another cluster, which would store the task among its own, or say that there is none."""
    foreign = FakeEngine(Config(node_id="n2", port=5002, api_token="t"))
    foreign.view = replace(foreign.view, session="n2/00000000002-00000002")
    server = TestServer(app.build(foreign))
    await server.start_server()
    client = await cut_off(peer("n2", server.port or 0))
    try:
        response = await client.post("/tasks", json={"type": "noop"})
        assert response.status == 503
        assert (await client.get("/tasks/x")).status == 503
        assert "submit" not in foreign.calls
    finally:
        await client.close()
        await server.close()


def test_a_peer_for_which_redis_never_vouched_gets_no_call() -> None:
    """A call carries the token, and anybody with the gossip key can name an address."""
    known, invented = peer("n2", 5002), replace(peer("n3", 5003), is_vouched=False)
    view = View("n1", "n1/00000000001-00000001", (known, invented), None, 0, False, True)
    assert [candidate.node_id for candidate in candidates(view)] == ["n2"]


async def test_a_peer_that_refuses_connections_is_passed_over(near: TestServer) -> None:
    client = await cut_off(peer("n0", unused_port(), rtt_s=0.0), peer("n2", near.port or 0, rtt_s=0.5))
    try:
        assert (await client.post("/tasks", json={"type": "noop"})).status == 202
    finally:
        await client.close()


@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch"])
async def test_with_peers_that_never_answer_it_is_503_within_a_second(path: str) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    deaf = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = deaf.sockets[0].getsockname()[1]
    client = await cut_off(peer("n2", port), peer("n3", port))
    try:
        started_s = time.monotonic()
        body = {"type": "noop"}
        response = await client.post(path, json=body if path == "/tasks" else [body])
        took_s = time.monotonic() - started_s
        assert response.status == 503
        assert 0.9 < took_s < 1.3
    finally:
        await client.close()
        deaf.close()


async def test_only_who_has_the_token_may_have_a_peer_store_for_it(near: TestServer) -> None:
    client = await cut_off(peer("n2", near.port or 0), token="other")
    try:
        assert (await client.post("/tasks", json={"type": "noop"})).status == 503
    finally:
        await client.close()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x90\xc4\x02[]\xc0", json.dumps({}).encode()])
async def test_a_malformed_forward_is_400(near: TestServer, body: bytes) -> None:
    client = Client(near, headers={"Authorization": "Bearer t"})
    response = await client.post("/gossip/submit", data=body)
    assert response.status in (400, 422)
    await client.close()


def test_candidates_reach_redis_by_their_own_word_and_the_nearest_comes_first() -> None:
    members = (
        peer("n1", 1),
        peer("far", 2, rtt_s=0.2),
        peer("near", 3, rtt_s=0.1),
        peer("cut", 4, reaches=False),
        peer("ended", 5, redis=RedisWord.GONE),
        peer("live", 6, redis=RedisWord.LIVE, reaches=False, rtt_s=0.3),
        replace(peer("suspect", 7), state=MemberState.SUSPECT),
    )
    view = View("n1", "n1/00000000001-00000001", members, None, 0, False, True)
    assert [candidate.node_id for candidate in candidates(view)] == ["near", "far", "live"]


async def test_a_503_says_whether_the_task_may_have_been_stored_and_other_errors_do_not() -> None:
    client = await cut_off()
    try:
        away = (await (await client.post("/tasks", json={"type": "noop"})).json())["error"]
        assert away["code"] == "store_unavailable"
        assert away["may_have_happened"] in (True, False)
        wrong = (await (await client.post("/tasks", json={"type": 1})).json())["error"]
        assert "may_have_happened" not in wrong
    finally:
        await client.close()


def test_a_submission_without_data_has_none_at_the_peer_either() -> None:
    """There its handler's default counts, which for a null that was sent does not."""
    bodies = (b'{"type":"noop"}', b'{"type":"noop","data": null}', b'{"type":"noop","data":[1],"priority":3}')
    items = [parse.submission(body, 64) for body in bodies]
    sent = outgoing(["a", "b", "c"], items, None, None).items
    arrived = [item for part in parse.batch(sent, 10, 64, 1_000) for item in part]
    assert arrived == items
    assert [bytes(item.data) for item in arrived] == [NO_DATA, b"null", b"[1]"]
