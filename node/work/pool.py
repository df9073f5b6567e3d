"""Child processes that run sync handlers: one task at a time each, killable, and free to crash.

One socket pair per child carries everything in frames: calls in, progress and endings out. Children share nothing, so
that killing one at any moment neither hurts another nor leaves a lock behind. They start when first needed, are used
again until they are worn (`wear.py`) or idle for long, and end when the socket closes. Each starts as a new
interpreter: a fork of a process with threads and an event loop would inherit their locks.

The node's own child is a keeper, which forks the one that works and ends all that it started, however it ends
(`keeper.py`). So the exit code here is that of the working child, and no program of it lives once it is known.

Tried before: pebble.ProcessPool. Its children share one pipe and its lock, an idle child that dies breaks the whole
pool, progress needs a second shared channel, and it notices deaths and time-outs by polling.

Does not know: time limits. The worker cancels the call, which kills the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import structlog

from cluster.config import Config, without_secrets
from cluster.shards.task import Claimed
from node.work import keeper
from node.work.ending import Ending, failed
from node.work.frames import HEADER, Done, FromChild, Hello, Progress, Ready, answer, body_length, frame
from node.work.wear import Limits, Reason, Wear

CHILDREN_MAX = 64
BOOT_LIMIT_S = 60.0  # includes the imports of the user's modules
CLOSE_GRACE_S = 1.0
EXIT_LAG_S = 0.1  # the time between a child's exit and the end of file on its socket, if no other process holds it
IDLE_AGAIN_S = 1.0  # the pause before a look at an idle child whose successor is starting

log = structlog.get_logger("rumor.children")


class ChildLost(Exception):
    """The child ended, or never became ready."""


class Child:
    """One child process and the socket to it."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits,
    ) -> None:
        self._process = process  # the keeper
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self.pid = 0  # of the process that runs handlers; 0 until it is ready
        self.wear = Wear(limits, self._loop.time())
        self.is_idle = False
        self.idle_since_s = 0.0
        self.exited = asyncio.ensure_future(self._watch())

    async def boot(self, path: Sequence[str], hello: Hello) -> None:
        """Wait until it has imported the handlers. Raises ChildLost."""
        folders = os.fsencode("\0".join(path))
        self._writer.write(len(folders).to_bytes(keeper.LENGTH_BYTES, "big") + folders + frame(hello))
        match await self._read():
            case Ready(pid, None):
                self.pid = pid
                self._rest()
            case Ready(_, str(problem)):
                raise ChildLost(problem)
            case message:
                raise ChildLost(f"its first message was {type(message).__name__}")

    async def call(self, claimed: Claimed, on_progress: Callable[[bytes], None]) -> Ending:
        """Run one task. Raises ChildLost when the child ends before it."""
        self.is_idle = False
        self._writer.write(frame(claimed))
        while True:
            match await self._read():
                case Progress(task_id, delivery, value) if (task_id, delivery) == (claimed.id, claimed.delivery):
                    on_progress(value)
                case Done(task_id, delivery, ending, memory_bytes):
                    if (task_id, delivery) == (claimed.id, claimed.delivery):
                        self.wear.add(memory_bytes)
                        self._rest()
                        return ending
                    log.warning("late_answer", pid=self.pid, of=task_id, delivery=delivery, running=claimed.id)
                case Ready():
                    raise ChildLost("it started again")

    def _rest(self) -> None:
        self.is_idle = True
        self.idle_since_s = self._loop.time()

    async def _read(self) -> FromChild:
        try:
            length = body_length(await self._reader.readexactly(HEADER.size))
            return answer(await self._reader.readexactly(length))
        except (ValueError, msgspec.MsgspecError) as error:
            raise ChildLost(f"wrote to the node what is no message: {error}") from error
        except (asyncio.IncompleteReadError, ConnectionError):
            return await self._lost()

    async def _lost(self) -> FromChild:
        """Say how the child ended, now that its socket has. Kill it if it closed the socket and lives on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.exited), CLOSE_GRACE_S)
        self.kill()
        raise ChildLost(_end_in_words(await asyncio.shield(self.exited)))

    async def _watch(self) -> int:
        code = await self._process.wait()
        self.is_idle = False
        if self.pid:
            # Its keeper may be the one that was killed: then the kernel killed the child, but not what it started.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        # A process that the handler forked may hold the socket open; then no end of file would ever come.
        await asyncio.sleep(EXIT_LAG_S)
        self._reader.feed_eof()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return code

    def hang_up(self) -> None:
        """Let an idle child end by itself."""
        self.is_idle = False
        self._writer.close()

    def kill(self) -> None:
        """End it now, with whatever it started."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGUSR1)


