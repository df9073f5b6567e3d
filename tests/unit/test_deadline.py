"""A deadline is over when nothing came, and not when the loop was busy while it came."""

from __future__ import annotations

import asyncio
import socket
import time

from cluster.deadline import ends_within


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
