"""Turns and shared reads: few at once, few that wait, and nobody is told an answer older than the question."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import TooManyReads
from node.queue.turns import Shared, Turns


async def test_few_have_a_turn_and_the_others_wait_for_theirs() -> None:
    turns = Turns(at_once=2, waiting_max=3, within_s=60)
    inside: list[int] = []
    order: list[int] = []
    go_on = asyncio.Event()

    async def one(n: int) -> None:
        async with turns.take():
            inside.append(n)
            order.append(n)
            await go_on.wait()
            assert len(inside) <= 2
            inside.remove(n)

    tasks = [asyncio.create_task(one(n)) for n in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert inside == [0, 1]
    with pytest.raises(TooManyReads, match="3 more wait"):
        async with turns.take():
            pass
    go_on.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_who_waits_too_long_is_refused_and_leaves_no_gap() -> None:
    turns = Turns(at_once=1, waiting_max=3, within_s=0.01)
    async with turns.take():
        with pytest.raises(TooManyReads):
            async with turns.take():
                pass
    async with turns.take():
        pass


async def test_all_who_ask_meanwhile_share_one_read_that_begins_after_they_asked() -> None:
    reads = 0
    go_on = asyncio.Event()

    async def read() -> int:
        nonlocal reads
        reads += 1
        mine = reads
        await go_on.wait()
        return mine

    shared = Shared(read)
    first = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = [asyncio.create_task(shared.get()) for _ in range(50)]
    await asyncio.sleep(0)
    assert reads == 1, "the others wait: theirs must begin after they asked"
    late[0].cancel()
    go_on.set()
    assert await first == 1
    assert await asyncio.gather(*late[1:]) == [2] * 49
    assert await shared.get() == 3


async def test_a_shared_read_that_fails_fails_for_those_who_shared_it_and_not_for_the_next() -> None:
    outcomes = iter((ValueError("away"), None))

    async def read() -> str:
        if error := next(outcomes):
            raise error
        return "read"

    shared = Shared(read)
    answers = await asyncio.gather(*(shared.get() for _ in range(3)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away"] * 3
    assert await shared.get() == "read"
