"""The cluster's timeline on two engines and one Redis: each event once, also for late listeners; sums of both."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import pytest

from cluster import keys
from cluster.config import Config
from cluster.vitals.told import Happened
from node.observe.metrics import Metrics
from node.observe.task_rates import STEP_S, STEPS_KEPT, Sum
from node.observe.timeline import EVENTS_MAX, Listener
from node.queue.engine import Engine
from node.tasks import load
from tests.integration.test_engine import LoneVitals, submit
from tests.waiting import wait_until_async


@pytest.fixture
async def engines(redis_server: Any) -> AsyncIterator[list[Engine]]:
    started: list[Engine] = []
    async with AsyncExitStack() as stack:
        for n in (1, 2):
            config = Config(node_id=f"n{n}", redis_url=redis_server.url, queues="default:8")
            engine = Engine(config, load([]), Metrics(), [])
            await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
            stack.push_async_callback(engine.close)
            started.append(engine)
        yield started


class Reading:
    """The events that a listener gets."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.events: list[dict[str, Any]] = []

    async def until(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        def of_kind() -> list[dict[str, Any]]:
            return [event for event in self.events if event["kind"] == kind]

        async def read() -> bool:
            for frame in (await self._listener.next(0.1)).decode().split("\n\n")[:-1]:
                self.events.append(json.loads(frame.rpartition("data: ")[2]))
            return len(of_kind()) >= count

        await wait_until_async(read, 10, f"{count} of {kind}")
        return of_kind()


def died(by: str, at_ms: int = 1) -> dict[str, Any]:
    return {"at_ms": at_ms, "kind": "member_dead", "node_id": "n3", "session": "n3/1-1", "by": by}


async def test_an_event_reaches_listeners_of_other_nodes_once_and_those_who_come_later(engines: list[Engine]) -> None:
    first, second = engines
    with second.listen(None) as listener:
        reading = Reading(listener)
        await reading.until("node_started", 2)
        first.hear(Happened(died("n1")))
        (event,) = await reading.until("member_dead")
        assert (event["seen_by"], event["by"]) == ("n1", "n1")
        second.hear(Happened({**died("n1", 2), "kind": "member_suspect"}))  # heard by gossip, not its own doing
        await reading.until("member_suspect")
    with first.listen(None) as listener:
        reading = Reading(listener)
        first.hear(Happened({**died("n1", 3), "kind": "session_fenced"}))
        await reading.until("session_fenced")
        assert len(await reading.until("member_dead")) == 1
        assert not [event for event in reading.events if event["kind"] == "member_suspect"], "only who did it tells it"


async def test_the_list_is_bounded_and_ends_with_the_cluster(engines: list[Engine]) -> None:
    first, _ = engines
    for n in range(3):
        for at_ms in range(EVENTS_MAX // 3 + 10):
            first.hear(Happened(died("n1", n * 1000 + at_ms)))
            if at_ms % 50 == 0:
                await wait_until_async(lambda: not first.bulletin._untold, 5, "told")
    await wait_until_async(lambda: not first.bulletin._untold and not first.bulletin._is_telling, 5, "told")
    assert await first.client.llen(keys.TIMELINE) == EVENTS_MAX  # type: ignore[misc]
    assert 0 < await first.client.pttl(keys.TIMELINE) <= 7 * 86_400_000


async def test_events_of_an_outage_are_told_after_it(engines: list[Engine], redis_server: Any) -> None:
    first, second = engines
    redis_server.stop()
    await wait_until_async(lambda: not first.shards.is_up, 5, "Redis is away")
    first.hear(Happened(died("n1")))
    redis_server.cont()
    with second.listen(None) as listener:
        assert len(await Reading(listener).until("member_dead")) == 1


async def test_events_that_redis_refuses_to_write_are_told_when_it_writes_again(engines: list[Engine]) -> None:
    first, second = engines
    await first.client.config_set("min-replicas-to-write", 1)
    try:
        first.hear(Happened(died("n1")))
        await wait_until_async(lambda: not first.bulletin._is_telling, 5, "it was refused")
    finally:
        await first.client.config_set("min-replicas-to-write", 0)
    with second.listen(None) as listener:
        assert len(await Reading(listener).until("member_dead")) == 1


async def test_a_listener_gets_the_sums_of_all_nodes_and_the_counts(engines: list[Engine]) -> None:
    with engines[1].listen(None) as listener:
        reading = Reading(listener)
        await reading.until("task_sums")
        succeeded: dict[str, int] = {}
        for _ in range(6):
            for engine in engines:
                await engine.wait((await submit(engine, "noop")).id, 5)
            await reading.until("task_sums", len([e for e in reading.events if e["kind"] == "task_sums"]) + 1)
            if any(e["kind"] == "task_sums" and e["nodes"] == 2 for e in reading.events):
                break
        else:
            raise AssertionError("the other node's sums never came")
        last = [event for event in reading.events if event["kind"] == "task_sums"]
        for event in last:
            for kind, counts in event["types"].items():
                succeeded[kind] = succeeded.get(kind, 0) + counts.get("succeeded", 0)
        assert succeeded["noop"] >= 2
        assert last[-1]["states"]["queued"] == 0
        assert set(last[-1]["queues"]) <= {"default"}


async def test_what_all_nodes_did_is_kept_in_steps_for_whoever_comes_later(engines: list[Engine]) -> None:
    now = int(time.time())
    for n, engine in enumerate(engines):
        counted = Sum(by=f"n{n}", accepted=2, outcomes={"succeeded": 3}, run={1: 3})
        engine.bulletin._count(counted, now // STEP_S - 3)
        engine.bulletin._count(counted, now // STEP_S - 3)
        engine.bulletin._count(Sum(by=f"n{n}"), now // STEP_S - 2)  # the step is over, and what was counted is told

    async def is_told() -> bool:
        return any(step["accepted"] for step in (await engines[0].sums())["sums"])

    await wait_until_async(is_told, 5, "the counts are in Redis")
    steps = (await engines[1].sums())["sums"]
    (step,) = [step for step in steps if step["accepted"]]
    assert (step["accepted"], step["outcomes"], step["window_s"]) == (8, {"succeeded": 12}, STEP_S)
    assert step["wait_ms"] is None
    assert step["run_ms"]["p50"] > 0
    assert [b["at_ms"] - a["at_ms"] for a, b in pairwise(steps)] == [1_000 * STEP_S] * (len(steps) - 1)
    (key,) = await engines[0].client.keys("{timeline}:sum:*")
    assert 0 < await engines[0].client.pttl(key) <= 1_000 * STEP_S * (STEPS_KEPT + 2)


async def test_a_node_counts_by_itself(engines: list[Engine]) -> None:
    assert (await submit(engines[0], "noop")).id

    async def is_counted() -> bool:
        return any(step["accepted"] for step in (await engines[1].sums())["sums"])

    await wait_until_async(is_counted, 20, "the step in which it was accepted is over, and told")


async def test_nobody_is_subscribed_while_nobody_listens(engines: list[Engine]) -> None:
    first, _ = engines

    async def subscribers() -> int:
        return int((await first.client.pubsub_numsub(keys.timeline_channel(0)))[0][1])  # type: ignore[no-untyped-call]

    async def is_heard() -> bool:
        return await subscribers() == 1

    async def is_left() -> bool:
        return await subscribers() == 0

    assert await subscribers() == 0
    with first.listen(None):
        await wait_until_async(is_heard, 5, "subscribed")
    await wait_until_async(is_left, 5, "no longer")
