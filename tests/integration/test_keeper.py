"""What a handler in a child process started ends with the child, however the child or its node ends, and whatever it
did to get away. And what a child gets from its node: neither secrets, nor sockets, nor the user's folder before the
standard library."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing

import node.builtin  # noqa: F401 - declared once, outside of any test's own declarations
from cluster.shards.task import Claimed, Kind, Outcome
from node import tasks
from node.tasks import load
from tests.chaos.nodes import fleet
from tests.desk import Desk
from tests.desk import claim as claim_of
from tests.integration.conftest import RedisServer
from tests.integration.test_pool import eventually, lives
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

HANDLERS = """
    import ctypes, multiprocessing, os, signal, socket, subprocess, sys, time
    from node import Context, task
    from node.work.frames import Done, frame
    from node.work.ending import Ending
    from cluster.shards.task import Kind

    PROGRAM = ["sh", "-c", 'echo $$ > "$0.part"; mv "$0.part" "$0"; exec sleep 300']

    def daemon(path):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 3)
                os.execve("/bin/sh", [*PROGRAM, path], {"PATH": os.environ["PATH"]})
            os._exit(0)
        os.wait()

    def forked(path):
        process = multiprocessing.get_context("fork").Process(target=subprocess.run, args=([*PROGRAM, path],))
        process.start()

    STARTS = {
        "a program": lambda path: subprocess.Popen([*PROGRAM, path]),
        "a program of its own session": lambda path: subprocess.Popen([*PROGRAM, path], start_new_session=True),
        "a program without environment": lambda path: subprocess.Popen([*PROGRAM, path], env={"PATH": "/bin:/usr/bin"},
                                                                       start_new_session=True),
        "a shell's background job": lambda path: subprocess.run(f"{' '.join(PROGRAM[:2])} '{PROGRAM[2]}' {path} &",
                                                                shell=True),
        "nohup setsid": lambda path: subprocess.run(f"nohup setsid sh -c '{PROGRAM[2]}' {path} >/dev/null 2>&1 &",
                                                    shell=True),
        "a daemon": daemon,
        "a forked process": forked,
    }

    ENDS = {
        "os._exit(0)": lambda: os._exit(0),
        "os._exit(7)": lambda: os._exit(7),
        "SIGSEGV": lambda: ctypes.string_at(0),
        "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "return": lambda: None,
        "hang": lambda: time.sleep(300),
    }

    @task
    def start(data, ctx: Context):
        how, path, end = data
        STARTS[how](path)
        while not os.path.exists(path): time.sleep(0.005)
        pids = [os.getpid(), os.getppid(), int(open(path).read())]
        open(path + "s", "w").write(str(pids))
        ctx.progress(pids)
        ENDS[end]()

    @task
    def pid(data): return os.getpid()

    @task
    def spawned(data):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(abs, (-3,))

    @task
    def environment(data):
        of = lambda who: open(f"/proc/{who}/environ").read()
        program = subprocess.run(["env"], capture_output=True, text=True).stdout
        return [str(dict(os.environ)), of("self"), of(os.getppid()), program, open("/proc/self/cmdline").read()]

    LISTING = (
        "import os\\n"
        "for n in os.listdir('/proc/self/fd'):\\n"
        "    try: print(os.readlink(f'/proc/self/fd/{n}'))\\n"
        "    except OSError: pass"
    )

    @task
    def files(data):
        words = [sys.executable, "-c", LISTING]
        program = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
        exec(LISTING, {"print": (own := []).append})
        return [own, program.split("\\n")]

    def link():
        "The socket to the node, as a handler that looks for it would find it."
        for number in range(3, 100):
            try: socket.socket(fileno=os.dup(number)).close()
            except OSError: continue
            return number

    @task
    def answer_twice(data, ctx: Context):
        os.write(link(), frame(Done(ctx.task_id, ctx.delivery, Ending(Kind.SUCCEEDED, b'"forged"'))))
        return "real"

    @task
    def answer_for_another(data, ctx: Context):
        os.write(link(), frame(Done("B", 1, Ending(Kind.SUCCEEDED, b'"forged"'))))
        os.write(link(), frame(Done(ctx.task_id, ctx.delivery - 1, Ending(Kind.SUCCEEDED, b'"late"'))))
        return "real"

    @task
    def write(data, ctx: Context):
        if data == "no json":
            os.write(link(), frame(Done(ctx.task_id, ctx.delivery, Ending(Kind.SUCCEEDED, b"{nan"))))
        elif data == "no utf-8":
            os.write(link(), frame(Done(ctx.task_id, ctx.delivery, Ending(Kind.SUCCEEDED, b'"\\xff"'))))
        elif data == "stopped":
            os.write(link(), frame(Done(ctx.task_id, ctx.delivery, Ending(Kind.STOPPED))))
        else:
            os.write(link(), data.encode("latin-1"))
        return "real"

    @task
    def two_answers_of_a_fork(data):
        "The copy answers before the original does, and once more."
        if (pid := os.fork()) == 0:
            return "copy"
        os.waitpid(pid, 0)
        return "original"

    @task
    def library(data):
        import queue, random, sched
        return [queue.__file__, random.__file__, sched.__file__]
