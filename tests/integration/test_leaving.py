"""A node that was told to end ends, with 0, whatever its handlers left behind; a second signal costs no attempt."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.integration.outlive_names import LEFT
from tests.processes import free_base_port
from tests.waiting import wait_until

TASKS = "tests.integration.outlive_tasks"
DRAIN_S = 1.0
END_S = DRAIN_S + 15.0
LIMIT_S = 30.0


@pytest.fixture
def nodes(tmp_path: Path, redis_server: RedisServer) -> Iterator[Fleet]:
    with fleet(tmp_path, redis_server.url, tasks=TASKS, drain_s=DRAIN_S) as made:
        made.expected.append("nobody looks|ZeroDivision|_raise_at_exit")
        yield made


def end(node: Node, limit_s: float = END_S) -> float:
    """Send SIGTERM; seconds until the node has ended, with 0."""
    node.terminate()
    began_s = time.monotonic()
    assert node.wait(limit_s) == 0, node.log()[-3000:]
    return time.monotonic() - began_s


def runs(node: Node, kind: str, data: object = None) -> str:
    task: str = node.submit(kind, data)[0]
    wait_until(lambda: node.task(task)["state"] == "running", LIMIT_S, f"{kind} runs")
    return task


@pytest.mark.parametrize("what", LEFT)
def test_a_node_ends_whatever_its_handlers_left_behind(nodes: Fleet, what: str) -> None:
    nodes.start(1)
    node = nodes.nodes[0]
    task = node.submit("leave", what)[0]
    assert node.task(task, wait_s=20)["state"] == "succeeded"
    took_s = end(node)
    assert what != "nothing" or took_s < DRAIN_S + 3, "nothing holds it up"


@pytest.mark.parametrize("kind", ["stubborn", "deaf_child"])
def test_a_node_ends_with_attempts_that_nothing_ends_and_hands_them_back(nodes: Fleet, kind: str) -> None:
    nodes.start(2)
    node, other = nodes.nodes
    task = runs(node, kind)
    holder = next(one for one in nodes.nodes if one.node_id == node.task(task)["node_id"])
    rest = other if holder is node else node
    end(holder)
    nodes.nodes.remove(holder)
    wait_until(lambda: rest.task(task)["node_id"] == rest.node_id, LIMIT_S, "another node runs it")
    assert rest.task(task)["attempt"] == 1


def test_a_terminal_that_is_closed_drains_the_node(nodes: Fleet) -> None:
    nodes.start(2)
    task = runs(nodes.nodes[0], "sleep", DRAIN_S / 2)
    holder = next(one for one in nodes.nodes if one.node_id == nodes.nodes[0].task(task)["node_id"])
    for _ in range(2):  # from the kernel, and from the shell that started the node
        os.kill(holder.pid, signal.SIGHUP)
    assert holder.wait(END_S) == 0, holder.log()[-3000:]
    nodes.nodes.remove(holder)
    ended = nodes.nodes[0].task(task, wait_s=LIMIT_S)
    assert (ended["state"], ended["attempt"], ended["node_id"]) == ("succeeded", 1, holder.node_id)


def test_a_node_that_nohup_started_outlives_its_terminal(nodes: Fleet) -> None:
    node = nodes.make("127.0.0.1", free_base_port(1))
    node.prefix = ["nohup"]
    nodes.begin([node])
    os.kill(node.pid, signal.SIGHUP)
    task = node.submit("noop")[0]
    assert node.task(task, wait_s=LIMIT_S)["state"] == "succeeded"
    end(node)
    assert "SIGHUP" not in node.log()


def test_a_node_whose_loop_is_blocked_ends_too(nodes: Fleet) -> None:
    nodes.start(2)
    node = nodes.nodes[0]
    task = node.submit("blocks_the_loop")[0]
    holder = wait_until(lambda: holder_of(nodes, task), LIMIT_S, "it runs somewhere")
    end(holder)


def holder_of(nodes: Fleet, task: str) -> Node | None:
    """The node whose loop does not turn."""
    for node in nodes.nodes:
        try:
            with socket.create_connection((node.host, node.port), timeout=1) as connection:
                connection.settimeout(1.0)
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                connection.recv(100)
        except TimeoutError:
            return node
    return None


def test_open_streams_waits_and_idle_connections_hold_up_no_end(nodes: Fleet) -> None:
    nodes.start(1)
    node = nodes.nodes[0]
    task = runs(node, "stubborn")
    connections = []
    for path in ("/events", f"/tasks/{task}?wait_s=60", "/livez"):
        connection = http.client.HTTPConnection(node.host, node.port)
        connection.request("GET", path)
        connections.append(connection)
    connections[2].getresponse().read()  # an idle connection, kept alive
    reader = socket.create_connection((node.host, node.port))  # one that never reads
    reader.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    wait_until(lambda: "rumor_" in node.remote.request("GET", "/metrics")[1].decode(), LIMIT_S, "all are taken")
    end(node)
    for connection in connections:
        connection.close()
    reader.close()


def test_a_redis_that_hangs_holds_up_no_end(nodes: Fleet, redis_server: RedisServer) -> None:
    nodes.start(1)
    node = nodes.nodes[0]
    node.submit("sleep", 0.5, 5)
    runs(node, "stubborn")
    redis_server.stop()
    try:
        end(node)
    finally:
        redis_server.cont()


def test_a_collector_that_hangs_holds_up_no_end(nodes: Fleet) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()  # the kernel accepts, nobody answers
        node = nodes.make("127.0.0.1", free_base_port(1))
        node.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        nodes.begin([node])
        ids = node.submit("noop", None, 200)
        assert {task["state"] for task in nodes.wait_ended(ids, LIMIT_S)} == {"succeeded"}
        end(node)


def test_a_second_signal_hands_back_at_once_and_costs_no_attempt(nodes: Fleet) -> None:
    nodes.settings["drain_s"] = 120
    nodes.start(2)
    node, other = nodes.nodes
    ids = nodes.spread("sleep", 100.0, each=10)
    wait_until(lambda: node.get("/health")["running"] + other.get("/health")["running"] == 20, LIMIT_S, "all run")
    held = [task["id"] for task in other.tasks(state="running") if task["node_id"] == node.node_id]
    assert held
    node.terminate()
    wait_until(lambda: not node.is_ready(), LIMIT_S, "it drains")
    began_s = time.monotonic()
    node.terminate()
    assert node.wait(15) == 0
    assert time.monotonic() - began_s < 15
    nodes.nodes.remove(node)
    wait_until(
        lambda: all(other.task(task)["node_id"] == other.node_id for task in held), LIMIT_S, "the other runs them"
    )
    tasks = [other.task(task) for task in held]
    assert {task["attempt"] for task in tasks} == {1}
    assert {task["delivery"] for task in tasks} == {2}
    assert len([task for task in other.tasks(state="running") if task["id"] in ids]) == 20
    os.kill(other.pid, signal.SIGKILL)


def test_a_kill_between_the_signals_loses_nothing(nodes: Fleet) -> None:
    nodes.settings["drain_s"] = 120
    nodes.start(2)
    node, other = nodes.nodes
    ids = nodes.spread("sleep", 2.0, each=10)
    wait_until(lambda: node.get("/health")["running"] > 0, LIMIT_S, "some run there")
    node.terminate()
    node.terminate()
    node.kill()
    nodes.nodes.remove(node)
    tasks = nodes.wait_ended(ids, LIMIT_S, through=other)
    assert {task["state"] for task in tasks} == {"succeeded"}
    assert len(tasks) == 20
    json.dumps(tasks)
