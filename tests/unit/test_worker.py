"""The worker's laws: each delivery has one outcome, slots follow the real end, and nobody commits past a stop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cluster.shards.task import Kind
from node import tasks
from node.tasks import Context, of, task
from node.work import worker
from tests.desk import LIMIT_S, Desk, claim


@pytest.fixture(autouse=True)
def _own_declarations() -> Iterator[None]:
    before = dict(tasks.declared)
    yield
    tasks.declared.clear()
    tasks.declared.update(before)


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tests of what does not stop need not wait a second."""
    monkeypatch.setattr(worker, "STOP_GRACE_S", 0.05)


@asynccontextmanager
async def desk(*functions: Callable[..., Any], queues: str = "default:4,sync:2") -> AsyncIterator[Desk]:
    one = Desk(of(*functions), queues)
    try:
        yield one
    finally:
        await one.worker.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """For what has no callback: a thread's end, seen on the loop."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Gate:
    """A handler that runs until let go, and tells when it began."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.let_go = asyncio.Event()

    async def wait(self) -> str:
        self.began.set()
        await self.let_go.wait()
        return "done"


# Outcomes


async def test_a_task_that_returns_has_succeeded_with_its_result_as_json() -> None:
    @task
    async def double(data: int) -> dict[str, int]:
        return {"double": 2 * data}

    async with desk(double) as one:
        claimed = claim("double", 21)
        outcome = await one.outcome_of(claimed)
        assert (outcome.claimed, outcome.kind, outcome.result) == (claimed, Kind.SUCCEEDED, b'{"double":42}')
        assert outcome.run_s >= 0
        assert not one.worker.running


async def test_an_outcome_never_comes_from_inside_start() -> None:
    @task
    async def quick(data: int) -> None: ...

    async with desk(quick) as one:
        one.worker.start([claim("quick", 1, id_="A"), claim("quick", "no", id_="B"), claim("unknown", id_="C")])
        assert one.outcomes == []
        await one.until(lambda: len(one.outcomes) == 3)


async def test_a_type_it_does_not_know_is_given_back_for_a_second_and_takes_no_slot() -> None:
    async with desk() as one:
        outcome = await one.outcome_of(claim("newer.type"))
        assert (outcome.kind, outcome.retry_after_s) == (Kind.RELEASED, 1.0)
        assert one.worker.free("default") == 4


async def test_data_that_does_not_fit_is_rejected_with_the_path() -> None:
    @task
    async def strict(data: dict[str, int]) -> None: ...

    async with desk(strict) as one:
        outcome = await one.outcome_of(claim("strict", {"a": "x"}))
        assert outcome.kind is Kind.REJECTED
        assert outcome.failure is not None
        assert "$[...]" in outcome.failure.message
        assert one.worker.free("default") == 4


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
async def test_an_exception_that_would_end_the_loop_fails_only_the_task(error: BaseException) -> None:
    @task
    async def rude(data: Any) -> None:
        raise error

    async with desk(rude) as one:
        outcome = await one.outcome_of(claim("rude"))
        assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, type(error).__name__)


async def test_a_handler_sees_its_context_and_no_other_handlers_variables() -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")

    @task
    async def peek(data: str, ctx: Context) -> Any:
        before = seen.get()
        seen.set(data)
        return [before, ctx.task_id, ctx.node_id]

    async with desk(peek) as one:
        for name in ("A", "B"):
            outcome = await one.outcome_of(claim("peek", name, id_=name))
            assert outcome.result == msgspec.json.encode(["nothing", name, "n1"])


# Slots


async def test_slots_are_counted_by_queue_and_come_back_with_the_outcome() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        one.worker.start([claim("hold", id_="A"), claim("hold", id_="B"), claim("hold", id_="C", queue="sync")])
        assert (one.worker.free("default"), one.worker.free("sync"), one.worker.free("gpu")) == (2, 1, 0)
        assert list(one.worker.running) == ["A", "B", "C"]
        gate.let_go.set()
        await one.until(lambda: len(one.outcomes) == 3)
        assert (one.worker.free("default"), one.worker.free("sync")) == (4, 2)


# Stopping


async def test_a_stopped_task_is_reported_once_and_what_it_returns_is_dropped() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        try:
            return await gate.wait()
        except asyncio.CancelledError:
            return "too late"

    async with desk(hold) as one:
        one.worker.start([claim("hold")])
        await gate.began.wait()
        assert one.worker.stop("A", 1, "cancelled")
        assert one.worker.stop("A", 1, "cancelled")
        outcome = await one.next()
        assert (outcome.kind, outcome.result) == (Kind.STOPPED, None)
    assert one.outcomes == []


