"""In which order a life does what must not overlap."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import session
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.swim.events import Identity, NameConflict, Unconfirmed
from cluster.vitals.calls import MemberRow
from cluster.vitals.life import Life
from cluster.vitals.told import Disowned, Happened, NameTaken, NewSession, SessionEnded, Told
from tests.fake_pulse import FakePulse

EARLIER = "n1/1ffffffffff-00000002"  # made by a clock that was ahead, in the year 2039
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def pulse(monkeypatch: pytest.MonkeyPatch) -> FakePulse:
    pulse = FakePulse()
    monkeypatch.setattr("cluster.vitals.life.Pulse", lambda *_: pulse)
    return pulse


def life_of(told: list[Any], **settings: float) -> Life:
    return Life(Config(node_id="n1", **settings), [KEY], b"", told.append, "127.0.0.1")  # type: ignore[arg-type]


async def test_a_node_that_renames_itself_stops_its_tasks_before_anybody_can_run_them_again(pulse: FakePulse) -> None:
    """After a clock step back: its name was used by a later session, which has ended."""
    order: list[Told | str] = []
    life = life_of(order)
    ours = life.session
    pulse.calls = order  # type: ignore[assignment]
    pulse.heartbeats[EARLIER] = b"fenced refused 1 n2"
    await life._contest(NameConflict(Identity("n1", EARLIER, "127.0.0.1", 5000, b"")))
    assert order[:3] == [Disowned(ours), f"fence {ours} superseded", Disowned(ours)]
    assert session.is_newer(life.session, than=EARLIER)
    assert not life.may_ask(), "it leads nothing before it is registered"


async def test_a_life_that_goes_on_makes_this_one_stop(pulse: FakePulse) -> None:
    told: list[Told] = []
    life = life_of(told, heartbeat_interval_s=0.01)
    pulse.moving[EARLIER] = 1
    await life._contest(NameConflict(Identity("n1", EARLIER, "10.0.0.9", 5000, b"")))
    assert [type(news) for news in told] == [NameTaken]
    assert "10.0.0.9:5000" in told[0].message  # type: ignore[union-attr]
    assert pulse.calls == []


@pytest.mark.parametrize("heartbeat", [None, b"17", b"fenced refused 1 n2"])
@pytest.mark.parametrize("name", [EARLIER, "n1/00000000001-00000001"])
async def test_a_life_that_redis_does_not_know_to_live_ends_nobody(
    pulse: FakePulse, name: str, heartbeat: bytes | None
) -> None:
    """An invented one; one that was killed; one that was fenced, and came before ours."""
    if name == EARLIER and heartbeat is not None and heartbeat.startswith(b"fenced"):
        return  # A clock that was set back: see above.
    told: list[Told] = []
    life = life_of(told, heartbeat_stale_s=0.05, heartbeat_interval_s=0.01)
    if heartbeat is not None:
        pulse.heartbeats[name] = heartbeat
    await life._contest(NameConflict(Identity("n1", name, "10.0.0.9", 5000, b"")))
    pulse.go_away()
    await life._contest(NameConflict(Identity("n1", name, "10.0.0.9", 5000, b"")))
    assert told == []
    assert pulse.calls == []


async def test_a_word_that_we_were_fenced_makes_us_beat_and_no_more(pulse: FakePulse) -> None:
    told: list[Told] = []
    life = life_of(told)
    ours = life.session
    life._vouching.hear(Unconfirmed(Identity("n1", ours, "127.0.0.1", 5000), True))
    assert life._heartbeat._beat_now.is_set()
    assert (life.session, told) == (ours, [])
    pulse.heartbeats[ours] = b"fenced lease 1 n2"
    async with pulse.listen(ours):
        life._heartbeat._listening.set()
        await life._heartbeat.beat()
    assert session.is_newer(life.session, than=ours)
    assert told[0] == Disowned(ours)


async def test_two_fencings_before_it_is_registered_end_the_first_session_once() -> None:
    told: list[Told] = []
    life = life_of(told)
    first = life.session
    life.on_fenced("lease")
    second = life.session
    life.on_fenced("refused")
    assert session.is_newer(second, than=first)
    assert session.is_newer(life.session, than=second)
    life.on_registered()
    life.on_registered()
    assert [news for news in told if not isinstance(news, Happened)] == [
        Disowned(first),
        Disowned(second),
        NewSession(life.session),
        SessionEnded(first, "lease"),
    ]


async def test_a_life_that_ends_takes_no_other_name() -> None:
    told: list[Told] = []
    life = life_of(told)
    last = life.session
    await life.depart()
    told.clear()
    life.on_fenced("left")
    assert (life.session, told) == (last, [])
    await life.close()


async def test_a_life_comes_after_the_one_that_the_member_list_names(pulse: FakePulse) -> None:
    life = life_of([])
    pulse.rows["n1"] = MemberRow(EARLIER, "127.0.0.1", 5000)
    older = await life._older_life()
    assert older is not None
    assert older.session == EARLIER
    assert session.is_newer(life.session, than=EARLIER)
    assert life._heartbeat.session == life.session


async def test_a_name_whose_heartbeat_moves_is_alive_elsewhere(pulse: FakePulse) -> None:
    life = life_of([], heartbeat_interval_s=0.01)
    pulse.rows["n1"] = MemberRow(EARLIER, "10.0.0.9", 5000)
    pulse.moving[EARLIER] = 1
    with pytest.raises(ConfigError, match=r"n1 is alive elsewhere, at 10\.0\.0\.9:5000"):
        await life._older_life()
