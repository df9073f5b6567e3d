"""Real nodes: the answer to a submission leaves before its handler computes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from node import Client
from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer

Make = Callable[..., Fleet]


@pytest.fixture
def make_fleet(tmp_path: Path, redis_server: RedisServer) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(count: int, **settings: object) -> Fleet:
            settings = {"tasks": "tests.integration.waits_tasks", **settings}
            nodes = stack.enter_context(fleet(tmp_path, redis_server.url, **settings))
            nodes.start(count)
            return nodes

        yield make


def submit(node: Node, type: str, data: Any = None, query: dict[str, Any] | None = None, **more: Any) -> Any:
    """(status, task)"""
    return node.remote.call("POST", "/tasks", {"type": type, "data": data, **more}, query=query)


def test_the_answer_to_a_submission_leaves_before_its_handler_computes(make_fleet: Make, tmp_path: Path) -> None:
    """The handler blocks the loop until the client has the answer: were it the other way round, both would wait."""
    (node,) = make_fleet(1).nodes
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(10)
        for _ in range(20):
            status, task = submit(node, "held_by_client", path)
            assert (status, task["state"]) == (202, "running"), "this node runs it"
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"!")
            assert node.task(task["id"], wait_s=10)["result"] is True


def test_the_answers_to_many_submissions_leave_before_their_handlers_compute(make_fleet: Make, tmp_path: Path) -> None:
    (node,) = make_fleet(1, queues="default:50").nodes
    path = str(tmp_path / "s")

    async def run() -> list[bool]:
        async def let_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answered.wait()
            writer.write(b"!")
            writer.close()

        async def one(client: Client, n: int) -> str:
            task = await client.submit("held_by_client", path)
            answered.set()  # A handler blocks the whole node: only the first answers are sure to come before it.
            return task.id

        answered = asyncio.Event()
        async with await asyncio.start_unix_server(let_go, path), Client(node.remote.url) as client:
            ids = await asyncio.gather(*(one(client, n) for n in range(30)))
            return [await client.result(task_id) for task_id in ids]

    assert asyncio.run(run()) == [True] * 30
