"""The inside of a child process: takes calls from its node, one at a time, and runs handlers.

The main thread runs the handlers; a second one reads the socket, so that the end of the node is noticed in the middle
of a task and the child never outlives it. Standard output and error are the node's.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import time

import msgspec

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.shards.task import Claimed
from node.observe import logs
from node.observe.tracing import OFF
from node.observe.tracing import start as start_tracing
from node.tasks import Context, load
from node.work import fork_guard
from node.work.ending import failed, run
from node.work.pool import HEADER, Done, Hello, Progress, Ready, Said, frame

PROGRESS_INTERVAL_S = 0.25
ORPHAN_GRACE_S = 1.0
SPANS_GRACE_S = 0.8  # of it, for what a collector has not got yet
_PR_SET_PDEATHSIG = 1


def main(fd: int) -> None:
    """Serve the node at the other end of this socket until it hangs up."""
    faulthandler.enable()
    os.set_inheritable(fd, False)
    _die_with_the_node()
    # Supervisors signal whole groups of processes; a drain must let this task finish. Python functions, not SIG_IGN:
    # that would be inherited by programs the handler starts.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    fork_guard.guard_signals()
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    node = _Node(socket.socket(fileno=fd))
    try:
        node.serve()
    except (ConnectionError, EOFError):
        pass


class _Node:
    """The node as a child sees it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._stream = connection.makefile("rb")
        self._sending = threading.Lock()
        self._calls: queue.SimpleQueue[Claimed | None] = queue.SimpleQueue()
        self._pid = os.getpid()

    def serve(self) -> None:
        hello = msgspec.msgpack.decode(self._read(), type=Hello)
        sys.path[:] = hello.path
        logs.configure(Config(log_level=hello.log_level, log_format=hello.log_format))
        try:
            registry = load(hello.modules)
        except ConfigError as error:
            self.send(Ready(error.message))
            return
        threading.Thread(target=self._listen, name="rumor-node", daemon=True).start()
        tracing = start_tracing(hello.node_id) if hello.is_traced else OFF
        self.send(Ready())
        while (claimed := self._calls.get()) is not None:
            handler = registry.get(claimed.spec.type)
            if handler is None:
                self.send(
                    Done(failed("UnknownInChild", f"importing {hello.modules} declares no {claimed.spec.type!r}"))
                )
                continue
            link = _ChildLink(self)
            context = Context(claimed, hello.node_id, link) if handler.wants_context else None
            logs.attempt.set(claimed)
            with tracing.inside(claimed):
                ending = run(handler, claimed.data, context)
            link.close()
            if self._is_a_copy():
                os._exit(0)  # the handler forked, and both came back: the node waits for one answer
            self.send(Done(ending))
        tracing.close(SPANS_GRACE_S)

    def _is_a_copy(self) -> bool:
        """Whether this process was forked by a handler: its socket belongs to the original."""
        return os.getpid() != self._pid

    def send(self, message: Said) -> None:
        if self._is_a_copy():
            return
        data = frame(message)
        with self._sending:
            self._connection.sendall(data)

    def _listen(self) -> None:
        decode = msgspec.msgpack.Decoder(Claimed).decode
        try:
            while True:
                self._calls.put(decode(self._read()))
        except (ConnectionError, EOFError):
            self._calls.put(None)
            time.sleep(ORPHAN_GRACE_S)  # for an idle child to end in good order; a busy one works for nobody now
            os._exit(1)

    def _read(self) -> bytes:
        head = self._stream.read(HEADER.size)
        if len(head) < HEADER.size:
            raise EOFError
        (length,) = HEADER.unpack(head)
        body = self._stream.read(length)
        if len(body) < length:
            raise EOFError
        return body


class _ChildLink:
    """The node throttles what it stores; this end only keeps a handler's loop from flooding the socket.

    The latest value is sent at once, and then at most every PROGRESS_INTERVAL_S, by a thread that exists only in
    tasks that report progress.
    """

    is_stopped = False  # a child is killed instead

    def __init__(self, node: _Node) -> None:
        self._node = node
        self._latest: bytes | None = None
        self._wake = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def report(self, value: bytes) -> None:
        with self._wake:
            if self._is_closed:
                return
            self._latest = value
            self._wake.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._send, name="rumor-progress", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Send what is left; the attempt has ended."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _send(self) -> None:
        is_closed = False
        while not is_closed:
            with self._wake:
                self._wake.wait_for(lambda: self._latest is not None or self._is_closed)
                value, self._latest, is_closed = self._latest, None, self._is_closed
            if value is not None:
                try:
                    self._node.send(Progress(value))
                except OSError:
                    return
            with self._wake:
                self._wake.wait_for(lambda: self._is_closed, PROGRESS_INTERVAL_S)


def _die_with_the_node() -> None:
    """Where the kernel offers it (Linux), a killed node takes its children along at once, even out of C code."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
