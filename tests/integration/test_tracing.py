"""Tracing as a collector sees it: real nodes, real OTLP. Each test holds a whole trace against what it should be."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from node import SyncClient
from tests.chaos.nodes import Fleet, Node, fleet
from tests.collector import Collector, collecting
from tests.integration.conftest import RedisServer, free_port
from tests.waiting import wait_until

ARRIVES_S = 15.0
HANDLERS = "tests.traced"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which every node of the test sends its spans."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


@pytest.fixture
def nodes(tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[..., Fleet]]:
    with ExitStack() as stack:

        def make(count: int, **settings: object) -> Fleet:
            cluster = stack.enter_context(fleet(tmp_path, redis_server.url, **{"tasks": HANDLERS, **settings}))
            cluster.start(count)
            return cluster

        yield make


class Trace:
    """A client's trace."""

    def __init__(self, flags: str = "01") -> None:
        self.id, self.span = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.id}-{self.span}-{flags}"}


def submit(node: Node, trace: Trace | None, type: str, data: Any = None, **more: Any) -> dict[str, Any]:
    body = {"type": type, "data": data, **more}
    return dict(node.remote.call("POST", "/tasks", body, headers=trace.headers if trace else {})[1])


def has_tree(collector: Collector, trace_id: str, expected: str) -> str:
    """Wait until the trace looks like `expected`, without its `wait` spans: a node may take a task at once."""

    def tree() -> str:
        lines = collector.tree(trace_id).splitlines()
        return "\n".join(line for line in lines if not line.strip().startswith("wait "))

    try:
        wait_until(lambda: tree() == expected, ARRIVES_S, "the whole trace has arrived")
    except AssertionError:
        assert tree() == expected
    return expected


def ended(node: Node, task: dict[str, Any]) -> dict[str, Any]:
    return wait_until(
        lambda: (now := node.task(task["id"], 5))["state"] in ("succeeded", "dead") and now, 30, "it has ended"
    )


def test_handlers_spans_stand_below_their_attempt_wherever_they_run(
    collector: Collector, nodes: Callable[..., Fleet]
) -> None:
    (node,) = nodes(1).nodes
    loop, thread, child = Trace(), Trace(), Trace()
    tasks = {
        trace.id: submit(node, trace, type)
        for trace, type in ((loop, "on_loop"), (thread, "in_thread"), (child, "in_child"))
    }
    has_tree(
        collector,
        loop.id,
        "send on_loop\n"
        "  process on_loop\n"
        "    in a thread of its own\n"
        "      in a thread of its own deeper\n"
        "    on the loop\n"
        "      on the loop deeper",
    )
    for trace, type, name in ((thread, "in_thread", "in a thread"), (child, "in_child", "in a child")):
        has_tree(collector, trace.id, f"send {type}\n  process {type}\n    {name}\n      {name} deeper")

    sent, attempt = (
        next(span for span in collector.of(loop.id) if span.name == f"{verb} on_loop") for verb in ("send", "process")
    )
    assert (sent.kind, sent.parent) == ("PRODUCER", loop.span)
    assert attempt.kind == "CONSUMER"
    task = tasks[loop.id]
    assert task["traceparent"].split("-")[1:3] == [loop.id, sent.id], "what is stored descends from the submission"
    assert ended(node, task)["traceparent"] == ended(node, task)["result"] == task["traceparent"]
    about = {"messaging.system": "rumor", "messaging.message.id": task["id"], "messaging.destination.name": "default"}
    assert about.items() <= sent.attributes.items()
    assert about.items() <= attempt.attributes.items()
    expected = {"messaging.operation.type": "process", "rumor.task.attempt": 1, "rumor.task.outcome": "succeeded"}
    assert expected.items() <= attempt.attributes.items()
    assert attempt.attributes["app.seen"], "the attempt's span is the handler's current one"
    assert attempt.resource["service.name"] == "rumor"
    assert attempt.resource["service.instance.id"] == node.node_id
    inner = next(span for span in collector.of(child.id) if span.name == "in a child")
    assert inner.resource["service.instance.id"] == node.node_id
    log = node.log()
    for trace in (loop, thread, child):
        ids = {"task": tasks[trace.id]["id"], "trace": trace.id}
        lines = [json.loads(line) for line in log.splitlines() if tasks[trace.id]["id"] in line]
        assert {line["event"] for line in lines if ids.items() <= line.items()} >= {"shown by"}
        assert any(line["event"].startswith("said by ") and line["logger"] == HANDLERS for line in lines)


