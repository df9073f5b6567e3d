"""Fixtures for every kind of test: real clusters, ended with the test."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.processes import LaunchedCluster

settings.register_profile("no_clock", deadline=None)  # a busy machine makes any example slow, and proves nothing
settings.load_profile("no_clock")

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup started the tests; what they start begins as at a terminal


@pytest.fixture
def cluster() -> Iterator[Callable[..., LaunchedCluster]]:
    """A factory: `cluster(nodes=3, drain_s=1)`. Each is ended with the test, which fails if a node logged a traceback.

    The data is kept, and its place is told, when the test ends badly for that reason.
    """
    made: list[tuple[Path, LaunchedCluster]] = []

    def make(nodes: int = 3, **settings: object) -> LaunchedCluster:
        folder = Path(tempfile.mkdtemp(prefix="rumor-test-"))
        try:
            one = LaunchedCluster(folder, nodes, **settings)  # type: ignore[arg-type]
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        made.append((folder, one))
        return one

    yield make
    problems = []
    for folder, one in made:
        try:
            one.close()
        except AssertionError as error:
            problems.append(f"{error}\n(kept: {folder})")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    assert not problems, "\n".join(problems)
