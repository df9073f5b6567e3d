"""The reads' way against a real Redis: small groups, a rest after each, and one answer for every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.errors import StoreUnavailable
from cluster.redis_client import connect
from cluster.scripts import Arg
from cluster.shards.aside import TURN_US, Aside
from cluster.shards.lane import Call
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until_async

TIMEOUT_S = 0.4
BUSY_MS = 20
BUSY = (  # holds Redis for BUSY_MS
    "local function ms() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end "
    f"local from = ms() while ms() - from < {BUSY_MS} do end return 1"
)


class Bench:
    """The reads' way, and calls to it whose replies are futures."""

    def __init__(self, aside: Aside) -> None:
        self.aside = aside

    def ask(self, us: int, *words: Arg) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.aside.add(Call("", (str(words[0]),), list(words[1:]), future.set_result), us)
        return future

    @property
    def groups(self) -> int:
        return self.aside._lane.groups


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    client = connect(redis_server.url)
    aside = Aside(client, TIMEOUT_S)
    aside.start()
    yield Bench(aside)
    await aside.close()
    await client.aclose()


async def test_a_group_holds_redis_for_no_longer_than_a_turn(bench: Bench) -> None:
    replies = [bench.ask(TURN_US * 2 // 5, "ECHO", str(n)) for n in range(10)]
    assert await asyncio.gather(*replies) == [b"%d" % n for n in range(10)]
    assert bench.groups == 5, "two go together"
    assert await asyncio.gather(*(bench.ask(TURN_US * 3, "ECHO", "long") for _ in range(3))) == [b"long"] * 3
    assert bench.groups == 8, "a call that is longer than a turn goes alone"
    await asyncio.gather(*(bench.ask(TURN_US // 100, "ECHO", "short") for _ in range(100)))
    assert bench.groups == 9


async def test_what_others_ask_comes_between_two_reads(bench: Bench, redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    reads = [bench.ask(TURN_US, "EVAL", BUSY, 0) for _ in range(10)]
    last = reads[-1]
    pings = 0
    while not last.done():
        await client.ping()
        pings += 1
    assert [await read for read in reads] == [1] * 10
    # A PING that came while a read held Redis is answered before the next read leaves.
    assert pings >= 10
    await client.aclose()


async def test_while_redis_is_away_every_read_fails_and_then_all_is_as_before(
    bench: Bench, redis_server: RedisServer
) -> None:
    await bench.ask(1, "PING")
    redis_server.stop()
    replies = await asyncio.gather(*(bench.ask(TURN_US, "PING") for _ in range(20)))
    assert all(isinstance(reply, StoreUnavailable) for reply in replies), "the one under way, and those that waited"
    assert not bench.aside.is_up
    assert isinstance(await bench.ask(1, "PING"), StoreUnavailable)
    redis_server.cont()
    await wait_until_async(lambda: bench.aside.is_up, 5, "it comes back by itself")
    assert await asyncio.gather(*(bench.ask(TURN_US, "ECHO", "back") for _ in range(3))) == [b"back"] * 3


async def test_a_read_whose_connection_is_cut_fails_and_the_next_one_does_not(
    bench: Bench, redis_server: RedisServer
) -> None:
    client = connect(redis_server.url)
    await bench.ask(1, "CLIENT", "SETNAME", "aside")
    reads = [bench.ask(TURN_US, "EVAL", BUSY, 0) for _ in range(5)]
    (row,) = [row for row in await client.client_list() if row["name"] == "aside"]
    await client.client_kill_filter(_id=row["id"])
    outcomes = [await read for read in reads]
    assert isinstance(outcomes[-1], StoreUnavailable)
    assert all(outcome == 1 or isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    await wait_until_async(lambda: bench.aside.is_up, 5, "it connects anew")
    assert await bench.ask(1, "ECHO", "anew") == b"anew"
    await client.aclose()


async def test_a_way_at_rest_whose_server_was_restarted_is_looked_for_before_the_next_read(
    bench: Bench, redis_server: RedisServer
) -> None:
    assert await bench.ask(10, "EXISTS", "x") == 0
    redis_server.kill()
    redis_server.restart()
    bench.aside.doubt()
    assert not bench.aside.is_up
    await wait_until_async(lambda: bench.aside.is_up, 5, "it found the server again, although nobody read")
    assert await bench.ask(10, "EXISTS", "x") == 0
