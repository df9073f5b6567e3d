"""Evidence beyond SWIM: what the end of a watch and a refused, accepted or silent connect prove, and what not."""

from __future__ import annotations

from cluster.swim.events import Evidence, Fenced, MemberState, Tcp, TcpConnect, TcpOutcome, Tick, WatchEnded
from cluster.swim.probe import REFUSAL_GRACE_SHARE, TCP_LOST_S, TCP_TIMEOUT_MIN_S, TCP_TRIES_MAX, Rtt
from cluster.swim.wire import Ack, Nack, Ping, PingReq, Row
from tests.forged import CONFIG, Bench, accusation, changes, connects, row_of, rows_about, sent, session_of, targets

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
    """The helper's nack, with which it answers the request about `a`."""
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
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    assert bench.state("a") is MemberState.DEAD
    assert bench.now_s - began_s < 0.015


# ---- refused


def test_refused_by_two_members_is_a_death_at_once() -> None:
    bench = watch_ended()
    bench.now_s += 0.001
    bench.tcp("a", Tcp.GONE)
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    bench.pass_s(0.005)
    assert changes(bench.actions, "a")[-1] == (MemberState.DEAD, Evidence.REFUSED)


def test_the_order_in_which_refusals_are_heard_does_not_matter() -> None:
    bench = watch_ended()
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    assert bench.state("a") is MemberState.ALIVE
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    assert bench.state("a") is MemberState.DEAD


def test_two_refused_helpers_are_two_members() -> None:
    bench = watch_ended()
    first, second, *_ = targets(bench.actions, PingReq)
    nack(bench, first, Tcp.REFUSED)
    nack(bench, second, Tcp.REFUSED)
    assert bench.state("a") is MemberState.DEAD


def test_one_helper_that_says_refused_twice_is_one_member() -> None:
    bench = watch_ended()
    first = targets(bench.actions, PingReq)[0]
    nack(bench, first, Tcp.REFUSED)
    nack(bench, first, Tcp.REFUSED)
    assert bench.state("a") is MemberState.ALIVE


def test_a_helper_that_was_not_asked_is_no_witness() -> None:
    bench = watch_ended(*PEERS, "e", "f")
    stranger = next(name for name in ("b", "c", "d", "e", "f") if name not in targets(bench.actions, PingReq))
    bench.hear(stranger, Nack(12345, A, Tcp.REFUSED))
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    assert bench.state("a") is MemberState.SUSPECT


def test_refused_by_one_of_several_is_only_a_suspicion() -> None:
    bench = watch_ended()
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.2, answering=OTHERS)
    assert changes(bench.actions, "a") == [(MemberState.SUSPECT, Evidence.REFUSED)]


def test_refused_by_one_is_a_death_when_there_are_only_two() -> None:
    bench = watch_ended("a")
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    assert bench.state("a") is MemberState.DEAD


def test_accusations_that_carry_refusals_of_two_members_are_a_death() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    assert bench.state("a") is MemberState.SUSPECT
    bench.hear("c", rows=[accusation("a", "c", Evidence.REFUSED)])
    assert bench.state("a") is MemberState.DEAD


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


def test_a_closed_tcp_port_alone_waits_for_an_answer_by_udp() -> None:
    bench = watch_ended("a")
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.9 * REFUSAL_GRACE_SHARE * CONFIG.probe_timeout_s)
    assert bench.state("a") is MemberState.ALIVE
    assert len(sent(bench.actions, Ping, "a")) >= 3
    bench.pass_s(0.2 * REFUSAL_GRACE_SHARE * CONFIG.probe_timeout_s)
    assert bench.state("a") is MemberState.DEAD


def test_a_closed_port_of_who_answers_slowly_waits_as_long_as_is_usual() -> None:
    bench = Bench("a")
    bench.swim._table.live["a"].rtt = Rtt(srtt_s=0.15, rttvar_s=0.04)
    bench.hand_in(WatchEnded(A))
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.30)
    assert bench.state("a") is MemberState.ALIVE
    bench.pass_s(0.02)
    assert bench.state("a") is MemberState.DEAD


def test_a_process_whose_ports_are_both_closed_is_waited_for_no_longer() -> None:
    bench = watch_ended("a")
    bench.tcp("a", Tcp.REFUSED)
    bench.now_s += 0.002
    bench.tcp("a", Tcp.GONE)
    assert bench.swim.deadline_s() <= bench.now_s
    bench.pass_s(0)
    assert bench.state("a") is MemberState.DEAD


def test_a_slow_member_whose_tcp_port_is_closed_lives() -> None:
    bench = watch_ended()
    ping = sent(bench.actions, Ping, "a")[0]
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(0.060)
    bench.hear("a", Ack(ping.nr, A))
    bench.pass_s(3, answering=PEERS)
    assert changes(bench.actions, "a") == []


# ---- a connect that says nothing is repeated


