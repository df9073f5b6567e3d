"""Child processes that run sync handlers: one task at a time each, killable, and free to crash.

One socket pair per child carries everything in msgpack: calls in, progress and endings out. Children share nothing, so
that killing one at any moment neither hurts another nor leaves a lock behind. They start when first needed, are used
again, and end when the socket closes or their node dies. Each starts as a new interpreter: a fork of a process with
threads and an event loop would inherit their locks.

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
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cluster.config import Config
from cluster.shards.task import Claimed
from node.work.ending import Ending, failed

CHILDREN_MAX = 64
BOOT_LIMIT_S = 60.0  # includes the imports of the user's modules
CLOSE_GRACE_S = 1.0
FRAME_MAX_BYTES = 8_388_608
EXIT_LAG_S = 0.1  # the time between a child's exit and the end of file on its socket, if no other process holds it
HEADER = struct.Struct("!I")

_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from node.work.child import main; main(int(sys.argv[2]))"
_ROOT = str(Path(__file__).absolute().parents[2])


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first frame to a child: where to import from, which modules, and how to log."""

    path: list[str]
    modules: list[str]
    node_id: str
    log_level: str
    log_format: str
    is_traced: bool = False


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The child has imported everything, or `problem` says why it could not."""

    problem: str | None = None


class Progress(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """JSON that the running handler reported."""

    value: bytes


class Done(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The attempt has ended; the child is idle."""

    ending: Ending


FromChild = Ready | Progress | Done

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def frame(message: Hello | Claimed | FromChild) -> bytes:
    """A message as it goes over the socket: its length, then msgpack."""
    body = encode(message)
    return HEADER.pack(len(body)) + body


class ChildLost(Exception):
    """The child ended, or never became ready."""


class Child:
    """One child process and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.is_idle = False
        self.exited = asyncio.ensure_future(self._watch())

    async def boot(self, hello: Hello) -> None:
        """Wait until it has imported the handlers. Raises ChildLost."""
        self._writer.write(frame(hello))
        match await self._read():
            case Ready(problem=None):
                self.is_idle = True
            case Ready(problem=str(problem)):
                raise ChildLost(problem)
            case message:
                raise ChildLost(f"its first message was {type(message).__name__}")

    async def call(self, claimed: Claimed, on_progress: Callable[[bytes], None]) -> Ending:
        """Run one task. Raises ChildLost when the child ends before it."""
        self.is_idle = False
        self._writer.write(frame(claimed))
        while True:
            match await self._read():
                case Progress(value=value):
                    on_progress(value)
                case Done(ending=ending):
                    self.is_idle = True
                    return ending
                case Ready():
                    raise ChildLost("it started again")

    async def _read(self) -> FromChild:
        try:
            (length,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if length > FRAME_MAX_BYTES:
                raise ChildLost(f"it sent a frame of {length} bytes, at most {FRAME_MAX_BYTES}")
            return _decoder.decode(await self._reader.readexactly(length))
        except msgspec.MsgspecError as error:
            raise ChildLost(f"it sent a malformed message: {error}") from error
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
        if code:
            self._signal_group()  # programs that a crashed handler had started work for nobody now
        # A process that the handler forked may hold the socket open; then no end of file would ever come.
        await asyncio.sleep(EXIT_LAG_S)
        self._reader.feed_eof()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        return code

    def hang_up(self) -> None:
        """Let an idle child end by itself."""
        self._writer.close()

    def kill(self) -> None:
        """End it now, with whatever it started."""
        if self._process.returncode is None:
            self._signal_group()

    def _signal_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


class Pool:
    """Up to `limit` children. `run` waits for one; cancelling it kills the child that runs the task."""

    def __init__(
        self, config: Config, modules: Sequence[str], node_id: str, limit: int, is_traced: bool = False
    ) -> None:
        self._config = config
        self._is_traced = is_traced
        self._modules = list(modules)
        self._node_id = node_id
        self._room = asyncio.Semaphore(max(1, min(limit, CHILDREN_MAX)))
        self._idle: list[Child] = []
        self._children: dict[Child, None] = {}

    def __len__(self) -> int:
        return len(self._children)

    async def run(
        self, claimed: Claimed, on_started: Callable[[], None], on_progress: Callable[[bytes], None]
    ) -> Ending:
        """Run one task to its ending; the child's death is an ending too. Returns once the child is idle or gone, also
        when cancelled."""
        async with self._room:
            try:
                child = self._take() or await self._start()
            except (ChildLost, OSError, TimeoutError) as error:
                return failed("WorkerNotStarted", f"no child process could be started: {error}")
            try:
                on_started()
                return await child.call(claimed, on_progress)
            except ChildLost as lost:
                return failed("WorkerCrashed", f"the child process that ran it {lost}")
            finally:
                if child.is_idle:
                    self._idle.append(child)
                else:
                    await self._end(child)

    def _take(self) -> Child | None:
        while self._idle:
            child = self._idle.pop()
            if child.is_idle:  # it may have died while idle
                return child
        return None

    async def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", _BOOT, _ROOT, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # so that Ctrl-C is the node's alone, and a kill reaches all it started
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        child = Child(process, reader, writer)
        self._children[child] = None
        child.exited.add_done_callback(lambda _: self._children.pop(child, None))
        try:
            async with asyncio.timeout(BOOT_LIMIT_S):
                await child.boot(self._hello())
        except TimeoutError:
            await self._end(child)
            raise ChildLost(f"it did not import its modules within {BOOT_LIMIT_S:.0f} s") from None
        except BaseException:
            await self._end(child)
            raise
        return child

    def _hello(self) -> Hello:
        config = self._config
        return Hello(sys.path, self._modules, self._node_id, config.log_level, config.log_format, self._is_traced)

    async def _end(self, child: Child) -> None:
        child.kill()
        await asyncio.shield(child.exited)

    async def close(self) -> None:
        """Give children CLOSE_GRACE_S to end by themselves, then kill those that are left."""
        self._idle.clear()
        exits = [child.exited for child in self._children]
        for child in self._children:
            child.hang_up()
        if exits:
            await asyncio.wait(exits, timeout=CLOSE_GRACE_S)
        for child in list(self._children):
            await self._end(child)


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
