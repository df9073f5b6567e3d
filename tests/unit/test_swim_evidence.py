"""Evidence beyond SWIM: what the end of a watch, a refused, accepted or silent connect prove, and what they do not."""

from __future__ import annotations

from cluster.swim.events import Evidence, Fenced, State, Tcp, TcpOutcome, Tick, WatchEnded
from cluster.swim.probe import REFUSAL_GRACE_MAX_S, TCP_TRIES_MAX
from cluster.swim.wire import Ack, Nack, Ping, PingReq, Row
from tests.forged import CONFIG, Bench, accusation, changes, connects, row_of, sent, session_of, targets, told

PEERS = ("a", "b", "c", "d")
OTHERS = ("b", "c", "d")
A = session_of("a")


def watch_ended(*peers: str) -> Bench:
    """A bench on which the watch connection to `a` has just ended."""
    bench = Bench(*(peers or PEERS))
    bench.take()
    bench.hand_in(WatchEnded(A))
    return bench


def nack(bench: Bench, helper: str, tcp: Tcp | None) -> None:
    """The helper's answer to what it was asked about `a`."""
    request = sent(bench.actions, PingReq, helper)[0]
    bench.hear(helper, Nack(request.nr, A, tcp))


# ---- watches


def test_the_end_of_a_watch_starts_everything_in_the_same_instant() -> None:
    bench = watch_ended()
    assert len(sent(bench.actions, Ping, "a")) == 1
    assert connects(bench.actions) == [A]
    requests = sent(bench.actions, PingReq)
    assert len(requests) == CONFIG.indirect_probes
    assert all(request.is_urgent for request in requests)


def test_the_end_of_a_watch_is_never_a_verdict() -> None:
    bench = watch_ended()
    assert changes(bench.actions, "a") == []
    bench.hear("a", Ack(sent(bench.actions, Ping, "a")[0].nr, A))
    bench.pass_s(5, answering=PEERS)
    assert changes(bench.actions, "a") == []


def test_the_end_of_a_watch_on_an_earlier_session_is_nothing() -> None:
    bench = Bench(*PEERS)
    bench.take()
    assert bench.hand_in(WatchEnded(session_of("a", life=0))) == []


def test_an_accepted_connect_after_the_end_of_a_watch_is_tried_again_a_few_times() -> None:
    bench = watch_ended()
    tries = 0
    while connects(bench.take()):
        tries += 1
        bench.tcp("a", Tcp.ACCEPTED)
        bench.pass_s(0.060)
    assert tries == TCP_TRIES_MAX


def test_a_dying_process_that_first_accepts_and_then_refuses_is_dead_soon() -> None:
    bench = watch_ended()
    began_s = bench.now_s
    bench.now_s += 0.001
    bench.tcp("a", Tcp.ACCEPTED)
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    bench.take()
    bench.pass_s(0.004)
    assert connects(bench.actions) == [A]
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    assert bench.state("a") is State.DEAD
    assert bench.now_s - began_s < 0.015


# ---- refused


def test_refused_by_two_members_is_a_death_at_once() -> None:
    bench = watch_ended()
    bench.now_s += 0.001
    bench.tcp("a", Tcp.REFUSED)
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    bench.pass_s(0.005)
    assert changes(bench.actions, "a")[-1] == (State.DEAD, Evidence.REFUSED)


def test_the_order_in_which_refusals_are_heard_does_not_matter() -> None:
    bench = watch_ended()
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    assert bench.state("a") is State.ALIVE
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    assert bench.state("a") is State.DEAD


def test_two_refused_helpers_are_two_members() -> None:
    bench = watch_ended()
    first, second, *_ = targets(bench.actions, PingReq)
    nack(bench, first, Tcp.REFUSED)
    nack(bench, second, Tcp.REFUSED)
    assert bench.state("a") is State.DEAD


def test_one_helper_that_says_refused_twice_is_one_member() -> None:
    bench = watch_ended()
    first = targets(bench.actions, PingReq)[0]
    nack(bench, first, Tcp.REFUSED)
    nack(bench, first, Tcp.REFUSED)
    assert bench.state("a") is State.ALIVE


def test_a_helper_that_was_not_asked_is_no_witness() -> None:
    bench = watch_ended(*PEERS, "e", "f")
    stranger = next(name for name in ("b", "c", "d", "e", "f") if name not in targets(bench.actions, PingReq))
    bench.hear(stranger, Nack(12345, A, Tcp.REFUSED))
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    assert bench.state("a") is State.SUSPECT


def test_refused_by_one_of_several_is_only_a_suspicion() -> None:
    bench = watch_ended()
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.2, answering=OTHERS)
    assert changes(bench.actions, "a") == [(State.SUSPECT, Evidence.REFUSED)]


def test_refused_by_one_is_a_death_when_there_are_only_two() -> None:
    bench = watch_ended("a")
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    assert bench.state("a") is State.DEAD


def test_accusations_that_carry_refusals_of_two_members_are_a_death() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    assert bench.state("a") is State.SUSPECT
    bench.hear("c", rows=[accusation("a", "c", Evidence.REFUSED)])
    assert bench.state("a") is State.DEAD


def test_a_refusal_is_ignored_while_the_member_answers_the_ping_of_this_round() -> None:
    for acked_first in (True, False):
        bench = watch_ended("a")
        ping = sent(bench.actions, Ping, "a")[0]
        if acked_first:
            bench.hear("a", Ack(ping.nr, A))
        bench.tcp("a", Tcp.REFUSED)
        if not acked_first:
            bench.hear("a", Ack(ping.nr, A))
        bench.pass_s(3, answering=PEERS)
        assert changes(bench.actions, "a") == []