class Pool:
    """Up to `limit` children at work. `run` waits for one; cancelling it kills the child that runs the task."""

    def __init__(
        self, config: Config, modules: Sequence[str], node_id: str, limit: int, is_traced: bool = False
    ) -> None:
        self._hello = Hello(list(modules), node_id, config.log_level, config.log_format, is_traced)
        self._limits = Limits(config.max_tasks_per_child, config.max_memory_per_child_mb)
        self._idle_s = config.child_idle_s
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(max(1, min(limit, CHILDREN_MAX)))
        self._children: dict[Child, None] = {}
        self._busy: dict[Child, None] = {}
        self._idle: list[Child] = []  # the one that worked last stands last, and works next
        self._starting: dict[asyncio.Task[Child], None] = {}  # children that start before they are needed
        self._leaving: dict[asyncio.Task[None], None] = {}  # their ends
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.replaced: Counter[Reason] = Counter(dict.fromkeys(Reason, 0))

    def count(self) -> dict[str, int]:
        """Child processes by what they do."""
        busy, idle = len(self._busy), len(self._idle)
        return {"busy": busy, "idle": idle, "other": len(self._children) - busy - idle}

    async def run(
        self, claimed: Claimed, on_started: Callable[[], None], on_progress: Callable[[bytes], None]
    ) -> Ending:
        """Run one task to its ending; the child's death is an ending too. Returns once the child is idle or gone, also
        when cancelled."""
        async with self._room:
            try:
                child = await self._take()
            except (ChildLost, OSError, TimeoutError) as error:
                return failed("WorkerNotStarted", f"no child process could be started: {error}")
            self._busy[child] = None
            try:
                if child.wear.is_near(self._loop.time()):
                    self._start_successors()
                on_started()
                return await child.call(claimed, on_progress)
            except ChildLost as lost:
                return failed("WorkerCrashed", f"the child process that ran it {lost}")
            finally:
                del self._busy[child]
                await self._put_back(child)

    async def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_idle:  # it may have died while idle
                return child
        if not self._starting:
            return await self._start()
        start = next(iter(self._starting))
        del self._starting[start]
        try:
            return await asyncio.shield(start)
        except asyncio.CancelledError:
            self._starting[start] = None
            if start.done():
                self._started(start)
            raise

    async def _put_back(self, child: Child) -> None:
        if not child.is_idle:
            await self._end(child)
        elif (reason := child.wear.over()) is not None:
            self._replace(child, reason)
        else:
            self._idle.append(child)
            self._look_at_idle_ones(self._idle_s)

    # Children that take the place of others

    def _start_successors(self) -> None:
        """Have one child more for each that runs one of its last tasks, so that no task waits for an interpreter."""
        now_s = self._loop.time()
        missing = sum(child.wear.is_near(now_s) for child in self._busy) - len(self._idle) - len(self._starting)
        for _ in range(missing):
            self._start_ahead()

    def _start_ahead(self) -> None:
        if self._is_closed:
            return
        start = self._loop.create_task(self._start())
        self._starting[start] = None
        start.add_done_callback(self._started)

    def _started(self, start: asyncio.Task[Child]) -> None:
        if start not in self._starting:
            return  # a task took it
        del self._starting[start]
        if start.cancelled():
            return
        error = start.exception()
        if error is not None:
            log.warning("child_not_started", reason=str(error))
        else:
            self._idle.insert(0, start.result())
            self._look_at_idle_ones(self._idle_s)

    def _replace(self, child: Child, reason: Reason) -> None:
        """Have it end in good order; the next task finds another."""
        self.replaced[reason] += 1
        log.info("child_replaced", reason=reason, pid=child.pid, tasks=child.wear.tasks, bytes=child.wear.memory_bytes)
        if not self._idle and not self._starting:
            self._start_ahead()
        child.hang_up()
        leave = self._loop.create_task(self._leave([child]))
        self._leaving[leave] = None
        leave.add_done_callback(self._leaving.pop)

    def _look_at_idle_ones(self, after_s: float) -> None:
        if self._timer is None and self._idle_s and self._idle:
            self._timer = self._loop.call_later(after_s, self._end_idle_ones)

    def _end_idle_ones(self) -> None:
        """End children that have been idle for long, all but one. That one is fresh: a fresh child takes its place."""
        self._timer = None
        self._idle = [child for child in self._idle if child.is_idle]
        until_s = self._loop.time() - self._idle_s
        due = [child for child in self._idle if child.idle_since_s <= until_s]
        due.sort(key=lambda child: child.wear.tasks == 0)
        for child in due[: len(self._idle) - 1]:
            self._idle.remove(child)
            self._replace(child, Reason.IDLE)
        if [child.wear.tasks for child in self._idle] == [0]:
            return  # it has done nothing that it could be renewed for
        if len(due) == 1 == len(self._idle) and not self._starting:
            self._start_ahead()
            self._look_at_idle_ones(IDLE_AGAIN_S)
        else:
            self._look_at_idle_ones(self._idle_s)

    # Starting and ending

    async def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", keeper.__file__, str(theirs.fileno())),
                    stdin=asyncio.subprocess.PIPE,  # nothing is written to it: it ends with the node
                    pass_fds=(theirs.fileno(),),
                    env=without_secrets(os.environ),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        child = Child(process, reader, writer, self._limits)
        self._children[child] = None
        child.exited.add_done_callback(lambda _: self._forget(child))
        try:
            async with asyncio.timeout(BOOT_LIMIT_S):
                await child.boot(sys.path, self._hello)
        except TimeoutError:
            await self._end(child)
            raise ChildLost(f"it did not import its modules within {BOOT_LIMIT_S:.0f} s") from None
        except BaseException:
            await self._end(child)
            raise
        return child

    def _forget(self, child: Child) -> None:
        self._children.pop(child, None)
        if child in self._idle:  # it died while it was idle
            self._idle.remove(child)

    async def _end(self, child: Child) -> None:
        child.kill()
        await asyncio.shield(child.exited)

    async def _leave(self, children: Sequence[Child]) -> None:
        """Give them CLOSE_GRACE_S to end by themselves, then kill those that are left."""
        if children:
            await asyncio.wait([child.exited for child in children], timeout=CLOSE_GRACE_S)
        for child in children:
            await self._end(child)

    async def close(self) -> None:
        """End all children: in good order, or else after CLOSE_GRACE_S."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._idle.clear()
        starts = list(self._starting)
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        children = list(self._children)
        for child in children:
            child.hang_up()
        await self._leave(children)
        await asyncio.gather(*self._leaving, return_exceptions=True)


def _end_in_words(code: int) -> str:
    """How a process ended, in words, from its exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    oom = "; the kernel does that when memory runs out" if -code == signal.SIGKILL else ""
    return f"was killed by {name} (exit code {code}){oom}"
