"""A lane against a real Redis that is silent, restarted or forgetful: every call gets one answer, and its own.

Deadlines are those of the lane (`TIMEOUT_S`) and, for a lane that is down, of one look (`TIMEOUT_S` again) and the
pause between two looks.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
import uvloop
from redis.exceptions import ResponseError

from cluster.deadline import GRACE_S
from cluster.errors import StoreUnavailable
from cluster.redis_client import connect
from cluster.scripts import Arg
from cluster.shards.answers import ShardCounts, Swept
from cluster.shards.calls import Calls
from cluster.shards.lane import PROBE_INTERVAL_S, Call, Lane
from cluster.shards.redis_clock import ASK_EVERY_S
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until_async

TIMEOUT_S = 0.4
LATE_S = 0.3  # delay that a busy test machine may add to a deadline
SESSION = "a/018bcfe5680-00000001"
CALLS = Calls(60.0, 1000, 60.0)


class Bench:
    """A lane, the states that it reported, and calls to it whose replies are futures."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.with_the_next: list[Call] = []
        self.states: list[bool] = []
        self.lane = Lane(client, TIMEOUT_S, self._collect, self.states.append)
        self.lane.start()

    def _collect(self) -> list[Call]:
        calls, self.with_the_next = self.with_the_next, []
        return calls

    def ask(self, *words: Arg) -> asyncio.Future[Any]:
        """Add a plain command; the future gets its reply, even if that is an exception."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.add(Call("", (str(words[0]),), list(words[1:]), future.set_result))
        return future

    def counts(self, shard: int = 1) -> asyncio.Future[Any]:
        """Add a call of a script that only reads."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.lane.add(CALLS.counts(shard, future.set_result))
        return future


@pytest.fixture
async def bench(redis_server: RedisServer) -> AsyncIterator[Bench]:
    client = connect(redis_server.url)
    bench = Bench(client)
    yield bench
    await bench.lane.close()
    await client.aclose()


STATES = ("scheduled", "retrying", "waiting", "succeeded", "dead", "cancelled", "running")
EMPTY = ShardCounts(dict.fromkeys(STATES, 0), {}, {})


async def test_what_the_answers_began_is_sent_with_the_next_group(bench: Bench) -> None:
    await bench.ask("ECHO", "first")
    groups, replies, jobs = bench.lane.groups, list[asyncio.Future[Any]](), list[asyncio.Task[None]]()

    async def ask() -> None:
        replies.append(bench.ask("ECHO", "of a task"))

    def begin(_: Any) -> None:
        replies.append(bench.ask("ECHO", "at once"))
        jobs.extend(asyncio.create_task(ask()) for _ in range(3))

    bench.lane.add(Call("", ("ECHO",), ["begin"], begin))
    await wait_until_async(lambda: len(replies) == 4, 5, "the tasks have asked")
    assert [await reply for reply in replies] == [b"at once", *[b"of a task"] * 3]
    assert bench.lane.groups == groups + 2


async def test_what_is_asked_for_while_a_group_is_under_way_forms_the_next_one(bench: Bench) -> None:
    assert await bench.ask("ECHO", "first") == b"first"
    groups = bench.lane.groups
    replies = [bench.ask("ECHO", f"{n}") for n in range(3)]
    await asyncio.sleep(0)  # the three are on their way
    replies += [bench.ask("ECHO", f"{n}") for n in range(3, 100)]
    assert [await reply for reply in replies] == [b"%d" % n for n in range(100)]
    assert bench.lane.groups == groups + 2
    await wait_until_async(lambda: bench.lane.is_idle, 1, "the lane is at rest")


async def test_what_the_owner_collects_travels_behind_what_was_added(bench: Bench) -> None:
    order: list[str] = []
    bench.with_the_next = [Call("", ("PING",), [], lambda _: order.append("collected"))]
    bench.lane.add(Call("", ("PING",), [], lambda _: order.append("added")))
    await wait_until_async(lambda: len(order) == 2, 1, "both are answered")
    assert order == ["added", "collected"]
    assert bench.lane.groups == 1
    bench.with_the_next = [Call("", ("PING",), [], lambda _: order.append("kicked"))]
    bench.lane.kick()
    await wait_until_async(lambda: order[-1] == "kicked", 1, "a kick alone lets the owner be asked")


async def test_large_groups_are_answered_in_order(bench: Bench) -> None:
    text = "x" * 1000
    replies = [bench.ask("ECHO", f"{n} {text}") for n in range(5000)]
    assert await asyncio.gather(*replies) == [f"{n} {text}".encode() for n in range(5000)]
    assert bench.lane.groups <= 2


