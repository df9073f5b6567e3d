"""A process that a handler forks off its node (`multiprocessing`, `os.fork`) is no second node.

It inherits every socket. While it holds the listening one, the node's death shows to nobody as refused connections, and
the node cannot be started again; while it holds the subscription, Redis takes the session for connected. So a copy lets
go of what is the node's, at once: all sockets of the node's own port, and all connections to its Redis. What belongs to
handlers it keeps. (A program that is executed inherits nothing: these sockets close on exec.)
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Collection, Iterator

import redis.asyncio

FOLDERS = ("/proc/self/fd", "/dev/fd")  # where a process finds its own descriptors

ENDING = (signal.SIGTERM, signal.SIGINT)

Address = tuple[str, int]

is_copy = False  # whether this process was forked off a node


def guard(client: redis.asyncio.Redis, port: int) -> None:
    """Have every process that is forked from now on let go of this node's sockets."""
    stores = frozenset(_addresses(client))

    def forked() -> None:
        global is_copy
        is_copy = True
        let_go(port, stores)

    os.register_at_fork(after_in_child=forked)
    guard_signals()


def guard_signals() -> None:
    """Have a signal end every process that is forked from now on, as whoever calls `terminate()` expects.

    The handlers of this process stay behind: they would ignore it, or tell the node, whose wake-up socket is inherited
    too, that it was meant. From before the fork until then signals wait.
    """
    were_blocked = threading.local()

    def before() -> None:
        were_blocked.set = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, were_blocked.set)

    def in_the_copy() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_the_copy)


def let_go(port: int, stores: Collection[Address | str]) -> None:
    """Put the null device in the place of the node's sockets: their numbers stay taken, since objects name them."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for number in _sockets():
            if _is_the_nodes(number, port, stores):
                os.dup2(null, number, inheritable=False)
    finally:
        os.close(null)


def _sockets() -> Iterator[int]:
    folder = next((folder for folder in FOLDERS if os.path.isdir(folder)), None)
    for name in os.listdir(folder) if folder else ():
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except (OSError, ValueError):
            continue


def _is_the_nodes(number: int, port: int, stores: Collection[Address | str]) -> bool:
    try:
        with socket.socket(fileno=os.dup(number)) as one:
            own = one.getsockname()
            if one.family in (socket.AF_INET, socket.AF_INET6) and own[1] == port:
                return True
            peer = one.getpeername()
    except OSError:
        return False  # not connected
    return (peer if isinstance(peer, str) else peer[:2]) in stores


def _addresses(client: redis.asyncio.Redis) -> Iterator[Address | str]:
    """Where Redis is, as the peer of a socket: the path of a Unix socket, or each address of its name."""
    told = client.connection_pool.connection_kwargs
    if path := told.get("path"):
        yield path
        return
    try:
        found = socket.getaddrinfo(told.get("host", "localhost"), told.get("port", 6379), type=socket.SOCK_STREAM)
    except OSError:
        return
    yield from ((str(row[4][0]), int(row[4][1])) for row in found)
