"""The end of a node's process: over in time, with the right status, whatever user code left behind.

A handler may leave behind threads that never end, tasks that swallow their cancellation, calls in the loop's executor,
an exit hook that blocks. Python waits for all of them. So a thread of its own watches the clock, and ends the process
when the time is up.

Does not know: what must be done before the end.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import threading
import time
from collections.abc import Callable
from math import inf
from queue import Empty, SimpleQueue

import structlog

from cluster import output

# Bounds of the end, in seconds; each is reached only where something hangs.
END_S = 7.0  # from the end of the drain until this process is over
LEAVE_S = 3.0  # the last part of it: Python's own end, with the exit hooks and threads of user code
FORCE_WITHIN_S = 1.0  # time for the last words of a process whose time is up
THREADS_NAMED = 10

log = structlog.get_logger("rumor.node")


class Leaving:
    """Ends this process by a time that `by` sets. Make it before any user code is imported."""

    def __init__(self) -> None:
        self.last: Callable[[], None] = lambda: None  # what is still to be done when the time is up; bounded
        self._status: int | None = None
        self._orders: SimpleQueue[tuple[float, int]] = SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="rumor-leaving", daemon=True)
        self._thread.start()
        # Registered before all hooks of user code, so it runs after them.
        atexit.register(self._after_all_hooks)

    def by(self, within_s: float, status: int) -> None:
        """Be over within so long; this takes the place of what was said before. A signal handler may call it."""
        self._status = status
        self._orders.put((time.monotonic() + within_s, status))

    def wait(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _watch(self) -> None:
        at_s, status = inf, 0
        while True:
            try:
                left_s = max(0.0, at_s - time.monotonic())
                at_s, status = self._orders.get(timeout=None if at_s == inf else left_s)
            except Empty:
                break
        log.warning("end_forced", status=status, left_behind=left_behind())
        self.last()
        output.flush(FORCE_WITHIN_S)
        os._exit(status)

    def _after_all_hooks(self) -> None:
        """End here: taking the interpreter apart can hang or crash on threads that still run."""
        output.flush()
        if self._status is not None:
            os._exit(self._status)


class ToldToEnd:
    """SIGTERM and SIGINT. The first drains the node, the second cuts the drain short, a third ends the process.

    SIGHUP, which comes when the node's terminal is closed, drains it as well. These are plain handlers, and not the
    loop's: a loop that a handler blocks must not keep its node from ending.
    """

    def __init__(
        self,
        leaving: Leaving,
        drain_s: float,
        hand_back_s: float,
        stop: asyncio.Event,
        hurry: Callable[[], None],
    ) -> None:
        self._leaving = leaving
        self._drain_s = drain_s
        self._rest_s = hand_back_s + END_S
        self._stop = stop
        self._hurry = hurry
        self._loop = asyncio.get_running_loop()
        self._count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it for its program, and means it
            signal.signal(signal.SIGHUP, self._on_hangup)

    def _on_signal(self, number: int, frame: object) -> None:
        """Between two lines of any code: take no lock and log nothing here."""
        self._count += 1
        if self._count == 1:
            self._leaving.by(self._drain_s + self._rest_s, 0)
            self._loop.call_soon_threadsafe(self._first, number)
        elif self._count == 2:
            self._leaving.by(self._rest_s, 0)
            self._loop.call_soon_threadsafe(self._second, number)
        else:
            self._leaving.by(0.0, 128 + number)

    def _on_hangup(self, number: int, frame: object) -> None:
        """Both the kernel and a shell say that a terminal is gone: this is no wish to hurry."""
        if self._count == 0:
            self._on_signal(number, frame)

    def _first(self, number: int) -> None:
        log.info("signal", signal=signal.Signals(number).name)
        self._stop.set()

    def _second(self, number: int) -> None:
        log.warning("second_signal", signal=signal.Signals(number).name, hint="What runs is handed back, uncounted.")
        self._hurry()


def left_behind() -> list[str]:
    """What Python would wait for: names of threads, beside the main thread and those that are daemons."""
    threads = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    return threads[:THREADS_NAMED]
