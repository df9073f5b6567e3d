"""The package as it is installed, in environments of its own: what type checkers see of it, and how little a process
needs that only submits."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("node", "cluster", "setup.py", "setup.cfg", "README.md", "LICENSE")

RIGHT = """
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, assert_type

import msgspec

from cluster.errors import NotFound, RumorError
from node import Client, Context, NotFinished, Reject, Retry, SyncClient, TaskCancelled, TaskFailed, Unreachable, task
from node.client.task import Task


@dataclass
class Processed:
    processed: str
    length: int | None = None


class Point(msgspec.Struct):
    x: int


class Row(TypedDict):
    a: int


@task
async def plain(data: dict[str, int]) -> int:
    return len(data)


@task(name="mail.send", queue="mail", priority="high", max_attempts=3, timeout_s=5.0)
async def send(data: Processed, context: Context) -> None:
    context.progress(0.5)
    raise Retry(5.0)


@task
def heavy(data: Point) -> int:
    raise Reject("no")


def use(client: SyncClient) -> None:
    task = client.submit("noop", 1, priority="high", run_at=datetime.now(), idempotency_key="k", wait_s=1)
    assert_type(task, Task[Any])
    assert_type(client.result(task.id, type=Processed), Processed)
    assert_type(client.result(task.id, type=list[int]), list[int])
    assert_type(client.result(task.id, type=Point), Point)
    assert_type(client.result(task.id, type=Row), Row)
    assert_type(client.result(task.id, type=datetime), datetime)
    assert_type(client.result(task.id), Any)
    assert_type(client.wait(task.id, type=Processed).result, Processed)
    assert_type(client.run("p", "a", result_type=Processed, priority="high"), Processed)
    assert_type(client.page().tasks, list[Task[Any]])
    for result in client.submit_many([("a", 1), {"type": "x"}]):
        if isinstance(result, RumorError):
            assert_type(result.idempotency_key, str)
        else:
            assert_type(result, Task[Any])
    for one in client.list(type="x", fields=["data"]):
        assert_type(one, Task[Any])
    for event in client.events(names=["leader"]):
        assert_type(event.name, str)
    try:
        client.run("x")
    except TaskFailed as failed:
        assert_type(failed.task, Task[Any])
    except NotFinished as error:
        assert_type(error.task, Task[Any])


async def use_too(client: Client) -> None:
    task = await client.submit("noop", 1)
    assert_type(await client.result(task.id, type=Processed), Processed)
    assert_type(await client.run("p", "a", result_type=list[Processed]), list[Processed])
    async for one in client.list(type="x"):
        assert_type(one, Task[Any])
    assert_type(await plain({"a": 1}), int)
"""
WRONG = """
from node import SyncClient, Clint
client = SyncClient(42)
client.submit("x", priorty="high")
client.submit("x", priority="urgent")
n: int = client.result("x", type=str)
client.submit_many(["x"])
"""
SUBMIT = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from node import SyncClient, TaskFailed
from cluster.errors import RumorError

class Node(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"id": "1-1f", "type": "noop", "state": "queued"}).encode()
        self.send_response(202)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

server = HTTPServer(("127.0.0.1", 0), Node)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout; built from a copy, since a build leaves its own behind."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and re.search("No matching distribution|connection|resolve", done.stderr):
        pytest.skip("pip gets no setuptools to build a wheel with")
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Callable[..., Path]:
    """`installed(*packages)`: the Python of a new environment with the wheel, these packages and what they need."""

    def make(*packages: str) -> Path:
        environment = tmp_path / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        (site,) = environment.glob("lib/python*/site-packages")
        zipfile.ZipFile(wheel).extractall(site)
        for entry in {entry for package in packages for entry in files_of(package, set())}:
            (site / entry.name).symlink_to(entry)
        return environment / "bin" / "python"

    return make


def files_of(package: str, seen: set[str]) -> Iterator[Path]:
    """Where a package and all that it needs stand in this environment."""
    if package in seen:
        return
    seen.add(package)
    distribution = importlib.metadata.distribution(package)
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    yield from (Path(str(distribution.locate_file(top))) for top in tops)
    for text in distribution.requires or ():
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            yield from files_of(need.name, seen)


def run(python: Path, *words: str, at: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-I", *words], cwd=at, capture_output=True, text=True, check=False, timeout=60)


def test_type_checkers_know_what_the_client_promises(installed: Callable[..., Path], tmp_path: Path) -> None:
    python = installed("aiohttp", "msgspec")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [*mypy, "--python-executable", str(python), "right.py", "wrong.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = re.findall(r"^(\w+\.py:\d+): error", done.stdout, re.M)
    assert errors == [f"wrong.py:{line}" for line in (2, 3, 4, 5, 6, 7)], done.stdout + done.stderr


def test_a_process_that_only_submits_needs_no_package_beside_rumor(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    told = run(installed(), "-c", SUBMIT + 'print(SyncClient(url).submit("noop", {"a": [1]}).id)', at=tmp_path)
    assert (told.stdout, told.stderr) == ("1-1f\n", "")


def test_the_asynchronous_client_needs_aiohttp_and_nothing_else(installed: Callable[..., Path], tmp_path: Path) -> None:
    use = """
import asyncio
from node import Client
async def main():
    async with Client(url) as client:
        print((await client.submit("noop", 1)).id)
asyncio.run(main())
"""
    told = run(installed("aiohttp"), "-c", SUBMIT + use, at=tmp_path)
    assert (told.stdout, told.stderr) == ("1-1f\n", "")


def test_the_command_line_submits_with_click_and_says_what_a_node_lacks(
    installed: Callable[..., Path], tmp_path: Path
) -> None:
    python = installed("click")
    use = (
        "import subprocess; print(subprocess.run([sys.executable, '-I', '-m', 'node', 'submit', 'noop', '--url', url], "
    )
    told = run(python, "-c", SUBMIT + use + "capture_output=True, text=True).stdout)", at=tmp_path)
    assert told.stdout.strip() == "1-1f", told.stderr
    for command in (["node"], ["launch", "3"], ["top"], ["agent", "--name", "a", "--port", "5999"]):
        told = run(python, "-m", "node", *command, at=tmp_path)
        assert re.fullmatch(
            r"missing_package: this command needs the package \w+, which is not installed here\.\n"
            r"  Install Rumor with all that it needs, without --no-deps\.\n",
            told.stderr,
        ), (command, told.stderr)
        assert told.returncode == 2


def test_other_values_need_msgspec_and_a_picture_needs_rich(installed: Callable[..., Path], tmp_path: Path) -> None:
    python = installed("msgspec", "click", "rich", "aiohttp")
    use = "from datetime import date; print(SyncClient(url).submit('noop', date(2030, 1, 31)).id)"
    told = run(python, "-c", SUBMIT + use, at=tmp_path)
    assert (told.stdout, told.stderr) == ("1-1f\n", "")
    told = run(python, "-m", "node", "top", "--once", "--url", "http://127.0.0.1:1", at=tmp_path)
    assert told.stderr.startswith("unreachable: http://127.0.0.1:1 does not answer")
