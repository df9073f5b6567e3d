"""The vitals thread: everything that says a node lives, away from the main loop.

Gossip, the heartbeat in Redis, watching others' heartbeats, fencing and the leader lease run on a thread with its own
event loop and its own Redis connections, so a handler that blocks the main loop cannot get its node declared dead. The
thread watches the main loop in turn. This module is the border: the main loop calls `Vitals`, the thread calls `Hooks`
on the main loop; what crosses is immutable.

Decides nothing; see `life` for what the thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from cluster.config import Config
from cluster.gossip import watch_token
from cluster.gossip.address import own_host
from cluster.load import Load
from cluster.view import View
from cluster.vitals.life import Life

T = TypeVar("T")

STOP_LIMIT_S = 10.0


class Hooks(Protocol):
    """What the main loop is told. All are called on the main loop, in the order in which things happened."""

    def on_view(self, view: View) -> None:
        """Membership, leader, reach of Redis or loads changed (loads: at most 10 times a second)."""

    def on_dead(self, session: str, cause: str) -> None:
        """Its tombstone is written (by anyone): reap all its shards now."""

    def on_disowned(self, session: str) -> None:
        """OUR session has ended, or is about to: nothing of it may commit, so nothing of it should go on."""

    def on_fenced(self, session: str) -> None:
        """OUR session was fenced; `session` is our new one, registered already."""

    def on_wake(self, message: bytes) -> None:
        """A payload that another node published to our channel."""

    def on_event(self, event: dict[str, Any]) -> None:
        """A line of the timeline: `at_ms`, `kind`, `node_id` and what fits."""

    def on_redis(self, is_ok: bool) -> None:
        """Heartbeats are answered again, or no longer."""

    def on_conflict(self, message: str) -> None:
        """This node's name is used twice: the node must stop, for this reason."""

    def on_give_up(self, message: str) -> None:
        """The main loop hangs for stall_limit_s; the process is about to end (nobody may be there to hear this)."""


class _OnMainLoop:
    """Hooks that may be called from the vitals thread."""

    def __init__(self, hooks: Hooks, loop: asyncio.AbstractEventLoop) -> None:
        self._hooks = hooks
        self._loop = loop

    def on_view(self, view: View) -> None:
        self._tell(self._hooks.on_view, view)

    def on_dead(self, session: str, cause: str) -> None:
        self._tell(self._hooks.on_dead, session, cause)

    def on_disowned(self, session: str) -> None:
        self._tell(self._hooks.on_disowned, session)

    def on_fenced(self, session: str) -> None:
        self._tell(self._hooks.on_fenced, session)

    def on_wake(self, message: bytes) -> None:
        self._tell(self._hooks.on_wake, message)

    def on_event(self, event: dict[str, Any]) -> None:
        self._tell(self._hooks.on_event, event)

    def on_redis(self, is_ok: bool) -> None:
        self._tell(self._hooks.on_redis, is_ok)

    def on_conflict(self, message: str) -> None:
        self._tell(self._hooks.on_conflict, message)

    def on_give_up(self, message: str) -> None:
        self._tell(self._hooks.on_give_up, message)

    def _tell(self, hook: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The main loop has ended: nobody is left to be told.
            self._loop.call_soon_threadsafe(hook, *args)


class Vitals:
    """The vitals thread, as the main loop holds it."""

    def __init__(
        self, config: Config, keys: Sequence[bytes], meta: bytes, hooks: Hooks, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.config = config
        self._keys = tuple(keys)
        self._meta = meta
        self._hooks = _OnMainLoop(hooks, loop)
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
        """This node's session now. Readable from any thread."""
        return self._life.session

    @property
    def stats(self) -> Mapping[str, int]:
        """Counters of the protocol, its driver and the vitals."""
        return self._started_life.stats() if self._started_life is not None else {}

    async def start(self) -> None:
        """Return once gossip is bound, the first heartbeat is in Redis (or Redis is away) and joining has begun.

        Raises ConfigError when the port is taken or the name is alive elsewhere; the thread has ended then.
        """
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="vitals", daemon=True)
        self._thread.start()
        await asyncio.wrap_future(started)

    def is_sure(self, session: str) -> bool:
        """Whether this is our session, and acknowledged so lately that nobody can hold it dead for its silence.

        A node that was stopped, or cut from Redis, is not sure of itself until its next heartbeat is answered.
        """
        return self._life.is_sure(session)

    def set_load(self, load: Load) -> None:
        """This node's load from now on; told to the others within 100 ms."""
        self._life.load = load

    def tick(self) -> None:
        """The main loop lives. To be called every 250 ms or so."""
        self._life.ticked_s = time.monotonic()

    def consider(self, sessions: Iterable[str]) -> None:
        """These sessions hold work in Redis: watch those that gossip does not know, and fence them by the rules."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._life.consider, tuple(sessions))

    async def push_pull(self, body: bytes) -> bytes | None:
        """The answer to a peer's POST /gossip. None: refused."""

        async def answer() -> bytes | None:
            return self._life.answer(body)

        return await self._call(answer())

    def accepts_watch(self, token: str) -> bool:
        """Whether the bearer of this token may hold a watch connection to this node."""
        wall_ms = time.time_ns() // 1_000_000
        return watch_token.is_valid(self._keys, token, self.config.cluster, self.config.name, wall_ms)

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
        life = Life(self.config, self._keys, self._meta, self._hooks, await own_host(self.config))
        self._started_life = life
        try:
            await life.begin()
            started.set_result(None)
            await self._end.wait()
            await life.depart()
        finally:
            await life.close()
