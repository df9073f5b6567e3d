"""Fixtures of the chaos tests: a Redis, a factory of fleets on it, the ledger of what ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.ledger import Ledger
from tests.chaos.nodes import Fleet, fleet
from tests.integration.conftest import RedisServer, redis_server

__all__ = ["redis_server"]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def make_fleet(tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[..., Fleet]]:
    """`make_fleet(3, lease_s=4)`: nodes that are ready and see each other; ended with the test."""
    with ExitStack() as stack:

        def make(count: int, **settings: object) -> Fleet:
            nodes = stack.enter_context(fleet(tmp_path, redis_server.url, **settings))
            nodes.start(count)
            return nodes

        yield make