def test_a_silent_connect_is_tried_again_within_its_round_a_few_times() -> None:
    bench = watch_ended()
    tries = 0
    while bench.now_s < 1000.0 + CONFIG.probe_timeout_s and connects(bench.take()):
        tries += 1
        bench.pass_s(TCP_TIMEOUT_MIN_S, answering=OTHERS)
        bench.tcp("a", Tcp.SILENT)
        bench.pass_s(0.001, answering=OTHERS)
    assert 5 <= tries <= TCP_TRIES_MAX


def test_a_connect_that_the_driver_lost_is_tried_again_and_proves_nothing() -> None:
    bench = watch_ended()
    timeout_s = next(action.timeout_s for action in bench.take() if isinstance(action, TcpConnect))
    bench.pass_s(timeout_s + TCP_LOST_S + 0.001, answering=OTHERS)
    assert connects(bench.take()) == [A]
    assert bench.state("a") is MemberState.ALIVE


def test_a_dropped_syn_costs_one_short_try() -> None:
    """The kernel repeats a SYN only after a second; the listening socket that dropped it is closed long before."""
    bench = watch_ended()
    first = next(action for action in bench.take() if isinstance(action, TcpConnect))
    assert first.timeout_s <= 2 * TCP_TIMEOUT_MIN_S
    bench.pass_s(first.timeout_s, answering=OTHERS)
    bench.tcp("a", Tcp.SILENT)
    bench.pass_s(0.001, answering=OTHERS)
    assert connects(bench.take()) == [A]


def test_the_refusal_of_another_is_looked_at_again_at_once_by_those_that_watch() -> None:
    bench = watch_ended()
    bench.pass_s(0.300, answering=OTHERS)
    for _ in range(TCP_TRIES_MAX):
        bench.tcp("a", Tcp.SILENT)  # All tries are used up.
    bench.take()
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    bench.pass_s(0, answering=OTHERS)
    assert connects(bench.take()) == [A]
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.001, answering=OTHERS)
    assert bench.state("a") is MemberState.DEAD


def test_a_connect_that_hangs_does_not_stand_in_the_way_of_another_member_s_refusal() -> None:
    bench = watch_ended()
    assert connects(bench.take()) == [A]
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    bench.pass_s(0, answering=OTHERS)
    assert connects(bench.take()) == [A]


def test_the_same_refusal_heard_again_and_again_presses_once() -> None:
    bench = watch_ended()
    bench.take()
    for _ in range(50):
        bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
        bench.pass_s(0, answering=OTHERS)
        bench.tcp("a", Tcp.ACCEPTED)
    assert len(connects(bench.take())) == 1


def test_an_answer_to_a_ping_from_before_the_watch_ended_does_not_end_the_round() -> None:
    bench = Bench(*PEERS)
    while not (early := sent(bench.take(), Ping, "a")):
        bench.pass_s(0.01, answering=OTHERS)
    bench.hand_in(WatchEnded(A))
    bench.hear("a", Ack(early[-1].nr, A))
    bench.tcp("a", Tcp.GONE)
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.REFUSED)
    bench.pass_s(0.001, answering=OTHERS)
    assert bench.state("a") is MemberState.DEAD


# ---- who is left to confirm


def test_a_lone_survivor_believes_what_it_was_refused_by_all() -> None:
    bench = Bench("a", "b")
    bench.hand_in(WatchEnded(A))
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.001)
    assert bench.state("a") is MemberState.SUSPECT
    bench.hand_in(WatchEnded(session_of("b")))
    bench.tcp("b", Tcp.GONE)
    bench.pass_s(0.001)
    assert bench.state("b") is MemberState.DEAD
    assert bench.state("a") is MemberState.DEAD


def test_a_member_that_was_heard_since_may_still_confirm() -> None:
    bench = Bench("a", "b")
    for name in ("a", "b"):
        bench.hand_in(WatchEnded(session_of(name)))
    bench.tcp("b", Tcp.GONE)
    bench.pass_s(0.001)
    assert bench.state("b") is MemberState.SUSPECT
    bench.hear("b", Ping(5, session_of("me")), incarnation=0)  # No refutation, because b knows of nothing; it lives.
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.001)
    assert bench.state("a") is MemberState.SUSPECT


def test_helpers_that_say_nothing_of_a_refused_member_are_looked_at_themselves() -> None:
    bench = watch_ended()
    helpers = targets(bench.actions, PingReq)
    bench.tcp("a", Tcp.GONE)
    bench.take()
    bench.pass_s(CONFIG.probe_timeout_s + 0.01)
    assert set(connects(bench.actions)) >= {session_of(helper) for helper in helpers}


def test_a_death_seen_by_this_node_is_told_to_all_at_once() -> None:
    bench = watch_ended()
    bench.take()
    bench.tcp("a", Tcp.GONE)
    bench.hear("b", rows=[accusation("a", "b", Evidence.REFUSED)])
    bench.pass_s(0.005)
    dead = [action for action in bench.actions if MemberState.DEAD in [row.state for row in rows_about([action], "a")]]
    assert set(targets(dead)) >= set(OTHERS)