def test_every_retry_is_linked_to_the_attempt_before(collector: Collector, nodes: Callable[..., Fleet]) -> None:
    (node,) = nodes(1).nodes
    trace = Trace()
    submit(node, trace, "flaky")
    has_tree(collector, trace.id, "send flaky\n  process flaky *\n  process flaky * -> 1\n  process flaky -> 2")
    failed = next(span for span in collector.of(trace.id) if span.is_error)
    assert failed.attributes["error.type"] == "ValueError"
    assert failed.events == ("exception",)


def test_how_long_a_task_waited_in_its_queue_is_a_span(collector: Collector, nodes: Callable[..., Fleet]) -> None:
    (node,) = nodes(1, queues="default:1").nodes
    first, second = Trace(), Trace()
    submit(node, first, "slow", 0.5)
    submit(node, second, "slow", 0.0)
    has_tree(collector, second.id, "send slow\n  process slow")
    [wait] = (span for span in collector.of(second.id) if span.name == "wait slow")
    assert wait.ended_ns - wait.began_ns > 0.2e9, "there is one slot, and the other task was in it"


def test_a_killed_nodes_attempt_is_told_by_who_recovers_it(collector: Collector, nodes: Callable[..., Fleet]) -> None:
    cluster = nodes(3)
    trace = Trace()
    task = submit(cluster.nodes[0], trace, "slow", 4.0)
    where = wait_until(lambda: cluster.nodes[0].task(task["id"])["node_id"], 5, "it runs somewhere")
    victim = next(node for node in cluster.nodes if node.node_id == where)
    wait_until(lambda: collector.of(trace.id), ARRIVES_S, "what was sent has arrived")
    victim.kill()
    cluster.nodes.remove(victim)
    assert ended(cluster.nodes[0], task)["attempt"] == 2
    has_tree(collector, trace.id, "send slow\n  process slow *\n  recover slow -> 1\n  process slow -> 1")
    _, lost, recovery, again = (span for span in collector.of(trace.id) if not span.name.startswith("wait"))
    assert (lost.attributes["error.type"], lost.attributes["rumor.lost.node_id"]) == ("WorkerLost", victim.node_id)
    assert recovery.attributes["rumor.task.outcome"] == "queued"
    assert lost.ended_ns <= recovery.ended_ns
    assert again.resource["service.instance.id"] != victim.node_id
    cluster.nodes.append(victim)


def test_an_attempt_that_was_taken_from_a_hung_node_is_told_once(
    collector: Collector, nodes: Callable[..., Fleet]
) -> None:
    cluster = nodes(3, stalled_s=1.5)
    trace = Trace()
    task = submit(cluster.nodes[0], trace, "slow", 6.0)
    where = wait_until(lambda: cluster.nodes[0].task(task["id"])["node_id"], 5, "it runs somewhere")
    victim = next(node for node in cluster.nodes if node.node_id == where)
    other = next(node for node in cluster.nodes if node is not victim)
    session = victim.session
    victim.pause()
    wait_until(lambda: other.task(task["id"])["attempt"] == 2, 15, "it was taken from the node")
    victim.resume()
    wait_until(lambda: victim.session != session, 15, "the node goes on under another session")
    ended(other, task)
    has_tree(collector, trace.id, "send slow\n  process slow *\n  recover slow -> 1\n  process slow -> 1")
    victim.terminate()
    assert victim.wait() == 0
    cluster.nodes.remove(victim)
    assert len(collector.of(trace.id)) == len({span.id for span in collector.of(trace.id)})


def test_what_a_peer_takes_over_is_one_trace(
    collector: Collector, nodes: Callable[..., Fleet], redis_server: RedisServer
) -> None:
    cluster = nodes(1)
    with Pipe(redis_server.port) as pipe:
        cut = cluster.make("127.0.0.1", free_port(), redis_url=f"redis://127.0.0.1:{pipe.port}/0")
        cluster.begin([cut])
        pipe.cut()
        wait_until(lambda: not cut.is_ready(), 10, "it cannot reach Redis any more")
        trace = Trace()
        task = submit(cut, trace, "slow", 0)
        assert ended(cluster.nodes[0], task)["state"] == "succeeded"
        has_tree(collector, trace.id, "send slow\n  forward\n    take over\n  process slow")
        sent, forwarded, taken, attempt = (
            next(span for span in collector.of(trace.id) if span.name == name)
            for name in ("send slow", "forward", "take over", "process slow")
        )
        assert [span.kind for span in (sent, forwarded, taken)] == ["PRODUCER", "CLIENT", "SERVER"]
        peer = cluster.nodes[0].node_id
        assert [span.resource["service.instance.id"] for span in (sent, forwarded, taken, attempt)] == [
            cut.node_id,
            cut.node_id,
            peer,
            peer,
        ]


