"""Tasks whose last handler is gone wait at no cost, are named, and go on at once when a handler is back."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster import keys
from cluster.config import Config
from cluster.errors import Conflict
from cluster.shards.task import State
from cluster.vitals.told import NewView
from node.observe.metrics import Metrics
from node.queue.engine import Engine
from node.schema import ListQuery, Submission, Submitted
from node.tasks import Registry
from node.tasks import load as load_handlers
from tests.chaos.nodes import fleet
from tests.integration.test_engine import LoneVitals, submit
from tests.processes import free_base_port
from tests.waiting import wait_until, wait_until_async

MODULE = "tests.integration.gone_tasks"
TYPE = "gone.now"
SHARDS = 4
PARKED = keys.parked("default", TYPE)


@asynccontextmanager
async def lone(url: str, name: str, *modules: str) -> AsyncIterator[Engine]:
    config = Config(redis_url=url, node_id=name, shards=SHARDS, queues="default:8,sync:1")
    registry = load_handlers(modules)
    # One process has all handlers that it ever imported.
    chosen = [handler for handler in registry if modules or handler.name != TYPE]
    engine = Engine(config, Registry(chosen, modules), Metrics(), [])
    await engine.upkeep.announce()
    await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
    try:
        yield engine
    finally:
        await engine.close()


async def parked(engine: Engine) -> int:
    counts = [await engine.client.zcard(keys.ready(shard, PARKED)) for shard in range(SHARDS)]
    return int(sum(counts))


def problem(engine: Engine) -> dict[str, Any] | None:
    found = [row for row in engine.health()["problems"] if row["code"] == "type_unhandled"]
    return found[0] if found else None


def claims(engine: Engine) -> int:
    return sum(engine.metrics.claims.values.values())


async def sweeps(engine: Engine, count: int) -> None:
    until = engine.housekeeping.sweeps + count
    await wait_until_async(lambda: engine.housekeeping.sweeps >= until, 5.0 * count, "it sweeps")


async def known_type(url: str) -> None:
    """A node that had the type was there once."""
    async with lone(url, "first", MODULE) as engine:
        await wait_until_async(lambda: engine.catalog.get(TYPE) is not None, 5.0, "its own types")
        await engine.catalog.publish(engine.client)


async def test_tasks_without_a_handler_wait_at_no_cost_and_go_on_when_it_is_back(redis_server: Any) -> None:
    await known_type(redis_server.url)
    async with lone(redis_server.url, "second") as engine:
        results = await engine.submit([Submission(type=TYPE, data=msgspec.Raw(b"0"))] * 300)
        ids = [result.task.id for result in results if isinstance(result, Submitted)]
        assert len(ids) == 300
        await wait_until_async(lambda: engine.metrics.commits.values["released"] == 300, 10.0, "each is claimed once")
        await sweeps(engine, 1)
        await wait_until_async(lambda: (problem(engine) or {}).get("count") == 300, 5.0, "the problem is told")
        told = problem(engine)
        assert told is not None
        assert told["message"].startswith(f"300 tasks of type '{TYPE}' wait since 20")
        assert told["type"] == TYPE
        task = await engine.get(ids[0])
        assert task.queued_at_ms is not None
        assert (task.state, task.attempt, task.delivery) == ("queued", 0, 1)
        assert 0 <= told["since_ms"] - task.queued_at_ms < 10_000
        assert engine.health()["status"] == "degraded"

        before = claims(engine)
        await sweeps(engine, 4)
        assert claims(engine) == before, "nobody hands them round"
        assert await parked(engine) == 300
        assert (await submit(engine, "noop")).state == "running", "others go on"
        async with lone(redis_server.url, "third", MODULE) as able:
            for task_id in ids:
                assert (await able.wait(task_id, 20)).state == "succeeded"
            assert able.metrics.commits.values["succeeded"] >= 300
        await sweeps(engine, 1)
        await wait_until_async(lambda: problem(engine) is None, 5.0, "the problem is over")


async def test_a_parked_task_is_listed_cancelled_and_replayed_like_any_other(redis_server: Any) -> None:
    await known_type(redis_server.url)
    async with lone(redis_server.url, "second") as engine:
        one, other = [(await submit(engine, TYPE, 0)).id for _ in range(2)]
        await wait_until_async(lambda: engine.metrics.commits.values["released"] == 2, 5.0, "both are parked")
        page = await engine.list_tasks(ListQuery(state=State.QUEUED))
        assert sorted(task.id for task in page.tasks) == sorted([one, other])
        assert (await engine.cancel(one)).state == "cancelled"
        assert await parked(engine) == 1
        with pytest.raises(Conflict):
            await engine.retry(other)
        await engine.retry(one)
        await wait_until_async(lambda: engine.metrics.commits.values["released"] == 3, 5.0, "it is parked again")
        for task_id in (one, other):
            await engine.cancel(task_id)
        assert await parked(engine) == 0
        await sweeps(engine, 2)
        assert problem(engine) is None


def test_tasks_of_the_last_node_with_their_handler_outlive_it_and_go_on_when_it_is_back(
    redis_server: Any, tmp_path: Path
) -> None:
    with fleet(tmp_path, redis_server.url, tasks="") as nodes:
        nodes.start(2)
        able = nodes.make("127.0.0.1", free_base_port(1), tasks=MODULE)
        nodes.begin([able])
        others = nodes.nodes[:2]
        first = nodes.spread(TYPE, 1, each=20)
        assert {row["result"] for row in nodes.wait_ended(first, 20)} == {2}
        able.kill()
        for node in others:
            wait_until(lambda node=node: node.member(able.node_id)["verdict"] == "dead", 10, "its death is known")
        ids = [task_id for node in others for task_id in node.submit(TYPE, 1, 200)]

        def counts() -> set[int]:
            rows = [row for node in others for row in node.get("/health")["problems"]]
            return {row["count"] for row in rows if row["code"] == "type_unhandled" and row["type"] == TYPE}

        wait_until(lambda: counts() == {400}, 10, "each node tells of all tasks")
        claimed = sum(node.metric("rumor_task_claims_total") for node in others)
        up_s = others[0].get("/health")["uptime_s"]
        wait_until(lambda: others[0].get("/health")["uptime_s"] > up_s + 3, 10, "three sweeps")
        assert sum(node.metric("rumor_task_claims_total") for node in others) == claimed
        told = [node.metric("rumor_unhandled_tasks", type=TYPE, queue="default") for node in others]
        assert sorted(told) == [0, 400], "the leader tells of the cluster"
        able.start()
        rows = nodes.wait_ended(ids, 20)
        assert {(row["state"], row["result"], row["attempt"]) for row in rows} == {("succeeded", 2, 1)}
        wait_until(lambda: counts() == set(), 10, "nothing is wrong any more")


async def test_while_a_node_does_not_say_what_it_has_nothing_is_parked(redis_server: Any) -> None:
    """A node of an older version: it may have the type, and its tasks must reach it."""
    await known_type(redis_server.url)
    async with lone(redis_server.url, "second") as engine:
        older = dataclasses.replace(engine.vitals.view.members[0], node_id="older", session="older/1-1")
        engine.hear(NewView(dataclasses.replace(engine.vitals.view, members=(*engine.vitals.view.members, older))))
        task = await submit(engine, TYPE, 0)
        await wait_until_async(lambda: engine.metrics.commits.values["released"] >= 2, 10.0, "it is handed round")
        assert await parked(engine) == 0
        await engine.client.set(keys.handlers("older"), msgspec.msgpack.encode(["another"]))
        await engine.handlers.refresh(engine.client)

        async def is_parked() -> bool:
            return await parked(engine) == 1

        async with asyncio.timeout(10):
            while not await is_parked():
                await asyncio.sleep(0.05)
        assert (await engine.get(task.id)).state == "queued"
