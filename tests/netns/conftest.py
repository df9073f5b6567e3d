"""Five nodes in network namespaces, as `launch --netns` makes them, for all exercises of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.lab import network
from tests.exercises import MEASURED, Ground, fleet_of
from tests.processes import LaunchedCluster

COUNT = 5


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the exercises measured."""
    if MEASURED:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(MEASURED))
        MEASURED.clear()


@pytest.fixture(scope="session")
def able() -> None:
    """Skip the test where no network namespaces can be made."""
    try:
        trial = network.choose("rt")
    except network.Unable as error:
        pytest.skip(str(error))
    try:
        trial.open()
    except network.NetworkFailed as error:
        pytest.skip(f"no network namespace can be made here: {error.message}")
    finally:
        trial.close()


@pytest.fixture(scope="module")
def site(able: None) -> Iterator[Ground]:
    """The cluster."""
    folder = Path(tempfile.mkdtemp(prefix="rumor-test-"))
    cluster = LaunchedCluster(folder, COUNT, netns=True, tasks="tests.chaos.workload", log_format="json")
    try:
        rows = [(row["number"], row["node_id"], row["url"]) for row in cluster.status()["nodes"]]
        fleet = fleet_of(rows, cluster.token, folder, cluster.redis_url)
        yield Ground(fleet, cluster.redis_url, cluster.environ, folder)
    except BaseException:
        cluster.stop()
        raise
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ground(site: Ground) -> Ground:
    """The cluster, healed and healthy."""
    site.partition("heal")
    site.wait_agreed()
    return site
