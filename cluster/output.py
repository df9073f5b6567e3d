"""Standard output and error that harm nobody who writes to them: they never block, and they raise nothing.

The reader of a pipe may be gone, or stopped; a disk may be full; a terminal may be held by Ctrl-S. A plain write would
then raise in whoever writes, or block the thread that writes, and with it the event loop. So a thread of its own writes
what others hand in. A bounded number of bytes waits for it; what is beyond is lost and counted, and a line says so
once there is room again.

A child process of a node may crash at any moment, and its last words matter. So a write there also waits until it is
done: for a moment, and not again before the stream has caught up.

Does not know: what is written.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, cast

WAITING_MAX_BYTES = 4_194_304  # bytes that wait for a slow reader, of each stream
FLUSH_WITHIN_S = 1.0  # time that the end of a process leaves for what waits
RETRY_S = 0.1  # pause after a write that failed, and between two looks whether a stream takes more

Notice = Callable[[int], str]  # the line that says how many writes were lost


def _notice(lost: int) -> str:
    return f"{lost} writes to this stream were lost: it was full, closed or too slow\n"


class Outlet(io.RawIOBase):
    """The raw end of one stream. `write` takes everything and returns at once."""

    def __init__(self, descriptor: int, patience_s: float = 0.0) -> None:
        self._descriptor = descriptor
        self._patience_s = patience_s
        self._is_copy = False  # this process was forked off ours, and has no thread that writes
        self._is_slow = False  # a write waited for `patience_s` in vain, and the stream has not caught up since
        self.notice: Notice = _notice
        self.lost = 0  # writes that were lost and not told yet
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._is_idle = threading.Event()
        self._has_work = threading.Event()
        self._is_idle.set()
        threading.Thread(target=self._run, name=f"rumor-output-{descriptor}", daemon=True).start()
        os.register_at_fork(after_in_child=self._forked)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        piece = bytes(data)
        if self._is_copy:
            self._write_out(piece)
        elif self._bytes + len(piece) > WAITING_MAX_BYTES:
            self.lost += 1
        else:
            # Appending is atomic; the sum may be off by a write of another thread, and is a bound, not an account.
            self._is_idle.clear()
            self._bytes += len(piece)
            self._waiting.append(piece)
            self._has_work.set()
            if self._patience_s and not self._is_slow:
                self._is_slow = not self._is_idle.wait(self._patience_s)
        return len(piece)

    def settle(self, within_s: float) -> None:
        """Wait until everything is written, or the time is up."""
        until_s = time.monotonic() + within_s
        while not self._is_copy and self._is_idle.wait(max(0.0, until_s - time.monotonic())) and self._waiting:
            time.sleep(0)  # The thread has just seen an end, and then more came.

    def _run(self) -> None:
        while True:
            self._has_work.wait()
            self._has_work.clear()
            while self._waiting:
                piece = self._waiting.popleft()
                if self._write_out(piece) and self.lost:
                    lost, self.lost = self.lost, 0
                    self._write_out(self.notice(lost).encode("utf-8", "backslashreplace"))
                self._bytes -= len(piece)
            self._is_slow = False
            self._is_idle.set()
            if self._waiting:  # It came between the last look and the line above.
                self._is_idle.clear()
                self._has_work.set()

    def _write_out(self, piece: bytes) -> bool:
        """Whether it was written. A stream without a reader or room is no reason to end, nor to wait for."""
        left = memoryview(piece)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody else set this pipe or terminal so
                select.select([], [self._descriptor], [], RETRY_S)
            except (OSError, ValueError):
                self.lost += 1
                return False
        return True

    def _forked(self) -> None:
        """In a copy of this process, which has no such thread."""
        self._is_copy = True
        self._waiting.clear()


_outlets: dict[str, Outlet] = {}


def shield(patience_s: float = 0.0) -> None:
    """Put such streams in place of standard output and error. `patience_s`: how long a write may wait to be done."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if name in _outlets:
            continue
        before = getattr(sys, name)
        if before is None or before is not getattr(sys, f"__{name}__"):
            continue  # somebody put another stream there and means it
        with contextlib.suppress(OSError, ValueError):
            before.flush()
        outlet = _outlets[name] = Outlet(number, patience_s)
        # A buffer joins the pieces of a line: the outlet gets whole lines, and those of threads do not mix.
        stream = io.TextIOWrapper(
            io.BufferedWriter(cast(Any, outlet)), "utf-8", "backslashreplace", newline="\n", line_buffering=True
        )
        setattr(sys, name, stream)

    atexit.register(flush)


def say_lost_as(notice: Notice) -> None:
    """How standard error says what was lost."""
    if "stderr" in _outlets:
        _outlets["stderr"].notice = notice


def flush(within_s: float = FLUSH_WITHIN_S) -> None:
    """Write what waits, for so long at most. Call it where a process ends without Python's help."""
    until_s = time.monotonic() + within_s
    for name, outlet in _outlets.items():
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            stream.flush()
        outlet.settle(max(0.0, until_s - time.monotonic()))
