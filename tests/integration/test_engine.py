"""The engine against a real Redis, one node alone: a stored task runs, is settled once, and is found again."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from cluster import keys, session
from cluster.config import Config
from cluster.errors import (
    BadRequest,
    Conflict,
    IdempotencyConflict,
    Invalid,
    NotFound,
    RumorError,
    StoreUnavailable,
    TaskUnreadable,
    UnknownType,
)
from cluster.load import Load, Meta, QueueLoad
from cluster.refusal import refusal
from cluster.shards.answers import QueueHead, Swept
from cluster.shards.task import State
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, RedisWord, Verdict, View
from cluster.vitals.told import Disowned, NewSession, NewView, RedisReach, SessionEnded, Woken
from node.observe.metrics import Metrics
from node.queue.engine import Engine
from node.queue.wakes import Work, parse_wake
from node.schema import BackoffJson, ListQuery, Submission, Submitted, TaskJson
from node.tasks import load as load_handlers
from tests.waiting import wait_until_async


class LoneVitals:
    """A membership of one, always healthy."""

    def __init__(self, config: Config, redis: Any) -> None:
        self.config = config
        self.session = session.new(config.name, 1_700_000_000_000, Random())
        self.strangers: list[str] = []
        self.load = Load(True, False, False, {})
        self.stats: dict[str, int] = {}

    @property
    def view(self) -> View:
        peer = Peer(
            self.config.name,
            self.session,
            "127.0.0.1",
            self.config.port,
            MemberState.ALIVE,
            Evidence.NONE,
            "",
            1,
            None,
            RedisWord.LIVE,
            0.0,
            Verdict.HEALTHY,
            self.load,
            Meta(self.config.queue_slots),
        )
        return View(self.config.name, self.session, (peer,), None, 0, True, True)

    def consider(self, sessions: Iterable[str]) -> None:
        self.strangers += sessions

    def set_load(self, load: Load) -> None:
        self.load = load

    def tick(self) -> None: ...

    def is_sure(self, session: str) -> bool:
        return True

    async def leave(self) -> None: ...


@pytest.fixture
async def engine(redis_server: Any) -> AsyncIterator[Engine]:
    config = Config(redis_url=redis_server.url, queues="default:8,sync:1", backoff_base_s=0.05)
    engine = Engine(config, load_handlers([]), Metrics(), [])
    vitals = LoneVitals(config, engine.client)
    await engine.start(vitals)  # type: ignore[arg-type]
    yield engine
    await engine.close()


async def submit(engine: Engine, type: str, data: Any = None, **more: Any) -> TaskJson:
    key = more.pop("idempotency_key", None)
    item = Submission(type=type, data=Raw(msgspec.json.encode(data)), **more)
    result = (await engine.submit([item], key and [key]))[0]
    if isinstance(result, RumorError):
        raise result
    return result.task


async def test_a_task_runs_and_its_result_is_kept(engine: Engine) -> None:
    task = await submit(engine, "process", "Hello World")
    assert task.state == "running", "an idle node stores and claims in one step"
    done = await engine.wait(task.id, 5)
    assert (done.state, done.attempt, done.delivery) == ("succeeded", 1, 1)
    assert done.node_id == engine.config.name
    assert done.queued_at_ms
    assert done.finished_at_ms
    assert done.finished_at_ms >= done.queued_at_ms


async def test_a_batch_larger_than_the_slots_runs_whole(engine: Engine) -> None:
    items = [Submission(type="noop") for _ in range(2000)]
    results = await engine.submit(items)
    ids = {r.task.id for r in results if isinstance(r, Submitted)}
    assert len(ids) == 2000
    async with asyncio.timeout(20):
        while (await engine.queries.counts()) and engine.metrics.commits.values["succeeded"] < 2000:
            await asyncio.sleep(0.01)
    counts = await engine.counts()
    while counts["states"]["succeeded"] < 2000:
        await asyncio.sleep(0.05)
        counts = await engine.counts()
    assert counts["states"] == {
        "scheduled": 0,
        "retrying": 0,
        "waiting": 0,
        "succeeded": 2000,
        "dead": 0,
        "cancelled": 0,
        "queued": 0,
        "running": 0,
    }


async def test_a_failing_task_is_tried_again_and_dies_with_its_reason(engine: Engine) -> None:
    task = await submit(engine, "fail", {"message": "no luck"}, max_attempts=3)
    done = await engine.wait(task.id, 10)
    assert (done.state, done.attempt) == ("dead", 3)
    assert b"no luck" in bytes(done.error)


async def test_a_dead_task_is_replayed_with_its_attempts_reset_and_its_delivery_not(engine: Engine) -> None:
    task = await submit(engine, "fail", {"times": 2}, max_attempts=1)
    assert (await engine.wait(task.id, 5)).state == "dead"
    await engine.retry(task.id)
    again = await engine.wait(task.id, 5)
    assert again.delivery == 2
    assert again.attempt == 1
    with pytest.raises(NotFound):
        await engine.retry(task.id[:-4] + "X-00")


async def test_the_same_idempotency_key_gives_the_same_task(engine: Engine) -> None:
    first = await submit(engine, "process", {"a": 1, "b": 2}, idempotency_key="k1")
    second = await submit(engine, "process", {"b": 2, "a": 1}, idempotency_key="k1")
    assert first.id == second.id
    with pytest.raises(IdempotencyConflict, match=first.id):
        await submit(engine, "process", {"a": 2}, idempotency_key="k1")


async def test_a_unique_task_is_stored_once_for_its_time(engine: Engine) -> None:
    first = await submit(engine, "process", "x", unique_for_s=60)
    assert (await submit(engine, "process", "x", unique_for_s=60)).id == first.id
    assert (await submit(engine, "process", "y", unique_for_s=60)).id != first.id


async def test_a_unique_task_is_stored_once_whatever_key_its_submission_has(engine: Engine) -> None:
    """The clients send an Idempotency-Key of their own making with every call."""

    async def under(key: str, **more: Any) -> str:
        return (await submit(engine, "process", "x", unique_for_s=60, idempotency_key=key, **more)).id

    first = await under("k1")
    assert [await under(key) for key in ("k2", "k2", "k1")] == [first] * 3
    with pytest.raises(IdempotencyConflict):
        await under("k2", priority=9)
    assert await under("k3", unique_key="apart") != first


async def test_a_unique_task_may_be_unique_for_less_than_a_millisecond(engine: Engine) -> None:
    tasks = await asyncio.gather(submit(engine, "noop", 1), submit(engine, "noop", 2, unique_for_s=1e-6))
    assert [(await engine.wait(task.id, 5)).state for task in tasks] == ["succeeded"] * 2


async def test_a_submitter_that_gives_up_harms_nobody(engine: Engine) -> None:
    items: list[Submission | RumorError] = [Submission(type="noop")]
    for turns in range(6):
        submitting = asyncio.create_task(engine.submit(items))
        for _ in range(turns):
            await asyncio.sleep(0)
        submitting.cancel()
    assert (await engine.wait((await submit(engine, "noop")).id, 5)).state == "succeeded"
    await wait_until_async(lambda: engine.dispatch.free("default") == 8, 5, "no slot stays promised")


async def test_an_outage_loses_nothing_repeats_nothing_that_ran_and_leaves_no_slot_promised(
    engine: Engine, redis_server: Any
) -> None:
    before = [await submit(engine, "sleep", 0.2) for _ in range(12)]
    redis_server.stop()
    items: list[Submission | RumorError] = [Submission(type="noop") for _ in range(40)]
    lost = [asyncio.create_task(engine.submit(items)) for _ in range(3)]
    refused: list[StoreUnavailable] = []
    for submitting in lost:
        with pytest.raises(StoreUnavailable) as caught:
            await submitting
        refused.append(caught.value)
    with pytest.raises(StoreUnavailable) as caught:
        await engine.submit(items)
    assert not caught.value.may_have_happened
    redis_server.cont()
    await wait_until_async(lambda: engine.shards.is_up, 5, "Redis is back")
    for error in refused:  # submit again, under the same ids: no task is stored twice
        await engine.submit(items, ids=error.ids)

    async def is_over() -> bool:
        states = (await engine.counts())["states"]
        return bool(states["succeeded"] == 12 + 120 and sum(states.values()) == 12 + 120)

    await wait_until_async(is_over, 15, "each is there once, and has succeeded")
    for task in before[:8]:  # the eight that had slots
        assert (await engine.get(task.id)).delivery == 1, "what ran through the outage was not run again"
    await wait_until_async(lambda: engine.dispatch.free("default") == 8, 5, "no slot stays promised")
    assert engine.dispatch.settling == 0
    assert not any(engine.dispatch.held)


async def test_both_lanes_have_claims_under_way_and_never_for_more_than_the_free_slots(engine: Engine) -> None:
    slots = engine.config.queue_slots["default"]
    seen: list[tuple[int, ...]] = []  # after each collect: slots claimed for by lane, and slots that tasks hold
    collect = engine.dispatch._collect

    def watched(lane: int) -> list[Any]:
        calls = collect(lane)
        asked = [0] * len(engine.shards.lanes)
        for shard, limit in engine.dispatch.backlog._asked.get("default", {}).items():
            asked[engine.shards.lane_of[shard]] += limit
        seen.append((*asked, slots - engine.worker.free("default")))
        return calls

    engine.shards.collect_with(watched, engine.dispatch._lane_changed)
    await engine.submit([Submission(type="noop", key=f"{n}") for n in range(2000)])
    await wait_until_async(lambda: engine.metrics.commits.values["succeeded"] == 2000, 20, "all have run")
    assert max(map(sum, seen)) == slots
    at_the_same_time = sum(1 for first, second, _ in seen if first and second)
    assert at_the_same_time > len(seen) / 4, seen


async def test_connections_cut_in_the_middle_of_a_drain_lose_no_task_and_no_slot(engine: Engine) -> None:
    committed = engine.metrics.commits.values
    await engine.submit([Submission(type="noop", key=f"{n}") for n in range(3000)])
    for tasks in (200, 600, 1000):
        await wait_until_async(lambda tasks=tasks: committed["succeeded"] >= tasks, 20, "the drain goes on")
        await engine.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def is_over() -> bool:
        try:
            states = (await engine.counts())["states"]
        except StoreUnavailable:  # this very call met a connection that was cut
            return False
        return bool(states["succeeded"] == 3000 and sum(states.values()) == 3000)

    await wait_until_async(is_over, 20, "each is there once, and has succeeded")
    await wait_until_async(lambda: engine.dispatch.free("default") == 8, 5, "no slot stays promised")
    assert not engine.dispatch.backlog._asked
    assert not any(engine.dispatch.held)


async def test_a_delayed_task_waits_for_its_time(engine: Engine) -> None:
    task = await submit(engine, "noop", delay_s=0.4)
    assert task.state == "scheduled"
    done = await engine.wait(task.id, 5)
    assert done.state == "succeeded"
    assert task.run_at_ms is not None
    assert done.started_at_ms is not None
    assert done.started_at_ms >= task.run_at_ms
    assert done.started_at_ms - task.run_at_ms < 500


async def test_cancelling_reaches_queued_scheduled_and_running_tasks(engine: Engine) -> None:
    running = [await submit(engine, "sleep", 30) for _ in range(8)]
    queued = await submit(engine, "sleep", 30)
    later = await submit(engine, "sleep", 30, delay_s=60)
    assert queued.state == "queued"
    for task in (queued, later, *running):
        assert (await engine.cancel(task.id)).state == "cancelled"
    async with asyncio.timeout(5):
        while engine.worker.running:
            await asyncio.sleep(0.01)
    assert engine.worker.free("default") == 8
    assert (await engine.cancel(queued.id)).state == "cancelled", "cancelling again is no error"
    done = await engine.wait((await submit(engine, "noop")).id, 5)
    with pytest.raises(Conflict, match="succeeded"):
        await engine.cancel(done.id)


async def test_a_slot_that_a_cancelled_task_leaves_is_used_at_once_from_any_shard(engine: Engine) -> None:
    engine.housekeeping._sweep = lambda: None  # type: ignore[method-assign]
    running = [await submit(engine, "sleep", 30) for _ in range(8)]
    queued = [await submit(engine, "sleep", 30) for _ in range(8)]
    for task in running:
        await engine.cancel(task.id)
    await wait_until_async(lambda: len(engine.worker.running) == 8, 5, "the queued ones run")
    assert set(engine.worker.running) == {task.id for task in queued}


async def test_every_lane_asks_something_each_sweep_whatever_the_node_owns(engine: Engine) -> None:
    """A node is ready if each lane had an answer within seconds: one without shards on a lane must not look cut off."""
    engine.housekeeping.own((2, 4), ())
    await wait_until_async(lambda: engine.shards.is_idle, 5, "the lanes are at rest")
    sweep, engine.housekeeping._sweep = engine.housekeeping._sweep, lambda: None  # type: ignore[method-assign]
    engine.housekeeping.sweeps = 0  # so that the next sweep looks at no random shard
    lanes = engine.shards._lanes
    before = [lane.groups for lane in lanes]
    sweep()
    await wait_until_async(lambda: all(lane.groups > n for lane, n in zip(lanes, before, strict=True)), 1, "both ask")


async def test_an_unknown_type_names_near_ones(engine: Engine) -> None:
    with pytest.raises(UnknownType, match="proces") as caught:
        await submit(engine, "proces")
    assert "process" in caught.value.hint


async def test_high_tasks_start_before_normal_ones_that_came_first(engine: Engine) -> None:
    blockers = [await submit(engine, "sleep", 0.3) for _ in range(8)]
    normal = [await submit(engine, "noop") for _ in range(20)]
    high = [await submit(engine, "noop", priority="high") for _ in range(20)]
    await asyncio.gather(*(engine.wait(task.id, 10) for task in (*blockers, *normal, *high)))
    starts = {t.id: (await engine.get(t.id)).started_at_ms or 0 for t in (*normal, *high)}
    assert max(starts[t.id] for t in high) <= min(starts[t.id] for t in normal)


async def test_a_listing_pages_through_everything_newest_first(engine: Engine) -> None:
    items: list[Submission | RumorError] = [Submission(type="noop", key=f"k{n % 3}") for n in range(130)]
    sent = [r.task.id for r in await engine.submit(items) if isinstance(r, Submitted)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await engine.list_tasks(ListQuery(limit=50, cursor=cursor))
        seen += [task.id for task in page.tasks]
        cursor = page.cursor
        assert page.complete
        if cursor is None:
            break
    assert seen == sorted(sent, reverse=True)
    some = await engine.list_tasks(ListQuery(key="k1", limit=500))
    assert {task.key for task in some.tasks} == {"k1"}
    assert len(some.tasks) == 43


async def test_dead_tasks_are_listed_replayed_and_purged(engine: Engine) -> None:
    tasks = [await submit(engine, "fail", {"times": 1}, max_attempts=1) for _ in range(12)]
    for task in tasks:
        assert (await engine.wait(task.id, 5)).state == "dead"
    page = await engine.list_tasks(ListQuery(state=State.DEAD, limit=5))
    assert (len(page.tasks), page.complete) == (5, True)
    assert await engine.replay("noop", None) == 0
    assert await engine.replay("fail", 4) == 4
    for task in tasks:
        assert (await engine.wait(task.id, 5)).state == "dead", "the replayed ones die again"
    assert await engine.purge_dead() == 12
    async with asyncio.timeout(5):
        while (await engine.counts())["states"]["dead"]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("own_s", "stays_s"), [(None, 604_800.0), (90.0, 90.0), (0.0, 5.0)])
async def test_a_dead_task_stays_for_its_own_retention_else_for_that_of_the_dead(
    engine: Engine, own_s: float | None, stays_s: float
) -> None:
    task = await submit(engine, "fail", "no", max_attempts=1, retention_s=own_s)
    dead = await engine.wait(task.id, 5)
    assert dead.state == "dead"
    till_ms = await engine.client.zscore(keys.dead(engine.queries.shard(task.id)), task.id)
    assert till_ms is not None
    assert dead.finished_at_ms is not None
    assert abs(till_ms - dead.finished_at_ms - stays_s * 1000) < 1000


async def test_names_of_queues_vanish_from_redis_and_from_here_once_nothing_is_queued_in_them(engine: Engine) -> None:
    items = [Submission(type="noop", queue=f"once-{n}") for n in range(500)]
    tasks = [result.task for result in await engine.submit(items) if isinstance(result, Submitted)]
    assert len(tasks) == 500

    async def names() -> set[str]:
        found: set[str] = set()
        for shard in range(engine.config.shards):
            found |= {raw.decode() for raw in await engine.client.smembers(keys.queues(shard))}  # type: ignore[misc]
        return found

    await wait_until_async(lambda: len(engine.dispatch.backlog.queues()) == 500, 5, "all are known here")
    assert await names() >= {f"once-{n}" for n in range(500)}
    for task in tasks:
        await engine.cancel(task.id)
    for shard in range(engine.config.shards):
        engine.housekeeping.look(shard)
    await wait_until_async(lambda: not engine.dispatch.backlog.queues(), 10, "none is known here")
    assert await names() <= {"default", "sync"}
    assert engine.dispatch.backlog._queues == {}
    await wait_until_async(lambda: not engine.balance._offered_s, 5, "no offer is remembered")
    counts = await engine.queries.counts()
    assert set(counts["queues"]) <= {"default", "sync"}


async def test_replaying_everything_ends_although_the_replayed_die_again(engine: Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr("node.queue.amending.REPLAY_PAGE", 2)
    tasks = [await submit(engine, "fail", max_attempts=1) for _ in range(7)]
    for task in tasks:
        assert (await engine.wait(task.id, 5)).state == "dead"
    async with asyncio.timeout(10):
        assert await engine.replay(None, None) == 7
    for task in tasks:
        assert (await engine.wait(task.id, 5)).delivery == 2


async def test_what_redis_holds_and_this_node_does_not_run_is_given_back_uncounted(engine: Engine) -> None:
    """A claim whose answer was lost: in flight for this session, and never started."""
    engine.dispatch.is_claiming = False
    task = await submit(engine, "noop")
    assert task.state == "queued"
    shard = engine.queries.shard(task.id)
    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    claim = engine.shards.calls.claim(shard, "default", engine.dispatch.session, 1, None, lost.set_result)
    engine.shards.send(claim)
    assert (await lost).tasks, "claimed behind the node's back"
    engine.dispatch.is_claiming = True
    done = await engine.wait(task.id, 15)
    assert (done.state, done.attempt, done.delivery) == ("succeeded", 1, 2)


@pytest.mark.parametrize(("priority", "starts_first"), [(9, False), (5, False), (4, True)])
async def test_a_new_task_does_not_start_before_what_goes_before_it_in_its_shard(
    engine: Engine, priority: int, starts_first: bool
) -> None:
    """A node has a free slot, and has not heard yet what another gateway queued there."""
    engine.dispatch.is_claiming = False
    before = await submit(engine, "noop", key="k", priority=priority)
    engine.dispatch.backlog.set("default", engine.queries.shard(before.id), 0, 0)
    engine.dispatch.is_claiming = True
    new = await submit(engine, "noop", key="k", priority=5)
    assert (new.state == "running") == starts_first
    first, then = (new, before) if starts_first else (before, new)
    starts = [(await engine.wait(task.id, 10)).started_at_ms or 0 for task in (first, then)]
    assert starts == sorted(starts)


async def test_a_batch_starts_its_urgent_tasks_first_however_they_are_ordered(engine: Engine) -> None:
    items = [Submission(type="sleep", data=Raw(b"0.01"), key="k", priority=n % 10) for n in range(40)]
    results = await engine.submit(items)
    tasks = [await engine.wait(r.task.id, 20) for r in results if isinstance(r, Submitted)]
    by_start = sorted(tasks, key=lambda task: task.started_at_ms or 0)
    assert min(task.priority for task in by_start[:8]) >= 8, "eight slots, and eight tasks of levels 8 and 9"


async def test_a_reaped_session_gives_its_tasks_back_at_once_and_its_late_outcome_is_refused(engine: Engine) -> None:
    tasks = [await submit(engine, "sleep", 0.5, backoff=BackoffJson(base_s=0)) for _ in range(4)]
    old = engine.dispatch.session
    new = old[:-1] + ("0" if old[-1] != "0" else "1")
    engine.vitals.session = new
    # As after a pause: another node wrote the tombstone and reaped the session, and this node does not know it yet.
    engine.housekeeping.reap(old, range(64))
    for task in tasks:
        done = await engine.wait(task.id, 10)
        assert (done.state, done.delivery) == ("succeeded", 2)
    engine.hear(NewSession(new))
    assert (await engine.wait((await submit(engine, "noop")).id, 5)).state == "succeeded"


async def test_what_was_claimed_under_a_session_that_is_over_stops_at_once(engine: Engine) -> None:
    task = await submit(engine, "sleep", 60)
    engine.hear(Disowned("another/0-0"))
    assert task.id in engine.worker.running
    engine.hear(Disowned(engine.dispatch.session))
    await wait_until_async(lambda: not engine.worker.running, 5, "it has ended, and no word of Redis was waited for")


async def test_a_node_is_ready_while_its_heartbeat_is_taken(engine: Engine) -> None:
    await wait_until_async(lambda: engine.is_ready()[0], 5, "its lanes were answered")
    why = refusal("NOREPLICAS Not enough good replicas to write.")
    for change, words in (({"refusal": why}, "NOREPLICAS"), ({}, "does not take this node's heartbeat")):
        engine.view = dataclasses.replace(engine.vitals.view, redis_ok=False, **change)  # type: ignore[arg-type]
        ready, reason = engine.is_ready()
        assert not ready
        assert words in reason
        assert engine.health()["status"] == "unavailable"


async def test_what_another_program_wrote_in_a_task_s_place_does_not_hide_the_others(engine: Engine) -> None:
    tasks = [await submit(engine, "noop", delay_s=60) for _ in range(3)]
    bucket = keys.bucket_prefix(engine.queries.shard(tasks[1].id)) + tasks[1].id[:9]
    await engine.client.hset(bucket, tasks[1].id, "no task")  # type: ignore[misc]
    listed = (await engine.list_tasks(ListQuery())).tasks
    assert [task.id for task in listed] == [tasks[2].id, tasks[0].id]
    with pytest.raises(TaskUnreadable, match="cannot be read: "):
        await engine.get(tasks[1].id)


@pytest.mark.parametrize("run_at", ["9999-12-31T23:59:59Z", "2500-01-01T00:00:00+02:00"])
async def test_a_task_for_a_time_that_is_too_far_ahead_is_refused(engine: Engine, run_at: str) -> None:
    with pytest.raises(Invalid, match="more than 365 days ahead"):
        await submit(engine, "noop", run_at=run_at)
    items = [Submission(type="noop"), Submission(type="noop", run_at=run_at)]
    first, second = await engine.submit(items)
    assert isinstance(first, Submitted)
    assert isinstance(second, Invalid)


async def test_the_lease_stands_still_only_while_redis_refuses_everybody(engine: Engine) -> None:
    why = refusal("NOREPLICAS Not enough good replicas to write.")
    task = await submit(engine, "sleep", 60)
    engine.hear(RedisReach(False))
    lease_s = engine.config.lease_s
    now_s = time.monotonic()
    mine = dataclasses.replace(engine.vitals.view.members[0], load=Load(False, False, False, {}))
    engine.view = dataclasses.replace(engine.vitals.view, members=(mine,), redis_ok=False, refusal=why)
    engine._mind_the_lease(now_s + lease_s + 1)
    assert task.id in engine.worker.running
    engine.view = dataclasses.replace(engine.view, refusal=None)
    engine._mind_the_lease(now_s + 2 * lease_s)
    assert task.id in engine.worker.running, "it is counted from the last refusal"
    engine._mind_the_lease(now_s + 2 * lease_s + 2)
    await wait_until_async(lambda: not engine.worker.running, 5, "the lease is over")


async def test_while_memory_is_short_finished_tasks_go_before_their_time_and_others_stay(engine: Engine) -> None:
    done = await engine.wait((await submit(engine, "noop")).id, 5)
    dead = await engine.wait((await submit(engine, "fail", max_attempts=1)).id, 5)
    later = await submit(engine, "noop", delay_s=60)
    engine.housekeeping.is_memory_short = True
    engine.housekeeping._age_ms = lambda: 0  # type: ignore[method-assign]
    engine.housekeeping.look(engine.queries.shard(done.id))
    engine.housekeeping.look(engine.queries.shard(dead.id))
    async with asyncio.timeout(5):
        while True:
            try:
                await engine.get(done.id)
                await asyncio.sleep(0.01)
            except NotFound:
                break
    assert (await engine.get(dead.id)).state == "dead"
    assert (await engine.get(later.id)).state == "scheduled"


async def test_a_wake_up_is_not_undone_by_an_older_answer(engine: Engine) -> None:
    """The sweep left before the task was queued; its answer arrives after the wake-up that told of the task."""
    engine.dispatch.is_claiming = False
    task = await submit(engine, "noop")
    shard = engine.queries.shard(task.id)
    engine.dispatch.backlog.set("default", shard, 0, 0)  # another node stored it: nothing is known here
    engine.dispatch.is_claiming = True
    engine.housekeeping.look(shard)
    lane = engine.shards._lanes[engine.shards.lane_of[shard]]
    (call,) = [call for call in lane._calls if call.script == "sweep"]
    answered = call.on_reply
    # The answer that Redis would have given a moment before the task was queued.
    call.on_reply = lambda answer: answered(Swept(answer.now_ms, 0, 0, 0, [], [QueueHead("default", 0, 0)]))
    engine.housekeeping._sweep = lambda: None  # type: ignore[method-assign]  # no sweep may help
    while lane._calls:
        await asyncio.sleep(0)
    assert not lane.is_idle, "the look has left and is not answered"
    engine.hear(Woken(msgspec.msgpack.encode(("w", [(shard, "default", 1, 0)]))))
    assert (await engine.wait(task.id, 5)).state == "succeeded"


async def test_what_a_dead_owner_held_is_claimed_here_before_the_view_knows_of_its_heirs(engine: Engine) -> None:
    engine.dispatch.is_claiming = False
    task = await submit(engine, "noop")
    shard = engine.queries.shard(task.id)
    engine.dispatch.backlog.set("default", shard, 0, 0)
    engine.dispatch.is_claiming = True
    engine.housekeeping._sweep = lambda: None  # type: ignore[method-assign]  # no sweep may help
    dead = session.new("gone:1", 1_700_000_000_000, Random(1))
    engine.ownership.owners = ("gone:1",) * engine.config.shards
    engine.ownership.session_of["gone:1"] = dead
    engine.hear(SessionEnded(dead, "refused"))
    engine.ownership.on_heads(shard, [QueueHead("default", 1, 0)])  # as the answer to its reap says
    assert (await engine.wait(task.id, 5)).state == "succeeded"


async def test_a_task_that_succeeds_in_the_end_shows_no_error_of_an_earlier_attempt(engine: Engine) -> None:
    task = await submit(engine, "fail", {"times": 1}, max_attempts=3)
    done = await engine.wait(task.id, 10)
    assert (done.state, done.attempt, bytes(done.error)) == ("succeeded", 2, b"null")


@pytest.mark.parametrize("text", ["s1_0 x", "s x", "ix y", "z", "s\u0661 x", "i0"])
async def test_a_cursor_that_no_listing_gave_is_refused(engine: Engine, text: str) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    with pytest.raises(BadRequest, match="cursor"):
        await engine.list_tasks(ListQuery(state=State.DEAD, cursor=cursor))


@asynccontextmanager
async def idle_neighbour(engine: Engine) -> AsyncIterator[Callable[[], Awaitable[list[tuple[int, str, int]]]]]:
    """Another member, with free slots, while this node owns all shards: reads the wake-ups for that member."""
    other = session.new("other:1", 1_700_000_000_000, Random(7))
    load = Load(True, False, False, {"default": QueueLoad(5, 0, 0)})
    idle = dataclasses.replace(
        engine.vitals.view.members[0], node_id="other:1", session=other, load=load, meta=Meta({"default": 5})
    )

    async def woken() -> list[tuple[int, str, int]]:
        async with asyncio.timeout(5):
            while True:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=1)
                if message is not None and message["type"] == "message":
                    break
        offered = parse_wake(message["data"], engine.config.shards)
        assert isinstance(offered, Work)
        return [(shard, head.queue, head.count) for shard, head in offered.heads]

    async with engine.client.pubsub() as channel:
        await channel.subscribe(keys.wake(other))
        members = (*engine.vitals.view.members, idle)
        engine.hear(NewView(dataclasses.replace(engine.vitals.view, members=members)))
        engine.ownership.owners = (engine.config.name,) * engine.config.shards
        engine.housekeeping.own(range(engine.config.shards), [engine.dispatch.session])
        yield woken


async def test_a_full_node_offers_what_waits_to_one_with_free_slots(engine: Engine) -> None:
    async with idle_neighbour(engine) as woken:
        blockers = [await submit(engine, "sleep", 30, key=f"k{n}") for n in range(8)]
        waiting = await submit(engine, "noop", key="k")
        assert waiting.state == "queued"
        assert await woken() == [(engine.queries.shard(waiting.id), "default", 1)]
    for task in blockers:
        await engine.cancel(task.id)


async def test_what_the_owner_of_a_shard_has_no_handler_for_is_left_to_another_when_it_is_due_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type is new in the middle of a rolling deploy: else its owner takes the task each second until replaced."""
    monkeypatch.setattr("node.work.worker.UNKNOWN_RETRY_S", 0.1)
    handler_of = engine.worker._handler
    async with idle_neighbour(engine) as woken:
        monkeypatch.setattr(engine.worker, "_handler", lambda name: None if name == "noop" else handler_of(name))
        task = await submit(engine, "noop")
        assert await woken() == [(engine.queries.shard(task.id), "default", 1)]
        left = await engine.get(task.id)
        assert (left.state, left.attempt, left.delivery) == ("queued", 0, 1), "and not claimed here at once"
        monkeypatch.setattr(engine.worker, "_handler", handler_of)
        assert (await engine.wait(task.id, 10)).state == "succeeded", "what the other leaves, a sweep finds"


