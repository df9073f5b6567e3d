"""A deadline is over when nothing came, and not when the loop was busy while it came."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from cluster.deadline import GRACE_S, Deadline, ends_within


async def test_an_answer_that_came_while_the_loop_was_busy_is_in_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        answer = asyncio.get_running_loop().create_task(asyncio.get_running_loop().sock_recv(ours, 10))
        asyncio.get_running_loop().call_soon(lambda: (theirs.send(b"answer"), time.sleep(0.05)))
        assert await ends_within(answer, 0.01)
        assert answer.result() == b"answer"


async def test_what_gives_no_answer_is_late_and_still_runs() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.Event().wait())
    assert not await ends_within(task, 0.01)
    assert not task.done()
    task.cancel()


async def test_a_failure_in_time_is_an_end() -> None:
    async def fail() -> None:
        raise OSError("no route")

    task = asyncio.get_running_loop().create_task(fail())
    assert await ends_within(task, 1.0)
    assert isinstance(task.exception(), OSError)


async def test_a_block_whose_answer_came_while_the_loop_was_busy_is_in_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: (theirs.send(b"answer"), time.sleep(0.05)))
        async with Deadline(0.01):
            assert await loop.sock_recv(ours, 10) == b"answer"


async def test_a_block_that_is_late_is_cancelled_and_its_task_goes_on() -> None:
    ends: list[str] = []

    async def wait() -> None:
        async with Deadline(0.01):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

    with pytest.raises(TimeoutError):
        await wait()
    assert ends == ["cancelled"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(2 * GRACE_S)  # no timer is left that could cancel it again


async def test_whoever_cancels_the_task_of_a_block_cancels_the_task() -> None:
    async def wait() -> None:
        async with Deadline(5.0):
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_of_a_block_is_raised_as_it_is() -> None:
    with pytest.raises(OSError, match="no route"):
        async with Deadline(5.0):
            raise OSError("no route")