async def test_the_error_of_one_call_is_its_own(bench: Bench) -> None:
    await bench.ask("SET", "{s01}:queues", "no set")
    before, broken, plain, after = (
        bench.counts(2),
        bench.counts(1),
        bench.ask("LPOP", "{s01}:queues"),
        bench.ask("ECHO", "after"),
    )
    assert await before == EMPTY
    assert "WRONGTYPE" in str(await broken)
    assert isinstance(await broken, ResponseError)
    assert isinstance(await plain, ResponseError)
    assert await after == b"after"
    assert bench.lane.is_up


async def test_a_redis_that_forgot_the_scripts_is_told_them_again(bench: Bench, redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    for _ in range(2):
        await client.script_flush()
        replies = [bench.counts(shard) for shard in range(50)]
        other = bench.ask("ECHO", "beside")
        assert await asyncio.gather(*replies) == [EMPTY] * 50
        assert await other == b"beside"
    calls = (await client.info("commandstats"))["cmdstat_eval"]["calls"]
    assert calls == 2, "each text is sent once"
    await client.aclose()


async def test_a_silent_redis_fails_the_group_within_its_deadline_as_maybe_carried_out(
    bench: Bench, redis_server: RedisServer
) -> None:
    await bench.counts()
    redis_server.stop()
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    group = [bench.ask("SET", f"k{n}", "v") for n in range(3)]
    await asyncio.sleep(0.05)
    behind = bench.ask("SET", "behind", "v")
    replies = await asyncio.gather(*group)
    assert loop.time() - began_s <= TIMEOUT_S + GRACE_S + LATE_S
    assert all(isinstance(reply, StoreUnavailable) and reply.may_have_happened for reply in replies)
    reply = await behind
    assert isinstance(reply, StoreUnavailable)
    assert not reply.may_have_happened, "it never left"
    assert loop.time() - began_s <= TIMEOUT_S + GRACE_S + LATE_S
    for _ in range(3):
        began_s = loop.time()
        reply = await bench.ask("PING")
        assert isinstance(reply, StoreUnavailable)
        assert not reply.may_have_happened
        assert loop.time() - began_s < 0.1, "nobody waits for a Redis that is known to be away"
    assert bench.states == [False]
    redis_server.cont()
    await wait_until_async(lambda: bench.lane.is_up, TIMEOUT_S + PROBE_INTERVAL_S + 2, "it comes back by itself")
    assert bench.states == [False, True]
    assert await bench.ask("EXISTS", "behind") == 0
    assert await bench.ask("EXISTS", "k0", "k1", "k2") in (0, 3)


async def test_a_late_answer_is_never_taken_for_the_next_calls(bench: Bench, redis_server: RedisServer) -> None:
    await bench.ask("PING")
    for turn in range(3):
        redis_server.stop()
        lost = bench.ask("ECHO", f"lost {turn}")
        assert isinstance(await lost, StoreUnavailable)
        redis_server.cont()  # and now it answers the command from before
        await wait_until_async(lambda: bench.lane.is_up, 5, "it comes back")
        replies = [bench.ask("ECHO", f"{turn}/{n}") for n in range(20)]
        assert await asyncio.gather(*replies) == [f"{turn}/{n}".encode() for n in range(20)]


async def test_a_restarted_redis_is_found_again_and_knows_what_it_acknowledged(
    bench: Bench, redis_server: RedisServer
) -> None:
    assert await bench.ask("SET", "kept", "yes") == b"OK"
    await bench.counts()
    redis_server.kill()
    reply = await bench.ask("GET", "kept")
    assert isinstance(reply, StoreUnavailable)
    reply = await bench.ask("GET", "kept")
    assert isinstance(reply, StoreUnavailable)
    assert not reply.may_have_happened
    redis_server.start()
    await wait_until_async(lambda: bench.lane.is_up, 5, "it comes back")
    assert await bench.ask("GET", "kept") == b"yes"
    assert await bench.counts() == EMPTY, "the scripts are gone from the new one, and sent again"


async def test_a_call_that_could_not_connect_certainly_did_not_happen(redis_server: RedisServer) -> None:
    redis_server.kill()
    client = connect(redis_server.url)
    bench = Bench(client)
    reply = await bench.ask("SET", "a", "b")
    assert isinstance(reply, StoreUnavailable)
    assert not reply.may_have_happened
    assert "was not carried out" in str(reply)
    await bench.lane.close()
    await client.aclose()


async def test_a_busy_loop_is_no_silent_redis(bench: Bench, redis_server: RedisServer) -> None:
    """The answer came while the loop was busy: the lane reads the socket's buffer before it believes the clock."""
    await bench.ask("PING")
    redis_server.stop()
    reply = bench.ask("ECHO", "there")
    for _ in range(10):
        await asyncio.sleep(0)  # it has left
    redis_server.cont()
    block(TIMEOUT_S + 0.1)
    assert await reply == b"there"
    assert bench.states == []


def block(for_s: float) -> None:
    """Block the loop, as an async handler does that should have been a plain `def`."""
    time.sleep(for_s)


async def test_a_caller_that_chokes_on_its_answer_chokes_alone(bench: Bench) -> None:
    def choke(_: Any) -> None:
        raise ValueError("not what I wanted")

    bench.lane.add(Call("", ("PING",), [], choke))
    beside = bench.ask("ECHO", "beside")
    assert await beside == b"beside"
    assert await bench.ask("ECHO", "after") == b"after"


class Relay:
    """Passes bytes on to Redis until it resets its connections, as a firewall does that has forgotten them."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._clients: list[asyncio.StreamWriter] = []
        self._copying: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Begin to serve; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._clients.append(writer)
        for source, target in ((reader, to_writer), (to_reader, writer)):
            self._copying.append(asyncio.get_running_loop().create_task(self._copy(source, target)))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                target.write(data)
        except OSError:
            pass  # reset
        finally:
            target.transport.abort()

    def reset(self) -> None:
        for client in self._clients:
            client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()
        self._clients.clear()

    async def close(self) -> None:
        self.reset()
        self._server.close()
        for task in self._copying:
            task.cancel()
        await asyncio.gather(*self._copying, return_exceptions=True)


def test_a_connection_that_is_reset_while_idle_costs_one_group_and_not_the_lane(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        relay = Relay(redis_server.port)
        client = connect(f"redis://127.0.0.1:{await relay.start()}/0")
        bench = Bench(client)
        assert await bench.ask("ECHO", "before") == b"before"
        for _ in range(3):
            relay.reset()
            await asyncio.sleep(0.05)
            reply = await asyncio.wait_for(bench.ask("ECHO", "lost"), TIMEOUT_S + LATE_S)
            assert isinstance(reply, StoreUnavailable)
            await wait_until_async(lambda: bench.lane.is_up, PROBE_INTERVAL_S + LATE_S, "it connects anew")
            assert await bench.ask("ECHO", "after") == b"after"
        await bench.lane.close()
        await client.aclose()
        await relay.close()

    uvloop.run(scenario())  # a node's loop, on which a write to a reset connection raises RuntimeError, not OSError


async def test_a_call_that_cannot_be_sent_is_answered_and_does_not_end_the_lane(bench: Bench) -> None:
    no_text, beside = bench.ask("ECHO", "\udcff"), bench.ask("ECHO", "beside")
    assert isinstance(await no_text, StoreUnavailable)
    assert isinstance(await beside, StoreUnavailable)
    await wait_until_async(lambda: bench.lane.is_up, PROBE_INTERVAL_S + LATE_S, "it goes on")
    assert await bench.ask("ECHO", "after") == b"after"


async def test_a_clock_of_redis_that_jumps_costs_no_call(bench: Bench) -> None:
    """Forward: Redis refuses, and says what time it is. Back: the next estimate follows."""
    clock = bench.lane._clock
    for ahead_ms in (None, -3_600_000.0, 3_600_000.0, 0.0):
        clock._ahead_ms = ahead_ms
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        bench.lane.add(CALLS.sweep(1, -1, answer.set_result))
        assert isinstance(await answer, Swept), ahead_ms
    clock._asked_s -= ASK_EVERY_S
    await bench.ask("PING")
    assert clock.not_after_ms(asyncio.get_running_loop().time()) / 1000 - time.time() < 5


async def test_a_clock_that_jumps_again_and_again_makes_an_error_that_says_that_nothing_happened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.lane._clock, "not_after_ms", lambda until_s: 1)
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    bench.lane.add(CALLS.sweep(1, -1, answer.set_result))
    plain = bench.ask("ECHO", "beside it")
    error = await answer
    assert isinstance(error, StoreUnavailable)
    assert not error.may_have_happened
    assert await plain == b"beside it"
    assert bench.lane.is_up


async def test_a_redis_that_forgot_the_scripts_and_has_another_clock_is_told_both(
    bench: Bench, redis_server: RedisServer
) -> None:
    bench.lane._clock._ahead_ms = 0.0
    answers: list[asyncio.Future[Any]] = []
    for shard in (1, 2, 1):
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        bench.lane.add(CALLS.sweep(shard, -1, answer.set_result))
        answers.append(answer)
    assert [type(answer) for answer in await asyncio.gather(*answers)] == [Swept] * 3