def test_a_timed_out_childs_spans_are_there(collector: Collector, nodes: Callable[..., Fleet]) -> None:
    (node,) = nodes(1).nodes
    trace = Trace()
    task = submit(node, trace, "stuck", max_attempts=1)
    assert ended(node, task)["error"]["type"] == "Timeout"
    has_tree(collector, trace.id, "send stuck\n  process stuck *\n    before it hung\n      before it hung deeper")


def test_spans_are_sent_before_a_node_and_its_children_end(
    collector: Collector, nodes: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    (node,) = nodes(1).nodes
    trace = Trace()
    ended(node, submit(node, trace, "in_child"))
    assert not collector.seen
    node.terminate()
    assert node.wait() == 0
    has_tree(collector, trace.id, "send in_child\n  process in_child\n    in a child\n      in a child deeper")


def test_the_callers_flag_and_the_sampler_decide(
    collector: Collector, nodes: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    (node,) = nodes(1).nodes
    left_out, taken = Trace("00"), Trace("01")
    kept = submit(node, left_out, "on_loop")
    assert kept["traceparent"] == left_out.headers["traceparent"], "not sampled, and passed on all the same"
    assert "traceparent" not in submit(node, None, "on_loop")
    ended(node, submit(node, None, "in_child"))
    ended(node, submit(node, taken, "on_loop"))
    wait_until(lambda: len(collector.of(taken.id)) >= 6, ARRIVES_S, "the sampled one has arrived")
    assert {span.trace_id for span in collector.seen} == {taken.id}, "nor do handlers begin traces of their own"


def test_a_batch_is_one_trace_and_a_client_passes_its_own_on(collector: Collector, nodes: Callable[..., Fleet]) -> None:
    (node,) = nodes(1).nodes
    with (
        SyncClient(node.remote.url) as client,
        TracerProvider().get_tracer("test").start_as_current_span("shop") as span,
    ):
        tasks = client.submit_many([("slow", 0)] * 3)
        single = client.submit("slow", 0)
    context = span.get_span_context()
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    assert {task.traceparent.split("-")[1] for task in [*tasks, single]} == {trace_id}  # type: ignore[union-attr]
    has_tree(
        collector, trace_id, "send slow\n  process slow\n  process slow\n  process slow\nsend slow\n  process slow"
    )
    sent = [span for span in collector.of(trace_id) if span.name == "send slow"]
    assert [span.attributes["messaging.batch.message_count"] for span in sent] == [3, 1]
    assert {span.parent for span in sent} == {span_id}


@pytest.mark.parametrize("trouble", ["away", "broken"])
def test_a_collector_in_trouble_costs_spans_and_nothing_else(
    collector: Collector, nodes: Callable[..., Fleet], trouble: str
) -> None:
    if trouble == "away":
        collector.close()
    collector.status = 503
    (node,) = nodes(1).nodes
    for _ in range(20):
        ids = node.submit("slow", 0, 50)
        wait_until(lambda ids=ids: node.task(ids[-1])["state"] == "succeeded", 20, "tasks run")
    node.terminate()
    assert node.wait(15) == 0
    complaints = [line for line in node.log().splitlines() if "opentelemetry" in line]
    assert 0 < len(complaints) <= 6, complaints


def test_without_the_package_it_says_what_to_install_and_works(
    collector: Collector, nodes: Callable[..., Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    plain = Fleet.make

    def make(self: Fleet, host: str, port: int, **settings: object) -> Node:
        node = plain(self, host, port, **settings)
        node.environ["PYTHONPATH"] += f":{hiding}"
        return node

    monkeypatch.setattr(Fleet, "make", make)
    (node,) = nodes(1, tasks="").nodes
    trace = Trace()
    task = submit(node, trace, "process", "Hello")
    assert task["traceparent"] == trace.headers["traceparent"], "what comes with a task stays with it"
    assert ended(node, task)["state"] == "succeeded"
    assert "pip install -e '.[otel]'" in node.log()


def test_a_trace_has_its_address(nodes: Callable[..., Fleet]) -> None:
    (node,) = nodes(1, trace_url="https://traces.example/t/{trace_id}").nodes
    trace = Trace()
    task = submit(node, trace, "slow", 0)
    assert node.task(task["id"])["trace_url"] == f"https://traces.example/t/{trace.id}"
    assert "trace_url" not in node.task(submit(node, None, "slow", 0)["id"])


class Pipe:
    """A connection to Redis that a test can cut."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._open: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def cut(self) -> None:
        self._is_cut = True
        for each in (self._listening, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._is_cut:
                here, _ = self._listening.accept()
                there = socket.create_connection(("127.0.0.1", self._to))
                self._open += (here, there)
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self._pour, args=(source, target), daemon=True).start()

    def _pour(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
