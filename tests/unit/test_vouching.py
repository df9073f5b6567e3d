"""What Redis confirms of what gossip says, and that nothing comes of the rest."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.swim.events import Denied, Event, Evidence, Identity, Member, MemberState, Unconfirmed, Vouched
from cluster.vitals import vouching
from cluster.vitals.calls import MemberRow
from cluster.vitals.vouching import Vouching
from tests.fake_pulse import FakePulse

ME = "me/018bcfe5680-00000001"
OLD, NEW = "n2/018bcfe5680-00000002", "n2/018bcfe5690-00000003"


def member(session: str, *, is_vouched: bool = True, state: MemberState = MemberState.ALIVE) -> Member:
    identity = Identity(session.partition("/")[0], session, "10.0.0.2", 5000)
    return Member(identity, 0, state, Evidence.NONE, 0.0, "", None, b"", 0, 0.0, is_vouched)


class Script:
    """Stands for the life and its gossip."""

    def __init__(self, *members: Member) -> None:
        self.session = ME
        self.redis_ok = True
        self.fed: list[Event] = []
        self.own_rumors = 0
        self.tombstones: list[tuple[str, bytes]] = []
        self.pulse = FakePulse()
        self.stats: Counter[str] = Counter()
        swim, gossip = SimpleNamespace(members=lambda: members), SimpleNamespace(feed=self.fed.append)
        self.vouching = Vouching(self.pulse, swim, gossip, self, self.stats)  # type: ignore[arg-type]

    def on_own_rumor(self) -> None:
        self.own_rumors += 1

    def on_tombstone(self, name: str, tombstone: bytes) -> None:
        self.tombstones.append((name, tombstone))

    async def hears(self, session: str, *, is_fenced: bool = False) -> list[Any]:
        """What gossip is told after it spoke of this session."""
        identity = Identity(session.partition("/")[0], session, "10.9.9.9", 9, b"said")
        self.vouching.hear(Unconfirmed(identity, is_fenced))
        await self.vouching.look()
        told, self.fed[:] = list(self.fed), []
        return told


@pytest.mark.parametrize("is_fenced", [True, False])
async def test_a_tombstone_that_stands_in_redis_ends_the_session(is_fenced: bool) -> None:
    script = Script()
    script.pulse.heartbeats[OLD] = b"fenced refused 1 n3"
    assert await script.hears(OLD, is_fenced=is_fenced) == []
    assert script.tombstones == [(OLD, b"fenced refused 1 n3")]


async def test_a_false_fenced_is_denied() -> None:
    script = Script(member(OLD))
    assert await script.hears(OLD, is_fenced=True) == [Denied(OLD)]
    script.pulse.heartbeats[OLD] = b"17"
    assert await script.hears(OLD, is_fenced=True) == [Denied(OLD)]
    assert script.tombstones == []


async def test_a_session_that_exists_nowhere_is_denied() -> None:
    assert await Script().hears(NEW) == [Denied(NEW)]


async def test_a_heartbeat_vouches_for_its_session_and_the_list_for_its_address() -> None:
    script = Script()
    script.pulse.heartbeats[NEW] = b"3"
    assert await script.hears(NEW) == [Vouched(Identity("n2", NEW, "10.9.9.9", 9, b"said"))]
    script.pulse.rows["n2"] = MemberRow(NEW, "10.0.0.2", 5000, b"meta")
    assert await script.hears(NEW) == [Vouched(Identity("n2", NEW, "10.0.0.2", 5000, b"meta"))]
    script.pulse.rows["n2"] = MemberRow(OLD, "10.0.0.2", 5000, b"meta")
    assert await script.hears(NEW) == [Vouched(Identity("n2", NEW, "10.9.9.9", 9, b"said"))]


@pytest.mark.parametrize(("rival", "has_the_name"), [(None, False), (b"17", True), (b"fenced left 1 n2", True)])
async def test_a_later_session_of_which_redis_knows_keeps_its_name(rival: bytes | None, has_the_name: bool) -> None:
    script = Script(member(NEW))
    script.pulse.heartbeats[OLD] = b"3"
    if rival is not None:
        script.pulse.heartbeats[NEW] = rival
    assert bool(await script.hears(OLD)) is not has_the_name


async def test_a_new_life_of_a_known_name_is_looked_for_again_a_moment_later() -> None:
    script = Script(member(OLD))
    assert await script.hears(NEW) == []
    script.pulse.heartbeats[NEW] = b"1"
    await script.vouching.look()
    assert [type(event) for event in script.fed] == [Vouched]


async def test_an_invented_life_of_a_known_name_is_looked_for_a_few_times_only() -> None:
    script = Script(member(OLD))
    assert await script.hears(NEW) == []
    for _ in range(vouching.RETRIES_MAX):
        await script.vouching.look()
    assert script.fed == [Denied(NEW)]
    assert not script.vouching._rumors


async def test_a_rumor_about_this_node_makes_it_beat() -> None:
    script = Script()
    assert await script.hears(ME, is_fenced=True) == []
    assert (script.own_rumors, script.stats["looks"]) == (1, 0)


@pytest.mark.parametrize("is_silent", [True, False])
async def test_without_redis_nothing_is_said(is_silent: bool) -> None:
    script = Script(member(OLD))
    script.redis_ok = not is_silent
    if not is_silent:
        script.pulse.go_away()
    assert await script.hears(OLD, is_fenced=True) == []
    assert await script.hears(NEW) == []
    assert script.tombstones == []


async def test_members_that_came_while_redis_was_away_are_looked_at() -> None:
    script = Script(
        member(OLD, is_vouched=False), member("n3/018bcfe5680-00000002", is_vouched=False, state=MemberState.DEAD)
    )
    script.pulse.heartbeats[OLD] = b"1"
    await script.vouching.look()
    assert script.fed == [Vouched(Identity("n2", OLD, "10.0.0.2", 5000))]


async def test_rumors_are_bounded() -> None:
    script = Script()
    for number in range(vouching.RUMORS_MAX + 10):
        name = f"x{number}/018bcfe5680-00000001"
        script.vouching.hear(Unconfirmed(Identity(f"x{number}", name, "10.9.9.9", 9), False))
    assert len(script.vouching._rumors) == vouching.RUMORS_MAX
    assert script.stats["rumors_dropped"] == 10
