"""Tasks of schema 1 are brought into this version's form, or nothing is touched.

`data/schema1.json` is what a node of commit 0d169ad left in Redis when it was killed, and how it showed each task.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio
from msgspec import Raw

from cluster import keys
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.redis_client import connect
from cluster.shards.calls import Calls
from cluster.shards.task import shard_of
from cluster.vitals.told import SessionEnded
from node.observe.metrics import Metrics
from node.queue import migration, redis_checks
from node.queue.engine import Engine
from node.queue.queries import history_json, task_json
from node.schema import ListQuery, Submission
from node.tasks import load
from tests.integration.conftest import RedisServer
from tests.integration.test_engine import LoneVitals
from tests.waiting import wait_until_async

DATA: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "schema1.json").read_text("utf-8"))
BEFORE: dict[str, dict[str, Any]] = {task["id"]: task for task in DATA["tasks"].values()}
CALLS = Calls(60.0, 1000, 60.0)
OLD = "old-1/1a22031856b-469fae45"  # the session that was killed while it ran a task
CONFIG = Config(retention_s=3e8, dead_retention_s=3e8)


def nobody(_: Any) -> None: ...


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    """A Redis with the old cluster's data."""
    redis_client = connect(redis_server.url)
    for command, key, *words in DATA["keys"]:
        plain = [base64.b64decode(word) if isinstance(word, str) else word for word in words]
        await redis_client.execute_command(command, key, *plain)
    yield redis_client
    await redis_client.aclose()


async def shown(client: redis.asyncio.Redis, task_id: str) -> dict[str, Any]:
    """A task as GET /tasks/{id} shows it."""
    call = CALLS.read(shard_of(task_id, 64) or 0, task_id, nobody)
    fields = call.decode(await client.execute_command(*call.command(by_text=True)))
    assert fields is not None
    task = task_json(task_id, fields)
    task.history = history_json(fields.history)
    shown_json: dict[str, Any] = json.loads(msgspec.json.encode(task))
    return shown_json


async def old_keys(client: redis.asyncio.Redis) -> list[bytes]:
    return [*await client.keys("*:task:*"), *await client.keys("*:index")]


async def everything(client: redis.asyncio.Redis) -> dict[bytes, Any]:
    """All sets of the shards, whose ids must stay where they are."""
    kept: dict[bytes, Any] = {}
    for key in await client.keys("{s*"):
        if await client.type(key) == b"zset" and not key.endswith((b":index", b":buckets")):
            kept[key] = await client.zrange(key, 0, -1, withscores=True)
        elif await client.type(key) == b"set":
            kept[key] = await client.smembers(key)  # type: ignore[misc]
    return kept


async def test_each_task_is_shown_as_it_was(client: redis.asyncio.Redis) -> None:
    sets = await everything(client)
    await redis_checks.agree(client, CONFIG)
    assert await migration.migrate(client, CONFIG) == len(BEFORE)
    assert {task_id: await shown(client, task_id) for task_id in BEFORE} == BEFORE
    assert await old_keys(client) == []
    assert await everything(client) == sets
    held = await client.hkeys(keys.inflight(0x36, OLD))
    assert [raw.decode() for raw in held] == [DATA["tasks"]["running"]["id"]]
    assert await migration.migrate(client, CONFIG) == 0
    assert await client.hget(keys.LEADER_CONFIG, "min_schema") == b"2", "nodes of the version before refuse to start"  # type: ignore[misc]


async def test_a_migration_that_is_cut_off_anywhere_is_finished_by_the_next_node(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "BATCH", 1)
    run = migration.call
    left = 0

    async def killed(*args: Any) -> Any:
        nonlocal left
        if left == 0:
            raise ConnectionError("killed")
        left -= 1
        return await run(*args)

    monkeypatch.setattr(migration, "call", killed)
    await redis_checks.agree(client, CONFIG)
    for calls in range(4):
        left = calls
        with pytest.raises(ConnectionError):
            await migration.migrate(client, CONFIG)
    left = len(BEFORE)
    assert await migration.migrate(client, CONFIG) == len(BEFORE) - (1 + 2 + 3)
    assert {task_id: await shown(client, task_id) for task_id in BEFORE} == BEFORE


async def test_while_an_older_node_runs_nothing_is_touched(client: redis.asyncio.Redis) -> None:
    before = await old_keys(client)
    async with client.pubsub() as channel:
        await channel.subscribe(keys.wake(OLD))
        await channel.get_message(timeout=2)
        with pytest.raises(ConfigError, match="old-1") as caught:
            await redis_checks.agree(client, CONFIG)
    assert "Stop all of them" in caught.value.hint
    assert sorted(await old_keys(client)) == sorted(before)
    assert await client.hget(keys.LEADER_CONFIG, "min_schema") == b"1"  # type: ignore[misc]
    await redis_checks.agree(client, CONFIG)


async def test_the_cluster_goes_on_with_the_old_tasks(client: redis.asyncio.Redis, redis_server: RedisServer) -> None:
    await redis_checks.agree(client, CONFIG)
    await migration.migrate(client, CONFIG)
    tasks = DATA["tasks"]
    config = dataclasses.replace(CONFIG, redis_url=redis_server.url, queues="default:4,nobody:2")
    engine = Engine(config, load([]), Metrics(), [])
    await engine.start(LoneVitals(config, engine.client))  # type: ignore[arg-type]
    try:
        for name in ("queued", "queued_low", "idempotent", "unique"):
            assert (await engine.wait(tasks[name]["id"], 5)).state == "succeeded"
        engine.hear(SessionEnded(OLD, "gone"))
        await wait_until_async(lambda: tasks["running"]["id"] in engine.worker.running, 5, "the lost task runs again")
        assert (await engine.cancel(tasks["running"]["id"])).delivery == 2
        (repeat,) = await engine.submit([Submission(type="noop", data=Raw(b'"once"'), queue="nobody")], ["first"])
        assert repeat.task.id == tasks["idempotent"]["id"]  # type: ignore[union-attr]
        assert (await engine.retry(tasks["dead"]["id"])).state in ("queued", "running")
        listed = (await engine.list_tasks(ListQuery(limit=500))).tasks
        assert {task.id for task in listed} == set(BEFORE)
    finally:
        await engine.close()
