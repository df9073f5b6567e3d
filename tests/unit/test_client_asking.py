"""Whom a client asks, what it takes for an answer, and when it gives up: in virtual time, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

import pytest

from cluster.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    NotFound,
    QueueFull,
    RumorError,
    StoreUnavailable,
    Unauthorized,
)
from node.client import batches, calls
from node.client.asking import Answer, Ask, NoAnswer, Pause, Request, Steps, carry_out
from node.client.calls import Asker
from node.client.errors import NotFinished, Unreachable
from node.client.nodes import REST_MAX_S, Nodes, address, addresses
from node.client.stream import NAMES, RECONNECT_S, Event, Follower, Parser
from node.client.task import task_of
from node.observe import timeline

T = TypeVar("T")
A, B, C = "http://a:1", "http://b:1", "http://c:1"
READ = Request("GET", "/tasks/1")
RETRY = Request("POST", "/tasks/1/retry", is_repeatable=False)
OK = Answer(200, b'{"id": "1"}')
REFUSED = NoAnswer("Connection refused", was_sent=False)
BROKEN = NoAnswer("Connection reset by peer", was_sent=True)


def error(status: int, code: str, retry_after: str | None = None, **more: Any) -> Answer:
    body = {"error": {"code": code, "message": "m", "hint": "h", **more}}
    return Answer(status, json.dumps(body).encode(), retry_after)


AWAY = error(503, "store_unavailable", "1", may_have_happened=False)
DOUBTFUL = error(503, "store_unavailable", "1", may_have_happened=True)


class World:
    """Carries the steps out: `says(ask)` answers, each attempt takes 0.1 s."""

    def __init__(self, says: Callable[[Ask], Answer | NoAnswer]) -> None:
        self.says = says
        self.now_s = 100.0
        self.asks: list[Ask] = []
        self.pauses: list[float] = []

    @property
    def asked(self) -> list[str]:
        return [ask.url for ask in self.asks]

    def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                outcome = None
                match step:
                    case Ask():
                        assert step.within_s > 0
                        self.asks.append(step)
                        outcome = self.says(step)
                        self.now_s += 0.1
                    case Pause(for_s):
                        self.pauses.append(for_s)
                        self.now_s += for_s
                step = steps.send((outcome, self.now_s))
        except StopIteration as end:
            value: T = end.value
            return value

    def carry_out(self, request: Request, nodes: Nodes, within_s: float = 10.0) -> Any:
        return self.run(carry_out(request, nodes, Random(1), self.now_s, within_s))[0]


def three() -> Nodes:
    return Nodes([A, B, C], learns=False)


def in_turn(*answers: Answer | NoAnswer) -> Callable[[Ask], Answer | NoAnswer]:
    left = list(answers)
    return lambda _: left.pop(0)


def test_a_node_that_refuses_is_left_at_once_for_the_next_and_stays_left() -> None:
    nodes = three()
    world = World(lambda ask: REFUSED if ask.url == A else OK)
    assert world.carry_out(READ, nodes) == {"id": "1"}
    assert world.asked == [A, B]
    assert world.pauses == []
    world.carry_out(READ, nodes)
    assert world.asked == [A, B, B]


@pytest.mark.parametrize("outcome", [REFUSED, AWAY, error(429, "queue_full")])
def test_what_certainly_did_not_happen_is_tried_again_whatever_the_call(outcome: Answer | NoAnswer) -> None:
    world = World(in_turn(outcome, OK))
    world.carry_out(RETRY, three())
    assert len(world.asks) == 2


@pytest.mark.parametrize("outcome", [BROKEN, DOUBTFUL, Answer(502, b"bad gateway")])
def test_what_may_have_happened_is_repeated_only_where_that_is_harmless(outcome: Answer | NoAnswer) -> None:
    world = World(in_turn(outcome, OK))
    assert world.carry_out(READ, three()) == {"id": "1"}
    world = World(in_turn(outcome, OK))
    with pytest.raises(RumorError) as told:
        world.carry_out(RETRY, three())
    assert told.value.may_have_happened
    assert len(world.asks) == 1


@pytest.mark.parametrize(("answer", "kind"), [(error(404, "not_found"), NotFound), (error(409, "conflict"), Conflict)])
def test_a_refusal_that_time_does_not_cure_is_raised_at_once(answer: Answer, kind: type[RumorError]) -> None:
    world = World(in_turn(answer))
    with pytest.raises(kind) as told:
        world.carry_out(READ, three())
    assert (told.value.message, told.value.hint, told.value.may_have_happened) == ("m", "h", False)


def test_every_node_is_asked_once_before_there_is_a_pause_and_pauses_grow() -> None:
    world = World(lambda _: REFUSED)
    with pytest.raises(Unreachable) as told:
        world.carry_out(READ, three(), within_s=5)
    assert world.asked[:3] == [A, B, C]
    assert all(B in world.asked[n : n + 3] for n in range(0, len(world.asked) - 2, 3))
    assert len(world.pauses) >= 3
    assert world.pauses[-1] > world.pauses[0]
    assert world.now_s <= 105.0
    assert not told.value.may_have_happened
    assert all(url in told.value.message for url in (A, B, C))


def test_a_doubt_is_never_forgotten() -> None:
    """The first attempt may have been carried out, whatever is said afterwards."""
    world = World(in_turn(BROKEN, *[AWAY] * 100))
    with pytest.raises(StoreUnavailable) as told:
        world.carry_out(READ, Nodes([A], learns=False), within_s=3)
    assert told.value.may_have_happened


def test_a_limit_of_the_cluster_is_not_taken_to_the_next_node_and_retry_after_is_kept() -> None:
    world = World(in_turn(error(429, "queue_full", "3"), OK))
    world.carry_out(READ, three())
    assert world.pauses == [3.0]
    world = World(lambda _: error(429, "queue_full", "30"))
    with pytest.raises(QueueFull):
        world.carry_out(READ, three())
    assert len(world.asks) == 1, "30 s are not to be had"


def test_an_attempt_leaves_time_for_the_next_node_if_there_is_one() -> None:
    world = World(in_turn(OK, BROKEN, BROKEN, OK, OK))
    world.carry_out(READ, three(), within_s=60)
    world.carry_out(READ, three(), within_s=2)
    world.carry_out(RETRY, three(), within_s=2)
    shown = [round(ask.within_s, 2) for ask in world.asks]
    assert shown == [5.0, 1.0, 0.95, 1.8, 2.0], "the last node, and a call that goes to one only, have all that is left"


def test_an_answer_that_is_no_rumor_node_is_told_as_such() -> None:
    for answer in (Answer(200, b"<html>"), Answer(404, b"nothing")):
        with pytest.raises(RumorError, match="Is this a Rumor node"):
            World(in_turn(answer)).carry_out(READ, three())


def test_a_client_that_does_not_insist_asks_every_node_once() -> None:
    world = World(lambda _: REFUSED)
    with pytest.raises(Unreachable):
        world.run(carry_out(READ, three(), Random(1), 100.0, 10.0, insists=False))
    assert world.asked == [A, B, C]
    assert world.pauses == []


# ---- nodes


def test_the_other_nodes_are_learned_first_and_the_token_goes_to_no_weaker_scheme() -> None:
    members = [
        {"url": "https://a:1", "state": "alive"},
        {"url": "https://b:1", "state": "suspect"},
        {"url": "https://c:1", "state": "dead"},
        {"url": "http://d:1", "state": "alive"},
    ]
    nodes = Nodes(["https://a:1"])
    world = World(
        lambda ask: Answer(200, json.dumps({"members": members}).encode()) if "clu" in ask.request.path else OK
    )
    world.carry_out(READ, nodes)
    world.carry_out(READ, nodes)
    assert [ask.request.path for ask in world.asks] == ["/cluster", "/tasks/1", "/tasks/1"]
    assert nodes.known() == ("https://a:1", "https://b:1")
    world.now_s += 61
    members[1]["state"] = "left"
    world.carry_out(READ, nodes)
    assert nodes.known() == ("https://a:1",)


def test_a_node_that_stays_silent_rests_longer_each_time_and_is_asked_when_no_other_is_left() -> None:
    nodes = three()
    for n in range(20):
        nodes.failed(A, float(n))
    assert nodes.pick(20.0) == B
    assert nodes.pick(20.0, (B, C)) == A
    assert nodes.pick(20.0 + REST_MAX_S) == A
    nodes.failed(B, 20.0)
    nodes.failed(C, 20.0)
    assert nodes.pick(20.5) == B, "the one whose rest ends first"
    assert nodes.pick(20.5, (A, B, C)) is None


@pytest.mark.parametrize(
    ("text", "url"),
    [("h:1", "http://h:1"), ("https://h/x/", "https://h/x"), ("http://[::1]:5000", "http://[::1]:5000")],
)
def test_an_address_has_one_form(text: str, url: str) -> None:
    assert address(text) == url


@pytest.mark.parametrize("text", ["ftp://h", "http://", "http://h:x", "http://u:p@h", "http://h:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not an HTTP address"):
        address(text)


def test_addresses_are_separated_by_commas_or_spaces() -> None:
    assert addresses(" h:1, h:2 h:3,") == ["h:1", "h:2", "h:3"]
    with pytest.raises(ConfigError):
        Nodes([])


# ---- calls


def asker(world: World, within_s: float = 30.0) -> Asker:
    return Asker(three(), Random(1), world.now_s, within_s)


def test_every_attempt_of_a_submission_carries_the_same_key_and_every_submission_another() -> None:
    task = Answer(202, b'{"id": "1", "type": "noop", "state": "queued"}')
    world = World(in_turn(BROKEN, DOUBTFUL, task, task, task))
    for key in (None, None, "mine"):
        world.run(calls.submit(asker(world), "noop", 1, key, {"priority": "high"}))
    keys = [ask.request.headers["Idempotency-Key"] for ask in world.asks]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert keys[4] == "mine"
    assert json.loads(world.asks[0].request.body or b"") == {"type": "noop", "data": 1, "priority": "high"}


def test_a_batch_is_cut_always_in_the_same_places_and_keeps_each_items_error_in_its_place() -> None:
    def says(ask: Ask) -> Answer:
        items = json.loads(ask.request.body or b"")
        if items[0]["data"] == batches.BATCH_TASKS:
            return error(413, "too_large")
        bad = {"error": {"code": "unknown_type", "message": "m", "hint": "h"}}
        return Answer(
            200,
            json.dumps(
                {"results": [bad if one["data"] == 3 else {"id": "x", "state": "queued", **one} for one in items]}
            ).encode(),
        )

    world = World(says)
    items = [("noop", n) for n in range(2 * batches.BATCH_TASKS + 1)]
    results = world.run(batches.submit_many(asker(world), items, "k"))
    assert len(results) == len(items)
    failed = [n for n, result in enumerate(results) if isinstance(result, RumorError)]
    assert failed == [3, batches.BATCH_TASKS], "a request too large is halved until the item at fault stands alone"
    keys = [ask.request.headers["Idempotency-Key"] for ask in world.asks]
    others = (1_001, 1_003, 1_007, 1_015, 1_031, 1_062, 1_125, 1_250, 1_500)
    assert keys == ["k/0", *["k/1000"] * 10, *(f"k/{n}" for n in others), "k/2000"]
    assert not isinstance(results[-1], RumorError)
    assert results[-1].data == 2 * batches.BATCH_TASKS


def test_a_wait_ends_with_the_task_or_at_the_deadline_with_the_task_as_it_is() -> None:
    running = {"id": "1", "type": "noop", "state": "running"}
    steps = [Answer(200, json.dumps({**running, "state": state}).encode()) for state in ("queued", "running", "dead")]
    world = World(in_turn(*steps))
    assert world.run(calls.wait(asker(world), "1", None)).state == "dead"
    assert [ask.request.query["wait_s"] for ask in world.asks] == ["10.000"] * 3
    assert world.pauses == [calls.WAIT_AGAIN_S] * 2, "these answers came at once"
    world = World(lambda _: Answer(200, json.dumps(running).encode()))
    with pytest.raises(NotFinished) as told:
        world.run(calls.wait(asker(world, 0.5), "1", None))
    assert told.value.task.state == "running"
    assert isinstance(told.value, TimeoutError)
    assert world.now_s <= 100.5


def test_a_run_is_repeated_under_its_own_key_and_goes_on_with_reads() -> None:
    running = Answer(202, b'{"id": "1", "type": "noop", "state": "running"}')
    done = Answer(200, b'{"id": "1", "type": "noop", "state": "succeeded", "result": 7}')
    world = World(in_turn(BROKEN, DOUBTFUL, running, BROKEN, done))
    assert world.run(calls.run(asker(world, 20.0), "noop", 1, None, {"priority": "high"}, int)).result == 7
    requests = [ask.request for ask in world.asks]
    assert [request.method for request in requests] == ["POST", "POST", "POST", "GET", "GET"]
    assert len({request.headers["Idempotency-Key"] for request in requests[:3]}) == 1
    assert json.loads(requests[0].body or b"") == {"type": "noop", "data": 1, "priority": "high"}
    assert requests[-1].path == "/tasks/1"


def test_no_attempt_waits_past_the_deadline() -> None:
    """Else the node would answer too late, and the caller would not hear which task goes on."""
    slow = [BROKEN, Answer(202, b'{"id": "1", "type": "noop", "state": "running"}')]

    def says(ask: Ask) -> Answer | NoAnswer:
        world.now_s += float(ask.request.query["wait_s"])
        assert ask.within_s > float(ask.request.query["wait_s"]) or ask.within_s < 0.2
        return slow.pop(0)

    world = World(says)
    with pytest.raises(NotFinished):
        world.run(calls.run(asker(world, 12.0), "noop", 1, None, {}, None))
    assert [float(ask.request.query["wait_s"]) for ask in world.asks] == pytest.approx([10.0, 1.7])
    assert world.now_s == pytest.approx(111.9)


def test_a_task_id_cannot_lead_elsewhere() -> None:
    world = World(lambda _: error(404, "not_found"))
    for text in ("../dead", "..", "", "a b", "\ud800", "ключ", "x" * 65, "a\n"):
        with pytest.raises(NotFound, match="there is no task"):
            world.run(calls.cancel(asker(world), text))
    assert world.asks == []


def test_what_is_no_id_is_told_as_what_it_is() -> None:
    world = World(lambda _: error(404, "not_found"))
    task = task_of({"id": "01A-1f", "type": "noop", "state": "queued"})
    for what in (task, None, 5):
        with pytest.raises(BadRequest, match=f"of type {type(what).__name__}") as told:
            world.run(calls.cancel(asker(world), what))  # type: ignore[arg-type]
        assert told.value.hint == "Give task.id."
    assert world.asks == []


def test_one_field_of_a_list_may_be_a_text() -> None:
    assert calls.which(None, None, None, None, "data") == calls.which(None, None, None, None, ["data"])


# ---- events


def test_a_stream_is_read_in_any_pieces() -> None:
    text = (
        b': hello\nretry: 500\n\nid: L.1\nevent: member\ndata: {"id": "x-1"}\n\n: silence\n\n'
        b'event: task\r\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: odd\ndata: no json\n\ndata: [1]\n\n'
    )
    for size in (1, 7, len(text)):
        parser = Parser()
        found = [event for n in range(0, len(text), size) for event in parser.feed(text[n : n + size])]
        assert found == [Event("member", {"id": "x-1"}, "L.1"), Event("task", {"a": 1}, "L.1")]


def follower(nodes: Nodes, within_s: float = 5.0) -> Follower:
    return Follower(nodes, Random(1), 100.0, within_s, ["member"])


def test_what_another_node_tells_again_is_passed_over() -> None:
    caller = follower(three())
    first = Event("member", {"id": "x-1"}, "L.1")
    assert caller.is_news(first, 100.0)
    assert not caller.is_news(replace(first, id="M.7"), 100.0)
    assert caller.last_id == "M.7"
    assert not caller.is_news(Event("task", {}, "M.7"), 100.0)


def test_a_stream_that_ends_is_followed_by_that_of_the_next_node() -> None:
    caller = follower(three())
    assert caller.next_node(100.0) == A
    assert RECONNECT_S[0] <= caller.ended(A, "the stream ended", 100.0) <= RECONNECT_S[1]
    assert caller.next_node(100.0) == B
    caller.ended(B, StoreUnavailable("no slot for another stream"), 100.0)
    assert caller.next_node(100.0) == C


def test_a_name_that_no_event_has_is_refused_and_not_waited_for() -> None:
    for names in (["leeder"], "leeder", ["leader", "leeder"]):
        with pytest.raises(BadRequest, match="'leeder'") as told:
            Follower(three(), Random(1), 100.0, 5.0, names)
        assert told.value.hint == "Names are member, leader, shards, fence, task."
    one = Follower(three(), Random(1), 100.0, 5.0, "leader")
    assert one.is_news(Event("leader", {"id": "a-1"}), 101.0), "a text is one name"


def test_the_names_of_events_are_those_that_nodes_send() -> None:
    assert {*NAMES} == {*timeline.NAMES.values(), "task"}, "task is that of the sums"


def test_events_are_given_up_after_so_long_without_a_sign_of_life() -> None:
    caller = follower(three(), within_s=5.0)
    assert not caller.is_news(None, 103.0)
    caller.ended(A, "timed out", 108.0)
    with pytest.raises(Unreachable, match=r"no events for 5 s; http://b:1: timed out") as told:
        caller.ended(B, "timed out", 108.1)
    assert not told.value.may_have_happened


def test_a_refusal_of_events_that_another_node_would_repeat_is_raised_at_once() -> None:
    nodes = three()
    caller = follower(nodes)
    refusal = Unauthorized("no token")
    with pytest.raises(Unauthorized) as told:
        caller.ended(A, refusal, 100.0)
    assert told.value is refusal
    assert nodes.pick(100.0) == A, "it did answer"


@pytest.mark.parametrize("is_busy", [False, True])
def test_each_answer_to_a_batch_is_read_while_a_node_works_at_the_next(
    monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    """Whether or not the driver finds time for that: each result stands in its place, and none is read twice."""
    monkeypatch.setattr(batches, "BATCH_TASKS", 2)
    asker = Asker(Nodes(["http://a:1"], learns=False), Random(1), 0.0, 60.0)
    keys: list[str] = []

    def carried_out(steps: Steps[list[calls.Result]]) -> list[calls.Result]:
        reply: Any = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                value: list[calls.Result] = end.value
                return value
            assert isinstance(step, Ask)
            assert step.request.meanwhile is not None
            for _ in range(2 * is_busy):
                step.request.meanwhile()
            keys.append(step.request.headers["Idempotency-Key"])
            items = json.loads(step.request.body or b"")
            rows = [{"id": str(item["data"]), "type": "noop", "state": "queued"} for item in items]
            body = b"no JSON" if keys[-1] == "k/2" else json.dumps({"results": rows}).encode()
            reply = Answer(200, body), 1.0

    results = carried_out(batches.submit_many(asker, [("noop", n) for n in range(7)], "k"))
    assert keys == ["k/0", "k/2", "k/4", "k/6"]
    assert [getattr(result, "id", None) for result in results] == ["0", "1", None, None, "4", "5", "6"]
