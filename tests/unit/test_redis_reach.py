"""One outage of Redis is told once, and its end once, whichever parts of the node notice it and in whatever order."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from cluster.refusal import Refusal, refusal
from node.queue import redis_reach
from node.queue.redis_reach import Reach

WRONGPASS = refusal("WRONGPASS invalid username-password pair or user is disabled.")
NOPERM = refusal("NOPERM this user has no permissions")


class Lanes:
    """What Reach asks of the shards."""

    def __init__(self) -> None:
        self.down: set[int] = set()
        self.refusal: Refusal | None = None
        self.trouble = "Connection closed"
        self.answered_s = 0.0

    @property
    def is_up(self) -> bool:
        return not self.down

    def silent_s(self) -> float:
        return Node.now_s - self.answered_s


class Node:
    now_s = 100.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.fields: list[dict[str, Any]] = []
        self.lanes = Lanes()
        monkeypatch.setattr(redis_reach.time, "monotonic", lambda: Node.now_s)
        self.reach = Reach(30.0, self.lanes, self._tell)  # type: ignore[arg-type]

    def _tell(self, kind: str, **fields: Any) -> None:
        self.told.append(kind)
        self.fields.append(fields)

    def lane(self, n: int, is_up: bool) -> None:
        Node.now_s += 0.01
        (self.lanes.down.discard if is_up else self.lanes.down.add)(n)
        self.reach.lanes(self.lanes.is_up)

    def beat(self, is_ok: bool, why: Refusal | None = None) -> None:
        Node.now_s += 0.01
        self.reach.beats(is_ok, "" if is_ok else "no answer", why)

    def settle(self) -> None:
        """Every lane is answered, and somebody looks."""
        Node.now_s += 1
        self.lanes.answered_s = Node.now_s
        Node.now_s += 0.1
        self.reach.look(None)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


def test_one_outage_is_one_event_and_one_return_in_whatever_order_the_parts_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for order in permutations(("beat", 0, 1)):
        for back in permutations(order):
            node = Node(monkeypatch)
            for steps, is_up in ((order, False), (back, True)):
                for part in steps:
                    node.beat(is_up) if part == "beat" else node.lane(int(part), is_up)
                    node.reach.look(None)
            node.settle()
            assert node.told == ["redis_away", "redis_back"], (order, back)


def test_a_part_that_notices_after_the_first_is_back_belongs_to_the_same_outage(node: Node) -> None:
    node.beat(False)
    node.beat(True)
    node.reach.look(None)
    assert node.told == ["redis_away"], "no lane was answered since"
    node.lane(0, False)
    node.lane(0, True)
    node.settle()
    assert node.told == ["redis_away", "redis_back"]
    node.settle()
    node.beat(False)
    node.reach.look(None)
    assert node.told == ["redis_away", "redis_back", "redis_away"], "the next one is another"


def test_a_refusal_is_told_in_its_words_and_not_as_an_absence(node: Node) -> None:
    node.lane(0, False)
    node.lanes.refusal = WRONGPASS
    node.beat(False, WRONGPASS)
    node.lane(1, False)
    node.reach.look(WRONGPASS)
    assert node.told == ["redis_refuses"]
    assert node.fields[0]["words"] == WRONGPASS.words


def test_a_reason_that_shows_later_is_news_and_each_reason_only_once(node: Node) -> None:
    node.beat(False)
    node.reach.look(None)
    for _ in range(3):
        node.reach.look(WRONGPASS)
    node.reach.look(None)
    assert node.told == ["redis_away", "redis_refuses"]


def test_a_user_without_rights_is_told_although_the_lanes_are_up(node: Node) -> None:
    node.lanes.refusal = NOPERM
    node.reach.look(None)
    assert node.told == ["redis_refuses"]
    node.lanes.refusal = None
    node.settle()
    assert node.told == ["redis_refuses", "redis_back"]
