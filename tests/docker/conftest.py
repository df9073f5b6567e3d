"""docker-compose.yml as it stands, built and started once for all exercises of this folder.

BASE_IMAGE and REDIS_IMAGE replace the public images, as they do for every user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from node.lab.partition import find
from tests.exercises import MEASURED, Ground, fleet_of
from tests.processes import ROOT, TRACEBACK, clean_environ, free_base_port
from tests.waiting import wait_until

COUNT = 5
BUILD_LIMIT_S = 600.0
START_LIMIT_S = 60.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the exercises measured."""
    if MEASURED:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(MEASURED))
        MEASURED.clear()


class Compose:
    """Compose, of either generation, on a project of this test's own."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self._command = command

    def __call__(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*self._command, "-f", "docker-compose.yml", "-f", "tests/docker/compose.yml", *words],
            env=self.environ,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_LIMIT_S,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"compose {' '.join(words)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout


def find_compose() -> list[str]:
    """The command of Compose. Skips the test where there is none, or no engine."""
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker engine answers")
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    pytest.skip("Compose is not installed")


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """The project, running; everything that belongs to it is removed at the end."""
    command = find_compose()
    base_port = free_base_port(COUNT)
    folder = Path(tempfile.mkdtemp(prefix="rumor-test-"))
    folder.chmod(0o755)
    environ = clean_environ() | {
        "COMPOSE_PROJECT_NAME": f"rumortest{os.getpid()}",
        "RUMOR_TEST_LEDGERS": str(folder),
        "RUMOR_TASKS": "tests.chaos.workload",
        "RUMOR_DATA_DIR": str(folder / "none"),  # a folder without a launched cluster
        **{f"NODE{number}_PORT": str(base_port + number - 1) for number in range(1, COUNT + 1)},
    }
    one = Compose(command, environ)
    try:
        one("build")
        one("up", "--detach")
        yield one
        logs = one("logs", "--no-color")
        assert TRACEBACK not in logs, logs[max(0, logs.index(TRACEBACK) - 500) :][:5000]
    finally:
        one("down", "--volumes", "--timeout", "5", check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def site(compose: Compose) -> Ground:
    """The cluster, found as the command finds it."""
    before = os.environ.get("COMPOSE_PROJECT_NAME")
    os.environ["COMPOSE_PROJECT_NAME"] = compose.environ["COMPOSE_PROJECT_NAME"]
    try:
        folder = Path(compose.environ["RUMOR_TEST_LEDGERS"])
        found = find("compose", folder)
    finally:
        os.environ.pop("COMPOSE_PROJECT_NAME")
        if before is not None:
            os.environ["COMPOSE_PROJECT_NAME"] = before
    rows = [(place.number, place.node_id, place.url) for place in found.places]
    redis_url = f"redis://{found.redis}:6379/0"
    ground = Ground(fleet_of(rows, found.places[0].token, folder, redis_url), redis_url, compose.environ, folder)
    wait_until(lambda: not ground.disagreement(), START_LIMIT_S, "all nodes are ready and see each other")
    return ground


@pytest.fixture
def ground(site: Ground) -> Ground:
    """The cluster, healed and healthy."""
    site.partition("heal")
    site.wait_agreed()
    return site
