"""POST /tasks and POST /tasks/batch: what is accepted, and one law for each kind of bad input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from cluster.config import Config
from node.gateway import app
from tests.fake_engine import FakeEngine

Client = TestClient[Any, Any]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(Config(node_id="n1", port=5001, body_max_bytes=4096, batch_max_bytes=65_536, batch_max_tasks=20))


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[Client]:
    async with TestClient(TestServer(app.build(engine))) as client:
        yield client


async def refused(client: Client, status: int, code: str, body: bytes | str, path: str = "/tasks") -> str:
    """The message of a submission that must fail so; every error has a hint."""
    response = await client.post(path, data=body)
    answer = await response.json()
    assert (response.status, answer["error"]["code"]) == (status, code), answer
    assert answer["error"]["hint"]
    return str(answer["error"]["message"])


async def test_a_new_task_is_answered_202_with_its_location(client: Client) -> None:
    response = await client.post("/tasks", json={"type": "process", "data": {"a": [1, 2]}, "priority": "high"})
    task = await response.json()
    assert response.status == 202
    assert response.headers["Location"] == f"/tasks/{task['id']}"
    assert (task["state"], task["data"], task["priority"]) == ("queued", {"a": [1, 2]}, 8)
    assert (await (await client.get(response.headers["Location"])).json()) == task


async def test_json_needs_no_content_type_header(client: Client) -> None:
    response = await client.post(
        "/tasks", data=b'{"type": "noop"}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert response.status == 202


async def test_a_repeat_under_the_same_idempotency_key_is_200_and_the_first_task(client: Client) -> None:
    first, second = [
        await client.post("/tasks", json={"type": "noop"}, headers={"Idempotency-Key": "k" * 255}) for _ in range(2)
    ]
    assert (first.status, second.status) == (202, 200)
    assert (await first.json())["id"] == (await second.json())["id"]
    assert second.headers["Location"] == first.headers["Location"]


@pytest.mark.parametrize("key", ["", "k" * 256, "a\tb"])
async def test_an_idempotency_key_has_1_to_255_printable_characters(client: Client, key: str) -> None:
    response = await client.post("/tasks", json={"type": "noop"}, headers={"Idempotency-Key": key})
    assert response.status == 400
    assert "Idempotency-Key" in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"type": "noop",\n "data": [1, 2,]}', "near line 2, column 16"),
        (b"type=noop", "near line 1"),
        (b'{"type": "noop"', "ends too early"),
        (b'{"type": "noop", "data": "\\ud800"}', r"\ud800 is half of a surrogate pair"),
        (b'{"type": "noop"} x', "trailing characters near line 1"),
        (b'{"type": "noop", "data": NaN}', "near"),
        (b'{"type": "noop", "data": [Infinity]}', "near"),
        (b'{"type": "noop", "data": -Infinity}', "near"),
        (b"", "the body is empty"),
        (b" \n", "the body is empty"),
        (b'{"type": "no\xffop"}', "not UTF-8"),
    ],
)
async def test_malformed_json_is_400_and_says_where(client: Client, body: bytes, where: str) -> None:
    assert where in await refused(client, 400, "bad_request", body)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"type": 5}, ("$.type is 5", "`str`")),
        ({"type": ""}, ('$.type is ""', "length >= 1")),
        ({"type": "x" * 201}, ("$.type", "length <= 200")),
        ({"data": 1}, ("$", "missing required field `type`")),
        ({"type": "noop", "delay_s": -5}, ("$.delay_s is -5", ">= 0")),
        ({"type": "noop", "delay_s": "5"}, ('$.delay_s is "5"', "float")),
        ({"type": "noop", "priority": "urgent"}, ('$.priority is "urgent"',)),
        ({"type": "noop", "priority": 10}, ("$.priority is 10", "<= 9")),
        ({"type": "noop", "queue": "a b"}, ('$.queue is "a b"', "not the name of a queue")),
        ({"type": "noop", "delay_s": 31_536_001}, ("$.delay_s is 31536001", "<= 31536000")),
        ({"type": "noop", "retention_s": -1}, ("$.retention_s is -1",)),
        ({"type": "noop", "backoff": {"factor": 101}}, ("$.backoff.factor is 101",)),
        ({"type": "noop", "queue": "abc\n"}, ('$.queue is "abc\\n"', "not the name of a queue")),
        ({"type": "noop", "queue": "\nabc"}, ('$.queue is "\\nabc"',)),
        ({"type": "noop", "queue": "q" * 49}, ("not the name of a queue",)),
        ({"type": "noop", "queue": ""}, ("not the name of a queue",)),
        ({"type": "noop", "max_attempts": 0}, ("$.max_attempts is 0", ">= 1")),
        ({"type": "noop", "timeout_s": 0}, ("$.timeout_s is 0",)),
        ({"type": "noop", "backoff": {"factor": 0.5}}, ("$.backoff.factor is 0.5", ">= 1")),
        ({"type": "noop", "backoff": {"facto": 2}}, ("$.backoff", "unknown field 'facto'")),
        ({"type": "noop", "prority": 5}, ("$", "unknown field 'prority'")),
        ({"type": "noop", "run_at": "2030-01-01T00:00:00"}, ("$.run_at", "no offset")),
        ({"type": "noop", "run_at": "tomorrow"}, ("$.run_at", "tomorrow", "RFC 3339")),
        ([1], ("$ is [1]", "`object`")),
        ("noop", ('$ is "noop"',)),
    ],
)
async def test_a_field_that_does_not_fit_is_422_and_named_with_its_value(
    client: Client, engine: FakeEngine, body: Any, parts: tuple[str, ...]
) -> None:
    message = await refused(client, 422, "invalid", json.dumps(body))
    assert all(part in message for part in parts), message
    assert engine.tasks == {}


async def test_a_misspelt_field_is_told_its_neighbour(client: Client) -> None:
    answer = await (await client.post("/tasks", json={"type": "noop", "prority": 5})).json()
    assert answer["error"]["hint"].startswith("Did you mean priority?")


async def test_a_word_that_is_none_of_a_few_is_told_them(client: Client) -> None:
    answer = await (await client.post("/tasks", json={"type": "noop", "priority": "urgent"})).json()
    assert answer["error"]["hint"] == "Use one of high, low, normal, 0 to 9."
    answer = await (await client.get("/tasks?state=broken")).json()
    assert answer["error"]["hint"].startswith("Use one of scheduled, waiting, queued,")


async def test_a_misspelt_field_of_a_replay_is_told_those_of_a_replay(client: Client) -> None:
    answer = await (await client.post("/dead/replay", json={"typ": "noop"})).json()
    assert answer["error"]["hint"] == "Did you mean type? Known here: type, limit."
    answer = await (await client.post("/dead/replay", data="{")).json()
    assert '"limit"' in answer["error"]["hint"]


async def test_an_unknown_type_is_422(client: Client) -> None:
    assert "'no_such'" in await refused(client, 422, "unknown_type", b'{"type": "no_such"}')


@pytest.mark.parametrize(
    "data", [b"1e999", b'"\xff"', b'"\\ud800x"', b'{"a": [-1e400]}'], ids=["infinite", "latin1", "surrogate", "inner"]
)
async def test_data_that_no_worker_could_read_is_refused_at_the_door(
    client: Client, engine: FakeEngine, data: bytes
) -> None:
    response = await client.post("/tasks", data=b'{"type": "noop", "data": ' + data + b"}")
    assert response.status in (400, 422)
    assert engine.tasks == {}


@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_data_may_nest_to_the_limit_and_no_deeper(client: Client, opening: str) -> None:
    def nested(levels: int) -> str:
        return '{"type": "noop", "data": ' + opening * levels + "1" + {"[": "]", "{": "}"}[opening[0]] * levels + "}"

    assert (await client.post("/tasks", data=nested(64))).status == 202
    assert "deeper than 64 levels" in await refused(client, 422, "invalid", nested(65))


async def test_nesting_that_would_exhaust_the_parser_is_refused_like_any_other(client: Client) -> None:
    assert "deeper than 64 levels" in await refused(
        client, 422, "invalid", b'{"type": "noop", "data": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    )


async def test_brackets_in_strings_and_side_by_side_do_not_nest(client: Client) -> None:
    data = ["[{" * 100, '\\"[', *({"a": []} for _ in range(100))]
    assert (await client.post("/tasks", json={"type": "noop", "data": data})).status == 202


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_body_over_the_limit_is_413_with_the_limit_in_words(client: Client, is_chunked: bool) -> None:
    body = json.dumps({"type": "noop", "data": "x" * 5_000_000}).encode()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    response = await client.post("/tasks", data=parts() if is_chunked else BytesIO(body))
    error = (await response.json())["error"]
    assert (response.status, error["code"]) == (413, "too_large")
    assert "4 KiB" in error["message"]


async def test_a_batch_keeps_the_good_ones_and_puts_an_error_in_the_place_of_a_bad_one(
    client: Client, engine: FakeEngine
) -> None:
    batch = [
        {"type": "noop", "data": 1},
        {"type": "noop", "delay_s": -1},
        {"type": "no_such"},
        {"type": "noop", "data": 4},
    ]
    response = await client.post("/tasks/batch", json=batch)
    answer = await response.json()
    assert (response.status, answer["accepted"], answer["rejected"]) == (200, 2, 2)
    first, negative, unknown, last = answer["results"]
    assert (first["data"], last["data"]) == (1, 4)
    assert "$[1].delay_s is -1" in negative["error"]["message"]
    assert unknown["error"]["code"] == "unknown_type"
    assert [bytes(task.data) for task in engine.tasks.values()] == [b"1", b"4"]


async def test_a_batch_item_nested_too_deep_is_an_error_in_its_place(client: Client) -> None:
    deep = "[" * 100 + "]" * 100
    response = await client.post("/tasks/batch", data=f'[{{"type": "noop"}}, {{"type": "noop", "data": {deep}}}]')
    answer = await response.json()
    assert (answer["accepted"], answer["rejected"]) == (1, 1)
    assert "$[1].data is nested deeper" in answer["results"][1]["error"]["message"]


async def test_an_empty_batch_is_accepted_and_asks_nobody(client: Client, engine: FakeEngine) -> None:
    answer = await (await client.post("/tasks/batch", data=b"[]")).json()
    assert answer == {"accepted": 0, "rejected": 0, "results": []}
    assert engine.calls == []


async def test_a_batch_that_is_too_long_is_413_as_a_whole(client: Client, engine: FakeEngine) -> None:
    body = json.dumps([{"type": "noop"}] * 21)
    assert "21 tasks, at most 20" in await refused(client, 413, "too_large", body, "/tasks/batch")
    assert engine.tasks == {}
    spoilt = json.dumps([{"type": 5}] * 21)
    assert "21 tasks, at most 20" in await refused(client, 413, "too_large", spoilt, "/tasks/batch")


@pytest.mark.parametrize(("body", "status", "code"), [(b"{}", 422, "invalid"), (b"[1,", 400, "bad_request")])
async def test_a_batch_that_is_no_array_is_refused_as_a_whole(
    client: Client, body: bytes, status: int, code: str
) -> None:
    await refused(client, status, code, body, "/tasks/batch")


@pytest.mark.parametrize("body", [b'{"type": "noop"}\n', b'{"type": "noop"}\n{"type": "noop"}\n'])
async def test_ndjson_without_its_content_type_is_told_so(client: Client, body: bytes) -> None:
    response = await client.post("/tasks/batch", data=body, headers={"Content-Type": "application/json"})
    assert response.status == 422
    hint = (await response.json())["error"]["hint"]
    assert "one JSON task a line, send Content-Type: application/x-ndjson" in hint


async def test_ndjson_is_answered_line_by_line_in_order(client: Client) -> None:
    lines = [b'{"type": "noop", "data": %d}' % n for n in range(2500)]
    lines[1200] = b'{"type": "noop", "data": 1,}'
    response = await client.post(
        "/tasks/batch", data=b"\n".join(lines) + b"\n\n", headers={"Content-Type": "application/x-ndjson"}
    )
    assert (response.status, response.content_type) == (200, "application/x-ndjson")
    answers = [json.loads(line) for line in (await response.read()).splitlines()]
    assert len(answers) == 2500
    assert "line 1201 is not JSON" in answers[1200]["error"]["message"]
    assert [answer["data"] for answer in answers if "data" in answer] == [n for n in range(2500) if n != 1200]


async def test_ndjson_is_answered_while_it_is_still_sent(client: Client) -> None:
    go_on = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        yield b'{"type": "noop", "data": 1}\n'
        await go_on.wait()
        yield b'{"type": "noop", "data": 2}'

    response = await client.post("/tasks/batch", data=lines(), headers={"Content-Type": "application/x-ndjson"})
    assert json.loads(await response.content.readline())["data"] == 1
    go_on.set()
    assert json.loads(await response.content.readline())["data"] == 2


async def test_a_line_over_the_limit_ends_ndjson_with_an_error_line(client: Client) -> None:
    async def lines() -> AsyncIterator[bytes]:
        yield b'{"type": "noop"}\n'
        for _ in range(100):
            yield b"x" * 4096
            await asyncio.sleep(0)

    response = await client.post("/tasks/batch", data=lines(), headers={"Content-Type": "application/x-ndjson"})
    answers = [json.loads(line) for line in (await response.read()).splitlines()]
    assert answers[0]["state"] == "queued"
    assert answers[1]["error"]["code"] == "too_large"


async def test_what_is_refused_is_counted_by_its_code(client: Client, engine: FakeEngine) -> None:
    await client.post("/tasks", data=b"{")
    await client.post("/tasks/batch", json=[{"type": "no_such"}, {"type": "noop"}])
    assert engine.metrics.rejected.values == {"bad_request": 1, "unknown_type": 1}
    assert engine.metrics.accepted.value == 1


async def test_a_bug_of_ours_is_500_in_the_error_form_and_shows_no_inside(client: Client, engine: FakeEngine) -> None:
    engine.broken = True
    message = await refused(client, 500, "internal", b'{"type": "noop"}')
    assert "ZeroDivisionError" in message
    assert "a bug of ours" not in message


@pytest.mark.parametrize("form", ["json", "ndjson"])
async def test_each_task_of_a_batch_has_a_key_of_its_own_by_its_place(client: Client, form: str) -> None:
    """A thousand lines are stored at a time; a later line must not stand for one of the first thousand."""
    count = 20 if form == "json" else 2500
    items = [{"type": "noop"}] * count
    headers = {"Idempotency-Key": "k"}
    if form == "json":
        body = json.dumps(items)
    else:
        body = "".join(json.dumps(item) + "\n" for item in items)
        headers["Content-Type"] = "application/x-ndjson"
    ids = []
    for _ in range(2):
        text = await (await client.post("/tasks/batch", data=body, headers=headers)).text()
        rows = json.loads(text)["results"] if form == "json" else [json.loads(line) for line in text.splitlines()]
        ids.append([row["id"] for row in rows])
    assert len(set(ids[0])) == count, "equal tasks of one request are not repeats of each other"
    assert ids[0] == ids[1], "the request, sent again, is"


async def test_a_task_of_a_batch_keeps_its_key_when_what_was_wrong_beside_it_is_put_right(client: Client) -> None:
    async def ids(second: dict[str, Any]) -> list[str | None]:
        batch = [{"type": "noop", "data": 0}, second, {"type": "noop", "data": 2}]
        response = await client.post("/tasks/batch", json=batch, headers={"Idempotency-Key": "k"})
        return [row.get("id") for row in (await response.json())["results"]]

    first, again = await ids({"type": "noop", "priority": 10}), await ids({"type": "noop", "priority": 1})
    assert first[1] is None
    assert again[1] is not None
    assert (first[0], first[2]) == (again[0], again[2])


@pytest.mark.parametrize("trace", ["\udcff", "x" * 5000, "00-0123456789abcdef0123456789abcdef-0123456789abcdef-0G"])
async def test_a_malformed_traceparent_is_as_good_as_none(client: Client, engine: FakeEngine, trace: str) -> None:
    response = await client.post("/tasks", json={"type": "noop"}, headers={"traceparent": trace})
    assert response.status == 202
    assert engine.traces == [None]


async def test_a_traceparent_goes_with_its_task(client: Client, engine: FakeEngine) -> None:
    trace = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    await client.post("/tasks", json={"type": "noop"}, headers={"traceparent": trace})
    assert engine.traces == [trace]
