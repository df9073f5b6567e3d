"""Fixtures of unit tests: the gateway over HTTP, with an engine that only notes what it was asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from node.gateway import app
from tests.fake_engine import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(app.build(engine))) as client:
        yield client