def test_a_refusal_waits_only_a_moment_for_the_answer() -> None:
    bench = watch_ended("a")
    bench.tcp("a", Tcp.REFUSED)
    assert bench.state("a") is State.ALIVE
    assert bench.swim.deadline_s() - bench.now_s <= 0.005
    bench.pass_s(REFUSAL_GRACE_MAX_S)
    assert bench.state("a") is State.DEAD


def test_a_death_seen_by_this_node_is_told_to_all_at_once() -> None:
    bench = watch_ended()
    bench.take()
    bench.tcp("a", Tcp.REFUSED)
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    bench.pass_s(0.005)
    dead = [action for action in bench.actions if State.DEAD in [row.state for row in told([action], "a")]]
    assert set(targets(dead)) >= set(OTHERS)


def test_a_helper_reports_a_refusal_at_once_and_accuses_nobody() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", PingReq(9, A, "a.test", 5000, True))
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    assert sent(bench.actions, Nack, "b") == [Nack(9, A, Tcp.REFUSED)]
    assert changes(bench.actions, "a") == []


def test_a_helper_that_knows_of_the_refusal_answers_the_next_request_at_once() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", PingReq(9, A, "a.test", 5000, True))
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.005)
    bench.take()
    bench.hear("c", PingReq(10, A, "a.test", 5000, True))
    assert Nack(10, A, Tcp.REFUSED) in sent(bench.take(), Nack, "c")


# ---- accepted, silent


def fail_round(bench: Bench, outcome: Tcp) -> None:
    """Let the round on `a` end without an answer, its connect with this outcome."""
    bench.pass_s(0.02, answering=OTHERS)
    bench.tcp("a", outcome)
    bench.pass_s(CONFIG.probe_timeout_s, answering=OTHERS)


def test_silence_with_an_accepting_kernel_is_a_stall() -> None:
    bench = watch_ended()
    fail_round(bench, Tcp.ACCEPTED)
    assert changes(bench.actions, "a") == [(State.SUSPECT, Evidence.STALLED)]
    bench.pass_s(CONFIG.stalled_s - CONFIG.probe_timeout_s, answering=OTHERS)
    assert bench.state("a") is State.SUSPECT


def test_silence_of_the_whole_host_is_silence() -> None:
    bench = watch_ended()
    fail_round(bench, Tcp.SILENT)
    assert changes(bench.actions, "a") == [(State.SUSPECT, Evidence.SILENT)]
    bench.pass_s(CONFIG.suspicion_max_s + 0.1, answering=OTHERS)
    assert bench.state("a") is State.DEAD


def test_a_helper_that_reached_the_kernel_makes_it_a_stall() -> None:
    bench = watch_ended()
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.ACCEPTED)
    fail_round(bench, Tcp.SILENT)
    assert changes(bench.actions, "a") == [(State.SUSPECT, Evidence.STALLED)]


def test_a_late_connect_still_says_what_kind_of_silence_it_is() -> None:
    bench = watch_ended()
    bench.pass_s(CONFIG.probe_timeout_s + 0.001, answering=OTHERS)
    assert changes(bench.actions, "a") == [(State.SUSPECT, Evidence.SILENT)]
    bench.tcp("a", Tcp.ACCEPTED)
    assert changes(bench.actions, "a")[-1] == (State.SUSPECT, Evidence.STALLED)
    assert bench.swim._suspicions[A].ends_s(CONFIG, 5) - bench.now_s > CONFIG.suspicion_max_s


def test_an_outcome_about_nobody_is_nothing() -> None:
    bench = Bench(*PEERS)
    bench.take()
    for outcome in Tcp:
        assert bench.hand_in(TcpOutcome(session_of("x"), outcome)) == []
        assert bench.hand_in(TcpOutcome(A, outcome)) == []


# ---- later sessions, tombstones


def test_a_later_session_ends_the_earlier_at_once() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", rows=[row_of("a", life=2)])
    assert changes(bench.actions, "a") == [(State.DEAD, Evidence.SUPERSEDED), (State.ALIVE, Evidence.NONE)]
    member = bench.member("a")
    assert member is not None
    assert member.identity.session == session_of("a", life=2)


def test_an_earlier_session_is_not_heard_again() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[row_of("a", life=2)])
    bench.take()
    bench.hear("c", rows=[row_of("a", life=1, incarnation=50)])
    assert changes(bench.actions, "a") == []


def test_what_was_found_out_about_the_earlier_session_does_not_touch_the_later() -> None:
    bench = watch_ended()
    bench.hear("b", rows=[row_of("a", life=2)])
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(1, answering=OTHERS)
    assert State.DEAD not in [state for state, _ in changes(bench.actions, "a")[2:]]


def test_a_tombstone_is_gossiped_and_holds_for_those_that_learn_of_the_session_later() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("x"), 0, State.DEAD, Evidence.FENCED, "b")])
    assert told(bench.hear("c", Ping(1, session_of("me"))), "x")
    bench.hear("d", rows=[row_of("x", incarnation=3)])
    assert bench.state("x") is State.DEAD


def test_a_tombstone_of_an_earlier_session_does_not_touch_the_later() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[row_of("a", life=2)])
    bench.hand_in(Fenced(session_of("a", life=1)))
    assert bench.state("a") is State.ALIVE


def test_fenced_strengthens_the_evidence_of_a_death() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(A, 0, State.DEAD, Evidence.SILENT, "b")])
    bench.hand_in(Fenced(A))
    assert changes(bench.actions, "a")[-1] == (State.DEAD, Evidence.FENCED)


def test_a_tick_without_anything_due_does_nothing() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.swim._news = type(bench.swim._news)()
    assert bench.hand_in(Tick()) == []
