"""A process that a handler forks off its node (`multiprocessing`, `os.fork`) is no second node.

The copy inherits every socket. While it holds the listening socket, the node's death shows to nobody as refused
connections, and the node cannot be started again; while it holds the subscription, Redis takes the session for
connected. So a copy lets go of the node's sockets at once: all of the node's own port, and all connections to its
Redis. It keeps those that belong to handlers. (A program that is executed inherits nothing: these sockets close on
exec.)
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
from collections.abc import Collection, Iterator

import redis.asyncio

FOLDERS = ("/proc/self/fd", "/dev/fd")  # folders that list a process's own descriptors

ENDING = (signal.SIGTERM, signal.SIGINT)

Address = tuple[str, int]

is_copy = False  # whether this process was forked off a node


def guard(client: redis.asyncio.Redis, port: int) -> None:
    """Have every process that is forked from now on let go of this node's sockets."""
    redis_at = frozenset(_addresses(client))

    def forked() -> None:
        global is_copy
        is_copy = True
        let_go(port, redis_at)

    os.register_at_fork(after_in_child=forked)
    guard_signals()


def guard_signals() -> None:
    """Have a signal end every process that is forked from now on, as callers of `terminate()` expect.

    The copy drops this process's signal handlers: they would ignore the signal, or pass it to the node, whose wake-up
    socket is inherited too. Signals wait from before the fork until then.
    """
    blocked = threading.local()

    def before() -> None:
        blocked.before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked.before)

    def in_the_copy() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=in_the_copy)


def let_go(port: int, redis_at: Collection[Address | str]) -> None:
    """Put the null device in place of the node's sockets. Their numbers stay taken: objects still name them."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for number in _sockets():
            if _belongs_to_node(number, port, redis_at):
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


def _belongs_to_node(number: int, port: int, redis_at: Collection[Address | str]) -> bool:
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            own = copy.getsockname()
            if copy.family in (socket.AF_INET, socket.AF_INET6) and own[1] == port:
                return True
            peer = copy.getpeername()
    except OSError:
        return False  # not connected
    return (peer if isinstance(peer, str) else peer[:2]) in redis_at


def _addresses(client: redis.asyncio.Redis) -> Iterator[Address | str]:
    """Redis's addresses as the peer of a socket: the path of a Unix socket, or each address of its name."""
    options = client.connection_pool.connection_kwargs
    if path := options.get("path"):
        yield path
        return
    try:
        rows = socket.getaddrinfo(options.get("host", "localhost"), options.get("port", 6379), type=socket.SOCK_STREAM)
    except OSError:
        return
    yield from ((str(row[4][0]), int(row[4][1])) for row in rows)
