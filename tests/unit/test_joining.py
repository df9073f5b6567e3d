"""Where a node looks for the others, and what becomes of rows whose nodes are gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cluster.config import Config
from cluster.swim.events import Evidence, Identity, Join, Member, MemberState
from cluster.vitals.calls import MemberRow
from cluster.vitals.joining import Joiner
from tests.fake_pulse import FakePulse

ALIVE, DEAD, ENDED = (f"n{n}/018bcfe5680-0000000{n}" for n in (2, 3, 4))


def member(name: str, port: int, state: MemberState) -> Member:
    identity = Identity(name.partition("/")[0], name, "127.0.0.1", port)
    return Member(identity, 0, state, Evidence.NONE, 0.0, "", None, b"", 0, 0.0)


class Search:
    """A joiner among fakes that note what they are asked for."""

    def __init__(self, *seeds: str) -> None:
        self.pulse = FakePulse()
        self.fed: list[Any] = []
        self.considered: list[str] = []
        members = [member(ALIVE, 5002, MemberState.ALIVE), member(DEAD, 5003, MemberState.DEAD)]
        self.addresses: dict[str, tuple[str, int]] = {}
        fencing = SimpleNamespace(
            is_ended=lambda name: name == ENDED, consider=self.considered.extend, lives_at=self.addresses.__setitem__
        )
        self.joiner = Joiner(
            Config(node_id="n1", seeds=seeds),
            self.pulse,  # type: ignore[arg-type]
            SimpleNamespace(members=lambda: members),  # type: ignore[arg-type]
            SimpleNamespace(feed=self.fed.append),  # type: ignore[arg-type]
            fencing,  # type: ignore[arg-type]
        )


async def test_seeds_come_first_and_nobody_is_tried_who_is_alive_here() -> None:
    search = Search("127.0.0.1:5009", "127.0.0.1:5002")
    search.pulse.rows = {"n2": MemberRow(ALIVE, "127.0.0.1", 5002), "n3": MemberRow(DEAD, "127.0.0.1", 5003)}
    await search.joiner.look()
    assert search.fed == [Join((("127.0.0.1", 5009), ("127.0.0.1", 5003)))]


async def test_a_session_that_is_listed_and_not_alive_here_is_watched_and_an_ended_one_loses_its_row() -> None:
    search = Search()
    ours = MemberRow("n1/018bcfe5000-00000001", "127.0.0.1", 5001)
    search.pulse.rows = {
        "n1": ours,
        "n2": MemberRow(ALIVE, "127.0.0.1", 5002),
        "n3": MemberRow(DEAD, "127.0.0.1", 5003),
        "n4": MemberRow(ENDED, "127.0.0.1", 5004),
    }
    await search.joiner.look()
    assert search.considered == [DEAD]
    assert search.addresses == {DEAD: ("127.0.0.1", 5003)}
    assert search.pulse.calls == [f"forget {ENDED}"]


async def test_seeds_are_tried_although_redis_is_away() -> None:
    search = Search("127.0.0.1:5009")
    search.pulse.go_away()
    await search.joiner.look()
    assert search.fed == [Join((("127.0.0.1", 5009),))]
