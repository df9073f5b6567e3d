"""One node's heartbeat: what it says to Redis, in which order, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.config import Config
from cluster.errors import StoreUnavailable, away, refused
from cluster.vitals.calls import MemberRow
from cluster.vitals.heartbeat import Heartbeat
from tests.fake_pulse import FakePulse
from tests.waiting import wait_until_async

FIRST, SECOND = "n1/018bcfe5680-00000001", "n1/018bcfe5999-00000002"
LIMIT_S = 5.0


class Script:
    """Stands for the life: notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.when_fenced: Callable[[], None] = lambda: None

    def on_fenced(self, cause: str) -> None:
        self.told.append(f"fenced {cause}")
        self.when_fenced()

    def on_registered(self) -> None:
        self.told.append("registered")

    def on_reach(self, is_ok: bool) -> None:
        self.told.append(f"reach {is_ok}")

    def on_refusal(self) -> None:
        self.told.append("refusal")

    def on_message(self, message: bytes) -> None:
        self.told.append(message.decode())


class Body:
    """A heartbeat with the script and the Redis that it was made with."""

    def __init__(self, **settings: Any) -> None:
        self.pulse, self.script, self.stats = FakePulse(), Script(), Counter[str]()
        self.config = Config(node_id="n1", redis_timeout_s=0.05, **settings)
        row = MemberRow(FIRST, "127.0.0.1", 5000)
        self.heart = Heartbeat(self.config, self.pulse, row, self.script, self.stats)  # type: ignore[arg-type]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self.heart.listen())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now_s = [1_000.0]
    monkeypatch.setattr("cluster.vitals.heartbeat.boot_s", lambda: now_s[0])
    return now_s


async def test_a_session_that_does_not_hear_its_channel_says_nothing() -> None:
    body = Body()
    await body.heart.beat()
    assert body.pulse.heartbeats == {}
    assert not body.heart.redis_ok
    async with body.listening():
        await body.heart.beat()
    assert body.pulse.heartbeats == {FIRST: b"2 votes"}
    assert body.script.told == ["reach True", "registered"]
    assert body.pulse.rows["n1"].session == FIRST


async def test_redis_is_away_or_back_once_each() -> None:
    body = Body()
    async with body.listening():
        for failure in (away(), None, None, away(), away(), None):
            body.pulse.failure = failure
            await body.heart.beat()
    assert body.script.told == ["reach True", "registered", "registered", "reach False", "reach True", "registered"]
    assert (body.stats["beats"], body.stats["beats_failed"]) == (3, 3)


async def test_a_refusal_is_told_before_redis_counts_as_away_and_ends_before_it_is_back() -> None:
    body = Body()
    async with body.listening():
        await body.heart.beat()
        body.script.told.clear()
        body.pulse.failure = refused(RuntimeError("NOREPLICAS Not enough good replicas to write."))
        await body.heart.beat()
        await body.heart.beat()
        assert body.heart.refusal is not None
        assert body.script.told == ["refusal", "reach False"]
        body.pulse.failure = None
        await body.heart.beat()
    assert body.heart.refusal is None
    assert body.script.told == ["refusal", "reach False", "refusal", "reach True", "registered"]


async def test_a_fenced_session_says_no_more_and_the_next_one_subscribes_before_it_beats() -> None:
    body = Body()
    body.script.when_fenced = lambda: body.heart.renew(SECOND)
    async with body.listening():
        await body.heart.beat()
        body.pulse.heartbeats[FIRST] = b"fenced lease 1 n2"
        await body.heart.beat()
        assert body.script.told[-1] == "fenced lease"
        assert body.pulse.heartbeats == {FIRST: b"fenced lease 1 n2"}
        await body.heart.beat()
        assert body.pulse.heartbeats[SECOND]
        assert (await body.pulse.subscribers(FIRST), await body.pulse.subscribers(SECOND)) == (0, 1)
    assert body.pulse.rows["n1"].session == SECOND


async def test_a_session_whose_tombstone_may_be_forgotten_does_not_come_back(clock: list[float]) -> None:
    body = Body(tombstone_s=100.0)
    body.script.when_fenced = lambda: body.heart.renew(SECOND)
    async with body.listening():
        await body.heart.beat()
        clock[0] += 99.0
        assert body.heart.age_s() == 99.0
        await body.heart.beat()
        clock[0] += 101.0
        await body.heart.beat()
        assert body.script.told[-2:] == ["fenced forgotten", "registered"]
    assert set(body.pulse.heartbeats) == {FIRST, SECOND}
    assert body.heart.age_s() == 0.0


async def test_an_acknowledgement_counts_from_when_the_beat_left(clock: list[float]) -> None:
    """The process may have been stopped while the answer lay in its buffer."""
    body = Body()
    answer = body.pulse.beat

    async def late(*args: Any) -> Any:
        clock[0] += 30.0
        return await answer(*args)

    body.pulse.beat = late  # type: ignore[method-assign]
    async with body.listening():
        await body.heart.beat()
    assert body.heart.age_s() == 30.0


async def test_a_row_that_cannot_be_written_is_no_sign_that_redis_is_away() -> None:
    body = Body()

    async def enroll(*_: Any) -> None:
        raise StoreUnavailable("Redis refuses: WRONGTYPE.")

    body.pulse.enroll = enroll  # type: ignore[method-assign]
    async with body.listening():
        await body.heart.beat()
    assert body.script.told == ["reach True", "registered"]
    assert body.stats["enrollments_failed"] == 1


@pytest.mark.parametrize("subscribers", [0, 2])
async def test_a_subscription_that_is_lost_or_doubled_is_made_anew(
    subscribers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.vitals.heartbeat.RELISTEN_MIN_S", -1.0)
    body = Body()
    async with body.listening():
        await body.heart.beat()
        assert body.stats["deaf"] == 0
        if subscribers:
            body.pulse.channels[FIRST].append(asyncio.Queue())
        else:
            body.pulse.channels[FIRST].clear()
        await body.heart.beat()
        assert body.stats["deaf"] == 1
        await wait_until_async(lambda: body.stats["subscriptions"] == 2, LIMIT_S, "a new subscription")


async def test_a_message_of_another_node_is_passed_on_and_an_echo_is_not() -> None:
    body = Body()
    async with body.listening():
        await body.heart.beat()
        body.pulse.publish(FIRST, b"wake")
        await wait_until_async(lambda: "wake" in body.script.told, LIMIT_S, "the message")
    assert body.script.told == ["reach True", "registered", "wake"]
    assert body.stats["wakes"] == 1
