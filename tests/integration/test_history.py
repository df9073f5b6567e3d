"""A task's history: one line, in order, for each attempt that did not succeed, within bounds; a success writes none."""

from __future__ import annotations

from typing import Any

import msgspec

from cluster import keys
from cluster.shards.answers import SettleKind
from cluster.shards.calls import Settlement
from node.queue.engine import Engine
from node.schema import BackoffJson, ListQuery, TaskJson
from tests.integration.test_engine import engine as engine
from tests.integration.test_engine import submit
from tests.waiting import wait_until_async

AT_ONCE = BackoffJson(base_s=0)


def bucket(engine: Engine, task: TaskJson) -> str:
    return keys.bucket_prefix(engine.queries.shard(task.id)) + task.id[:9]


def outcomes(task: TaskJson) -> list[tuple[str, int | None, int]]:
    assert task.history is not msgspec.UNSET
    return [(attempt.outcome, attempt.attempt, attempt.delivery) for attempt in task.history]


async def test_a_success_writes_no_history(engine: Engine) -> None:
    done = await engine.wait((await submit(engine, "noop")).id, 5)
    assert outcomes(done) == []
    assert not await engine.client.hexists(bucket(engine, done), done.id + ".history")


async def test_failures_replays_and_cancels_are_told_in_order(engine: Engine) -> None:
    task = await submit(engine, "fail", {"message": "no luck"}, max_attempts=2, backoff=AT_ONCE)
    await engine.wait(task.id, 5)
    await engine.retry(task.id)
    done = await engine.wait(task.id, 5)
    assert outcomes(done) == [
        ("retrying", 1, 1),
        ("dead", 2, 2),
        ("replayed", 2, 2),
        ("retrying", 1, 3),
        ("dead", 2, 4),
    ]
    assert done.history
    first = done.history[0]
    assert first.error
    assert first.error.message == "no luck"
    assert first.node_id == engine.config.name
    assert first.started_at_ms
    assert first.started_at_ms <= first.at_ms
    later = await submit(engine, "noop", delay_s=60)
    await engine.cancel(later.id)
    assert outcomes(await engine.get(later.id)) == [("cancelled", None, 0)]


async def test_a_lost_worker_and_its_late_outcome_are_told_and_the_outcome_only_once(engine: Engine) -> None:
    task = await submit(engine, "sleep", 0.5, backoff=AT_ONCE)
    shard = engine.queries.shard(task.id)
    old = engine.dispatch.session
    claimed = engine.worker.running[task.id].claimed
    engine.housekeeping.reap(old, [shard])  # as after a pause: this node does not know that it was fenced
    await wait_until_async(lambda: engine.metrics.reaped.value == 1, 5, "it is queued again")
    for _ in range(2):
        late = Settlement(claimed, SettleKind.SUCCEEDED, b"1", 1000)
        engine.shards.send(engine.shards.calls.settle(shard, old, [late], lambda _: None))
    done = await engine.wait(task.id, 5)
    entries = outcomes(done)
    assert entries[0] == ("lost", 1, 1)
    assert entries.count(("refused", None, 1)) == 1
    assert done.state == "succeeded"


async def test_a_history_is_bounded_in_entries_and_bytes_and_cut_at_whole_characters(engine: Engine) -> None:
    task = await submit(engine, "fail", {"message": "\x01é" * 2000}, max_attempts=30, backoff=AT_ONCE)
    done = await engine.wait(task.id, 10)
    history = done.history
    assert history
    assert len(history) <= 20
    assert history[-1].outcome == "dead"
    assert history[-1].attempt == 30
    kept = await engine.client.hget(bucket(engine, task), task.id + ".history")
    assert kept is not None
    assert len(kept) <= 8192
    assert history[-1].error
    assert history[-1].error.message.endswith("…")


async def test_only_one_tasks_own_page_shows_its_history(engine: Engine) -> None:
    task = await submit(engine, "fail", max_attempts=1)
    await engine.wait(task.id, 5)
    page = (await engine.list_tasks(ListQuery())).tasks
    assert [row.history for row in page] == [msgspec.UNSET]
    as_told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(page[0]))
    assert "history" not in as_told
