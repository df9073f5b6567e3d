"""No endless task ends unheard: what has ended for good is told, once, and what somebody ends on purpose is not."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from cluster import kept_tasks
from cluster.kept_tasks import RESTARTS_MAX, Nursery
from tests.waiting import wait_until_async

LIMIT_S = 5.0


class Ward:
    """A nursery, and what was heard of it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.stats: Counter[str] = Counter()
        self.nursery = Nursery(self.heard.append, self.stats)
        self.runs = 0

    async def for_ever(self) -> None:
        self.runs += 1
        await asyncio.Event().wait()

    async def fails(self) -> None:
        self.runs += 1
        raise ValueError("out of order")

    async def returns(self) -> None:
        self.runs += 1

    async def hears(self) -> str:
        await wait_until_async(lambda: self.heard, LIMIT_S, "its end is heard")
        return self.heard[0]


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Ward:
    monkeypatch.setattr(kept_tasks, "RESTART_S", 0.0)
    return Ward()


async def test_a_task_that_returns_has_ended(ward: Ward) -> None:
    ward.nursery.keep("lane", ward.returns)
    assert "'lane'" in await ward.hears()
    assert "returned" in ward.heard[0]


async def test_a_task_that_fails_begins_again_a_few_times_and_then_has_ended(ward: Ward) -> None:
    ward.nursery.keep("beat", ward.fails)
    assert "out of order" in await ward.hears()
    assert ward.runs == 1 + RESTARTS_MAX
    assert ward.stats["restarts"] == RESTARTS_MAX
    assert len(ward.heard) == 1


async def test_failures_that_lie_far_apart_end_nothing(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tasks, "RESTARTS_WITHIN_S", 0.0)
    ward.nursery.keep("beat", ward.fails)
    await wait_until_async(lambda: ward.runs > 3 * RESTARTS_MAX, LIMIT_S, "it goes on")
    assert not ward.heard
    await ward.nursery.halt()


async def test_a_task_that_must_not_begin_again_ends_at_its_first_failure(ward: Ward) -> None:
    ward.nursery.keep("lane", ward.fails, restarts=0)
    await ward.hears()
    assert ward.runs == 1


async def test_a_handler_that_cancels_every_task_of_its_loop_is_heard_of(ward: Ward) -> None:
    ward.nursery.keep("housekeeping", ward.for_ever)
    await wait_until_async(lambda: ward.runs, LIMIT_S, "it runs")
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    assert "was cancelled" in await ward.hears()


async def test_what_is_ended_on_purpose_and_what_is_short_is_not_heard_of(ward: Ward) -> None:
    ward.nursery.keep("housekeeping", ward.for_ever)
    ward.nursery.spawn(ward.fails())
    ward.nursery.spawn(ward.returns())
    await wait_until_async(lambda: ward.stats["task_failures"] == 1, LIMIT_S, "the short one has failed")
    await ward.nursery.halt()
    await asyncio.sleep(0)
    assert not ward.heard


async def test_halt_from_a_task_that_is_told_of_the_end_ends_the_others(ward: Ward) -> None:
    ward.nursery.keep("beat", ward.for_ever)
    ward.nursery.keep("lane", ward.returns)
    await ward.hears()
    await ward.nursery.halt()
    assert len(ward.heard) == 1
