"""Suspicion: how long a suspect has, which members may confirm, and that only the accused can refute.

Claims of SWIM §4.2 and of Lifeguard LHA-Suspicion and Buddy System, one test each.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.swim.core import HERALD_SHARE
from cluster.swim.events import Evidence, Fenced, Leave, MemberState, Send
from cluster.swim.suspicion import CONFIRMATIONS, suspicion_timeout_s, timeout_s
from cluster.swim.wire import INCARNATION_MAX, Ack, Gossip, Ping, Row
from tests.forged import (
    CONFIG,
    Bench,
    accusation,
    address_of,
    changes,
    opened,
    row_of,
    rows_about,
    sent,
    session_of,
    targets,
)

PEERS = ("a", "b", "c", "d", "e", "f")
OTHERS = ("b", "c", "d", "e", "f")
SILENT, STALLED, REFUSED = Evidence.SILENT, Evidence.STALLED, Evidence.REFUSED


def suspected(by: str = "b", evidence: Evidence = SILENT) -> Bench:
    """A bench on which `a` has just been accused and the others answer."""
    bench = Bench(*PEERS)
    bench.hear(by, rows=[accusation("a", by, evidence)])
    assert bench.state("a") is MemberState.SUSPECT
    return bench


@given(st.integers(0, 10), st.integers(0, 10))
def test_the_timeout_shrinks_with_confirmations_within_its_bounds(confirmed: int, expected: int) -> None:
    here = suspicion_timeout_s(1.2, 3.0, confirmed, expected)
    assert 1.2 <= here <= 3.0
    assert suspicion_timeout_s(1.2, 3.0, confirmed + 1, expected) <= here


def test_a_lone_suspicion_lasts_longest_and_a_confirmed_one_shortest() -> None:
    assert suspicion_timeout_s(1.2, 3.0, 0, 3) == 3.0
    assert suspicion_timeout_s(1.2, 3.0, 3, 3) == 1.2


def test_in_a_pair_nobody_could_confirm() -> None:
    assert timeout_s(CONFIG, (SILENT,), live=2) == CONFIG.suspicion_min_s


def test_one_accuser_that_reached_the_kernel_is_enough_to_wait_for_a_hung_process() -> None:
    assert timeout_s(CONFIG, (SILENT, SILENT, STALLED, SILENT), live=9) == CONFIG.stalled_s


def test_a_suspect_that_nobody_else_accuses_is_dead_after_the_longest_time() -> None:
    bench = suspected()
    bench.swim._rounds._order = []
    bench.swim._rounds._next_s += 100  # nobody else looks
    bench.swim._rounds._probes.clear()
    bench.pass_s(CONFIG.suspicion_max_s - 0.01)
    assert bench.state("a") is MemberState.SUSPECT
    bench.pass_s(0.02)
    assert bench.state("a") is MemberState.DEAD


def test_independent_confirmations_bring_the_death_forward() -> None:
    bench = suspected("b")
    for confirmer in ("c", "d", "e"):
        bench.hear(confirmer, rows=[accusation("a", confirmer)])
    bench.pass_s(CONFIG.suspicion_min_s - 0.01)
    assert bench.state("a") is MemberState.SUSPECT
    bench.pass_s(0.02)
    assert bench.state("a") is MemberState.DEAD


def test_one_accuser_counts_once_however_often_it_is_heard_and_from_whom() -> None:
    bench = suspected("b")
    for carrier in ("b", "c", "d", "e", "f"):
        bench.hear(carrier, rows=[accusation("a", "b")])
    assert list(bench.swim._suspicions[session_of("a")].accusers) == ["b"]


def test_a_hung_process_has_its_own_time() -> None:
    bench = suspected("b", STALLED)
    for confirmer in ("c", "d", "e"):
        bench.hear(confirmer, rows=[accusation("a", confirmer, STALLED)])
    bench.pass_s(CONFIG.stalled_s - 0.01, answering=OTHERS)
    assert bench.state("a") is MemberState.SUSPECT
    bench.pass_s(0.02, answering=OTHERS)
    assert changes(bench.actions, "a")[-1] == (MemberState.DEAD, STALLED)


def test_a_suspect_that_refutes_is_never_declared_dead() -> None:
    bench = suspected()
    bench.hear("a", rows=[row_of("a", incarnation=1)])
    assert bench.state("a") is MemberState.ALIVE
    bench.pass_s(10, answering=PEERS)
    assert MemberState.DEAD not in [state for state, _ in changes(bench.actions, "a")]


def test_any_datagram_of_a_member_at_a_higher_incarnation_refutes() -> None:
    bench = suspected()
    bench.hear("a", Gossip(), incarnation=1)
    assert bench.state("a") is MemberState.ALIVE


def test_an_answer_at_the_accused_incarnation_does_not_refute_by_itself() -> None:
    bench = suspected()
    bench.hear("a", Gossip(), incarnation=0)
    assert bench.state("a") is MemberState.SUSPECT


def test_an_accusation_of_an_earlier_incarnation_is_nothing() -> None:
    bench = Bench(*PEERS)
    bench.hear("a", rows=[row_of("a", incarnation=2)])
    bench.hear("b", rows=[accusation("a", "b", incarnation=1)])
    assert bench.state("a") is MemberState.ALIVE


def test_a_member_that_answers_us_is_not_declared_dead_when_its_time_is_up() -> None:
    bench = suspected()
    bench.pass_s(CONFIG.suspicion_max_s + 3, answering=PEERS)
    assert bench.state("a") is MemberState.SUSPECT
    assert rows_about(bench.actions, "a", to="a"), "it is told, so that it can refute"


def test_a_suspect_is_told_first() -> None:
    bench = Bench("a")
    bench.pass_s(2 * CONFIG.probe_interval_s)
    accusing = [a for a in bench.actions if MemberState.SUSPECT in [row.state for row in rows_about([a], "a")]]
    assert targets(accusing)[0] == "a"
    assert sent(accusing[:1], Ping)


def test_an_accuser_tells_the_suspect_again_and_again() -> None:
    bench = Bench("a", "b")
    bench.pass_s(2 * CONFIG.probe_interval_s + CONFIG.probe_timeout_s, answering=["b"])
    assert bench.state("a") is MemberState.SUSPECT
    bench.take()
    bench.pass_s(CONFIG.probe_interval_s, answering=["b"])
    assert len(rows_about(bench.take(), "a", to="a")) >= 2


def test_a_ping_to_a_suspect_carries_the_accusation() -> None:
    bench = suspected()
    bench.take()
    bench.hear("a", Ping(1, session_of("me")))
    assert [row.state for row in rows_about(bench.take(), "a", to="a")] == [MemberState.SUSPECT]


def test_neighbours_of_a_suspect_look_for_themselves_at_once() -> None:
    looking = 0
    for name in PEERS:
        bench = Bench(*PEERS)
        accuser = "b" if name != "b" else "c"
        bench.take()
        bench.hear(accuser, rows=[accusation(name, accuser)])
        looking += bool(sent(bench.take(), Ping, name))
    assert 0 < looking <= len(PEERS)
    assert looking >= CONFIRMATIONS


# ---- this node accused


def test_an_accused_node_raises_its_incarnation_and_says_so_at_once_also_to_the_accuser() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", rows=[Row(session_of("me"), 4, MemberState.SUSPECT, SILENT, "c")])
    actions = bench.take()
    assert bench.incarnation("me") == 5
    assert [row.incarnation for row in rows_about(actions, "me", to="c")][:1] == [5]
    assert set(targets(actions)) == set(PEERS)


def test_a_node_that_was_declared_dead_comes_back_by_a_higher_incarnation() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("me"), 0, MemberState.DEAD, REFUSED, "c")])
    assert bench.incarnation("me") == 1
    assert bench.state("me") is MemberState.ALIVE


def test_a_node_that_hears_of_itself_from_the_future_goes_beyond_it() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[row_of("me", incarnation=9)])
    assert bench.incarnation("me") == 10


def test_an_old_accusation_is_not_refuted_again() -> None:
    bench = Bench(*PEERS)
    for _ in range(3):
        bench.hear("b", rows=[Row(session_of("me"), 0, MemberState.SUSPECT, SILENT, "b")])
    assert bench.incarnation("me") == 1


def test_being_accused_makes_a_node_doubt_itself() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("me"), 0, MemberState.SUSPECT, SILENT, "b")])
    assert bench.swim.health == 1


def test_the_last_incarnation_can_still_be_left_in_words_that_others_understand() -> None:
    bench = Bench(*PEERS)
    bench.swim._put_me(INCARNATION_MAX - 2, MemberState.ALIVE)
    bench.hear("a", rows=[accusation("me", "b", incarnation=INCARNATION_MAX - 1)])
    rows = rows_about(bench.hand_in(Leave(True)), "me")
    assert {(row.incarnation, row.state) for row in rows} == {(INCARNATION_MAX, MemberState.LEFT)}


def test_a_node_that_drains_refutes_as_one_that_drains() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Leave(False))
    bench.hear("b", rows=[Row(session_of("me"), 1, MemberState.SUSPECT, SILENT, "b")])
    assert (bench.state("me"), bench.incarnation("me")) == (MemberState.LEAVING, 2)


# ---- deaths


@pytest.mark.parametrize("evidence", [SILENT, STALLED, REFUSED])
def test_a_dead_member_that_refutes_is_alive_again(evidence: Evidence) -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[accusation("a", "b", evidence)])
    bench.pass_s(HERALD_SHARE * CONFIG.suspicion_min_s, answering=OTHERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, evidence, "b")])
    assert bench.state("a") is MemberState.DEAD
    bench.hear("c", rows=[row_of("a", incarnation=1)])
    assert bench.state("a") is MemberState.ALIVE


def test_a_fenced_session_cannot_refute() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Fenced(session_of("a")))
    bench.hear("a", rows=[row_of("a", incarnation=7)], incarnation=7)
    assert changes(bench.actions, "a")[-1] == (MemberState.DEAD, Evidence.FENCED)
    assert bench.state("a") is MemberState.DEAD


def test_a_dead_member_that_pings_is_told_so_that_it_can_refute() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, REFUSED, "b")])
    bench.take()
    bench.hear("a", Ping(1, session_of("me")))
    sends = (action for action in bench.take() if isinstance(action, Send))
    ack = next(send for send in sends if isinstance(opened(send).body, Ack))
    assert ack.target == address_of("a")
    assert opened(ack).rows[0].state is MemberState.DEAD


def test_a_death_is_told_at_once() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, REFUSED, "b")])
    assert len(rows_about(bench.take(), "a")) >= 3


@pytest.mark.parametrize("evidence", [SILENT, STALLED])
def test_a_death_by_silence_of_which_there_was_no_suspicion_is_one(evidence: Evidence) -> None:
    bench = Bench(*PEERS)
    bench.take()
    death = Row(session_of("a"), 0, MemberState.DEAD, evidence, "b")
    for _ in range(2):  # The second time `a` is suspect already, but not for long.
        bench.hear("b", rows=[death])
        assert bench.state("a") is MemberState.SUSPECT
    assert MemberState.SUSPECT in [row.state for row in rows_about(bench.take(), "a", to="a")]
    bench.hear("a", rows=[row_of("a", incarnation=1)], incarnation=1)
    assert bench.state("a") is MemberState.ALIVE
    assert MemberState.DEAD not in [state for state, _ in changes(bench.actions, "a")]


def test_a_death_that_comes_late_is_a_suspicion_whatever_the_evidence() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, REFUSED, "b", age_s=1)])
    assert bench.state("a") is MemberState.SUSPECT
    assert "a" in targets(bench.take(), Ping)


def test_refusals_of_which_one_hears_late_are_no_witnesses() -> None:
    """Two members came back from behind a firewall that rejects: all their connects were refused, to whomever."""
    bench = Bench(*PEERS)
    for by in ("b", "c"):
        bench.hear(by, rows=[Row(session_of("a"), 0, MemberState.DEAD, REFUSED, by, age_s=1)])
    assert bench.state("a") is MemberState.SUSPECT


def test_a_death_that_comes_late_and_is_true_is_soon_a_death_again() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, SILENT, "b", age_s=30)])
    bench.pass_s(CONFIG.suspicion_max_s, answering=OTHERS)
    assert bench.state("a") is MemberState.DEAD


def test_who_is_held_dead_and_heard_is_told_by_a_ping() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, REFUSED, "b")])
    bench.take()
    bench.hear("a", Gossip())
    actions = bench.take()
    assert targets(actions, Ping) == ["a"]
    assert [row.state for row in rows_about(actions, "a", to="a")] == [MemberState.DEAD]
    bench.hear("a", Gossip())
    assert targets(bench.take(), Ping) == []
