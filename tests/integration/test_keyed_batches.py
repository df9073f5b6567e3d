"""Batches under one Idempotency-Key, on engines with a real Redis: the same tasks wherever and however often sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from redis.exceptions import ConnectionError as RedisConnectionError

from cluster import keys
from cluster.config import Config
from cluster.errors import (
    BadRequest,
    IdempotencyConflict,
    Invalid,
    QueueFull,
    RumorError,
    StoreUnavailable,
    UnknownType,
)
from cluster.scripts import script
from cluster.shards.lane import Lane
from cluster.shards.task import shard_of
from node.observe.metrics import Metrics
from node.queue import keyed_batches
from node.queue.engine import Engine
from node.queue.placement import shard_of_key
from node.queue.submitting import Result
from node.schema import BatchKey, ListQuery, Submission, Submitted
from node.tasks import load as load_handlers
from tests.integration.conftest import RedisServer
from tests.integration.test_engine import LoneVitals
from tests.waiting import wait_until_async

Make = Callable[..., Any]
UNSERVED = "idle"  # a queue that no node serves: its tasks stay queued


@pytest.fixture
async def node(redis_server: RedisServer) -> AsyncIterator[Make]:
    """Makes engines, each a node by itself on the same Redis."""
    async with AsyncExitStack() as stack:

        @asynccontextmanager
        async def running(port: int, **settings: Any) -> AsyncIterator[Engine]:
            config = Config(redis_url=redis_server.url, port=port, **settings)
            engine = Engine(config, load_handlers([]), Metrics(), [])
            await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
            try:
                yield engine
            finally:
                await engine.close()

        async def make(port: int = 5000, **settings: Any) -> Engine:
            return await stack.enter_async_context(running(port, **settings))

        yield make


def items(count: int, **more: Any) -> list[Submission]:
    return [
        Submission(type="noop", data=Raw(msgspec.json.encode({"n": n})), **{"queue": UNSERVED, **more})
        for n in range(count)
    ]


async def send(engine: Engine, batch: Sequence[Submission | RumorError], key: str = "k", **more: Any) -> list[Result]:
    return await engine.submit(batch, BatchKey(key, list(range(len(batch)))), **more)


def ids(results: Sequence[Result]) -> list[str]:
    refused = [result for result in results if isinstance(result, RumorError)]
    assert not refused, refused[:3]
    return [result.task.id for result in results if isinstance(result, Submitted)]


async def queued(engine: Engine) -> int:
    engine.queries._counts = None  # what it keeps for a moment
    counts = await engine.counts()
    return int(counts["states"]["queued"])


async def test_a_batch_repeated_at_another_node_is_the_same_tasks(node: Make) -> None:
    one, other = await node(5000), await node(5001)
    first = await send(one, items(1000))
    again = await send(other, items(1000))
    assert ids(again) == ids(first)
    assert [result.is_new for result in (first[0], again[0]) if isinstance(result, Submitted)] == [True, False]
    assert len(set(ids(first))) == await queued(one) == 1000
    assert set(ids(await send(other, items(1000), "k2"))).isdisjoint(ids(first))
    listed = (await one.list_tasks(ListQuery(limit=500))).tasks
    assert {task.id for task in listed} <= {*ids(first), *ids(await send(one, items(1000), "k2"))}


async def test_a_batch_with_a_key_costs_as_few_scripts_and_one_string(node: Make) -> None:
    engine = await node()

    async def scripts(key: BatchKey | None) -> int:
        before = sum(engine.metrics.batch_tasks.of["store"].counts)
        ids(await engine.submit(items(2000), key))
        return sum(engine.metrics.batch_tasks.of["store"].counts) - before

    without = await scripts(None)
    assert await scripts(BatchKey("k", list(range(2000)))) <= without + 4
    assert len(await engine.client.keys("*:idem:*")) == 1, "it says that the key stands for a batch"
    (name,) = await engine.client.keys("*:batch:*")
    assert 0 < await engine.client.pttl(name) <= engine.config.idempotency_s * 1000
    assert await engine.client.strlen(name) < 2000 * 8


async def test_an_item_with_another_body_is_a_conflict_and_the_others_are_the_same(node: Make) -> None:
    engine = await node()
    first = ids(await send(engine, items(4)))
    changed: list[Submission | RumorError] = [*items(4)]
    changed[2] = Submission(type="noop", data=Raw(b'{"n": 3}'), queue=UNSERVED)
    results = await send(engine, changed)
    assert isinstance(results[2], IdempotencyConflict)
    assert first[2] in results[2].message
    assert ids([*results[:2], results[3]]) == [*first[:2], first[3]]
    assert await queued(engine) == 4


async def test_another_spelling_of_the_same_is_a_repeat(node: Make) -> None:
    engine = await node()
    first = await send(engine, [Submission(type="noop", data=Raw(b'{"a": 1, "b": "\\u00e9"}'))])
    again = await send(engine, [Submission(type="noop", data=Raw('{"b":"é","a":1}'.encode()))])
    assert ids(again) == ids(first)


async def test_a_longer_batch_under_the_same_key_adds_to_the_shorter_one(node: Make) -> None:
    engine = await node()
    first = ids(await send(engine, items(3)))
    longer = ids(await send(engine, items(5)))
    assert longer[:3] == first
    assert ids(await send(engine, items(5))) == longer
    assert await queued(engine) == 5


async def test_items_with_a_unique_name_or_a_short_retention_have_keys_of_their_own(node: Make) -> None:
    one, other = await node(5000), await node(5001)
    batch = items(6)
    batch[1].key = "invoices"
    batch[2].unique_for_s = 60
    batch[3].unique_for_s, batch[3].unique_key = 60, "u"
    batch[4].retention_s = 5.0
    first = ids(await send(one, batch))
    assert ids(await send(other, batch)) == first
    names = {name.decode().partition(":idem:")[2] for name in await one.client.keys("*:idem:*")}
    uniques = {name for name in names if name.startswith("unique:")}
    assert names - uniques == {"k", "k\n2", "k\n3", "k\n4"}
    assert len(uniques) == 2
    assert shard_of(first[1], 64) == shard_of_key("invoices", 64)
    assert await queued(one) == len(set(first)) == 6
    unique = ids(await send(other, [batch[3]], "another key"))
    assert unique == [first[3]]


async def test_what_was_wrong_can_be_put_right_under_the_same_key(node: Make) -> None:
    engine = await node()
    batch: list[Submission | RumorError] = [*items(6)]
    batch[1] = Submission(type="no_such")
    batch[2] = Invalid("it did not fit.")
    batch[3] = Submission(type="noop", delay_s=1, run_at="2030-01-01T00:00:00Z")
    batch[4] = Submission(type="noop", run_at="tomorrow")
    places = [0, 1, 3, 4, 5]  # the gateway leaves out what it cannot parse

    async def sent(batch: Sequence[Submission | RumorError], places: list[int]) -> list[Result]:
        return await engine.submit([batch[place] for place in places], BatchKey("k", places))

    first = await sent(batch, places)
    assert [type(result) for result in first[1:4]] == [UnknownType, Invalid, Invalid]
    right = await sent(items(6), [*range(6)])
    assert (ids(right)[0], ids(right)[5]) == (ids(first[:1])[0], ids(first[4:])[0])
    assert ids(await sent(items(6), [*range(6)])) == ids(right)
    assert len(set(ids(right))) == await queued(engine) == 6


async def test_a_repeat_stores_what_the_full_queue_refused_and_nothing_else(node: Make) -> None:
    small, large = await node(5000, shards=1, queue_limit=5), await node(5001, shards=1)
    first = await send(small, items(8))
    assert [isinstance(result, QueueFull) for result in first] == [False] * 5 + [True] * 3
    kept = ids(first[:5])
    await _drop_all(large, kept)
    again = await send(large, items(8))
    assert ids(again)[:5] == kept
    assert [result.task.state for result in again if isinstance(result, Submitted)] == ["expired"] * 5 + ["queued"] * 3
    assert await queued(large) == 3


async def _drop_all(engine: Engine, task_ids: Sequence[str]) -> None:
    """Let the retention of these tasks end."""
    for task_id in task_ids:
        await engine.cancel(task_id)
    for shard in range(engine.config.shards):
        await engine.client.eval(  # type: ignore[misc]
            "for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do redis.call('ZADD', KEYS[1], 0, id) end",
            1,
            keys.cancelled(shard),
        )
        engine.housekeeping.look(shard)

    async def gone() -> bool:
        counts = await engine.counts()
        return bool(counts["states"]["cancelled"] == 0)

    await wait_until_async(gone, 10, "a sweep has dropped them")


async def test_a_repeat_after_the_retention_is_expired_and_stores_nothing(node: Make) -> None:
    engine = await node()
    first = ids(await send(engine, items(20)))
    await _drop_all(engine, first)
    again = await send(engine, items(20))
    assert ids(again) == first
    assert {result.task.state for result in again if isinstance(result, Submitted)} == {"expired"}
    assert await queued(engine) == 0


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("call", ["plan", "store", "mark"])
async def test_a_call_without_an_answer_is_made_good_by_a_repeat_elsewhere(
    node: Make, monkeypatch: pytest.MonkeyPatch, call: str, carried_out: bool
) -> None:
    one, other = await node(5000), await node(5001)
    cut = await _cut(monkeypatch, one, call, carried_out)
    with pytest.raises(StoreUnavailable) as caught:
        await send(one, items(600))
    assert cut
    assert all(caught.value.ids)
    assert caught.value.may_have_happened or call == "plan" or not carried_out, "a plan alone is no task"
    again = ids(await send(other, items(600)))
    if call != "plan" or carried_out:
        assert again == caught.value.ids
    assert ids(await send(other, items(600))) == again
    assert len(set(again)) == await queued(other) == 600


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("call", ["plan", "store", "mark"])
async def test_a_call_without_an_answer_is_made_good_by_a_peer(
    node: Make, monkeypatch: pytest.MonkeyPatch, call: str, carried_out: bool
) -> None:
    """The gateway hands the batch on, with the plan that it proposed or found."""
    one, peer = await node(5000), await node(5001)
    batch = items(600)
    batch[7].key = "apart"
    await _cut(monkeypatch, one, call, carried_out)
    with pytest.raises(StoreUnavailable) as caught:
        await send(one, batch)
    key = BatchKey("k", list(range(600)), caught.value.plan)
    stored = ids(await peer.submit(batch, key, ids=caught.value.ids))
    assert stored == caught.value.ids
    assert ids(await send(peer, batch)) == stored
    assert len(set(stored)) == await queued(peer) == 600


async def _cut(monkeypatch: pytest.MonkeyPatch, engine: Engine, call: str, carried_out: bool) -> list[str]:
    """End a lane's connection at the first group with this call, before or after Redis carries it out; for good."""
    await engine.client.script_load(script(call).text)  # a script that Redis does not know is not carried out at once
    talk = Lane._talk
    cut: list[str] = []
    lanes = engine.shards._lanes

    async def talk_until_cut(lane: Lane, commands: Any) -> Any:
        shas = {command[1] for command in commands if command[0] == "EVALSHA"}
        if lane not in lanes or cut or script(call).sha not in shas:
            return await talk(lane, commands)
        cut.append(call)
        if carried_out:
            await talk(lane, commands)
        raise RedisConnectionError("cut by the test")

    async def never_again() -> bool:
        return False

    monkeypatch.setattr(engine.shards, "comes_back", never_again)
    monkeypatch.setattr(Lane, "_talk", talk_until_cut)
    return cut


