"""Child processes are replaced: by tasks, by memory and by idleness, and no task waits for it, fails or is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

import node.builtin  # noqa: F401 - declared once, outside of any test's own declarations
from cluster.shards.task import Claimed, Kind
from node import tasks
from node.tasks import load
from node.work import wear
from tests.desk import Desk
from tests.desk import claim as claim_of
from tests.integration.test_pool import eventually, lives

HANDLERS = """
    import os, time
    from node import Context, task

    kept = []

    def rss_mb():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

    @task
    def leak(mb):
        kept.append(bytearray(b"x") * (mb * 2**20))
        return [os.getpid(), rss_mb()]

    @task
    def model(mb):
        if not kept: kept.append(bytearray(b"x") * (mb * 2**20))
        return [os.getpid(), rss_mb()]

    @task
    def until(path, ctx: Context):
        ctx.progress(os.getpid())
        while not os.path.exists(path): time.sleep(0.005)
        return [os.getpid(), rss_mb()]
"""

Open = Callable[..., AbstractAsyncContextManager[Desk]]
linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the size is the largest that a process ever had")


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open a worker with these settings."""
    (tmp_path / "recycled_handlers.py").write_text(textwrap.dedent(HANDLERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tasks, "declared", dict(tasks.declared))
    sys.modules.pop("recycled_handlers", None)

    @asynccontextmanager
    async def desk(queues: str = "sync:1", **settings: Any) -> AsyncIterator[Desk]:
        one = Desk(load(["recycled_handlers"]), queues, **settings)
        try:
            yield one
        finally:
            await one.worker.close()

    return desk


def claim(type_: str, data: Any = None, **more: Any) -> Claimed:
    return claim_of(type_, data, queue="sync", **more)


async def result_of(desk: Desk, claimed: Claimed) -> tuple[int, int]:
    """(pid, size in MiB) that the handler returned."""
    outcome = await desk.outcome_of(claimed)
    assert outcome.kind is Kind.SUCCEEDED, outcome
    pid, size_mb = msgspec.json.decode(outcome.result or b"")
    return pid, size_mb


@pytest.mark.parametrize("most", [1, 3])
async def test_a_child_runs_so_many_tasks_and_no_more(most: int, opened: Open) -> None:
    async with opened(max_tasks_per_child=most) as desk:
        pids = [(await result_of(desk, claim("leak", 0)))[0] for _ in range(3 * most)]
        assert list(Counter(pids).values()) == [most] * 3
        assert desk.worker.replaced["tasks"] == 3
        await eventually(lambda: not any(lives(pid) for pid in pids))


async def test_without_limits_one_child_is_used_on(opened: Open) -> None:
    async with opened() as desk:
        assert len({(await result_of(desk, claim("leak", 1)))[0] for _ in range(20)}) == 1


@linux
async def test_a_handler_that_leaks_is_bounded(opened: Open) -> None:
    async with opened(max_memory_per_child_mb=200) as desk:
        sizes = [await result_of(desk, claim("leak", 60)) for _ in range(9)]
        assert max(size_mb for _, size_mb in sizes) < 200 + 60
        assert len({pid for pid, _ in sizes}) >= 3
        assert desk.worker.replaced["memory"] >= 2


@linux
async def test_growth_is_bounded_without_any_setting_and_what_the_first_task_loads_is_none(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wear, "GROWTH_MB", 100)
    async with opened() as desk:
        assert len({(await result_of(desk, claim("model", 200)))[0] for _ in range(5)}) == 1
        assert desk.worker.replaced["memory"] == 0
        sizes = [await result_of(desk, claim("leak", 60)) for _ in range(6)]
        assert len({pid for pid, _ in sizes}) >= 2
        assert desk.worker.replaced["memory"] >= 2


async def test_the_successor_is_ready_before_the_last_task_has_ended(opened: Open, tmp_path: Path) -> None:
    async with opened(max_tasks_per_child=2) as desk:
        first, _ = await result_of(desk, claim("leak", 0))
        desk.worker.start([claim("until", str(tmp_path / "go"))])
        await eventually(lambda: desk.worker.children == {"busy": 1, "idle": 1, "other": 0})
        (tmp_path / "go").touch()
        assert msgspec.json.decode((await desk.next()).result or b"")[0] == first
        second, _ = await result_of(desk, claim("leak", 0))
        assert second != first


async def test_each_of_several_children_at_its_end_has_a_successor(opened: Open, tmp_path: Path) -> None:
    async with opened("sync:3", max_tasks_per_child=1) as desk:
        desk.worker.start([claim("until", str(tmp_path / "go"), id_=name) for name in "ABC"])
        await eventually(lambda: desk.worker.children == {"busy": 3, "idle": 3, "other": 0})
        (tmp_path / "go").touch()
        await desk.until(lambda: len(desk.outcomes) == 3)


async def test_idle_children_end_and_the_last_one_is_a_fresh_one(opened: Open, tmp_path: Path) -> None:
    async with opened("sync:3", child_idle_s=0.2) as desk:
        desk.worker.start([claim("until", str(tmp_path / "go"), id_=name) for name in "ABC"])
        await desk.until(lambda: len(desk.progress) == 3)
        (tmp_path / "go").touch()
        await desk.until(lambda: len(desk.outcomes) == 3)
        desk.outcomes.clear()
        await eventually(lambda: desk.worker.replaced["idle"] == 3)
        await eventually(lambda: desk.worker.children == {"busy": 0, "idle": 1, "other": 0})
        assert not any(lives(pid) for pid in desk.progress)
        assert desk.worker._pool._timer is None  # that one stays: nothing looks at it until it has worked
        pid, _ = await result_of(desk, claim("leak", 0))
        assert pid not in desk.progress
        await eventually(lambda: desk.worker.replaced["idle"] == 4)


async def test_a_cancelled_task_leaves_the_successor_that_it_waited_for_to_the_next(opened: Open) -> None:
    async with opened(max_tasks_per_child=1) as desk:
        await result_of(desk, claim("leak", 0))
        desk.worker.start([claim("leak", 0, id_="B")])
        await asyncio.sleep(0)
        desk.worker.stop("B", 1, "cancelled")
        assert (await desk.next()).kind is Kind.STOPPED
        await result_of(desk, claim("leak", 0, id_="C"))


async def test_closing_ends_a_successor_that_is_starting(opened: Open, tmp_path: Path) -> None:
    async with opened(max_tasks_per_child=1) as desk:
        desk.worker.start([claim("until", str(tmp_path / "go"))])
        await desk.until(lambda: bool(desk.progress))
        assert desk.worker.children["busy"] == 1
    assert desk.worker.children == {"busy": 0, "idle": 0, "other": 0}


@linux
async def test_every_task_has_one_outcome_while_children_are_replaced_and_killed(opened: Open) -> None:
    """A leaking handler, all three limits, and each eighth task's child killed in the middle."""
    async with opened("sync:2", max_tasks_per_child=5, max_memory_per_child_mb=150, child_idle_s=0.1) as desk:
        todo = [f"T{n}" for n in range(40)]
        done: dict[str, int] = {}
        deliveries: Counter[str] = Counter()
        kills = 0
        while len(done) < 40:
            batch = [todo.pop() for _ in range(min(8, len(todo)))]
            for name in batch:
                deliveries[name] += 1
            desk.worker.start([claim("leak", 20, id_=name, delivery=deliveries[name]) for name in batch])
            await desk.until(lambda: bool(desk.outcomes))
            busy = list(desk.worker._pool._busy)
            if busy:
                os.kill(busy[0].pid, signal.SIGKILL)
                kills += 1
            await desk.until(lambda: len(desk.outcomes) == len(batch))  # noqa: B023 - it ends before the next round
            for outcome in desk.outcomes:
                assert outcome.kind in (Kind.SUCCEEDED, Kind.FAILED)
                if outcome.kind is Kind.SUCCEEDED:
                    assert outcome.claimed.id not in done
                    done[outcome.claimed.id] = msgspec.json.decode(outcome.result or b"")[1]
                else:
                    assert outcome.failure is not None
                    assert "SIGKILL" in outcome.failure.message
                    todo.append(outcome.claimed.id)
            desk.outcomes.clear()
        assert kills >= 3
        assert sum(deliveries.values()) <= 40 + kills
        assert max(done.values()) < 150 + 20
        assert desk.worker.replaced["tasks"] > 0
