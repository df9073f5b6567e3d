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

from cluster.clock import wall_ms
from cluster.config import Config
from cluster.gossip import watch_token
from cluster.gossip.address import own_host
from cluster.load import Load
from cluster.view import View
from cluster.vitals.life import Life
from cluster.vitals.told import Tell, Told

T = TypeVar("T")

STOP_LIMIT_S = 10.0  # time that the thread has to end


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
        """Say that the main loop turns. Call it every 250 ms or so."""
        self._life.main.ticked_s = time.monotonic()

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
        await self._call(self._life.leave())

    async def stop(self) -> None:
        """Say that this node left, end its session in Redis, give the lease back, end the thread."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        if self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
        await asyncio.to_thread(self._thread.join, STOP_LIMIT_S)

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
            raise

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
