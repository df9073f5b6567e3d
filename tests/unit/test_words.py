"""What one node says of another that is silent, row by row of the table in `words`, and its laws."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Config
from cluster.swim.events import Sight
from cluster.vitals.witness import Belief, Standstill
from cluster.vitals.words import Silence, Word, alibi_s, word

CONFIG = Config()
NOW_S = 100.0
BEAT_S = CONFIG.heartbeat_interval_s
LONG = Silence(Belief.DEAD, NOW_S - 2.0, -inf, False)  # it has been in doubt for two seconds
STOOD = Standstill(b"7", NOW_S - 1.9, NOW_S)  # its heartbeat stood still since the doubt began
MOVED = Standstill(b"9", NOW_S - 1.0, NOW_S)  # its heartbeat moved a second after that
GONE = replace(LONG, belief=Belief.GONE)
YOUNG = Silence(Belief.GONE, NOW_S - 0.01, -inf, False)


@pytest.mark.parametrize(
    ("silence", "sight", "watched", "said"),
    [
        (replace(LONG, belief=Belief.ALIVE), Sight.SILENT, STOOD, Word.VETO),  # gossip holds it alive
        (GONE, Sight.ANSWERED, STOOD, Word.VETO),  # it answers
        (LONG, Sight.ACCEPTED, STOOD, Word.VETO),  # its kernel accepts: it hangs
        (replace(GONE, is_accepted=True), Sight.REFUSED, STOOD, Word.VETO),  # it accepted, so the refusal may lie
        (LONG, Sight.SILENT, STOOD, Word.DEAD),
        (LONG, Sight.REFUSED, STOOD, Word.DEAD),  # gossip does not hold it dead by refusal
        (GONE, Sight.REFUSED, STOOD, Word.BOTH),
        (YOUNG, Sight.REFUSED, None, Word.REFUSED),  # a kill -9: nobody has read anything since
        (YOUNG, Sight.REFUSED, Standstill(b"7", NOW_S - 0.9, NOW_S - 0.9), Word.REFUSED),
        (replace(LONG, since_s=NOW_S - 0.6), Sight.SILENT, Standstill(b"7", NOW_S - 0.5, NOW_S), Word.VETO),  # too soon
        (LONG, Sight.SILENT, MOVED, Word.ABSTAINS),  # gossip's silence was a cut
        (GONE, Sight.REFUSED, MOVED, Word.ABSTAINS),
        (LONG, Sight.SILENT, None, Word.ABSTAINS),  # nobody watched
        (LONG, Sight.SILENT, replace(STOOD, asked_s=NOW_S - 0.6), Word.ABSTAINS),  # this node was stopped since
        (replace(LONG, answered_s=NOW_S - 0.3), Sight.SILENT, MOVED, Word.VETO),  # it answered just before
    ],
)
def test_the_table(silence: Silence, sight: Sight, watched: Standstill | None, said: Word) -> None:
    assert word(silence, sight, watched, NOW_S, CONFIG) is said


def test_a_process_that_hangs_is_dead_once_both_silences_have_lasted_for_stalled_s() -> None:
    hangs = Silence(Belief.DEAD, NOW_S - 5.2, -inf, True)
    assert word(hangs, Sight.ACCEPTED, Standstill(b"7", NOW_S - 4.9, NOW_S), NOW_S, CONFIG) is Word.VETO
    assert word(hangs, Sight.ACCEPTED, Standstill(b"7", NOW_S - 5.1, NOW_S), NOW_S, CONFIG) is Word.DEAD


silences = st.builds(
    Silence,
    st.sampled_from(Belief),
    st.floats(NOW_S - 40, NOW_S),
    st.one_of(st.just(-inf), st.floats(NOW_S - 40, NOW_S)),
    st.booleans(),
)
standstills = st.one_of(
    st.none(),
    st.tuples(st.floats(NOW_S - 40, NOW_S), st.floats(0.0, 40.0)).map(
        lambda times: Standstill(b"7", times[0], min(NOW_S, times[0] + times[1]))
    ),
)


@given(silences, st.sampled_from(Sight), standstills)
def test_nobody_calls_dead_whom_its_own_look_or_gossip_finds_alive_or_whose_heartbeat_it_saw_move(
    silence: Silence, sight: Sight, watched: Standstill | None
) -> None:
    said = word(silence, sight, watched, NOW_S, CONFIG)
    if said is Word.VETO:
        return
    assert silence.belief is not Belief.ALIVE
    assert sight is not Sight.ANSWERED
    if said in (Word.DEAD, Word.BOTH):
        assert watched is not None
        assert watched.since_s <= silence.since_s + BEAT_S
        assert NOW_S - silence.since_s >= CONFIG.suspicion_min_s
    if said in (Word.REFUSED, Word.BOTH):
        assert sight is Sight.REFUSED
        assert silence.belief is Belief.GONE
    if sight is Sight.ACCEPTED or silence.is_accepted:
        assert watched is not None
        assert watched.for_s >= CONFIG.stalled_s


@given(silences, st.sampled_from(Sight), standstills)
def test_only_who_has_seen_a_sign_of_life_testifies_and_never_for_longer_than_it_proves(
    silence: Silence, sight: Sight, watched: Standstill | None
) -> None:
    for_s = alibi_s(silence, sight, watched, NOW_S, CONFIG)
    assert 0.0 <= for_s <= max(CONFIG.suspicion_min_s, CONFIG.stalled_s)
    if for_s:
        assert sight in (Sight.ANSWERED, Sight.ACCEPTED)
        assert watched is not None
        assert watched.for_s >= CONFIG.heartbeat_stale_s / 2
