"""The watch on the main loop tells a stall once, its end once, and a hang."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.vitals.main_watch import MainWatch
from tests.waiting import wait_until_async

LIMIT_S = 10.0


async def test_a_stall_and_its_end_are_told_once_each_and_then_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.vitals.main_watch.WATCH_MAIN_S", 0.01)
    told: list[object] = []

    async def on_stall(quiet_s: float) -> None:
        told.append(watch.is_stalled)

    async def on_hang(quiet_s: float) -> None:
        told.append("hang")
        await asyncio.Event().wait()  # The process ends here.

    watch = MainWatch(0.1, 0.5, on_stall, on_hang)
    task = asyncio.get_running_loop().create_task(watch.run())
    try:
        await asyncio.sleep(0.2)
        assert told == [], "it has not begun"
        watch.ticked_s = time.monotonic()
        await wait_until_async(lambda: told, LIMIT_S, "the stall")
        watch.ticked_s = time.monotonic()
        await wait_until_async(lambda: len(told) > 1, LIMIT_S, "its end")
        await wait_until_async(lambda: len(told) > 3, LIMIT_S, "the hang")
        assert told == [True, False, True, "hang"]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
