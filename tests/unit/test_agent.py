"""What an agent calls a change on stdout."""

from __future__ import annotations

import pytest

from cluster.gossip.agent import events
from cluster.swim.events import MemberState

ALIVE, LEAVING, SUSPECT, DEAD, LEFT = MemberState


@pytest.mark.parametrize(
    ("was", "state", "lines"),
    [
        (None, ALIVE, ["join"]),
        (None, LEAVING, ["join"]),
        (None, SUSPECT, ["join", "suspect"]),
        (None, DEAD, []),
        (None, LEFT, []),
        (ALIVE, ALIVE, []),
        (ALIVE, LEAVING, []),
        (ALIVE, SUSPECT, ["suspect"]),
        (ALIVE, DEAD, ["dead"]),
        (ALIVE, LEFT, ["left"]),
        (SUSPECT, SUSPECT, []),
        (SUSPECT, ALIVE, ["alive"]),
        (SUSPECT, LEAVING, ["alive"]),
        (SUSPECT, DEAD, ["dead"]),
        (SUSPECT, LEFT, ["left"]),
        (LEAVING, SUSPECT, ["suspect"]),
        (LEAVING, DEAD, ["dead"]),
        (LEAVING, LEFT, ["left"]),
        (DEAD, DEAD, []),
        (DEAD, ALIVE, ["join"]),
        (DEAD, SUSPECT, ["join", "suspect"]),
        (LEFT, ALIVE, ["join"]),
        (LEFT, LEFT, []),
    ],
)
def test_each_change_has_its_lines(was: MemberState | None, state: MemberState, lines: list[str]) -> None:
    assert events(state, was) == lines
