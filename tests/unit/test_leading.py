"""The driver of the lease: when it asks, what it tells, and that it says nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from cluster.config import Config
from cluster.swim.events import SetEpoch
from cluster.view import View
from cluster.vitals.leading import Leading
from cluster.vitals.lease import Acquire, Lease, Takeover, Term, Wish
from tests.fake_pulse import FakePulse
from tests.waiting import wait_until_async

ME, OTHER = "n1/018bcfe5680-00000001", "n2/018bcfe5680-00000002"
LIMIT_S = 5.0


class Script:
    """Stands for the life, with a Redis in which the lease is what the test says."""

    def __init__(self) -> None:
        self.redis_ok = True
        self.view = View("n1", ME, (), None, 0, True, True)
        self.is_able = True
        self.ended: set[str] = set()
        self.leaders: list[Term | None] = []
        self.wishes: list[Wish] = []
        self.fed: list[Any] = []
        self.holder: Callable[[Wish], Term | None] = lambda wish: Term(ME, 1)
        self.pulse = FakePulse()
        self.pulse.lease = self.lease  # type: ignore[method-assign]
        config = Config(node_id="n1", leader_lease_s=5.0)
        swim, gossip = SimpleNamespace(epoch=0), SimpleNamespace(feed=self.fed.append)
        self.lease_of_us = Lease(ME, config.leader_lease_s)
        self.leading = Leading(config, self.lease_of_us, self.pulse, swim, gossip, self)  # type: ignore[arg-type]

    def may_ask(self) -> bool:
        return self.is_able

    def is_ended(self, name: str) -> bool:
        return name in self.ended

    def on_leader(self, leader: Term | None) -> None:
        self.leaders.append(leader)

    async def lease(self, wish: Wish, ttl_ms: int, heard: int) -> Term | None:
        self.wishes.append(wish)
        return self.holder(wish)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self.leading.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any | Awaitable[Any]], why: str) -> None:
    await wait_until_async(condition, LIMIT_S, why)


async def test_a_leader_is_told_once_and_its_epoch_is_gossiped() -> None:
    script = Script()
    async with script.running():
        await until(lambda: script.leaders, "a leader")
        script.leading.look()
        script.leading.hurry()
        await until(lambda: len(script.wishes) > 1, "a renewal")
    assert script.leaders == [Term(ME, 1)]
    assert SetEpoch(1) in script.fed


async def test_a_node_that_may_not_lead_asks_for_nothing() -> None:
    script = Script()
    script.is_able = False
    async with script.running():
        script.leading.hurry()
        await asyncio.sleep(0.05)
    assert script.wishes == []


async def test_a_leader_that_has_ended_is_taken_over_in_the_same_round() -> None:
    script = Script()
    script.ended.add(OTHER)
    script.holder = lambda wish: Term(ME, 3) if isinstance(wish, Takeover) else Term(OTHER, 2)
    async with script.running():
        await until(lambda: script.leaders, "a leader")
    assert script.wishes == [Acquire(ME), Takeover(ME, OTHER)]
    assert script.leaders == [Term(ME, 3)]


async def test_without_redis_no_leader_is_named() -> None:
    script = Script()
    async with script.running():
        await until(lambda: script.leaders, "a leader")
    script.redis_ok = False
    script.leading.look()
    script.redis_ok = True
    script.leading.look()
    assert script.leaders == [Term(ME, 1), None, Term(ME, 1)]


async def test_a_leader_that_resigns_gives_the_lease_back_and_says_so() -> None:
    script = Script()
    async with script.running():
        await until(lambda: script.leaders, "a leader")
    await script.leading.resign()
    assert script.pulse.calls == ["resign"]
    assert script.leaders == [Term(ME, 1), None]
