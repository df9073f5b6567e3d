"""The built-in task types, run by a worker as any others."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cluster.config import Config
from cluster.shards.task import Backoff, Claimed, Kind, Outcome, Spec
from node.tasks import Context, load
from node.work.ending import run
from node.work.worker import Worker

LIMIT_S = 10.0
REGISTRY = load([])


async def outcome(type_: str, data: Any, attempt: int = 1) -> Outcome:
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    spec = Spec(type_, "default", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0))
    worker = Worker(Config(), REGISTRY, "n1", ended.set_result, lambda claimed, value: None)
    worker.start([Claimed("A", 0, attempt, attempt, spec, msgspec.json.encode(data))])
    async with asyncio.timeout(LIMIT_S):
        result = await ended
    await worker.close()
    return result


def value(of: Outcome) -> Any:
    assert of.kind is Kind.SUCCEEDED, of
    return msgspec.json.decode(of.result or b"")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            "Hello World",
            {"processed": "Hello World", "kind": "string", "upper": "HELLO WORLD", "words": 2, "length": 11},
        ),
        ({"a": 1}, {"processed": {"a": 1}, "kind": "object", "length": 1}),
        ([1, 2], {"processed": [1, 2], "kind": "array", "length": 2}),
        (1.5, {"processed": 1.5, "kind": "number"}),
        (True, {"processed": True, "kind": "boolean"}),
        (None, {"processed": None, "kind": "null"}),
    ],
)
async def test_process_takes_any_json_and_says_what_came_in(data: Any, expected: dict[str, Any]) -> None:
    assert value(await outcome("process", data)) == {**expected, "node_id": "n1", "attempt": 1}


@pytest.mark.parametrize("data", [0.01, {"seconds": 0.01}])
async def test_sleep_takes_seconds_in_either_form(data: Any) -> None:
    assert value(await outcome("sleep", data)) == {"slept_s": 0.01}
    assert (await outcome("sleep", {"seconds": -1})).kind is Kind.REJECTED


async def test_fail_fails_always_or_as_often_as_asked() -> None:
    always = await outcome("fail", {"message": "as I said"}, attempt=4)
    assert (always.kind, always.failure and always.failure.message) == (Kind.FAILED, "as I said")
    assert (await outcome("fail", None)).kind is Kind.FAILED
    assert (await outcome("fail", {"times": 2}, attempt=2)).kind is Kind.FAILED
    assert value(await outcome("fail", {"times": 2}, attempt=3)) == {"succeeded_at_attempt": 3}


async def test_noop_takes_anything_and_returns_nothing() -> None:
    assert value(await outcome("noop", {"payload": "x"})) is None


async def test_block_blocks_for_as_long_as_asked() -> None:
    assert value(await outcome("block", 0.01)) == {"blocked_s": 0.01}


def test_cpu_counts_primes_and_shows_its_progress() -> None:
    class FakeLink:
        is_stopped = False

        def __init__(self) -> None:
            self.reported: list[bytes] = []

        def report(self, value: bytes) -> None:
            self.reported.append(value)

    handler = REGISTRY.get("cpu")
    assert handler is not None
    spec = Spec("cpu", "sync", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0))
    link = FakeLink()
    ending = run(handler, b"0.3", Context(Claimed("A", 0, 1, 1, spec, b"0.3"), "n1", link))
    assert ending.kind is Kind.SUCCEEDED
    assert msgspec.json.decode(ending.result or b"")["primes"] > 10
    assert 0.5 < msgspec.json.decode(link.reported[0]) < 1.0
