"""The inside of a child process: takes calls from its node, one at a time, and runs handlers.

The main thread runs the handlers. A second thread reads the socket, so that the child notices the end of its node even
in the middle of a task. Standard output and error are the node's. What it starts ends with it: its keeper sees to that
(`keeper.py`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time

import msgspec

from cluster import output
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.shards.task import Claimed
from node.context import Context
from node.observe import logs
from node.observe.tracing import OFF
from node.observe.tracing import start as start_tracing
from node.tasks import load
from node.work import fork_guard
from node.work.ending import Ending, failed, run
from node.work.frames import HEADER, Done, FromChild, Hello, Progress, Ready, body_length, frame

PROGRESS_INTERVAL_S = 0.25
PRINT_WITHIN_S = 0.05  # time that a print may wait until it is done: a handler may crash right after it
CALL_MAX_BYTES = 0xFFFF_FFFF  # what a frame can hold: the node decides how large data may be
ORPHAN_GRACE_S = 1.0  # the time an idle child has to end in good order once its node is gone
SPANS_GRACE_S = 0.8  # the part of it for spans that the collector has not got yet
PAGE_BYTES = resource.getpagesize()
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # unit of ru_maxrss


def main(fd: int) -> None:
    """Serve the node at the other end of this socket until it hangs up."""
    faulthandler.enable()
    output.shield(PRINT_WITHIN_S)
    os.set_inheritable(fd, False)
    # Ignore both signals: supervisors send them to whole process groups, and a drain must let this task finish. Use
    # Python functions for it: programs that the handler starts would inherit SIG_IGN.
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
        logs.configure(Config(log_level=hello.log_level, log_format=hello.log_format))
        try:
            registry = load(hello.modules)
        except ConfigError as error:
            self.send(Ready(self._pid, error.message))
            return
        threading.Thread(target=self._listen, name="rumor-node", daemon=True).start()
        tracing = start_tracing(hello.node_id) if hello.is_traced else OFF
        self.send(Ready(self._pid))
        while (claimed := self._calls.get()) is not None:
            handler = registry.get(claimed.spec.type)
            if handler is None:
                problem = f"the child process imported {hello.modules}, and none declares {claimed.spec.type!r}"
                self._answer(claimed, failed("UnknownInChild", problem))
                continue
            link = _ChildLink(self, claimed)
            context = Context(claimed, hello.node_id, link) if handler.wants_context else None
            logs.attempt.set(claimed)
            with tracing.inside(claimed):
                ending = run(handler, claimed.data, context)
            link.close()
            if self._is_a_copy():
                os._exit(0)  # the handler forked, and both processes came back: the node expects one answer
            self._answer(claimed, ending)
        tracing.close(SPANS_GRACE_S)

    def _answer(self, claimed: Claimed, ending: Ending) -> None:
        self.send(Done(claimed.id, claimed.delivery, ending, _memory_bytes()))

    def _is_a_copy(self) -> bool:
        """Whether this process was forked by a handler: its socket belongs to the original."""
        return os.getpid() != self._pid

    def send(self, message: FromChild) -> None:
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
        except (OSError, EOFError, ValueError, msgspec.MsgspecError):  # the last two: a handler read from the socket
            self._calls.put(None)
            time.sleep(ORPHAN_GRACE_S)  # an idle child ends meanwhile; a busy one works for nobody
            os._exit(1)

    def _read(self) -> bytes:
        head = self._stream.read(HEADER.size)
        if len(head) < HEADER.size:
            raise EOFError
        length = body_length(head, CALL_MAX_BYTES)
        body = self._stream.read(length)
        if len(body) < length:
            raise EOFError
        return body


class _ChildLink:
    """The link of a handler in a child process. It keeps a handler's loop from flooding the socket.

    It sends the latest value at once, then at most every PROGRESS_INTERVAL_S, by a thread that exists only in tasks
    that report progress. What the node stores, it throttles itself.
    """

    is_stopped = False  # always: a child is killed instead

    def __init__(self, node: _Node, claimed: Claimed) -> None:
        self._node = node
        self._claimed = claimed
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
        """Send the last value; the attempt has ended."""
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
                    self._node.send(Progress(self._claimed.id, self._claimed.delivery, value))
                except OSError:
                    return
            with self._wake:
                self._wake.wait_for(lambda: self._is_closed, PROGRESS_INTERVAL_S)


def _memory_bytes() -> int:
    """How much memory this process holds now; where the kernel does not say, the most that it has held."""
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY)
        try:
            return int(os.read(statm, 64).split()[1]) * PAGE_BYTES
        finally:
            os.close(statm)
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES
