"""Probing: each member in turn, many pings a round, helpers, and a node that doubts itself before others.

Claims of SWIM §3 and §4.3 and of Lifeguard LHA-Probe, one test each.
"""

from __future__ import annotations

import pytest

from cluster.swim.events import Evidence, MemberState, Tcp, Tick
from cluster.swim.probe import HEALTH_MAX, SPACING_MIN_S, Rtt, spacing_s
from cluster.swim.wire import Ack, Nack, Ping, PingReq
from tests.forged import CONFIG, Bench, changes, connects, sent, session_of, targets

PEERS = ("a", "b", "c", "d")


def first_ping(bench: Bench) -> tuple[str, Ping]:
    """Go on to the next round. Returns which member is probed, and with which ping."""
    while not targets(bench.actions, Ping):
        bench.now_s = bench.swim.deadline_s()
        bench.hand_in(Tick())
    name = targets(bench.actions, Ping)[0]
    return name, sent(bench.actions, Ping, name)[0]


def test_each_turn_probes_each_member_once_in_a_shuffled_order() -> None:
    orders = set()
    for seed in range(8):
        bench = Bench(*PEERS, seed=seed)
        while bench.swim._rounds._order:  # the rest of the turn in which they joined
            bench.pass_s(CONFIG.probe_interval_s, answering=PEERS)
        bench.take()
        bench.pass_s(3 * len(PEERS) * CONFIG.probe_interval_s, answering=PEERS)
        turns = targets(bench.take(), Ping)
        assert all(sorted(turns[turn : turn + 4]) == sorted(PEERS) for turn in (0, 4, 8)), turns
        orders.add(tuple(turns))
    assert len(orders) > 4


def test_an_answered_ping_ends_the_round() -> None:
    bench = Bench(*PEERS)
    name, ping = first_ping(bench)
    bench.take()
    bench.hear(name, Ack(ping.nr, session_of(name)))
    bench.pass_s(CONFIG.probe_timeout_s)
    assert name not in targets(bench.take(), Ping)
    assert bench.state(name) is MemberState.ALIVE


def test_a_round_is_many_pings_and_ends_in_suspicion_not_death() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.pass_s(CONFIG.probe_timeout_s)
    assert len(sent(bench.take(), Ping, name)) >= 5
    assert bench.state(name) is MemberState.SUSPECT


def test_spacing_follows_the_round_trip_within_its_bounds() -> None:
    fast, slow = Rtt(), Rtt()
    for _ in range(20):
        fast.observe(0.0005)
        slow.observe(0.050)
    assert spacing_s(fast, 0.4, 0) == SPACING_MIN_S
    assert 0.050 <= spacing_s(slow, 0.4, 0) <= 0.080
    assert spacing_s(Rtt(), 0.4, 0) == pytest.approx(0.080)
    assert spacing_s(fast, 0.4, 1) > spacing_s(fast, 0.4, 0)


def test_a_jittery_peer_is_given_more_time_than_a_steady_one() -> None:
    steady, jittery = Rtt(), Rtt()
    for number in range(50):
        steady.observe(0.020)
        jittery.observe(0.001 if number % 2 else 0.039)
    assert steady.rto_s is not None
    assert jittery.rto_s is not None
    assert jittery.rto_s > 1.5 * steady.rto_s


def test_the_round_trip_is_measured_by_the_ping_that_was_answered() -> None:
    bench = Bench("a")
    _, ping = first_ping(bench)
    bench.swim._table.live["a"].rtt = Rtt()  # as before the first measurement
    bench.now_s += 0.010
    bench.hear("a", Ack(ping.nr, session_of("a")))
    member = bench.member("a")
    assert member is not None
    assert member.rtt_s == pytest.approx(0.010)


def test_the_first_ping_alone_asks_nobody_and_tries_no_port() -> None:
    bench = Bench(*PEERS)
    first_ping(bench)
    assert not sent(bench.actions, PingReq)
    assert not connects(bench.actions)


def test_a_missed_ping_asks_helpers_and_tries_the_port() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.pass_s(0.1)
    requests = sent(bench.actions, PingReq)
    helpers = set(targets(bench.actions, PingReq))
    assert len(helpers) == CONFIG.indirect_probes
    assert name not in helpers
    assert {request.target for request in requests} == {session_of(name)}
    assert connects(bench.actions) == [session_of(name)]


def test_an_answer_through_a_helper_ends_the_round() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.pass_s(0.1)
    helper = targets(bench.actions, PingReq)[0]
    request = sent(bench.actions, PingReq, helper)[0]
    bench.hear(helper, Ack(request.nr, session_of(name)))
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.ALIVE


def test_an_answer_of_another_session_does_not_count() -> None:
    bench = Bench(*PEERS)
    name, ping = first_ping(bench)
    bench.hear(name, Ack(ping.nr, session_of(name, life=0)))
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.SUSPECT


def test_a_made_up_number_does_not_count() -> None:
    bench = Bench(*PEERS)
    name, ping = first_ping(bench)
    bench.hear(name, Ack(ping.nr + 7, session_of(name)))
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.SUSPECT


# ---- this node as helper


def test_a_helper_pings_and_passes_the_answer_on() -> None:
    bench = Bench(*PEERS)
    bench.hear("a", PingReq(77, session_of("b"), "b.test", 5000, False))
    ping = sent(bench.take(), Ping, "b")[0]
    bench.hear("b", Ack(ping.nr, session_of("b")))
    assert sent(bench.take(), Ack, "a") == [Ack(77, session_of("b"))]


