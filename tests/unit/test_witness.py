"""What watching heartbeats may prove, and whom it may fence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.swim.events import Evidence, MemberState
from cluster.view import RedisWord
from cluster.vitals.witness import Belief, Fence, Path, Standstill, Witness, believe

STALE_S, LEASE_S, EVERY_S = 1.0, 30.0, 0.25


def watch(
    witness: Witness, beats: dict[str, bytes | None], start_s: float, for_s: float, every_s: float = EVERY_S
) -> float:
    """Read the same values every `every_s`; each reply takes 1 ms. Returns the time of the next read."""
    now_s = start_s
    while now_s <= start_s + for_s:
        for session, value in beats.items():
            witness.read(session, value, now_s, now_s + 0.001)
        now_s += every_s
    return now_s


def test_a_heartbeat_that_stands_still_while_watched_is_stale() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": b"7"}, 0.0, 0.75)
    assert not witness.is_stale("a")
    watch(witness, {"a": b"7"}, 1.0, 0.5)
    assert witness.is_stale("a")
    assert witness.word("a") is RedisWord.STALE


def test_a_heartbeat_that_moves_is_live() -> None:
    witness = Witness(STALE_S, LEASE_S)
    for beat in range(20):
        witness.read("a", b"%d" % beat, beat * EVERY_S, beat * EVERY_S + 0.001)
    assert witness.word("a") is RedisWord.LIVE
    assert witness.expired(["a"]) == []


def test_a_session_is_fenced_by_one_node_alone_only_after_its_lease_and_by_the_value_that_was_watched() -> None:
    witness = Witness(STALE_S, LEASE_S)
    next_s = watch(witness, {"a": b"7"}, 0.0, LEASE_S - 1.0)
    assert witness.expired(["a"]) == []
    watch(witness, {"a": b"7"}, next_s, 2.0)
    assert witness.expired(["a"]) == [Fence("a", Path.LEASE, b"7", "lease")]


def test_a_session_without_any_heartbeat_counts_as_one_that_stands_still() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": None}, 0.0, LEASE_S + 1.0)
    assert witness.is_stale("a")
    assert witness.expired(["a"]) == [Fence("a", Path.LEASE, b"", "lease")]


def test_what_was_watched_begins_with_the_first_reply_and_ends_with_the_last_question() -> None:
    witness = Witness(STALE_S, LEASE_S)
    assert witness.watched("a") is None
    watch(witness, {"a": b"7"}, 0.0, 0.5)
    assert witness.watched("a") == Standstill(b"7", 0.001, 0.5)
    witness.read("a", b"8", 0.75, 0.751)
    assert witness.watched("a") == Standstill(b"8", 0.751, 0.75)
    assert Standstill(b"8", 0.751, 0.75).for_s == 0.0


def test_a_redis_that_was_away_fences_nobody() -> None:
    witness = Witness(STALE_S, LEASE_S)
    next_s = watch(witness, {"a": b"7", "b": b"9"}, 0.0, 0.75)
    witness.restart()  # Calls went unanswered for three seconds.
    next_s = watch(witness, {"a": b"7", "b": b"9"}, next_s + 3.0, 0.75)
    assert not witness.is_stale("a")
    watch(witness, {"a": b"7", "b": b"9"}, next_s, 0.75)
    assert witness.is_stale("a")
    assert witness.is_stale("b")


def test_a_late_reply_restarts_the_whole_watch() -> None:
    witness = Witness(STALE_S, LEASE_S)
    next_s = watch(witness, {"a": b"7", "b": b"9"}, 0.0, 0.75)
    witness.read("b", b"9", next_s, next_s + 0.7)
    assert witness.age_s("a") is None
    witness.read("a", b"7", next_s + 0.8, next_s + 0.801)
    assert not witness.is_stale("a")


def test_a_pause_of_the_watcher_itself_proves_nothing() -> None:
    witness = Witness(STALE_S, LEASE_S)
    next_s = watch(witness, {"a": b"7"}, 0.0, 0.75)
    # The machine slept for ten seconds, and everybody's heartbeat with it.
    next_s = watch(witness, {"a": b"7"}, next_s + 10.0, 0.75)
    assert not witness.is_stale("a")
    watch(witness, {"a": b"7"}, next_s, 0.5)
    assert witness.is_stale("a")


def test_slow_reads_prove_a_lease_but_never_a_stale_heartbeat() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": b"7"}, 0.0, LEASE_S + 2.0, every_s=1.0)
    assert not witness.is_stale("a")
    assert witness.is_expired("a")


def test_many_that_go_stale_together_put_the_witness_under_suspicion() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": b"7", "b": b"9", "c": b"3"}, 0.0, 1.5)
    assert witness.is_suspect("a", {"a": Belief.DEAD, "b": Belief.ALIVE, "c": Belief.ALIVE})


def test_many_that_both_witnesses_hold_dead_are_a_rack_that_is_gone() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": b"7", "b": b"9"}, 0.0, 1.5)
    assert not witness.is_suspect("a", {"a": Belief.DEAD, "b": Belief.DEAD})


def test_one_long_cut_from_redis_does_not_shield_another_that_dies_later() -> None:
    witness = Witness(STALE_S, LEASE_S)
    next_s = 0.0
    for beat in range(20):
        next_s = watch(witness, {"cut": b"1", "a": b"%d" % beat}, next_s, 0.0)
    watch(witness, {"cut": b"1", "a": b"19"}, next_s, 1.5)
    assert witness.is_stale("a")
    assert not witness.is_suspect("a", {"cut": Belief.ALIVE, "a": Belief.DEAD})


def test_a_fenced_session_is_not_fenced_again() -> None:
    witness = Witness(STALE_S, LEASE_S)
    watch(witness, {"a": b"fenced gone 17 n2"}, 0.0, LEASE_S + 1.0)
    assert witness.expired(["a"]) == []
    assert witness.word("a") is RedisWord.GONE


@pytest.mark.parametrize(
    ("state", "evidence", "is_superseded", "is_synced", "belief"),
    [
        (MemberState.ALIVE, Evidence.NONE, False, True, Belief.ALIVE),
        (MemberState.SUSPECT, Evidence.SILENT, False, True, Belief.ALIVE),
        (MemberState.LEAVING, Evidence.NONE, False, True, Belief.ALIVE),
        (MemberState.DEAD, Evidence.SILENT, False, True, Belief.DEAD),
        (MemberState.DEAD, Evidence.STALLED, False, True, Belief.DEAD),
        (MemberState.DEAD, Evidence.REFUSED, False, True, Belief.GONE),
        (MemberState.DEAD, Evidence.SUPERSEDED, False, True, Belief.GONE),
        (MemberState.LEFT, Evidence.NONE, False, True, Belief.DEAD),
        (None, Evidence.NONE, False, True, Belief.DEAD),
        (None, Evidence.NONE, False, False, Belief.ALIVE),
        (None, Evidence.NONE, True, False, Belief.GONE),
    ],
)
def test_gossips_words_as_beliefs(
    state: MemberState | None, evidence: Evidence, is_superseded: bool, is_synced: bool, belief: Belief
) -> None:
    assert believe(state, evidence, is_superseded, is_synced) is belief


@settings(deadline=None)  # A busy machine is no failure.
@given(
    reads=st.lists(
        st.tuples(st.floats(0.0, 0.4), st.floats(0.0, 0.4), st.booleans(), st.booleans()), min_size=1, max_size=60
    )
)
def test_staleness_always_has_a_second_of_unbroken_reads_behind_it(
    reads: list[tuple[float, float, bool, bool]],
) -> None:
    """Against a plain second account: the earliest answered read of the same value with nothing broken since."""
    witness = Witness(STALE_S, LEASE_S)
    now_s, value, first_s = 0.0, 0, None
    for wait_s, trip_s, moves, breaks in reads:
        asked_s, now_s = now_s + wait_s, now_s + wait_s + trip_s
        if moves:
            value, first_s = value + 1, None
        if breaks:
            witness.restart()
            first_s = None
        witness.read("a", b"%d" % value, asked_s, now_s)
        if first_s is None:
            first_s = now_s
        if witness.is_stale("a"):
            assert asked_s - first_s >= STALE_S
