"""The client against a real cluster: every example of docs/client.md, and a node that dies under it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from node import Client, SyncClient
from tests.doctested import check_examples
from tests.processes import LaunchedCluster

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "client.md"


def test_every_example_of_the_page_does_what_it_says(cluster: Callable[..., LaunchedCluster]) -> None:
    text = re.sub(r"^```.*$", "", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    text = text.replace("http://127.0.0.1:5000", cluster(3).url(1))
    check_examples(text, PAGE, more_than=30)


@pytest.mark.parametrize("kind", [Client, SyncClient], ids=["async", "sync"])
async def test_a_client_goes_on_when_the_node_behind_it_is_killed(
    cluster: Callable[..., LaunchedCluster], kind: type[Client] | type[SyncClient]
) -> None:
    """It knows one node only, learns the others, and loses that one while it waits: each task ends, once."""
    one = cluster(3)
    made = kind(one.url(1), within_s=60.0)

    async def call(name: str, *args: object, **kwargs: object) -> object:
        method = getattr(made, name)
        return await (method(*args, **kwargs) if kind is Client else asyncio.to_thread(method, *args, **kwargs))

    tasks = [await call("submit", "sleep", 1.5) for _ in range(6)]
    waits = [asyncio.create_task(call("wait", task.id)) for task in tasks]  # type: ignore[attr-defined]
    await asyncio.to_thread(one.kill, 1)
    ended = await asyncio.gather(*waits)
    assert [task.state for task in ended] == ["succeeded"] * 6  # type: ignore[attr-defined]
    after = await call("submit", "noop")
    assert (await call("wait", after.id)).state == "succeeded"  # type: ignore[attr-defined]
    closed = made.close()
    if closed is not None:
        await closed
