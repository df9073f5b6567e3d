"""What the network delivers late is not carried out, and what a connection dropped is sent again: engines on a real
Redis, one of them behind a wire that the test holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from msgspec import Raw

from cluster import keys
from cluster.config import Config
from cluster.errors import NotFound, StoreUnavailable
from cluster.shards.redis_clock import carried_out_within_s
from cluster.shards.task import Claimed, Ids
from node.observe.metrics import Metrics
from node.queue.engine import Engine
from node.schema import BatchKey, ListQuery, Submission, Submitted, TaskJson
from node.tasks import load as load_handlers
from tests.integration.conftest import RedisServer
from tests.integration.test_engine import LoneVitals
from tests.integration.wire import Wire, wire_to
from tests.waiting import wait_until_async

TIMEOUT_S = 0.15
IDS = Ids(7)


@asynccontextmanager
async def running(url: str, port: int, **settings: Any) -> AsyncIterator[Engine]:
    config = Config(redis_url=url, port=port, redis_timeout_s=TIMEOUT_S, sweep_interval_s=0.1, **settings)
    engine = Engine(config, load_handlers([]), Metrics(), [])
    await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def wire(redis_server: RedisServer) -> AsyncIterator[Wire]:
    async with wire_to(redis_server.port) as wire:
        yield wire


@pytest.fixture
async def far(wire: Wire) -> AsyncIterator[Engine]:
    """The node behind the wire. It owns no shard of its own here: what it stores, others claim."""
    async with running(wire.url, 5000) as engine:
        engine.dispatch.is_claiming = False
        yield engine


@pytest.fixture
async def near(redis_server: RedisServer) -> AsyncIterator[Engine]:
    async with running(redis_server.url, 5001) as engine:
        yield engine


async def hold(wire: Wire, engine: Engine) -> float:
    """Hold the wire at a moment when no group is under way, so that the next call leaves at once; the time of it."""
    await wait_until_async(lambda: engine.shards.is_up and engine.shards.is_idle, 5, "the lanes are at rest")
    wire.held = b""
    wire.hold()
    return time.monotonic()


async def everything_is_late(wire: Wire, sent_s: float) -> None:
    """Wait until whatever left by then is late, and deliver it; return when Redis has read it all."""
    bound_s = carried_out_within_s(TIMEOUT_S)
    await wait_until_async(lambda: time.monotonic() > sent_s + bound_s, bound_s + 2, "all that left is late")
    before = wire.delivered
    wire.release()
    await wait_until_async(lambda: wire.delivered > before, 10, "Redis has read what was held")


async def dropped(engine: Engine, task_id: str) -> None:
    """Wait until the task is past its retention, which is over at once."""
    shard = engine.queries.shard(task_id)
    await engine.client.zadd(keys.done(shard), {task_id: 0})

    async def is_gone() -> bool:
        try:
            await engine.get(task_id)
        except NotFound:
            return True
        return False

    async with asyncio.timeout(10):
        while not await is_gone():
            await asyncio.sleep(0.02)


async def test_a_store_that_comes_after_its_task_was_dropped_stores_nothing(
    wire: Wire, far: Engine, near: Engine
) -> None:
    items = [Submission(type="process", data=Raw(b'"once"'))]
    sent_s = await hold(wire, far)
    with pytest.raises(StoreUnavailable) as caught:
        await far.submit(items)
    assert caught.value.may_have_happened
    (task_id,) = caught.value.ids
    await near.submit(items, ids=caught.value.ids)
    assert (await near.wait(task_id, 5)).state == "succeeded"
    await dropped(near, task_id)
    await everything_is_late(wire, sent_s)
    with pytest.raises(NotFound):
        await near.get(task_id)
    assert (await near.list_tasks(ListQuery())).tasks == []
    await wait_until_async(lambda: far.shards.is_up, 10, "the wire works again")
    late = await far.submit(items)
    assert isinstance(late[0], Submitted), "the lane's estimate was not spoilt"


@pytest.mark.parametrize("change", ["cancel", "retry", "purge"])
async def test_a_change_that_comes_late_does_not_undo_what_was_decided_since(
    change: str, wire: Wire, far: Engine, near: Engine
) -> None:
    near.dispatch.is_claiming = False
    (stored,) = await near.submit([Submission(type="noop")])
    assert isinstance(stored, Submitted)
    task_id, shard = stored.task.id, near.queries.shard(stored.task.id)
    if change == "retry":
        await near.cancel(task_id)
    sent_s = await hold(wire, far)
    with pytest.raises(StoreUnavailable):
        await {"cancel": partial(far.cancel, task_id), "retry": partial(far.retry, task_id), "purge": far.purge_dead}[
            change
        ]()
    if change == "purge":  # it dies after all
        await near.client.zrem(keys.ready(shard, "default"), task_id)
        await near.client.zadd(keys.dead(shard), {task_id: 4e12})
    await everything_is_late(wire, sent_s)
    if change == "purge":
        assert await near.client.zscore(keys.dead(shard), task_id) == 4e12
    else:
        assert (await near.get(task_id)).state == {"cancel": "queued", "retry": "cancelled"}[change]


async def test_a_claim_that_comes_late_takes_nothing(wire: Wire, far: Engine, near: Engine) -> None:
    near.dispatch.is_claiming = False
    (stored,) = await near.submit([Submission(type="noop")])
    assert isinstance(stored, Submitted)
    shard = near.queries.shard(stored.task.id)
    sent_s = await hold(wire, far)
    answers: list[Any] = []
    far.shards.send(far.shards.calls.claim(shard, "default", "gone/018bcfe5680-00000001", 9, None, answers.append))
    await wait_until_async(lambda: bool(answers), 5, "the node gave it up")
    await everything_is_late(wire, sent_s)
    task = await near.get(stored.task.id)
    assert (task.state, task.attempt, task.delivery) == ("queued", 0, 0)


async def tombstone(engine: Engine, session: str) -> None:
    lua = engine.client.register_script("local t = redis.call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000)")
    at_ms = await lua()
    await engine.client.set(keys.heartbeat(session), f"fenced lease {at_ms} n9")
    async with asyncio.timeout(5):
        while await lua() <= at_ms:
            await asyncio.sleep(0.001)


async def claimed_by(engine: Engine, session: str, task: TaskJson) -> list[Claimed]:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    shard = engine.queries.shard(task.id)
    engine.shards.send(engine.shards.calls.claim(shard, task.queue, session, 9, None, answer.set_result))
    return list((await answer).tasks)


@pytest.mark.parametrize("is_behind", [False, True])
async def test_a_claim_behind_the_tombstone_costs_no_attempt(near: Engine, is_behind: bool) -> None:
    """One that came before may have begun: it counts, and here it was the last."""
    near.dispatch.is_claiming = False
    (stored,) = await near.submit([Submission(type="noop", max_attempts=1)])
    assert isinstance(stored, Submitted)
    session = "gone/018bcfe5680-00000001"
    if not is_behind:
        assert len(await claimed_by(near, session, stored.task)) == 1
    await tombstone(near, session)
    if is_behind:
        assert len(await claimed_by(near, session, stored.task)) == 1
    near.dispatch.is_claiming = True
    task = await near.wait(stored.task.id, 10)  # the sweeps find a session that is not alive here
    if is_behind:
        assert (task.state, task.attempt, task.delivery) == ("succeeded", 1, 2)
        history: Any = task.history
        assert [(row.outcome, row.error.message) for row in history] == [
            ("released", "claimed after its session was fenced")
        ]
    else:
        assert (task.state, task.attempt) == ("dead", 1)


async def test_what_a_node_claims_while_it_may_be_fenced_does_not_begin(near: Engine) -> None:
    near.dispatch.is_claiming = False
    (stored,) = await near.submit([Submission(type="noop")])
    assert isinstance(stored, Submitted)
    sure = iter([True])  # when it asks; no longer when the answer comes
    near.dispatch.is_sure = lambda: next(sure, False)
    near.dispatch.is_claiming = True
    near.dispatch.kick()
    await wait_until_async(lambda: next(sure, None) is None and not near.worker.running, 5, "it has claimed")
    task = await near.get(stored.task.id)
    assert task.state in ("running", "queued"), "Redis has it in flight, or has it back"
    near.dispatch.is_sure = lambda: True
    near.dispatch.kick()
    done = await near.wait(stored.task.id, 10)
    assert (done.state, done.attempt) == ("succeeded", 1)


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("way", ["single", "key", "batch", "keyed batch", "lines"])
async def test_a_connection_that_drops_costs_the_client_nothing(
    is_stored: bool, way: str, redis_server: RedisServer, wire: Wire
) -> None:
    """The connection ends before Redis has the tasks, or before its answer is here."""
    count = 1 if way in ("single", "key") else 40
    items = [Submission(type="process", data=Raw(b"%d" % n)) for n in range(count)]
    places = list(range(count))
    keys_of: dict[str, Any] = {
        "key": ["k"],
        "keyed batch": BatchKey("k", places),
        "lines": BatchKey("k", places, is_lines=True),
    }
    async with running(wire.url, 5000) as engine:
        await hold(wire, engine)
        if is_stored:
            wire.hold_answers()
        submitting = asyncio.create_task(engine.submit(items, keys_of.get(way)))
        await wait_until_async(lambda: bool(wire.answers if is_stored else wire.held), 5, "it left")
        wire.drop()
        results = await submitting
        ids = [result.task.id for result in results if isinstance(result, Submitted)]
        assert len(set(ids)) == count
        for task_id in ids:
            done = await engine.wait(task_id, 10)
            assert (done.state, done.attempt) == ("succeeded", 1)
        again = await engine.submit(items, keys_of.get(way))
        same = [result.task.id for result in again if isinstance(result, Submitted)] == ids
        assert same == (way in keys_of)


async def test_reads_and_cancels_outlive_their_connection(wire: Wire, redis_server: RedisServer) -> None:
    async with running(wire.url, 5000) as engine:
        (stored,) = await engine.submit([Submission(type="noop", delay_s=60)])
        assert isinstance(stored, Submitted)
        for call in (engine.get, engine.cancel, engine.get):
            await hold(wire, engine)
            asking = asyncio.create_task(call(stored.task.id))
            await wait_until_async(lambda: bool(wire.held), 5, "it left")
            wire.drop()
            assert (await asking).id == stored.task.id
        assert (await engine.get(stored.task.id)).state == "cancelled"
        assert await engine.purge_dead() == 0


async def test_a_redis_that_stays_away_is_not_waited_for(redis_server: RedisServer) -> None:
    async with running(redis_server.url, 5000) as engine:
        redis_server.stop()
        with pytest.raises(StoreUnavailable):
            await engine.submit([Submission(type="noop")])
        before_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await engine.submit([Submission(type="noop")])
        assert time.monotonic() - before_s < 0.2, "silence is no drop: a peer is asked at once"
        redis_server.cont()