async def test_a_redis_without_memory_refuses_and_a_repeat_completes(node: Make) -> None:
    engine = await node()
    ids(await send(engine, items(1), "warm"))
    await engine.client.config_set("maxmemory", 1)
    refused = await send(engine, items(300))
    assert {type(result) for result in refused} == {QueueFull}
    await engine.client.config_set("maxmemory", 0)
    assert len(set(ids(await send(engine, items(300))))) == 300
    assert await queued(engine) == 301


async def test_a_gateway_that_slept_stores_nothing_by_an_old_plan(node: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await node()
    monkeypatch.setattr(keyed_batches, "HOLDS_S", -1.0)
    with pytest.raises(StoreUnavailable) as caught:
        await send(engine, items(3))
    assert not caught.value.may_have_happened
    assert await queued(engine) == 0


async def test_an_unreadable_plan_is_an_error_and_loses_nothing(node: Make) -> None:
    engine = await node()
    for plan in (b"nonsense", b"0" * 26 + b".\n\xff" + b"\0\0\0\1"):
        with pytest.raises(BadRequest, match="no plan"):
            await engine.submit(items(1), BatchKey("k", [0], plan))
    first = ids(await send(engine, items(1)))
    (name,) = await engine.client.keys("*:batch:*")
    await engine.client.set(name, "nonsense")
    with pytest.raises(BadRequest, match="no plan"):
        await send(engine, items(1))
    assert (await engine.get(first[0])).state == "queued"


async def test_marks_of_one_plan_never_touch_another(node: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key's time may end, and begin anew with another plan, between a gateway's calls to store and to mark."""
    engine = await node()
    make_mark = engine.shards.calls.mark
    plans: list[Any] = []

    def mark_later(*args: Any) -> Any:
        plans.append(args)
        return make_mark(args[0], args[1], "0" * 26, *args[3:])  # as if another plan stood there by now

    monkeypatch.setattr(engine.shards.calls, "mark", mark_later)
    first = ids(await send(engine, items(3)))
    (name,) = await engine.client.keys("*:batch:*")
    assert b"s" not in (await engine.client.get(name))[26:29]
    assert len(plans) == 1
    assert ids(await send(engine, items(3))) == first


async def test_tasks_of_a_keyed_batch_run_once_each(node: Make) -> None:
    engine = await node(queues="default:8")
    batch = [Submission(type="noop") for _ in range(300)]
    first = ids(await send(engine, batch))
    assert ids(await send(engine, batch)) == first
    await wait_until_async(lambda: engine.metrics.commits.values["succeeded"] >= 300, 20, "all have run")
    again = await send(engine, batch)
    assert {result.task.state for result in again if isinstance(result, Submitted)} == {"succeeded"}
    assert engine.metrics.commits.values["succeeded"] == 300
    assert engine.dispatch.free("default") == 8
