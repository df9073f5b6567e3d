"""Sync handlers in real child processes: they may hang, crash and be killed, and the node stays up.

The handlers stand in a module of a temporary working directory, as a user's would.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

import node.builtin  # noqa: F401 - declared once, outside of any test's own declarations
from cluster.shards.task import Claimed, Kind
from node import tasks
from node.tasks import load
from tests.desk import LIMIT_S, Desk
from tests.desk import claim as claim_of

HANDLERS = """
    import asyncio, ctypes, multiprocessing, os, signal, subprocess, sys, time
    import msgspec
    from node import Context, Reject, Retry, task

    class Order(msgspec.Struct):
        amount: int

    @task
    def pid(data): return os.getpid()

    @task
    def add(data: Order): return data.amount + 1

    @task
    def hang(data, ctx: Context):
        ctx.progress(os.getpid())
        if data == "with a program":
            subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
        while True: time.sleep(60)

    @task
    def hold_socket(data):
        if os.fork() == 0:
            time.sleep(30)
        os._exit(5)

    @task
    def fork_and_return(data, ctx: Context):
        is_copy = os.fork() == 0
        ctx.progress("copy" if is_copy else "original")
        if not is_copy: os.wait()
        if is_copy and data: raise ValueError("of the copy")
        return "copy" if is_copy else "original"

    @task
    def terminate_fork(data):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(10)
        return process.exitcode

    @task
    def exit_now(data): os._exit(data)

    @task
    def segfault(data): ctypes.string_at(0)

    @task
    def kill_itself(data): os.kill(os.getpid(), signal.SIGKILL)

    @task
    def leave(data): sys.exit(3)

    @task
    def fail(data): raise ValueError("wrong " + data)

    @task
    def ask(data):
        if data == "retry": raise Retry(2.0)
        raise Reject("never")

    @task
    def steps(data, ctx: Context):
        for n in range(data): ctx.progress(n)
        return ctx.attempt

    @task
    def silent_step(data, ctx: Context):
        ctx.progress(1); ctx.progress(2)
        while not os.path.exists(data): time.sleep(0.01)

    @task
    def ignore_signals(data, ctx: Context):
        ctx.progress(1)
        while not os.path.exists(data): time.sleep(0.01)
        return "finished"

    @task(executor="process")
    async def coroutine(data):
        await asyncio.sleep(0)
        return "async in a child"

    @task
    def loud(data, ctx: Context):
        print("printed in", ctx.task_id)
        ctx.log.info("logged", place="child")
        return sys.stdin.read()