async def test_submissions_that_fail_in_one_group_each_keep_their_own_ids(engine: Engine, redis_server: Any) -> None:
    """A group that fails has one error for all its submissions, but each must be forwarded under its own ids."""
    await engine.submit([Submission(type="noop")])
    redis_server.stop()
    sizes = (1, 3, 2, 1)
    errors = await asyncio.gather(
        *(engine.submit([Submission(type="noop")] * size) for size in sizes), return_exceptions=True
    )
    redis_server.cont()
    ids = [error.ids for error in errors if isinstance(error, StoreUnavailable)]
    assert tuple(map(len, ids)) == sizes
    assert len({task_id for batch_ids in ids for task_id in batch_ids}) == sum(sizes)


async def test_a_batch_that_was_stored_in_part_may_have_happened(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the failed part was certainly not sent: a client that hears "nothing happened" makes the rest twice."""

    async def never() -> bool:
        return False

    monkeypatch.setattr(engine.shards, "comes_back", never)
    items = [Submission(type="noop", key=f"{n}") for n in range(600)]
    batch = asyncio.create_task(engine.submit(items))
    await asyncio.sleep(0)  # the first slice of them waits for its lanes to send
    engine.shards._lanes[1].is_up = False
    engine.dispatch._lane_changed(False)
    with pytest.raises(StoreUnavailable) as caught:
        await batch
    assert caught.value.may_have_happened
    assert all(caught.value.ids)


async def test_what_a_redis_forgot_without_a_word_is_written_again(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLUSHALL, or a failover to an empty Redis, ends no connection. A node that starts later must find the cluster."""
    monkeypatch.setattr("node.queue.upkeep.CATALOG_INTERVAL_S", 0.05)
    engine = Engine(Config(redis_url=redis_server.url, shards=16), load_handlers([]), Metrics(), [])
    await engine.start(LoneVitals(engine.config, engine.client))  # type: ignore[arg-type]
    try:
        for _ in range(2):
            await wait_until_async(
                lambda: engine.client.hexists(keys.LEADER_CATALOG, "noop"), 5, "its types stand there"
            )
            assert await engine.client.hget(keys.LEADER_CONFIG, "shards") == b"16"  # type: ignore[misc]
            assert await engine.client.hget(keys.LEADER_KEYS, engine.config.name) == b"none"  # type: ignore[misc]
            await engine.client.flushall()
    finally:
        await engine.close()


async def test_what_is_told_while_a_waiter_reads_is_not_missed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.queue.waiting.LOOK_INTERVAL_S", 60.0)
    task = await submit(engine, "noop", delay_s=60)
    read = engine.queries.get
    states: list[str] = []

    async def slow(task_id: str, with_history: bool = False) -> TaskJson:
        task = await read(task_id, with_history)
        states.append(task.state)
        if len(states) == 1:
            await engine.cancel(task_id)  # the task ends after Redis read it and before the waiter has that answer
        return task

    monkeypatch.setattr(engine.queries, "get", slow)
    async with asyncio.timeout(10):
        assert (await engine.wait(task.id, 30)).state == "cancelled"
    assert states[0] == "scheduled"


async def test_a_waiter_looks_again_when_redis_has_confirmed_its_subscription(engine: Engine) -> None:
    """No message tells of a task that ends on another node after the read and before the subscription counts."""
    task = await submit(engine, "noop", delay_s=60)
    woken = asyncio.Event()
    waiter = engine.waiters.add(task.id, woken.set)
    async with engine.waiters.subscribed(waiter, engine.queries.shard(task.id)):
        async with asyncio.timeout(10):
            await woken.wait()
        woken.clear()
        second = engine.waiters.add(task.id, woken.set)
        async with engine.waiters.subscribed(second, engine.queries.shard(task.id)):
            assert woken.is_set(), "the confirmation came before this waiter"
        woken.clear()
        async with engine.client.client() as other:  # as after a reconnection
            await other.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        async with asyncio.timeout(10):
            await woken.wait()


@pytest.fixture
async def warm_engine(engine: Engine) -> Engine:
    """An engine whose Redis knows the scripts: it has settled a task."""
    await engine.wait((await submit(engine, "noop")).id, 5)
    return engine


async def submit_and_wait(engine: Engine, type: str, data: Any = None, **more: Any) -> TaskJson:
    """The task as a submission answers that waits here for 5 s."""
    item = Submission(type=type, data=Raw(msgspec.json.encode(data)), **more)
    result = (await engine.submit([item], hold_s=5.0))[0]
    assert isinstance(result, Submitted)
    assert result.is_new
    return result.task


@pytest.mark.parametrize(
    ("type", "data", "state"),
    [("process", "Hello World", "succeeded"), ("fail", {"message": "no luck"}, "dead"), ("noop", None, "succeeded")],
)
async def test_a_submission_that_waits_is_answered_with_all_that_a_read_would_show(
    warm_engine: Engine, type: str, data: Any, state: str
) -> None:
    task = await submit_and_wait(warm_engine, type, data, max_attempts=1, key="k")
    assert task.state == state
    assert msgspec.json.encode(task) == msgspec.json.encode(await warm_engine.get(task.id))
    assert not warm_engine.waiters.awaited


async def test_a_redis_that_has_forgotten_the_scripts_does_not_show_a_task_as_running_for_ever(
    warm_engine: Engine,
) -> None:
    """Then the lane sends the settle again, by its text, and the read behind it came too early."""
    await warm_engine.client.script_flush()
    result = (await warm_engine.submit([Submission(type="noop")], hold_s=5.0))[0]
    assert isinstance(result, Submitted)
    async with asyncio.timeout(0.9):  # before the waiter's net
        assert (await warm_engine.wait(result.task.id, 5)).state == "succeeded"


async def test_a_task_that_ends_where_it_was_submitted_costs_no_subscription(warm_engine: Engine) -> None:
    before = await warm_engine.client.info("commandstats")
    for _ in range(5):
        assert (await submit_and_wait(warm_engine, "noop")).state == "succeeded"
    after = await warm_engine.client.info("commandstats")
    assert after.get("cmdstat_subscribe") == before.get("cmdstat_subscribe")


async def test_a_task_that_goes_on_is_answered_as_it_began_when_the_time_is_up(engine: Engine) -> None:
    item = Submission(type="sleep", data=Raw(b"30"))
    async with asyncio.timeout(5):
        result = (await engine.submit([item], hold_s=0.05))[0]
    assert isinstance(result, Submitted)
    assert (result.task.state, result.task.attempt) == ("running", 1)
    assert not engine.waiters.awaited
    await engine.cancel(result.task.id)


async def test_a_task_that_is_tried_again_is_not_taken_for_ended(engine: Engine) -> None:
    item = Submission(type="fail", data=Raw(b'{"times": 1}'), max_attempts=2, backoff=BackoffJson(0.0, 1.0, 0.0))
    result = (await engine.submit([item], hold_s=0.2))[0]
    assert isinstance(result, Submitted)
    done = await engine.wait(result.task.id, 10)
    assert (done.state, done.attempt) == ("succeeded", 2)


async def test_who_waits_for_a_task_that_is_cancelled_here_is_told_at_once(engine: Engine) -> None:
    item = Submission(type="sleep", data=Raw(b"30"))
    waiting = asyncio.create_task(engine.submit([item], hold_s=30.0))
    await wait_until_async(lambda: bool(engine.worker.running), 5, "it runs")
    (task_id,) = engine.worker.running
    async with asyncio.timeout(5):
        await engine.cancel(task_id)
        await waiting
        assert (await engine.wait(task_id, 30)).state == "cancelled"


async def test_a_caller_that_gives_up_leaves_no_waiter_behind(engine: Engine) -> None:
    waiting = asyncio.create_task(engine.submit([Submission(type="sleep", data=Raw(b"30"))], hold_s=0.3))
    await wait_until_async(lambda: bool(engine.waiters.awaited), 5, "it waits")
    waiting.cancel()
    await wait_until_async(lambda: not engine.waiters.awaited, 5, "the waiter is gone")


async def test_a_result_too_large_to_be_read_behind_its_settle_is_read_all_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.queue.dispatch.READ_BYTES_MAX", 1_000)
    data = "x" * 2_000
    item = Submission(type="process", data=Raw(msgspec.json.encode(data)))
    result = (await engine.submit([item], hold_s=0.1))[0]
    assert isinstance(result, Submitted)
    done = await engine.wait(result.task.id, 5)
    assert msgspec.json.decode(done.result)["processed"] == data


async def test_a_task_without_retention_is_there_for_whoever_sends_it_twice(engine: Engine) -> None:
    """A submission forwarded after a time-out may be a repeat, and the first one's task may have run by then."""
    task = await submit(engine, "noop", retention_s=0.0)
    assert (await engine.wait(task.id, 5)).state == "succeeded"
    engine.housekeeping.look(engine.queries.shard(task.id))
    await wait_until_async(
        lambda: not engine.housekeeping.is_looking(engine.queries.shard(task.id)), 5, "house was kept"
    )
    again = (await engine.submit([Submission(type="noop")], None, [task.id]))[0]
    assert isinstance(again, Submitted)
    assert (await engine.wait(task.id, 5)).delivery == 1
