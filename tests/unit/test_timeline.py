"""The timeline: each event once, in bounds; a listener misses nothing after its id, and a slow one is dropped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TooManyListeners
from node.observe import timeline
from node.observe.timeline import DROPPED, EVENTS_MAX, LISTENERS_MAX, NAMES, WAITING_MAX, Timeline, is_first_hand


def event(at_ms: int = 1, kind: str = "member_dead", **more: Any) -> dict[str, Any]:
    return {"at_ms": at_ms, "kind": kind, "node_id": "n2", "by": "n1", **more}


def from_elsewhere(at_ms: int, event_id: str) -> dict[str, Any]:
    """As another node tells it."""
    return {**event(at_ms), "id": event_id, "seen_by": "n3"}


def parsed(frames: bytes) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, name, data) of each frame."""
    events = []
    for frame in frames.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        events.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return events


async def test_a_listener_gets_what_was_and_then_what_comes() -> None:
    line = Timeline("n1", "life")
    line.add(event(1))
    with line.listen(None) as listener:
        assert [data["at_ms"] for _, _, data in parsed(await listener.next(1))] == [1]
        line.add(event(2, "shards_moved"))
        line.say("task", {"accepted": 3})
        rows = parsed(await listener.next(1))
        assert [(event_id, name) for event_id, name, _ in rows] == [("life.2", "shards"), ("", "task")]
        assert await listener.next(0.01) == b""


async def test_a_listener_that_comes_back_goes_on_after_its_last_id() -> None:
    line = Timeline("n1", "life")
    for at_ms in range(5):
        line.add(event(at_ms))
    with line.listen("life.3") as listener:
        assert [event_id for event_id, _, _ in parsed(await listener.next(1))] == ["life.4", "life.5"]


@pytest.mark.parametrize("after", ["other.3", "life", "life.", "life.x", "life.²", "", ".", "life." + "9" * 30])
async def test_an_id_of_another_life_or_none_at_all_begins_at_the_beginning(after: str) -> None:
    line = Timeline("n1", "life")
    line.add(event())
    with line.listen(after) as listener:
        assert len(parsed(await listener.next(1))) == 1


async def test_what_was_told_late_is_sent_although_it_happened_early() -> None:
    line = Timeline("n1", "life")
    line.add(event(10))
    line.merge([from_elsewhere(5, "o-1"), from_elsewhere(5, "o-1")])
    line.merge([from_elsewhere(5, "o-1")])
    with line.listen("life.1") as listener:
        assert [data["id"] for _, _, data in parsed(await listener.next(1))] == ["o-1"]
    with line.listen(None) as listener:
        assert [data["at_ms"] for _, _, data in parsed(await listener.next(1))] == [5, 10]
    assert [event["at_ms"] for event in line.own()] == [10], "what others saw is not this node's own"


async def test_a_slow_listener_is_dropped_with_a_word_and_nobody_waits_for_it() -> None:
    line = Timeline("n1", "life")
    with line.listen(None) as slow, line.listen(None) as good:
        for at_ms in range(WAITING_MAX + 1):
            line.add(event(at_ms))
            await good.next(1)
        assert await slow.next(1) is DROPPED
        line.add(event(0))
        assert await slow.next(1) is DROPPED
        assert not good.is_dropped
    assert line.listeners == 0


def test_listeners_are_bounded() -> None:
    line = Timeline("n1", "life")
    contexts = [line.listen(None) for _ in range(LISTENERS_MAX)]
    for context in contexts:
        context.__enter__()
    with pytest.raises(TooManyListeners, match=str(LISTENERS_MAX)), line.listen(None):
        pass
    for context in contexts:
        context.__exit__(None, None, None)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=80))
def test_the_newest_are_kept_whoever_saw_them(steps: list[tuple[bool, int]]) -> None:
    line = Timeline("n1", "life")
    times = []
    for n, (is_own, at_ms) in enumerate(steps):
        if is_own:
            line.add(event(at_ms))
        else:
            line.merge([from_elsewhere(at_ms, f"o-{n}")])
        times.append(at_ms)
    kept = [at_ms for at_ms, _, _, _ in line._events]
    assert kept == sorted(times)[-EVENTS_MAX:]


def test_the_number_of_events_is_bounded() -> None:
    line = Timeline("n1", "life")
    for n in range(3 * EVENTS_MAX):
        line.merge([from_elsewhere(n, f"o-{n}")])
    assert len(line._events) == EVENTS_MAX
    assert len(line._known) <= 4 * EVENTS_MAX


@pytest.mark.parametrize(
    "strange",
    [
        *(None, 1, "text", [], {}),
        {**from_elsewhere(1, "x"), "kind": "other"},
        {**from_elsewhere(1, "x"), "at_ms": "1"},
        {**from_elsewhere(1, "x"), "id": None},
        {**from_elsewhere(1, "x"), "kind": ["member_dead"]},
        {**from_elsewhere(1, "x"), "more": "x" * timeline.EVENT_MAX_BYTES},
        {key: value for key, value in from_elsewhere(1, "x").items() if key != "node_id"},
    ],
)
def test_what_is_no_event_is_passed_over(strange: Any) -> None:
    line = Timeline("n1", "life")
    line.merge([strange])
    assert line._events == []


def test_only_who_saw_or_did_it_tells_the_cluster() -> None:
    assert is_first_hand(event(by="n1"), "n1")
    assert not is_first_hand(event(by="n3"), "n1")
    assert is_first_hand({"kind": "leader_elected", "node_id": "n1"}, "n1")
    assert not is_first_hand({"kind": "leader_elected", "node_id": "n2"}, "n1")
    assert not is_first_hand(event(kind="shards_moved"), "n1"), "each node computes that"
    assert not is_first_hand({"kind": "leader_lost", "node_id": "n1"}, "n1")


def test_each_event_has_one_of_the_five_names() -> None:
    assert set(NAMES.values()) == {"member", "leader", "shards", "fence"}