"""


def claim(type_: str, data: Any = None, **more: Any) -> Claimed:
    return claim_of(type_, data, queue="sync", **more)


def shop_desk(queues: str = "default:2,sync:2") -> Desk:
    return Desk(load(["shop_handlers"]), queues)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user who has written `shop_handlers.py`."""
    (tmp_path / "shop_handlers.py").write_text(textwrap.dedent(HANDLERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tasks, "declared", dict(tasks.declared))
    sys.modules.pop("shop_handlers", None)
    return tmp_path


@pytest.fixture
async def desk(shop: Path) -> AsyncIterator[Desk]:
    one = shop_desk()
    yield one
    await one.worker.close()


def lives(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_sync_handler_of_a_users_module_runs_in_a_child_that_is_used_again(desk: Desk) -> None:
    first = await desk.outcome_of(claim("pid"))
    second = await desk.outcome_of(claim("pid"))
    assert (first.kind, first.result) == (Kind.SUCCEEDED, second.result)
    assert first.result != str(os.getpid()).encode()


async def test_data_is_converted_and_checked_in_the_child(desk: Desk) -> None:
    assert (await desk.outcome_of(claim("add", {"amount": 4}))).result == b"5"
    outcome = await desk.outcome_of(claim("add", {"amount": "x"}))
    assert outcome.kind is Kind.REJECTED
    assert outcome.failure is not None
    assert "$.amount" in outcome.failure.message


async def test_what_a_handler_raises_or_asks_for_comes_back_from_the_child(desk: Desk) -> None:
    failed = await desk.outcome_of(claim("fail", "number"))
    assert (failed.kind, failed.failure and failed.failure.type) == (Kind.FAILED, "ValueError")
    assert failed.failure is not None
    assert failed.failure.message == "wrong number"
    assert "shop_handlers.py" in (failed.failure.traceback or "")
    assert "child.py" not in (failed.failure.traceback or "")
    again = await desk.outcome_of(claim("ask", "retry"))
    assert (again.kind, again.retry_after_s) == (Kind.RETRY, 2.0)
    assert (await desk.outcome_of(claim("ask", "reject"))).kind is Kind.REJECTED
    assert (await desk.outcome_of(claim("coroutine"))).result == b'"async in a child"'


@pytest.mark.parametrize(
    ("type_", "data", "words"),
    [
        ("exit_now", 7, "exit code 7"),
        ("exit_now", 0, "exit code 0"),
        ("segfault", None, "SIGSEGV (exit code -11)"),
        ("kill_itself", None, "SIGKILL (exit code -9)"),
        ("hold_socket", None, "exit code 5"),
    ],
)
async def test_a_child_that_dies_fails_its_task_with_its_exit_code_and_harms_no_other(
    type_: str, data: Any, words: str, desk: Desk, shop: Path
) -> None:
    marker = shop / "go"
    desk.worker.start([claim("ignore_signals", str(marker), id_="neighbour")])
    await desk.until(lambda: desk.progress == [1])
    outcome = await desk.outcome_of(claim(type_, data))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "WorkerCrashed")
    assert outcome.failure is not None
    assert words in outcome.failure.message
    assert desk.worker.free("sync") == 1
    assert (await desk.outcome_of(claim("add", {"amount": 1}))).result == b"2"
    marker.touch()
    assert (await desk.next()).result == b'"finished"'


async def test_what_two_workers_died_of_runs_in_a_child_and_harms_nobody(desk: Desk) -> None:
    """`crash` is an async handler: on the loop it would end this very process."""
    suspect = msgspec.structs.replace(claim("crash"), lost=2)
    crashed = await desk.outcome_of(suspect)
    assert (crashed.kind, crashed.failure and crashed.failure.type) == (Kind.FAILED, "WorkerCrashed")
    bystander = msgspec.structs.replace(claim("process", "x"), lost=3)
    assert (await desk.outcome_of(bystander)).kind is Kind.SUCCEEDED


async def test_the_built_in_crash_of_a_child_leaves_the_node_up(desk: Desk) -> None:
    crashed = await desk.outcome_of(claim("crash_process"))
    assert (crashed.kind, crashed.failure and crashed.failure.type) == (Kind.FAILED, "WorkerCrashed")
    assert (await desk.outcome_of(claim("add", {"amount": 1}))).result == b"2"


async def test_system_exit_fails_the_task_and_not_the_child(desk: Desk) -> None:
    before = await desk.outcome_of(claim("pid"))
    outcome = await desk.outcome_of(claim("leave"))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "SystemExit")
    assert (await desk.outcome_of(claim("pid"))).result == before.result


async def test_an_idle_child_that_dies_is_replaced(desk: Desk) -> None:
    victim = int((await desk.outcome_of(claim("pid"))).result or b"0")
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: not lives(victim))
    outcomes = [await desk.outcome_of(claim("pid")) for _ in range(2)]
    # At most the one call that was sent before the death was noticed may fail.
    assert outcomes[-1].kind is Kind.SUCCEEDED
    assert int(outcomes[-1].result or b"0") != victim


@pytest.mark.parametrize("data", ["alone", "with a program"])
async def test_a_child_past_its_time_limit_is_killed_with_all_it_started(data: str, desk: Desk) -> None:
    outcome = await desk.outcome_of(claim("hang", data, timeout_s=0.5))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "Timeout")
    assert desk.worker.free("sync") == 2
    (pid,) = desk.progress
    await eventually(lambda: not lives(pid) and not _group(pid))


