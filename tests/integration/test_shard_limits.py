"""What one bad neighbour or a full Redis must not do to the other tasks of a shard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from cluster import keys
from cluster.lane import Call
from cluster.store import Calls, NewTask, connect
from cluster.task import Backoff, Ids, Spec
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until_async

SHARD, SESSION = 3, "a/018bcfe5680-00000001"
SPEC = Spec("noop", "default", 5, 3, 60.0, Backoff(0.0, 1.0, 0.0))
CALLS = Calls(60.0, 1000, 60.0)
IDS = Ids(1)


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    one = connect(redis_server.url)
    yield one
    await one.aclose()


def new(due: int = 0, data: bytes = b"1") -> NewTask:
    packed = msgspec.msgpack.encode(SPEC)
    task_id = IDS.next(1_700_000_000_000, SHARD)
    return NewTask(task_id, SHARD, "default", 5, due, SPEC, packed, data, False, "", 0, "", lambda *_: None, None)


async def do(client: redis.asyncio.Redis, call: Call) -> Any:
    return await client.execute_command(*call.command(by_text=True))


def nobody(_: Any) -> None: ...


async def test_a_full_redis_still_drops_what_is_past_its_time_although_something_is_due(
    client: redis.asyncio.Redis,
) -> None:
    """Promoting needs memory, dropping gives it back: the other way round, a full Redis would stay full."""
    done, due = new(data=b'"%s"' % (b"x" * 2_000_000)), new(due=-1)
    await do(client, CALLS.store(SHARD, SESSION, [done, due], nobody))
    await do(client, CALLS.claim(SHARD, "default", SESSION, 1, None, nobody))
    assert await do(client, CALLS.settle(SHARD, SESSION, [(done.id, 1, "s", b"1", 0)], nobody)) == [b"1"]
    used = int((await client.info("memory"))["used_memory"])
    await client.config_set("maxmemory", used - 1_000_000)
    with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        await do(client, CALLS.store(SHARD, SESSION, [new()], nobody))

    async def kept() -> bool:
        _, promoted, dropped, *_ = await do(client, CALLS.keep(SHARD, 0, nobody))
        return bool(promoted and dropped)

    assert await wait_until_async(kept, 5, "the finished task is dropped, and the due one queued")
    assert not await client.exists(keys.task(SHARD, done.id))
    assert await client.hget(keys.task(SHARD, due.id), "state") == b"queued"  # type: ignore[misc]