async def test_a_task_stopped_before_its_first_step_is_reported_too() -> None:
    ran = []

    @task
    async def never() -> None:
        ran.append(1)

    async with desk(never) as one:
        one.worker.start([claim("never")])
        one.worker.stop_all("fenced")
        assert (await one.next()).kind is Kind.STOPPED
        assert ran == []
        assert one.worker.free("default") == 4


async def test_a_stop_names_the_delivery_it_means() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        one.worker.start([claim("hold", delivery=2)])
        assert not one.worker.stop("A", 1, "cancelled")
        assert not one.worker.stop("B", None, "cancelled")
        assert one.worker.stop("A", None, "gone")
        assert (await one.next()).kind is Kind.STOPPED


@pytest.mark.usefixtures("short_grace")
async def test_a_handler_that_ignores_its_cancellation_is_reported_and_keeps_its_slot_until_it_ends() -> None:
    gate = Gate()

    @task
    async def stubborn() -> str:
        while True:
            try:
                return await gate.wait()
            except asyncio.CancelledError:
                continue

    async with desk(stubborn) as one:
        one.worker.start([claim("stubborn")])
        await gate.began.wait()
        one.worker.stop_all("fenced")
        assert (await one.next()).kind is Kind.STOPPED
        assert "A" not in one.worker.running
        assert [c.id for c in one.worker.lingering] == ["A"]
        assert one.worker.free("default") == 3
        gate.let_go.set()
        await eventually(lambda: one.worker.free("default") == 4)
        assert (one.outcomes, list(one.worker.lingering)) == ([], [])


@pytest.mark.usefixtures("short_grace")
async def test_a_task_claimed_again_while_its_first_run_lingers_reports_each_delivery_once() -> None:
    began, release = threading.Event(), threading.Event()

    @task(executor="thread")
    def slow(data: Any, ctx: Context) -> int:
        if ctx.delivery == 1:
            began.set()
            release.wait(LIMIT_S)
        return ctx.delivery

    async with desk(slow) as one:
        one.worker.start([claim("slow", delivery=1, queue="sync")])
        await eventually(began.is_set)
        one.worker.start([claim("slow", delivery=2, queue="sync")])
        await one.until(lambda: len(one.outcomes) == 2)
        first, second = one.outcomes
        assert (first.claimed.delivery, first.kind) == (1, Kind.STOPPED)
        assert (second.claimed.delivery, second.result) == (2, b"2")
        assert one.worker.free("sync") == 1
        release.set()
        await eventually(lambda: one.worker.free("sync") == 2)
        assert len(one.outcomes) == 2


async def test_a_drain_that_is_over_gives_back_what_runs() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        one.worker.start([claim("hold", id_="A"), claim("hold", id_="B")])
        await gate.began.wait()
        one.worker.release_all()
        await one.until(lambda: len(one.outcomes) == 2)
        assert [o.kind for o in one.outcomes] == [Kind.RELEASED] * 2
        assert [o.retry_after_s for o in one.outcomes] == [0.0] * 2


async def test_a_fencing_overrules_a_release_under_way() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        one.worker.start([claim("hold")])
        await gate.began.wait()
        one.worker.release_all()
        one.worker.stop_all("fenced")
        assert (await one.next()).kind is Kind.STOPPED


async def test_closing_reports_what_still_runs() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        one.worker.start([claim("hold")])
        await gate.began.wait()
    assert [o.kind for o in one.outcomes] == [Kind.STOPPED]


# New submissions


@pytest.mark.parametrize("executor", ["loop", "thread"])
async def test_a_new_task_begins_in_a_later_turn_than_the_answer_to_its_submission(executor: str) -> None:
    """uvloop sends what a turn has written at the end of that turn."""
    turn = 0
    turns: dict[str, int] = {}

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    async def on_loop() -> None:
        turns["began"] = turn

    def in_thread() -> None:
        turns["began"] = turn

    def answer() -> None:
        turns["answered"] = turn

    task(name="quick", executor=executor)(on_loop if executor == "loop" else in_thread)  # type: ignore[call-overload]
    async with desk(on_loop if executor == "loop" else in_thread) as one:
        loop = asyncio.get_running_loop()
        loop.call_soon(count)
        one.worker.start([claim("quick")])
        assert one.worker.free("default") == 3, "it has its slot at once"
        loop.call_soon(answer)
        assert (await one.next()).kind is Kind.SUCCEEDED
    assert turns["answered"] < turns["began"]