def test_a_helper_that_gets_no_answer_says_so_in_time_and_accuses_nobody() -> None:
    bench = Bench(*PEERS, seed=3)
    bench.pass_s(bench.swim._rounds._next_s - bench.now_s - 0.001)
    bench.swim._rounds._next_s += 10  # no round of its own in between
    bench.take()
    bench.hear("a", PingReq(77, session_of("b"), "b.test", 5000, False))
    bench.pass_s(0.7 * CONFIG.probe_timeout_s)
    assert sent(bench.actions, Nack, "a") == [Nack(77, session_of("b"), None)]
    assert bench.state("b") is MemberState.ALIVE


def test_a_helper_knocks_at_no_address_that_it_does_not_know() -> None:
    bench = Bench("a", "b")
    bench.take()
    bench.hear("a", PingReq(77, session_of("x"), "x.test", 5000, True))
    actions = bench.take()
    assert targets(actions, Ping) == connects(actions) == []
    assert sent(actions, Nack, "a") == [Nack(77, session_of("x"), None)]
    bench.hear("a", PingReq(78, session_of("b"), "x.test", 5000, False))
    assert targets(bench.take(), Ping) == ["b"]


def test_an_urgent_request_tries_the_port_in_the_same_instant() -> None:
    bench = Bench(*PEERS)
    bench.hear("a", PingReq(77, session_of("b"), "b.test", 5000, True))
    assert connects(bench.take()) == [session_of("b")]


def test_a_helper_serves_several_with_one_round() -> None:
    bench = Bench(*PEERS)
    bench.hear("a", PingReq(77, session_of("b"), "b.test", 5000, False))
    bench.hear("c", PingReq(78, session_of("b"), "b.test", 5000, False))
    pings = sent(bench.take(), Ping, "b")
    assert len(pings) == 1
    bench.hear("b", Ack(pings[0].nr, session_of("b")))
    actions = bench.take()
    assert sent(actions, Ack, "a") == [Ack(77, session_of("b"))]
    assert sent(actions, Ack, "c") == [Ack(78, session_of("b"))]


def test_a_ping_is_answered_also_when_it_means_an_earlier_session() -> None:
    bench = Bench("a")
    bench.hear("a", Ping(5, session_of("me", life=0)))
    assert sent(bench.take(), Ack, "a") == [Ack(5, session_of("me"))]


# ---- local health (Lifeguard) and late ticks


def test_missing_nacks_make_a_node_doubt_itself() -> None:
    bench = Bench(*PEERS)
    first_ping(bench)
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.swim.health == 1


def test_a_round_whose_helpers_all_nack_is_not_this_nodes_fault() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.pass_s(0.1)
    for helper in targets(bench.actions, PingReq):
        request = sent(bench.actions, PingReq, helper)[0]
        bench.hear(helper, Nack(request.nr, session_of(name), Tcp.SILENT))
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.SUSPECT
    assert bench.swim.health == 0


def test_a_node_that_doubts_itself_takes_longer_rounds_and_recovers_by_answers() -> None:
    bench = Bench(*PEERS)
    bench.swim._rounds.health = 3
    name, _ = first_ping(bench)
    bench.pass_s(3.9 * CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.ALIVE
    bench.pass_s(30, answering=PEERS)
    assert bench.swim.health == 0


def test_health_is_bounded() -> None:
    bench = Bench(*PEERS)
    for _ in range(20):
        bench.now_s += 10
        bench.hand_in(Tick())
    assert bench.swim.health == HEALTH_MAX


def test_a_late_tick_cancels_the_round_and_accuses_nobody() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.now_s += 3.0
    bench.hand_in(Tick())
    assert {bench.state(peer) for peer in PEERS} == {MemberState.ALIVE}
    assert changes(bench.actions, name) == []
    assert bench.swim.health == 1
    assert bench.swim.stats["late_ticks"] == 1


def test_a_node_that_was_away_asks_at_once_what_it_missed() -> None:
    bench = Bench(*PEERS)
    bench.now_s += 3.0
    bench.take()
    bench.hand_in(Tick())
    assert targets(bench.take(), Ping)


def test_a_backlog_after_an_absence_counts_as_one_absence() -> None:
    bench = Bench(*PEERS)
    bench.now_s += 3.0
    for _ in range(10):
        bench.hear("a", Ping(1, session_of("me")))
    assert bench.swim.stats["late_ticks"] == 1


def test_datagrams_are_read_before_a_deadline_is_looked_at() -> None:
    bench = Bench(*PEERS)
    name, ping = first_ping(bench)
    bench.now_s += CONFIG.probe_timeout_s + 0.01  # The round is over, but the answer lies in the socket.
    bench.hear("b" if name != "b" else "c", Ping(1, session_of("me")))
    bench.hear(name, Ack(ping.nr, session_of(name)))
    bench.hand_in(Tick())
    assert bench.state(name) is MemberState.ALIVE


def test_time_that_runs_backwards_does_no_harm() -> None:
    bench = Bench(*PEERS)
    bench.now_s -= 100
    bench.hand_in(Tick())
    assert bench.swim.deadline_s() >= 1000.0


def test_an_absence_is_not_held_against_a_suspect() -> None:
    bench = Bench(*PEERS)
    name, _ = first_ping(bench)
    bench.pass_s(CONFIG.probe_timeout_s)
    assert bench.state(name) is MemberState.SUSPECT
    bench.now_s += 10.0
    bench.hand_in(Tick())
    assert bench.state(name) is MemberState.SUSPECT
    bench.pass_s(CONFIG.suspicion_max_s + 0.1)
    assert changes(bench.actions, name)[-1] == (MemberState.DEAD, Evidence.SILENT)
