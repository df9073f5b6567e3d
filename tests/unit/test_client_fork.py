"""A client made before a fork, as pre-forking servers make them: no connection, and no chance, is shared."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from node import Client

ROOT = Path(__file__).resolve().parents[2]


class Echo(ThreadingHTTPServer):
    """A node that answers GET /cluster?events=N with N, and knows who asked over which connection."""

    daemon_threads = True

    def __init__(self) -> None:
        self.askers: dict[tuple[str, int], set[int]] = defaultdict(set)  # connection -> who asked over it

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                n = int(parse_qs(urlsplit(self.path).query)["events"][0])
                self.server.askers[self.client_address].add(n // 1000)  # type: ignore[attr-defined]
                body = json.dumps({"n": n, "members": []}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


BLOCKING = """
    client = SyncClient([sys.argv[1]], learn=False)
    def ask(numbers):
        return [client.cluster(events=n)["n"] for n in numbers]
"""
ASYNCHRONOUS = """
    client = Client([sys.argv[1]], learn=False)
    async def all_of(numbers):
        answers = [(await client.cluster(events=n))["n"] for n in numbers]
        return answers
    loop = None
    def ask(numbers):
        # As in a server: the loop, and with it the session, stays open.
        global loop
        if loop is None or numbers[0] >= 1000:
            loop = asyncio.new_event_loop()
        return loop.run_until_complete(all_of(numbers))
"""
FORKS = """
    import asyncio, json, os, sys
    from node import Client, SyncClient
    {client}
    assert ask(range(1, 5)) == list(range(1, 5))  # there is a connection before the fork
    drawn, draw = os.pipe()
    children = []
    for child in range(1, 5):
        pid = os.fork()
        if pid == 0:
            numbers = range(1000 * child, 1000 * child + 50)
            is_right = ask(numbers) == list(numbers)
            os.write(draw, f"{{client._rng.random()}}\\n".encode())
            os._exit(0 if is_right else 1)
        children.append(pid)
    assert ask(range(5, 55)) == list(range(5, 55))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0, 0, 0, 0], codes
    draws = os.read(drawn, 4096).decode().split()
    assert len({{*draws, str(client._rng.random())}}) == 5, draws
    os._exit(0)
"""


@pytest.mark.parametrize("client", [BLOCKING, ASYNCHRONOUS], ids=["SyncClient", "Client"])
def test_processes_that_were_forked_off_have_connections_and_chances_of_their_own(client: str, echo: Echo) -> None:
    script = textwrap.dedent(FORKS).format(client=textwrap.dedent(client))
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script, echo.url], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {asker for askers in echo.askers.values() for asker in askers} == {0, 1, 2, 3, 4}
    assert all(len(askers) == 1 for askers in echo.askers.values())


async def test_a_client_of_another_loop_that_goes_on_says_so(echo: Echo) -> None:
    async with Client([echo.url], learn=False) as client:
        await client.cluster(events=1)

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(client.cluster(events=2))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)


def test_threads_share_a_client(echo: Echo) -> None:
    from node import SyncClient

    with SyncClient([echo.url], learn=False) as client:
        wrong: list[int] = []

        def ask(first: int) -> None:
            wrong.extend(n for n in range(first, first + 100) if client.cluster(events=n)["n"] != n)

        threads = [threading.Thread(target=ask, args=(1000 * k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