"""


def claim(type_: str, data: Any = None, **more: Any) -> Claimed:
    return claim_of(type_, data, queue="sync", **more)


def keeper_desk() -> Desk:
    return Desk(load(["keeper_handlers"]), "sync:2")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "keeper_handlers.py").write_text(textwrap.dedent(HANDLERS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tasks, "declared", dict(tasks.declared))
    sys.modules.pop("keeper_handlers", None)
    return tmp_path


@pytest.fixture
async def desk(shop: Path) -> AsyncIterator[Desk]:
    one = keeper_desk()
    yield one
    await one.worker.close()


def pids_in(shop: Path) -> list[int]:
    """The child that ran `start`, its keeper, and what it started."""
    pids: list[int] = msgspec.json.decode((shop / "pids").read_bytes())
    return pids


STARTS = [
    "a program",
    "a program of its own session",
    "a program without environment",
    "a shell's background job",
    "nohup setsid",
    "a daemon",
    "a forked process",
]


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("end", ["os._exit(0)", "SIGKILL"])
async def test_what_a_handler_started_ends_with_its_child(how: str, end: str, desk: Desk, shop: Path) -> None:
    outcome = await desk.outcome_of(claim("start", [how, str(shop / "pid"), end]))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "WorkerCrashed")
    assert not any(lives(pid) for pid in pids_in(shop))  # at once: the next attempt may begin now


@pytest.mark.parametrize("end", ["os._exit(7)", "SIGSEGV"])
async def test_it_ends_with_its_child_whatever_that_died_of(end: str, desk: Desk, shop: Path) -> None:
    outcome = await desk.outcome_of(claim("start", ["a daemon", str(shop / "pid"), end]))
    assert outcome.failure is not None
    assert {"os._exit(7)": "exit code 7", "SIGSEGV": "SIGSEGV (exit code -11)"}[end] in outcome.failure.message
    assert not any(lives(pid) for pid in pids_in(shop))


@pytest.mark.parametrize("by", ["time-out", "cancel", "release"])
async def test_it_ends_with_an_attempt_that_is_stopped(by: str, desk: Desk, shop: Path) -> None:
    timeout_s = 2.0 if by == "time-out" else 60.0
    desk.worker.start([claim("start", ["a daemon", str(shop / "pid"), "hang"], timeout_s=timeout_s)])
    await desk.until(lambda: bool(desk.progress))
    if by == "cancel":
        desk.worker.stop("A", 1, "cancelled")
    elif by == "release":
        desk.worker.release_all()  # as a node does whose time to drain is up
    outcome = await desk.next()
    assert outcome.kind is {"time-out": Kind.FAILED, "cancel": Kind.STOPPED, "release": Kind.RELEASED}[by]
    assert not any(lives(pid) for pid in pids_in(shop))


async def test_it_lives_on_while_its_child_does(desk: Desk, shop: Path) -> None:
    assert (await desk.outcome_of(claim("start", ["a daemon", str(shop / "pid"), "return"]))).kind is Kind.SUCCEEDED
    (pids,) = desk.progress
    assert (await desk.outcome_of(claim("pid"))).result == str(pids[0]).encode()
    assert all(lives(pid) for pid in pids)
    await desk.worker.close()
    assert not any(lives(pid) for pid in pids)


async def test_a_keeper_that_is_killed_takes_its_child_and_the_childs_group_along(desk: Desk, shop: Path) -> None:
    desk.worker.start([claim("start", ["a program", str(shop / "pid"), "hang"])])
    await desk.until(lambda: bool(desk.progress))
    (pids,) = desk.progress
    os.kill(pids[1], signal.SIGKILL)
    outcome = await desk.next()
    assert outcome.failure is not None
    assert "SIGKILL" in outcome.failure.message
    await eventually(lambda: not any(lives(pid) for pid in pids))


async def test_signals_to_a_keeper_leave_its_child_to_finish(desk: Desk, shop: Path) -> None:
    """Supervisors send them to every process of a service, and then the node drains."""
    desk.worker.start([claim("start", ["a program", str(shop / "pid"), "hang"])])
    await desk.until(lambda: bool(desk.progress))
    (pids,) = desk.progress
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pids[1], number)
    await desk.outcome_of(claim("pid", id_="B"))
    assert all(lives(pid) for pid in pids)


NODE = """
    import asyncio, json, os, signal, sys
    from tests.integration.test_keeper import claim, keeper_desk
    async def main():
        one = keeper_desk()
        one.worker.start([claim("start", [sys.argv[1], sys.argv[2], "hang"])])
        await one.until(lambda: bool(one.progress))
        if sys.argv[3] == "with a copy" and os.fork() == 0:
            import time
            time.sleep(300)  # it holds all sockets and pipes of the node
        print(json.dumps(one.progress[0]), flush=True)
        if sys.argv[3] == "os._exit": os._exit(3)
        await asyncio.sleep(60)
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("how", "end"),
    [
        *((how, "SIGKILL") for how in STARTS),
        ("a daemon", "SIGTERM"),
        ("a daemon", "os._exit"),
        pytest.param("a daemon", "with a copy", marks=pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG")),
    ],
)
def test_it_ends_with_a_node_that_is_killed(how: str, end: str, shop: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(NODE), how, str(shop / "pid"), end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        pids = msgspec.json.decode(process.stdout.readline())
        if end != "os._exit":
            process.send_signal(signal.SIGTERM if end == "SIGTERM" else signal.SIGKILL)
        process.wait(20)
        try:
            asyncio.run(eventually(lambda: not any(lives(pid) for pid in pids)))
        finally:
            if end == "with a copy":
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM twice", "drained for too long"])
def test_it_ends_with_a_real_node(how: str, tmp_path: Path, redis_server: RedisServer) -> None:
    pid_file = tmp_path / "pid"
    with fleet(tmp_path, redis_server.url, tasks="tests.integration.waits_tasks", drain_s=0.5) as nodes:
        nodes.start(1)
        (node,) = nodes.nodes
        node.submit("with_a_program", str(pid_file))
        wait_until(pid_file.exists, 20, "the handler starts its program")
        program = int(pid_file.read_text())
        assert lives(program)
        node.kill() if how == "SIGKILL" else node.terminate()
        if how == "SIGTERM twice":
            wait_until(lambda: "signal" in node.log(), 10, "the node hears the first signal")
            node.terminate()
        wait_until(lambda: not node.is_running and not lives(program), 20, "the node and the program end")


async def test_an_answer_counts_for_its_own_delivery_alone(desk: Desk) -> None:
    """A second answer would be taken for that of the next task, and every later one for that of the task after it."""
    with structlog.testing.capture_logs() as lines:
        doubled = await desk.outcome_of(claim("answer_twice"))
        assert doubled.result == b'"forged"'  # its own task's: a handler may say of its task what it likes
        pid = (await desk.outcome_of(claim("pid", id_="B"))).result
        assert pid is not None
        assert int(pid) > 0
        assert (await desk.outcome_of(claim("answer_for_another"))).result == b'"real"'
        assert (await desk.outcome_of(claim("pid", id_="B"))).result == pid  # one child, and it was used on
    assert [line["of"] for line in lines if line["event"] == "late_answer"] == ["A", "B", "A"]


@pytest.mark.parametrize(
    "data", ["no json", "no utf-8", "stopped", "hello\n", "\0", "\0\n", "Rumr", "Rumr\0\0\0\1\xff", "\xff" * 70_000]
)
async def test_what_is_no_answer_fails_the_attempt_that_sent_it(data: str, desk: Desk) -> None:
    outcome = await desk.outcome_of(claim("write", data))
    assert (outcome.kind, outcome.failure and outcome.failure.type) == (Kind.FAILED, "WorkerCrashed")
    assert outcome.failure is not None
    assert "what is no message" in outcome.failure.message
    assert (await desk.outcome_of(claim("pid"))).kind is Kind.SUCCEEDED


async def test_of_two_copies_that_return_one_answers_and_later_tasks_keep_their_own(desk: Desk) -> None:
    for n in range(3):
        assert (await desk.outcome_of(claim("two_answers_of_a_fork", id_=f"F{n}"))).result == b'"original"'
        assert (await desk.outcome_of(claim("library", id_=f"L{n}"))).kind is Kind.SUCCEEDED


async def test_a_handler_finds_no_secret_of_the_cluster(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"RUMOR_API_TOKEN": "tok-123", "RUMOR_REDIS_URL": "redis://:pw-123@h/0", "RUMOR_GOSSIP_KEYS": "key-123"}
    for name, value in {**secrets, "SHOP_KEY": "own-123", "RUMOR_URL": "http://h:1"}.items():
        monkeypatch.setenv(name, value)
    one = keeper_desk()
    try:
        found = msgspec.json.decode((await one.outcome_of(claim("environment"))).result or b"")
    finally:
        await one.worker.close()
    for text in found:
        assert not [word for word in ("tok-123", "pw-123", "key-123", *secrets) if word in text]
    assert all("own-123" in text and "http://h:1" in text for text in found[:4])


async def test_a_child_has_no_file_of_its_node_and_its_programs_have_none_of_the_childs(
    desk: Desk, tmp_path: Path
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "open").open("w"):
        os.set_inheritable(server.fileno(), False)
        own, program = msgspec.json.decode((await desk.outcome_of(claim("files"))).result or b"")
    sockets = [name for name in own if name.startswith("socket:")]
    assert len(sockets) == 1  # to its node
    assert str(tmp_path / "open") not in own
    assert not [name for name in program if name.startswith("socket:") or name == str(tmp_path / "open")]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_program_of_a_handler_on_the_loop_has_no_file_of_the_node(tmp_path: Path, redis_server: RedisServer) -> None:
    """Though it is told to close none: all of the node's are closed when a program is executed."""
    with fleet(tmp_path, redis_server.url, tasks="tests.integration.waits_tasks") as nodes:
        nodes.start(1)
        (node,) = nodes.nodes
        (task_id,) = node.submit("files_of_a_program")
        assert node.task(task_id, wait_s=10)["result"] == []


async def test_a_users_file_does_not_stand_in_for_a_module_of_the_library(desk: Desk, shop: Path) -> None:
    for name in ("queue", "random", "sched", "secrets", "selectors", "json", "signal", "select", "socket"):
        (shop / f"{name}.py").write_text("raise SystemExit('not this one')")
    found = msgspec.json.decode((await desk.outcome_of(claim("library"))).result or b"")
    assert all(path.startswith(os.path.dirname(os.__file__)) for path in found)


async def test_a_handler_may_spawn_processes(desk: Desk) -> None:
    outcome: Outcome = await desk.outcome_of(claim("spawned"))
    assert outcome.result == b"3"