def test_a_helper_reports_a_refusal_at_once_and_accuses_nobody() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", PingReq(9, A, "a.test", 5000, True))
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    assert sent(bench.actions, Nack, "b") == [Nack(9, A, Tcp.REFUSED)]
    assert changes(bench.actions, "a") == []


def test_a_helper_that_knows_of_the_refusal_answers_the_next_request_at_once() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", PingReq(9, A, "a.test", 5000, True))
    bench.tcp("a", Tcp.GONE)
    bench.pass_s(0.005)
    bench.take()
    bench.hear("c", PingReq(10, A, "a.test", 5000, True))
    assert Nack(10, A, Tcp.REFUSED) in sent(bench.take(), Nack, "c")


# ---- accepted, silent


def fail_round(bench: Bench, outcome: Tcp) -> None:
    """Let the round on `a` end without an answer; its connect ends with this outcome."""
    bench.pass_s(0.02, answering=OTHERS)
    bench.tcp("a", outcome)
    bench.pass_s(CONFIG.probe_timeout_s, answering=OTHERS)


def test_silence_with_an_accepting_kernel_is_a_stall() -> None:
    bench = watch_ended()
    fail_round(bench, Tcp.ACCEPTED)
    assert changes(bench.actions, "a") == [(MemberState.SUSPECT, Evidence.STALLED)]
    bench.pass_s(CONFIG.stalled_s - CONFIG.probe_timeout_s, answering=OTHERS)
    assert bench.state("a") is MemberState.SUSPECT


def test_silence_of_the_whole_host_is_silence() -> None:
    bench = watch_ended()
    fail_round(bench, Tcp.SILENT)
    assert changes(bench.actions, "a") == [(MemberState.SUSPECT, Evidence.SILENT)]
    bench.pass_s(CONFIG.suspicion_max_s + 0.1, answering=OTHERS)
    assert bench.state("a") is MemberState.DEAD


def test_a_helper_that_reached_the_kernel_makes_it_a_stall() -> None:
    bench = watch_ended()
    nack(bench, targets(bench.actions, PingReq)[0], Tcp.ACCEPTED)
    fail_round(bench, Tcp.SILENT)
    assert changes(bench.actions, "a") == [(MemberState.SUSPECT, Evidence.STALLED)]


def test_a_late_connect_still_says_what_kind_of_silence_it_is() -> None:
    bench = watch_ended()
    bench.pass_s(CONFIG.probe_timeout_s + 0.001, answering=OTHERS)
    assert changes(bench.actions, "a") == [(MemberState.SUSPECT, Evidence.SILENT)]
    bench.tcp("a", Tcp.ACCEPTED)
    assert changes(bench.actions, "a")[-1] == (MemberState.SUSPECT, Evidence.STALLED)
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
    bench.renew("a")
    assert changes(bench.actions, "a") == [(MemberState.DEAD, Evidence.SUPERSEDED), (MemberState.ALIVE, Evidence.NONE)]
    member = bench.member("a")
    assert member is not None
    assert member.identity.session == session_of("a", life=2)


def test_an_earlier_session_is_not_heard_again() -> None:
    bench = Bench(*PEERS)
    bench.renew("a")
    bench.take()
    bench.hear("c", rows=[row_of("a", life=1, incarnation=50)])
    assert changes(bench.actions, "a") == []


def test_what_was_found_out_about_the_earlier_session_does_not_touch_the_later() -> None:
    bench = watch_ended()
    bench.renew("a")
    bench.tcp("a", Tcp.REFUSED)
    bench.pass_s(1, answering=OTHERS)
    assert MemberState.DEAD not in [state for state, _ in changes(bench.actions, "a")[2:]]


def test_a_tombstone_is_gossiped_and_holds_for_those_that_learn_of_the_session_later() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Fenced(session_of("x")))
    assert rows_about(bench.hear("c", Ping(1, session_of("me"))), "x")
    bench.hear("d", rows=[row_of("x", incarnation=3)])
    assert bench.state("x") is MemberState.DEAD


def test_a_tombstone_of_an_earlier_session_does_not_touch_the_later() -> None:
    bench = Bench(*PEERS)
    bench.renew("a")
    bench.hand_in(Fenced(session_of("a", life=1)))
    assert bench.state("a") is MemberState.ALIVE


def test_fenced_strengthens_the_evidence_of_a_death() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(A, 0, MemberState.DEAD, Evidence.SILENT, "b")])
    bench.hand_in(Fenced(A))
    assert changes(bench.actions, "a")[-1] == (MemberState.DEAD, Evidence.FENCED)


def test_a_tick_without_anything_due_does_nothing() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.swim._outbox.news.clear()
    assert bench.hand_in(Tick()) == []
