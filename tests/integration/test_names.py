"""The scope of two promises, as a matrix: under one Idempotency-Key or one unique name, whatever else differs.

Two submissions are made by every pair of ways in. What they have in common is the name; they may differ in any field.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from cluster.config import Config
from cluster.errors import IdempotencyConflict, RumorError, StoreUnavailable
from cluster.shards.task import shard_of
from node.observe.metrics import Metrics
from node.queue.engine import Engine
from node.queue.placement import shard_of_key
from node.schema import BackoffJson, BatchKey, Forward, IdempotencyKeys, Submission, Submitted
from node.tasks import load as load_handlers
from tests.integration.conftest import RedisServer
from tests.integration.test_engine import LoneVitals

PLAIN = Submission(type="noop", data=Raw(b'{"n":1}'), queue="idle")
FIELDS: dict[str, Any] = {  # every field of a submission, with another value
    "type": "process",
    "data": Raw(b'{"n":2}'),
    "queue": "other",
    "priority": 9,
    "key": "customer 7",
    "delay_s": 60.0,
    "run_at": "2026-12-31T00:00:00Z",
    "max_attempts": 2,
    "timeout_s": 7.0,
    "backoff": BackoffJson(base_s=3),
    "unique_for_s": 60.0,
    "retention_s": 100.0,
}
WAYS = ("single", "array", "lines", "forwarded")


@pytest.fixture
async def engines(redis_server: RedisServer) -> AsyncIterator[list[Engine]]:
    """Two gateways, which claim nothing."""
    made = []
    for port in (5000, 5001):
        config = Config(redis_url=redis_server.url, port=port)
        engine = Engine(config, load_handlers([]), Metrics(), [])
        await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
        engine.dispatch.is_claiming = False
        made.append(engine)
    yield made
    for engine in made:
        await engine.close()


async def send(engine: Engine, way: str, item: Submission, key: str | None) -> Submitted | RumorError:
    """Submit one item in this way; its result, or the error of the whole call."""
    keys: IdempotencyKeys = None
    ids = None
    if key is not None:
        keys = [key] if way in ("single", "forwarded") else BatchKey(key, [0], is_lines=way == "lines")
    if way == "forwarded":  # by a gateway that could not store it, under ids of its own
        ids = [engine.submitting._ids.next(1_800_000_000_000, shard_of_key(item.key or key or "", 64))]
    try:
        (result,) = await engine.submit([item], keys, ids=ids)
    except IdempotencyConflict as error:
        return error
    return result


async def tasks(engine: Engine) -> int:
    engine.queries._counts = None  # type: ignore[assignment]  # what it keeps for a moment
    return sum((await engine.counts())["states"].values())


def other(field: str) -> Submission:
    return msgspec.structs.replace(PLAIN, **{field: FIELDS[field]})


def test_the_matrix_has_every_field() -> None:
    assert {*FIELDS, "unique_key"} == set(Submission.__struct_fields__)


@pytest.mark.parametrize(("first", "second"), list(product(WAYS, WAYS)))
async def test_one_idempotency_key_is_one_submission(engines: list[Engine], first: str, second: str) -> None:
    """The same way and the same body: the same task. Anything else: a conflict, and nothing is stored."""
    one, two = engines
    alike = {"single": "single", "forwarded": "single"}
    for n, field in enumerate(["", *FIELDS]):
        key = f"k{n}"
        changed = other(field) if field else PLAIN
        for earlier, later in ((PLAIN, changed), (changed, PLAIN)):
            key += "'"
            before = await tasks(one)
            original = await send(one, first, earlier, key)
            assert isinstance(original, Submitted), (field, original)
            again = await send(two, second, later, key)
            if not field and alike.get(first, first) == alike.get(second, second):
                assert isinstance(again, Submitted), again
                assert again.task.id == original.task.id
            else:
                assert isinstance(again, IdempotencyConflict), (field, again)
            assert await tasks(one) - before == (0 if field == "unique_for_s" and not original.is_new else 1), field


@pytest.mark.parametrize(("first", "second"), list(product(WAYS, WAYS)))
async def test_one_unique_name_is_one_task(engines: list[Engine], first: str, second: str) -> None:
    """Whatever else the second submission says, and with or without an Idempotency-Key, its own or the same."""
    one, two = engines
    for n, field in enumerate(f for f in FIELDS if f not in ("type", "unique_for_s")):
        name = {"unique_for_s": 60.0, "unique_key": f"u{n}"}
        earlier, later = (msgspec.structs.replace(item, **name) for item in (PLAIN, other(field)))
        keys_of = (None, None) if first == "forwarded" or second == "forwarded" else (None, f"k{n}")
        original = await send(one, "single" if first == "forwarded" else first, earlier, keys_of[0])
        again = await send(two, "single" if second == "forwarded" else second, later, keys_of[1])
        assert isinstance(original, Submitted)
        assert isinstance(again, Submitted), (field, again)
        assert again.task.id == original.task.id, field


async def test_a_key_that_places_a_task_places_it_also_under_an_idempotency_key(engines: list[Engine]) -> None:
    one, _ = engines
    for way in ("single", "array", "lines"):
        for idempotency_key in (None, f"k {way}"):
            stored = await send(one, way, other("key"), idempotency_key)
            assert isinstance(stored, Submitted)
            assert shard_of(stored.task.id, 64) == shard_of_key("customer 7", 64)


async def test_a_gateway_that_dies_between_the_two_steps_leaves_a_key_that_still_works(engines: list[Engine]) -> None:
    """It has noted what the key stands for, and the task is not stored."""
    one, two = engines
    store = one.submitting._homes._store
    one.submitting._homes._store = lambda new: new.on_code(new, StoreUnavailable("killed"), 0, "")
    with pytest.raises(StoreUnavailable):
        await send(one, "single", other("key"), "k")
    one.submitting._homes._store = store
    assert isinstance(await send(two, "single", PLAIN, "k"), IdempotencyConflict)
    stored = await send(two, "single", other("key"), "k")
    assert isinstance(stored, Submitted)
    assert stored.is_new
    again = await send(one, "single", other("key"), "k")
    assert isinstance(again, Submitted)
    assert (again.task.id, again.is_new) == (stored.task.id, False)
    assert await tasks(one) == 1


async def test_items_of_one_batch_are_each_by_its_place_whatever_they_say(engines: list[Engine]) -> None:
    one, two = engines
    items = [
        PLAIN,
        other("key"),
        msgspec.structs.replace(PLAIN, unique_for_s=60.0, unique_key="u"),
        other("retention_s"),
    ]
    for is_lines in (False, True):
        key = BatchKey(f"k{is_lines}", [0, 1, 2, 3], is_lines=is_lines)
        first = await one.submit(items, key)
        again = await two.submit(items, key)
        assert [r.task.id for r in again if isinstance(r, Submitted)] == [
            r.task.id for r in first if isinstance(r, Submitted)
        ]
        changed = [msgspec.structs.replace(item, priority=1, key="another") for item in items]
        conflicts = await two.submit(changed, key)
        assert [type(result) for result in conflicts] == [IdempotencyConflict] * 4


def test_a_forwarded_stream_of_lines_is_one_at_the_peer_too() -> None:
    forward = Forward([], b"[]", None, None, BatchKey("k", [3], is_lines=True))
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(forward), type=Forward)
    assert sent.batch_key == BatchKey("k", [3], is_lines=True)
