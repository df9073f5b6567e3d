"""Real nodes: the answer to a submission leaves before its handler computes, and a submission can wait for its task."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from node import Client, SyncClient
from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.processes import free_base_port
from tests.waiting import wait_until

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


NOOPS = [{"type": "noop"}] * 5
LINES = "application/x-ndjson"


@pytest.mark.parametrize(
    ("path", "tasks", "headers"),
    [
        ("/tasks", {"type": "end_node"}, {}),
        ("/tasks", {"type": "end_node"}, {"Idempotency-Key": "k"}),
        ("/tasks", {"type": "end_node_in_a_thread"}, {}),
        ("/tasks/batch", [{"type": "end_node"}, *NOOPS], {}),
        ("/tasks/batch", [*NOOPS, {"type": "end_node_in_a_thread"}, *NOOPS], {}),
        ("/tasks/batch", [{"type": "end_node"}, *NOOPS], {"Idempotency-Key": "k"}),
        ("/tasks/batch", [{"type": "end_node"}, *NOOPS], {"Content-Type": LINES}),
    ],
)
def test_the_answer_to_a_submission_leaves_before_its_handler_ends_the_node(
    make_fleet: Make, path: str, tasks: Any, headers: dict[str, str]
) -> None:
    (node,) = make_fleet(1).nodes
    # Each line ends in a line break: one that does not is a chunk of its own, which is stored after the others' answer.
    body = "".join(f"{json.dumps(task)}\n" for task in tasks) if LINES in headers.values() else json.dumps(tasks)
    request = urllib.request.Request(
        node.remote.url + path, body.encode(), {"Content-Type": "application/json", **headers}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        try:
            answer = response.read().decode()
        except http.client.IncompleteRead as error:  # all lines are here; the node was gone before the end of the body
            answer = error.partial.decode()
    count = len(tasks) if isinstance(tasks, list) else 1
    assert answer.count('"id":') == count, answer
    wait_until(lambda: not node.is_running, 10, "the handler ends the node")


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


@pytest.mark.parametrize(
    ("type", "data", "state"), [("process", "Hello World", "succeeded"), ("fail", {"message": "no luck"}, "dead")]
)
def test_a_submission_that_waits_is_answered_200_and_as_a_read_is(
    make_fleet: Make, type: str, data: Any, state: str
) -> None:
    (node,) = make_fleet(1).nodes
    for _ in range(3):
        status, task = submit(node, type, data, {"wait_s": 10}, max_attempts=1)
        assert (status, task["state"]) == (200, state)
        assert task == node.task(task["id"])


def test_time_that_is_up_is_202_with_the_task_as_it_is_and_a_delay_may_be_waited_for(make_fleet: Make) -> None:
    (node,) = make_fleet(1).nodes
    status, task = submit(node, "sleep", 30, {"wait_s": 0.3})
    assert (status, task["state"], task["attempt"]) == (202, "running", 1)
    assert submit(node, "noop", None, {"wait_s": 0.2}, delay_s=60)[1]["state"] == "scheduled"
    status, task = submit(node, "noop", None, {"wait_s": 10}, delay_s=0.3)
    assert (status, task["state"]) == (200, "succeeded")


def test_repeats_wait_for_the_first_task_whichever_node_they_reach(make_fleet: Make) -> None:
    first, second = make_fleet(2).nodes
    names: list[dict[str, Any]] = [{"idempotency_key": "k"}, {"unique_for_s": 60, "unique_key": "u"}]
    for name in names:
        with SyncClient(first.remote.url) as client, SyncClient(second.remote.url, learn=False) as other:
            task = client.submit("sleep", 0.5, **name)
            done = other.submit("sleep", 0.5, wait_s=10, **name)
            assert (done.id, done.state) == (task.id, "succeeded")
            assert other.submit("sleep", 0.5, wait_s=10, **name).id == task.id


def test_a_task_that_another_node_runs_is_waited_for(make_fleet: Make) -> None:
    nodes = make_fleet(1, queues="default:4")
    (gateway,) = nodes.nodes
    nodes.begin([nodes.make("127.0.0.1", free_base_port(1), queues="default:4,far:4")])
    with SyncClient(gateway.remote.url, learn=False) as client:
        assert [client.run("far", n, within_s=10) for n in range(20)] == [2 * n for n in range(20)]
        task = client.submit("far", 1, wait_s=10)
        assert task.node_id == nodes.nodes[1].node_id


def test_a_task_that_is_cancelled_through_another_node_ends_the_wait(make_fleet: Make) -> None:
    first, second = make_fleet(2).nodes

    async def run() -> str:
        async with Client(first.remote.url, learn=False) as client, Client(second.remote.url, learn=False) as other:
            waiting = asyncio.create_task(client.submit("sleep", 60, wait_s=30))
            running: list[Any] = []
            while not running:
                running = (await other.page(state="running")).tasks
            await other.cancel(running[0].id)
            return (await waiting).state

    assert asyncio.run(asyncio.wait_for(run(), 15)) == "cancelled"


def test_a_node_that_drains_answers_202_and_the_client_goes_on_elsewhere(make_fleet: Make) -> None:
    nodes = make_fleet(2, drain_s=0.2, queues="default:4")
    first, second = nodes.nodes

    async def run() -> Any:
        async with Client([first.remote.url, second.remote.url]) as client:
            client.nodes.first = client.nodes.given[0]
            calls = [asyncio.create_task(client.run("process", n, delay_s=1.5, within_s=20)) for n in range(10)]
            while len((await client.page(state="scheduled")).tasks) < 10:
                await asyncio.sleep(0.01)
            first.terminate()
            return [result["processed"] for result in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == list(range(10))
    assert first.wait() == 0
    wait_until(lambda: second.is_ready(), 5, "the other goes on")
