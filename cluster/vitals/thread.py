"""The vitals thread: everything that says a node lives, away from the main loop.

Gossip, the heartbeat in Redis, watching others' heartbeats, fencing and the leader lease run on a thread with its own
event loop and its own Redis connections, so a handler that blocks the main loop cannot get its node declared dead. The
thread watches the main loop in turn. This module is the border: the main loop calls `Vitals`, and the thread hands the
main loop values of `told`. What crosses is immutable.

Decides nothing; see `life` for what the thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

from cluster.clock import wall_ms
from cluster.config import Config
from cluster.gossip import watch_token
from cluster.gossip.address import own_host
from cluster.load import Load
from cluster.view import View
from cluster.vitals.life import Life
from cluster.vitals.main_loop import MainLoop
from cluster.vitals.told import Broken, Tell, Told

T = TypeVar("T")

log = structlog.get_logger("vitals")

STOP_LIMIT_S = 4.0  # time that the thread has to end: some calls to a Redis that may not answer
END_SESSION_S = 1.5  # time for it where the process must be over at once
LEAVE_LIMIT_S = 2.0  # time that the thread has to say that this node drains
TICK_S = 0.1  # time between two ticks of the main loop


class Vitals:
    """The vitals thread, as the main loop holds it. `hear` runs on `loop`, in the order in which things happened."""

    def __init__(
        self, config: Config, keys: Sequence[bytes], meta: bytes, hear: Tell, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.config = config
        self._keys = tuple(keys)
        self._meta = meta
        self._hear = hear
        self._main_loop = loop
        self._started_life: Life | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None
        self._is_stopping = False
        self._has_ended = asyncio.Event()  # on the main loop
        self._turns = MainLoop(TICK_S, time.monotonic())  # the same reckoning as of the main loop, the other way round

    @property
    def _life(self) -> Life:
        assert self._started_life is not None, "start() first"
        return self._started_life

    @property
    def view(self) -> View:
        """The latest view. Readable from any thread."""
        return self._life.view

    @property
    def session(self) -> str:
        """This node's present session. Readable from any thread."""
        return self._life.session

    @property
    def stats(self) -> Mapping[str, int]:
        """Counters of the protocol, its driver and the vitals."""
        return self._started_life.stats() if self._started_life is not None else {}

    async def start(self) -> None:
        """Return when gossip is bound, the first heartbeat is in Redis (or Redis is away) and joining has begun.

        Raises ConfigError when the port is taken or the name is alive elsewhere; then the thread has ended.
        """
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="vitals", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(started)

    def is_sure(self, session: str) -> bool:
        """Whether this is our session, and Redis acknowledged it so lately that nobody can hold it dead for silence.

        A node that was stopped, or cut from Redis, is not sure of itself until Redis answers its next heartbeat.
        """
        return self._life.is_sure(session)

    def set_load(self, load: Load) -> None:
        """This node's load from now on. Gossip takes it within 100 ms; a change that matters goes to a few at once."""
        self._life.load = load

    def tick(self) -> None:
        """Say that the main loop turns, and look whether this thread's does. Call it every TICK_S."""
        now_s = time.monotonic()
        self._life.main.ticked_s = now_s
        quiet_s = self._turns.look(self._life.turned_s, now_s)
        if quiet_s > self.config.stall_limit_s:
            self._hear(Broken(f"the loop of the vitals thread has not turned for {quiet_s:.0f} s"))

    def consider(self, sessions: Iterable[str]) -> None:
        """These sessions hold work in Redis: watch those that gossip does not know, and fence them by the rules."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._life.consider, tuple(sessions))

    async def push_pull(self, body: bytes) -> bytes | None:
        """The answer to a peer's POST /gossip. None: the protocol refused it."""

        async def answer() -> bytes | None:
            return self._life.answer(body)

        return await self._call(answer())

    def accepts_watch(self, token: str) -> bool:
        """Whether the bearer of this token may hold a watch connection to this node."""
        return watch_token.is_valid(self._keys, token, self.config.cluster, self.config.name, wall_ms())

    async def leave(self) -> None:
        """Say that this node drains: it keeps its heartbeat, owns nothing, leads nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_LIMIT_S):
                await self._call(self._life.leave())

    async def stop(self) -> None:
        """Say that this node left, end its session in Redis, give the lease back, end the thread.

        Waits without the loop's executor: a handler may have filled its threads with calls that never return.
        """
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        self._is_stopping = True
        if self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._has_ended.wait()

    def give_up(self, message: str) -> bool:
        """End this node's session, so that others take its tasks at once, then the process, with EXIT_GAVE_UP.

        False if this thread has ended: then nobody does either.
        """
        if self._loop is None or not self._turns_now():
            return False
        asyncio.run_coroutine_threadsafe(self._life.give_up(message, "broken"), self._loop)
        return True

    def end_session(self) -> None:
        """End this node's session now, within END_SESSION_S. From any other thread, as the last thing."""
        if self._loop is None or not self._turns_now():
            return
        with contextlib.suppress(Exception):  # Redis is away: there is nothing left to do
            asyncio.run_coroutine_threadsafe(self._life.end_session(), self._loop).result(END_SESSION_S)

    def _turns_now(self) -> bool:
        """Whether the thread lives and its loop runs."""
        is_alive = self._thread is not None and self._thread.is_alive()
        return is_alive and self._started_life is not None and self._loop is not None and self._loop.is_running()

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the vitals loop, wait on this one."""
        assert self._loop is not None, "start() first"
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def _tell(self, told: Told) -> None:
        """From the vitals thread: let the main loop hear this."""
        try:  # Every wake-up comes this way, and contextlib.suppress takes 0.4 us.
            self._main_loop.call_soon_threadsafe(self._hear, told)
        except RuntimeError:
            pass  # The main loop has ended: nobody is left to be told.

    def _run(self, started: Future[None]) -> None:
        try:
            import uvloop

            factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        except ImportError:
            factory = asyncio.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._live(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
                return
            log.critical("vitals_ended", exc_info=error)
            self._tell(Broken(f"the vitals thread ended: {error!r}"))
        else:
            if not self._is_stopping:
                self._tell(Broken("the vitals thread ended, and nobody asked it to"))
        finally:
            with contextlib.suppress(RuntimeError):
                self._main_loop.call_soon_threadsafe(self._has_ended.set)

    async def _live(self, started: Future[None]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        life = Life(self.config, self._keys, self._meta, self._tell, await own_host(self.config))
        self._started_life = life
        try:
            await life.begin()
            started.set_result(None)
            await self._end.wait()
            await life.depart()
        finally:
            await life.close()