def _group(leader: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if int(group) == leader and state != "Z":
                found.append(int(entry.name))
    return found


async def test_a_cancelled_task_is_killed_at_once(desk: Desk) -> None:
    desk.worker.start([claim("hang")])
    await desk.until(lambda: bool(desk.progress))
    begin = time.monotonic()
    assert desk.worker.stop("A", 1, "cancelled")
    assert (await desk.next()).kind is Kind.STOPPED
    assert time.monotonic() - begin < 0.9  # it did not wait for the grace of what cannot be stopped
    assert not lives(desk.progress[0])


async def test_progress_is_throttled_and_its_latest_value_comes_before_the_outcome(desk: Desk) -> None:
    outcome = await desk.outcome_of(claim("steps", 5000))
    assert outcome.kind is Kind.SUCCEEDED
    assert desk.progress[-1] == 4999
    assert len(desk.progress) < 20


async def test_the_latest_progress_arrives_while_the_handler_is_silent(desk: Desk, shop: Path) -> None:
    desk.worker.start([claim("silent_step", str(shop / "go"))])
    await desk.until(lambda: desk.progress[-1:] == [2])
    (shop / "go").touch()
    assert (await desk.next()).kind is Kind.SUCCEEDED


async def test_signals_to_the_group_leave_a_child_to_finish_its_task(desk: Desk, shop: Path) -> None:
    pid = int((await desk.outcome_of(claim("pid"))).result or b"0")
    desk.worker.start([claim("ignore_signals", str(shop / "go"))])
    await desk.until(lambda: desk.progress == [1])
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    (shop / "go").touch()
    assert (await desk.next()).result == b'"finished"'


async def test_no_more_children_run_than_the_node_has_slots(shop: Path) -> None:
    one = shop_desk("sync:1")
    try:
        one.worker.start([claim("pid", id_=name) for name in "ABCDEF"])
        await one.until(lambda: len(one.outcomes) == 6)
        assert {o.kind for o in one.outcomes} == {Kind.SUCCEEDED}
        assert len({o.result for o in one.outcomes}) == 1
    finally:
        await one.worker.close()


async def test_closing_leaves_no_child_behind(shop: Path) -> None:
    one = shop_desk()
    idle = int((await one.outcome_of(claim("pid"))).result or b"0")
    one.worker.start([claim("hang", id_="A"), claim("hang", id_="B")])
    await one.until(lambda: len(one.progress) == 2)
    await one.worker.close()
    assert [o.kind for o in one.outcomes] == [Kind.STOPPED] * 2
    assert not any(lives(pid) for pid in (idle, *one.progress))


async def test_what_a_handler_prints_and_logs_comes_out_of_the_node(
    desk: Desk, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (await desk.outcome_of(claim("loud"))).result == b'""'  # and standard input is empty
    out, err = capfd.readouterr()
    assert out == "printed in A\n"
    line = msgspec.json.decode(err)
    assert (line["event"], line["task"], line["place"]) == ("logged", "A", "child")


async def test_modules_that_only_a_child_cannot_import_fail_the_task_with_the_cause(desk: Desk, shop: Path) -> None:
    (shop / "shop_handlers.py").write_text("import no_such_library")
    outcome = await desk.outcome_of(claim("pid"))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "WorkerNotStarted")
    assert outcome.failure is not None
    assert "No module named 'no_such_library'" in outcome.failure.message
    assert desk.worker.free("sync") == 2


def test_children_end_with_a_node_that_is_killed(shop: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    script = """
        import asyncio, sys
        from tests.integration.test_pool import claim, shop_desk
        async def main():
            one = shop_desk()
            one.worker.start([claim("hang")])
            await one.until(lambda: bool(one.progress))
            print(one.progress[0], flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    node = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
        text=True,
    )
    with node:
        assert node.stdout is not None
        child = int(node.stdout.readline())
        assert lives(child)
        node.kill()
    deadline_s = time.monotonic() + LIMIT_S
    while lives(child):
        assert time.monotonic() < deadline_s, f"child {child} outlived its node"
        time.sleep(0.01)


def test_it_works_on_uvloop_as_nodes_run_it(shop: Path) -> None:
    async def scenario() -> list[Kind]:
        one = shop_desk()
        kinds = [(await one.outcome_of(claim(*what))).kind for what in (("pid",), ("exit_now", 3), ("pid",))]
        kinds.append((await one.outcome_of(claim("hang", timeout_s=0.2))).kind)
        await one.worker.close()
        return kinds

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        kinds = runner.run(scenario())
    assert kinds == [Kind.SUCCEEDED, Kind.FAILED, Kind.SUCCEEDED, Kind.FAILED]


@pytest.mark.parametrize("raises", [False, True])
async def test_of_a_handler_that_forks_and_returns_twice_the_original_counts(desk: Desk, raises: bool) -> None:
    """A second answer would be taken for that of the next task, and every later one for that of the task after it."""
    assert msgspec.json.decode((await desk.outcome_of(claim("fork_and_return", raises))).result or b"") == "original"
    assert "copy" not in desk.progress
    for n in range(3):
        outcome = await desk.outcome_of(claim("add", {"amount": n}))
        assert outcome.result == b"%d" % (n + 1)


async def test_a_handler_can_terminate_what_it_forked(desk: Desk) -> None:
    """A child ignores SIGTERM, which supervisors send to whole groups; what multiprocessing forks off it must not."""
    assert (await desk.outcome_of(claim("terminate_fork"))).result == b"%d" % -signal.SIGTERM