@pytest.mark.parametrize("executor", ["loop", "thread"])
async def test_a_new_task_that_is_stopped_before_it_begins_never_runs_and_is_reported_once(executor: str) -> None:
    ran: list[str] = []

    async def on_loop() -> None:
        ran.append("on_loop")

    def in_thread() -> None:
        ran.append("in_thread")

    task(name="quick", executor=executor)(on_loop if executor == "loop" else in_thread)  # type: ignore[call-overload]
    async with desk(on_loop if executor == "loop" else in_thread) as one:
        one.worker.start([claim("quick", id_="A")])
        assert one.worker.stop("A", 1, "cancelled")
        one.worker.start([claim("quick", id_="B")])
        await asyncio.sleep(0)
        one.worker.stop("B", 1, "cancelled")
        await one.until(lambda: len(one.outcomes) == 2)
        assert [o.kind for o in one.outcomes] == [Kind.STOPPED] * 2
        await eventually(lambda: one.worker.free("default") == 4)
    assert (ran, len(one.outcomes)) == ([], 2)


# Time limits


async def test_an_async_handler_past_its_time_limit_is_cancelled_and_has_failed() -> None:
    gate = Gate()
    cancelled = []

    @task
    async def hold() -> str:
        try:
            return await gate.wait()
        except asyncio.CancelledError as error:
            cancelled.append(error.args)
            raise

    async with desk(hold) as one:
        outcome = await one.outcome_of(claim("hold", timeout_s=0.05))
        assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "Timeout")
        assert outcome.failure is not None
        assert "0.05 s" in outcome.failure.message
        assert cancelled == [("timeout",)]
        assert one.worker.free("default") == 4


async def test_each_attempt_has_its_own_limit_however_they_are_ordered() -> None:
    gate = Gate()

    @task
    async def hold() -> str:
        return await gate.wait()

    async with desk(hold) as one:
        limits = {"A": 60.0, "B": 0.15, "C": 0.05, "D": 0.1}
        one.worker.start([claim("hold", id_=name, timeout_s=limit) for name, limit in limits.items()])
        await one.until(lambda: len(one.outcomes) == 3)
        assert [o.claimed.id for o in one.outcomes] == ["C", "D", "B"]
        assert list(one.worker.running) == ["A"]


@pytest.mark.usefixtures("short_grace")
async def test_a_thread_past_its_time_limit_has_failed_and_keeps_its_slot_until_it_ends() -> None:
    release = threading.Event()
    saw_cancelled = threading.Event()

    @task(executor="thread")
    def slow(data: Any, ctx: Context) -> str:
        release.wait(LIMIT_S)
        if ctx.cancelled:
            saw_cancelled.set()
        return "too late"

    async with desk(slow) as one:
        outcome = await one.outcome_of(claim("slow", timeout_s=0.05, queue="sync"))
        assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "Timeout")
        assert one.worker.free("sync") == 1
        release.set()
        await eventually(lambda: one.worker.free("sync") == 2)
        assert saw_cancelled.is_set()
        assert one.outcomes == []


# Threads


async def test_a_thread_handler_runs_beside_the_loop_and_its_exceptions_are_its_own() -> None:
    @task(executor="thread")
    def where(data: str) -> str:
        if data == "exit":
            raise SystemExit(1)
        return threading.current_thread().name

    async with desk(where) as one:
        assert (await one.outcome_of(claim("where", "name"))).result == b'"A"'
        assert (await one.outcome_of(claim("where", "exit"))).kind is Kind.FAILED


# Progress


async def test_progress_is_throttled_and_the_latest_value_is_passed_on_before_the_outcome() -> None:
    @task
    async def chatty(data: int, ctx: Context) -> None:
        for step in range(data):
            ctx.progress(step)

    async with desk(chatty) as one:
        await one.outcome_of(claim("chatty", 1000))
        assert one.progress == [0, 999]


async def test_the_latest_value_is_passed_on_while_a_silent_handler_goes_on() -> None:
    gate = Gate()

    @task
    async def quiet(data: Any, ctx: Context) -> str:
        ctx.progress("first")
        ctx.progress("second")
        return await gate.wait()

    async with desk(quiet) as one:
        one.worker.start([claim("quiet")])
        await one.until(lambda: one.progress == ["first", "second"])
        assert "A" in one.worker.running
        gate.let_go.set()


async def test_a_thread_that_reports_in_a_loop_does_not_flood_the_node() -> None:
    @task(executor="thread")
    def chatty(data: int, ctx: Context) -> None:
        for step in range(data):
            ctx.progress(step)

    async with desk(chatty) as one:
        await one.outcome_of(claim("chatty", 20_000))
        assert one.progress[-1] == 19999
        assert len(one.progress) < 20


async def test_a_stopped_task_reports_no_more_progress() -> None:
    gate = Gate()

    @task
    async def late(data: Any, ctx: Context) -> None:
        try:
            await gate.wait()
        finally:
            ctx.progress("after the stop")
            assert ctx.cancelled

    async with desk(late) as one:
        one.worker.start([claim("late")])
        await gate.began.wait()
        one.worker.stop("A", 1, "cancelled")
        assert (await one.next()).kind is Kind.STOPPED
        assert one.progress == []
