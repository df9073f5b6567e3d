"""What one bad neighbour or a full Redis must not do to the other tasks of a shard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis.asyncio
from redis.exceptions import OutOfMemoryError, ResponseError

from cluster import keys
from cluster.config import Config
from cluster.redis_client import connect
from cluster.shards.answers import SettleCode, Settled, SettleKind
from cluster.shards.calls import BATCH_MAX, Calls, NewTask, Settlement
from cluster.shards.lane import Call, T
from cluster.shards.shards import Shards
from cluster.shards.task import Backoff, Claimed, Ids, Spec, packed
from cluster.swim.events import Sight
from cluster.vitals.calls import Pulse
from cluster.vitals.jury import Ballot, Undecided
from cluster.vitals.lease import Acquire, RenewTerm, Takeover, Term
from cluster.vitals.witness import Fence, Path
from cluster.vitals.words import Word
from node.observe.metrics import Metrics
from node.queue.dispatch import GROUP_BYTES_MAX, SETTLE_AGAIN_S, Dispatcher
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until_async

SHARD, SESSION = 3, "a/018bcfe5680-00000001"
SPEC = Spec("noop", "default", 5, 3, 60.0, Backoff(0.0, 1.0, 0.0))
CALLS = Calls(60.0, 1000, 60.0)
IDS = Ids(1)


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    redis_client = connect(redis_server.url)
    yield redis_client
    await redis_client.aclose()


def bucket(task: NewTask) -> str:
    return keys.bucket_prefix(SHARD) + task.id[:9]


async def state_of(client: redis.asyncio.Redis, task: NewTask) -> str | None:
    fields = await do(client, CALLS.read(SHARD, task.id, nobody))
    return fields.state if fields else None


def new(due: int = 0, data: bytes = b"1", at: int = 0, **over: Any) -> NewTask:
    """A task; those with another `at` lie in another bucket. `over`: fields of its spec."""
    task_id = IDS.next(1_700_000_000_000 + 32 * at, SHARD)
    spec = msgspec.structs.replace(SPEC, **over)
    return NewTask(
        task_id, SHARD, spec.queue, 5, due, spec, packed(spec), data, False, "", 0, "", lambda *_: None, None
    )


async def do(client: redis.asyncio.Redis, call: Call[T]) -> T:
    return call.decode(await client.execute_command(*call.command(by_text=True)))


def ended(task: NewTask, kind: SettleKind, payload: bytes, ms: int) -> Settlement:
    return Settlement(Claimed(task.id, SHARD, 1, 1, SPEC, b"1", SESSION), kind, payload, ms)


def nobody(_: Any) -> None: ...


async def test_a_full_redis_still_drops_what_is_past_its_time_although_something_is_due(
    client: redis.asyncio.Redis,
) -> None:
    """Promoting needs memory, and dropping frees it: in the other order, a full Redis would stay full."""
    done, due = new(data=b'"%s"' % (b"x" * 2_000_000)), new(due=-1)
    await do(client, CALLS.store(SHARD, SESSION, [done, due], nobody))
    await do(client, CALLS.claim(SHARD, "default", SESSION, 1, None, nobody))
    outcomes = [ended(done, SettleKind.SUCCEEDED, b"1", 0)]
    assert (await do(client, CALLS.settle(SHARD, SESSION, outcomes, nobody))).codes == [SettleCode.COMMITTED]
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory", used - 1_000_000)
    with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        await do(client, CALLS.store(SHARD, SESSION, [new()], nobody))

    async def kept() -> bool:
        answer = await do(client, CALLS.sweep(SHARD, -1, nobody))
        return bool(answer.promoted and answer.dropped)

    assert await wait_until_async(kept, 5, "the finished task is dropped, and the due one queued")
    assert await state_of(client, done) is None
    assert await state_of(client, due) == "queued"


async def test_a_full_redis_refuses_new_tasks_and_nothing_else(
    client: redis.asyncio.Redis, redis_server: RedisServer
) -> None:
    """Stored tasks can be claimed, settled, cancelled and reaped, and nodes keep their heartbeats and their leader."""
    tasks = [new() for _ in range(6)]
    await do(client, CALLS.store(SHARD, SESSION, tasks, nobody))
    await client.config_set("maxmemory", int((await client.info("memory"))["used_memory"]) - 100_000)
    with pytest.raises(OutOfMemoryError):
        await do(client, CALLS.store(SHARD, SESSION, [new()], nobody))
    with pytest.raises(OutOfMemoryError):
        await client.set("other", "x")
    done, retrying, dead, running, *_ = tasks
    claimed = await do(client, CALLS.claim(SHARD, "default", SESSION, 4, None, nobody))
    assert [task.id for task in claimed.tasks] == [task.id for task in (done, retrying, dead, running)]
    outcomes = [
        ended(done, SettleKind.SUCCEEDED, b"1", 0),
        ended(retrying, SettleKind.RETRYING, b"{}", 60_000),
        ended(dead, SettleKind.DEAD, b"{}", 0),
    ]
    assert (await do(client, CALLS.settle(SHARD, SESSION, outcomes, nobody))).codes == [SettleCode.COMMITTED] * 3
    assert (await do(client, CALLS.reap(SHARD, SESSION, 0.5, nobody))).queued == 1
    assert (await do(client, CALLS.cancel(SHARD, tasks[5].id, 0, nobody))).was == "queued"
    pulse = Pulse(redis_server.url, 1.0, lambda: None)
    try:
        assert (await pulse.beat(SESSION, 1, 60_000, b"\0")).tombstone is None
        assert await pulse.lease(Acquire(SESSION), 5_000, 0) == Term(SESSION, 1)
        now_ms = int((await pulse.beat(SESSION, 2, 60_000, b"\0")).redis_ms)
        ballot = Ballot(SESSION, "b/018bcfe5680-00000001", Word.ABSTAINS, Sight.SILENT, 0.0, None, 0.0, "n", ())
        assert isinstance(await pulse.vote(ballot, now_ms, 0.25, "", 60_000, "b"), Undecided)
        assert (await pulse.fence(Fence(SESSION, Path.OWN, b"", "gone"), 60_000, "b")).is_ours
        assert await pulse.lease(Takeover("b/018bcfe5680-00000001", SESSION), 5_000, 0) is not None
    finally:
        await pulse.close()


async def test_a_claim_takes_no_more_data_than_its_answer_may_hold(client: redis.asyncio.Redis) -> None:
    tasks = [new(data=b'"%s"' % (b"x" * 400_000)) for _ in range(5)] + [new(data=b'"%s"' % (b"x" * 1_048_000))]
    await do(client, CALLS.store(SHARD, SESSION, tasks, nobody))
    for count in (2, 2, 1, 1):
        answer = await do(client, CALLS.claim(SHARD, "default", SESSION, 10, None, nobody))
        claimed, tasks = tasks[:count], tasks[count:]
        assert [task.id for task in answer.tasks] == [task.id for task in claimed]
        assert answer.left == len(tasks)


def dispatcher() -> Dispatcher:
    """A dispatcher that sends nothing: its lanes do not run."""
    quiet: Any = nobody
    shards = Shards(connect("redis://127.0.0.1:1"), CALLS, 64, 1.0)
    return Dispatcher(Config(), shards, Metrics(), quiet, quiet, quiet, quiet, quiet)


def outcome(result: bytes = b"1") -> Settlement:
    claimed = Claimed(IDS.next(1_700_000_000_000, 2), 2, 1, 1, SPEC, b"1", SESSION)
    return Settlement(claimed, SettleKind.SUCCEEDED, result, 0)


def test_no_group_carries_more_of_results_than_its_deadline_bears() -> None:
    """Thirty results of 1 MB in one group could miss its deadline, and would then miss it again each time."""
    dispatch = dispatcher()
    items = [outcome(b"x" * 1_000_000) for _ in range(30)]
    for n, session in enumerate((SESSION, "a/018bcfe5680-00000002", "a/018bcfe5680-00000003")):
        dispatch._settles[0][2, session] = items[n * 10 : n * 10 + 10]
    sent: list[Any] = []
    for _ in range(20):
        calls: list[Call[Any]] = []
        dispatch._collect_settles(0, calls)
        words = [word for call in calls for word in call.args]
        assert sum(len(word) for word in words if isinstance(word, bytes)) < GROUP_BYTES_MAX + 1_000_001
        sent += [word for word in words if word in {item.claimed.id for item in items}]
    assert sent == [item.claimed.id for item in items]


async def test_one_outcome_that_redis_refuses_does_not_hold_up_those_beside_it() -> None:
    dispatch = dispatcher()
    good, bad = outcome(), outcome()
    dispatch._settle(bad)
    dispatch._settle(good)

    def answer() -> list[int]:
        """Answer the next group: Redis refuses the whole call that has the bad outcome in it."""
        calls: list[Call[Any]] = []
        dispatch._collect_settles(0, calls)
        for call in calls:
            committed = Settled([SettleCode.COMMITTED], {})
            call.on_reply(ResponseError("WRONGTYPE") if bad.claimed.id in call.args else committed)
        return [len(call.args) for call in calls]

    assert len(answer()) == 1
    assert answer() == [], "not again at once"
    await wait_until_async(lambda: dispatch._settles[0], 2 * SETTLE_AGAIN_S + 1, "again after a while")
    assert len(answer()) == 2, "each by itself"
    assert dispatch.settling == 1


async def test_what_another_program_wrote_in_a_task_s_place_harms_that_task_alone(client: redis.asyncio.Redis) -> None:
    """All other tasks are claimed, promoted, listed and reaped as ever."""
    tasks, due = [new() for _ in range(5)], [new(due=-1) for _ in range(2)]
    await do(client, CALLS.store(SHARD, SESSION, [*tasks, *due], nobody))
    for spoilt in (tasks[0], due[0]):
        await client.hset(bucket(spoilt), spoilt.id, "no task")  # type: ignore[misc]
    listed = await do(client, CALLS.listing(SHARD, None, "", 10, 100, ("queued", "noop", ""), nobody))
    assert {task_id for _, task_id in listed.rows} == {task.id for task in tasks[1:]}
    claimed = await do(client, CALLS.claim(SHARD, "default", SESSION, 3, None, nobody))
    assert [task.id for task in claimed.tasks] == [task.id for task in tasks[1:3]]
    assert [task_id for task_id, _ in claimed.unreadable] == [tasks[0].id]

    async def promoted() -> bool:
        return bool((await do(client, CALLS.sweep(SHARD, -1, nobody))).promoted)

    await wait_until_async(promoted, 5, "what is due is promoted")
    assert await state_of(client, due[1]) == "queued"
    await client.hset(bucket(tasks[1]), tasks[1].id, "")  # type: ignore[misc]
    reaped = await do(client, CALLS.reap(SHARD, SESSION, 0.5, nobody))
    assert (reaped.left, reaped.queued) == (0, 1)


async def test_a_key_of_another_type_in_a_bucket_s_place_harms_that_bucket_alone(client: redis.asyncio.Redis) -> None:
    spoilt, tasks = [new() for _ in range(2)], [new(at=1) for _ in range(3)]
    await do(client, CALLS.store(SHARD, SESSION, [*spoilt, *tasks], nobody))
    await client.delete(bucket(spoilt[0]))
    await client.rpush(bucket(spoilt[0]), "not a hash")  # type: ignore[misc]
    listed = await do(client, CALLS.listing(SHARD, None, "", 10, 100, ("queued", "", ""), nobody))
    assert {task_id for _, task_id in listed.rows} == {task.id for task in tasks}
    claimed = await do(client, CALLS.claim(SHARD, "default", SESSION, 5, None, nobody))
    assert [task.id for task in claimed.tasks] == [task.id for task in tasks]
    assert await state_of(client, spoilt[0]) is None
    assert (await do(client, CALLS.reap(SHARD, SESSION, 0.5, nobody))).queued == 3


async def test_a_bucket_of_many_tasks_is_no_compact_hash_and_leaves_nothing_behind(client: redis.asyncio.Redis) -> None:
    """In a compact hash, every read of a field would search from the beginning."""
    await client.config_set("hash-max-ziplist-value", 64)
    await client.config_set("hash-max-ziplist-entries", 512)
    tasks = [new(data=b"1") for _ in range(40)]
    await do(client, CALLS.store(SHARD, SESSION, tasks, nobody))
    assert await client.object("ENCODING", bucket(tasks[0])) == b"hashtable"
    await do(client, CALLS.claim(SHARD, "default", SESSION, 40, None, nobody))
    outcomes = [ended(task, SettleKind.SUCCEEDED, b"", 0) for task in tasks]
    await do(client, CALLS.settle(SHARD, SESSION, outcomes, nobody))
    listed = await do(client, CALLS.listing(SHARD, None, "", 100, 100, ("", "", ""), nobody))
    assert len(listed.rows) == 40
    assert (await do(client, CALLS.sweep(SHARD, -1, nobody))).dropped == 40
    assert await client.keys("*") == []


async def test_a_dead_node_leaves_no_row_behind_and_one_that_lives_on_keeps_both(
    redis_server: RedisServer, client: redis.asyncio.Redis
) -> None:
    pulse = Pulse(redis_server.url, 1.0, lambda: None)
    gone, came_back = "gone/018bcfe5680-00000001", "back/018bcfe5680-00000001"
    for name, session in (("gone", gone), ("back", "back/018bcfe5999-00000002")):
        row = msgspec.msgpack.encode([session, "127.0.0.1", 5000])
        await client.hset(keys.LEADER_MEMBERS, name, row)  # type: ignore[misc,arg-type]
        await client.hset(keys.LEADER_KEYS, name, "none")  # type: ignore[misc]
    await pulse.forget(gone)
    await pulse.forget(came_back)
    for key in (keys.LEADER_MEMBERS, keys.LEADER_KEYS):
        assert await client.hkeys(key) == [b"back"]  # type: ignore[misc]
    await pulse.close()


async def test_names_of_queues_that_were_used_once_vanish(client: redis.asyncio.Redis) -> None:
    """Also where a shard has more of them than one sweep looks at; those that have a task stay."""
    kept = [new(queue=f"kept-{n}") for n in range(3)]
    passing = [new(queue=f"once-{n}") for n in range(10_000)]
    for first in range(0, len(passing), BATCH_MAX):
        await do(client, CALLS.store(SHARD, SESSION, [*passing[first : first + BATCH_MAX]], nobody))
    await do(client, CALLS.store(SHARD, SESSION, kept, nobody))
    assert await client.scard(keys.queues(SHARD)) == 10_003  # type: ignore[misc]
    answer = await do(client, CALLS.sweep(SHARD, -1, nobody))
    assert not answer.has_all_heads
    assert len(answer.heads) == 256
    for first in range(0, len(passing), 500):
        pipeline = client.pipeline(transaction=False)
        for task in passing[first : first + 500]:
            pipeline.execute_command(*CALLS.cancel(SHARD, task.id, 0, nobody).command(by_text=True))
        await pipeline.execute()
    sweeps = 1
    while not (answer := await do(client, CALLS.sweep(SHARD, -1, nobody))).has_all_heads:
        sweeps += 1
        assert sweeps < 100
    await do(client, CALLS.sweep(SHARD, -1, nobody))
    names = {raw.decode() for raw in await client.smembers(keys.queues(SHARD))}  # type: ignore[misc]
    assert names == {task.spec.queue for task in kept}


@pytest.mark.parametrize("way", ["reap", "settle", "replay", "promote"])
async def test_a_task_that_is_queued_again_is_in_sight_also_after_its_queues_name_had_gone(
    client: redis.asyncio.Redis, way: str
) -> None:
    task = new(queue="rare")
    await do(client, CALLS.store(SHARD, SESSION, [task], nobody))
    await do(client, CALLS.claim(SHARD, "rare", SESSION, 1, None, nobody))
    if way in ("replay", "promote"):
        kind, ms = (SettleKind.DEAD, 10**6) if way == "replay" else (SettleKind.RETRYING, 0)
        await do(client, CALLS.settle(SHARD, SESSION, [ended(task, kind, b"{}", ms)], nobody))
    if way != "promote":
        await do(client, CALLS.sweep(SHARD, -1, nobody))
        assert await client.smembers(keys.queues(SHARD)) == set()  # type: ignore[misc]
    if way == "reap":
        await do(client, CALLS.reap(SHARD, SESSION, 0.5, nobody))
    elif way == "settle":
        await do(client, CALLS.settle(SHARD, SESSION, [ended(task, SettleKind.RELEASED, b"", 0)], nobody))
    elif way == "replay":
        await do(client, CALLS.replay(SHARD, [task.id], nobody))
    (head,) = (await do(client, CALLS.sweep(SHARD, -1, nobody))).heads
    assert (head.queue, head.count) == ("rare", 1)


async def test_what_an_older_script_queued_without_the_queues_name_is_found_by_those_who_serve_it(
    client: redis.asyncio.Redis,
) -> None:
    await do(client, CALLS.store(SHARD, SESSION, [new(queue="rare")], nobody))
    await client.delete(keys.queues(SHARD))
    assert (await do(client, CALLS.sweep(SHARD, -1, nobody))).heads == []
    serving = Calls(60.0, 1000, 60.0, ["rare"])
    (head,) = (await do(client, serving.sweep(SHARD, -1, nobody))).heads
    assert head.count == 1
    (head,) = (await do(client, CALLS.sweep(SHARD, -1, nobody))).heads
    assert head.queue == "rare"


@pytest.mark.parametrize(("own_s", "stays_ms"), [(None, 60_000), (7.5, 7_500), (0.0, 5_000)])
async def test_a_task_that_its_workers_death_ends_stays_for_its_own_retention(
    client: redis.asyncio.Redis, own_s: float | None, stays_ms: int
) -> None:
    task = new(retention_s=own_s, max_attempts=1)
    await do(client, CALLS.store(SHARD, SESSION, [task], nobody))
    await do(client, CALLS.claim(SHARD, "default", SESSION, 1, None, nobody))
    assert (await do(client, CALLS.reap(SHARD, SESSION, 0.5, nobody))).dead == ["noop"]
    now_s, now_us = await client.time()
    till = await client.zscore(keys.dead(SHARD), task.id)
    assert till is not None
    assert 0 <= now_s * 1000 + now_us / 1000 + stays_ms - till < 2000


async def test_however_short_memory_is_a_task_stays_for_as_long_as_somebody_may_ask(
    client: redis.asyncio.Redis,
) -> None:
    """That holds for a task with a short retention of its own too, whose end is near as soon as it has finished."""
    own, usual = new(), new()
    await do(client, CALLS.store(SHARD, SESSION, [own, usual], nobody))
    await do(client, CALLS.claim(SHARD, "default", SESSION, 2, None, nobody))
    outcomes = [ended(own, SettleKind.SUCCEEDED, b"1", 100_000), ended(usual, SettleKind.SUCCEEDED, b"1", 86_400_000)]
    await do(client, CALLS.settle(SHARD, SESSION, outcomes, nobody))
    assert (await do(client, CALLS.sweep(SHARD, 60_000, nobody))).dropped == 0
    text = await client.hget(bucket(usual), usual.id + ".")  # type: ignore[misc]
    state, attempt, delivery, lost, queued_ms, *rest = text.split()
    earlier = [state, attempt, delivery, lost, b"%d" % (int(queued_ms) - 60_000), *rest]
    await client.hset(bucket(usual), usual.id + ".", b" ".join(earlier))  # type: ignore[misc]
    assert (await do(client, CALLS.sweep(SHARD, 60_000, nobody))).dropped == 1
    assert (await state_of(client, own), await state_of(client, usual)) == ("succeeded", None)


async def test_a_backoff_of_nothing_is_nothing_however_often_its_workers_died(client: redis.asyncio.Redis) -> None:
    spec = Spec("noop", "default", 5, 1000, 60.0, Backoff(0.0, 100.0, 300.0))
    task = msgspec.structs.replace(new(), spec=spec, packed=packed(spec))
    await do(client, CALLS.store(SHARD, SESSION, [task], nobody))
    await do(client, CALLS.claim(SHARD, "default", SESSION, 1, None, nobody))
    await client.hset(keys.inflight(SHARD, SESSION), task.id, "157 157 156 0 0")  # type: ignore[misc]
    before_ms = int((await client.time())[0]) * 1000
    assert (await do(client, CALLS.reap(SHARD, SESSION, 0.9, nobody))).scheduled == 1
    due_ms = await client.zscore(keys.scheduled(SHARD), task.id)
    assert due_ms is not None
    assert due_ms - before_ms < 5_000


@pytest.mark.parametrize(
    "lease", ["garbage", "b/018bcfe5680-00000001|7", "x|99999999999999999999", ["a", "list"], None]
)
@pytest.mark.parametrize("epoch", ["garbage", "9" * 40, "nan", ["a", "list"], None])
async def test_garbage_in_the_leader_s_place_keeps_nobody_from_leading(
    client: redis.asyncio.Redis, redis_server: RedisServer, lease: Any, epoch: Any
) -> None:
    for key, value in ((keys.LEADER_LEASE, lease), (keys.LEADER_EPOCH, epoch)):
        if isinstance(value, list):
            await client.rpush(key, *value)  # type: ignore[misc]
        elif value is not None:
            await client.set(key, value)
    pulse = Pulse(redis_server.url, 1.0, lambda: None)
    try:
        term = await pulse.lease(Acquire(SESSION), 5_000, 3)
        assert term is not None
        assert term.session == SESSION
        assert term.epoch >= 4
        await client.delete(keys.LEADER_EPOCH)
        await client.rpush(keys.LEADER_EPOCH, "again")  # type: ignore[misc]
        assert await pulse.lease(RenewTerm(term), 5_000, 3) == term
        assert await pulse.snapshot(term.epoch, b"{}", 1000)
    finally:
        await pulse.close()
