"""Joining, leaving, renewing, conflicts, anti-entropy, loads, epochs, the watch ring, and bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Config
from cluster.swim import wire
from cluster.swim.core import CONFLICT_SPACING_S, JOIN_PATIENCE_S, LOAD_FANOUT, Swim
from cluster.swim.dissemination import DEATH_NEWS_S, LOAD_RELAYS, NEWS_S, Loads, News, retransmit_limit
from cluster.swim.events import (
    Datagram,
    Evidence,
    Fenced,
    Join,
    Leave,
    MemberState,
    NameConflict,
    PushPull,
    PushPullReply,
    PushPullRequest,
    PushPullResponse,
    Renew,
    Send,
    SetEpoch,
    SetLoad,
    Watch,
)
from cluster.swim.newcomers import JOIN_MAX_S
from cluster.swim.watch_ring import predecessors, successors
from cluster.swim.wire import Ack, Body, Digest, Gossip, LoadRow, Nack, Ping, Pull, Row, Rows
from tests.forged import (
    CONFIG,
    Bench,
    address_of,
    changes,
    identity_of,
    opened,
    row_of,
    rows_about,
    sent,
    session_of,
    targets,
)

PEERS = ("a", "b", "c", "d")
OTHER_DIGEST = Digest(9, 9)

# ---- joining


def test_an_address_is_asked_again_and_again_until_it_answers() -> None:
    bench = Bench()
    bench.hand_in(Join((address_of("a"),)))
    bench.pass_s(60)
    pings = targets(bench.take(), Ping)
    assert 60 / JOIN_MAX_S <= pings.count("a") <= 30
    bench.meet("a")
    bench.take()
    bench.pass_s(2 * JOIN_MAX_S, answering=["a"])
    assert not [ping for ping in sent(bench.take(), Ping) if ping.target == ""]


def test_the_first_ping_of_a_joiner_says_who_it_is() -> None:
    bench = Bench()
    bench.hand_in(Join((address_of("a"),)))
    (row,) = rows_about(bench.take(), "me", to="a")
    assert (row.host, row.port, row.meta) == ("me.test", 5000, b"meta")


def test_own_and_known_addresses_are_not_asked() -> None:
    bench = Bench("a")
    bench.take()
    bench.hand_in(Join((address_of("me"), address_of("a"))))
    assert targets(bench.take()) == []


def test_a_stranger_is_answered_and_asked_and_believed_only_when_it_has_answered() -> None:
    bench = Bench("a")
    bench.take()
    bench.hear("x", Ping(3, ""), rows=[row_of("x"), row_of("y")])
    actions = bench.take()
    assert sent(actions, Ack, "x") == [Ack(3, session_of("me"))]
    assert rows_about(actions, "me", to="x")
    assert bench.state("x") is bench.state("y") is None
    bench.hear("x", Ack(sent(actions, Ping, "x")[0].nr, session_of("x")), rows=[row_of("x"), row_of("y")])
    assert bench.state("x") is bench.state("y") is MemberState.ALIVE


def test_a_recording_of_a_forgotten_member_does_not_bring_it_back() -> None:
    bench = Bench("a")
    x, a = session_of("x"), session_of("a")
    recorded: list[Body] = [Ping(3, ""), Ack(7, x), Gossip(), Rows(False, False), Nack(8, a, None)]
    for body in recorded:
        bench.hear(
            "x", body, rows=[row_of("x"), Row(session_of("a"), 5, MemberState.DEAD)], epoch=99, digest=OTHER_DIGEST
        )
    assert [member.identity.node_id for member in bench.swim.members()] == ["a", "me"]
    assert bench.state("a") is MemberState.ALIVE
    assert bench.swim.epoch == 0


def test_strangers_are_asked_at_a_bounded_rate() -> None:
    bench = Bench("a")
    bench.take()
    for nr in range(100):
        bench.now_s += 0.001
        bench.hear("x", Ping(nr, ""))
    assert len(sent(bench.take(), Ping, "x")) == 2


def test_a_stranger_that_pulls_gets_the_table() -> None:
    bench = Bench("a")
    bench.take()
    bench.hear("x", Pull(b"", False))
    rows = [action for action in bench.take() if isinstance(action, Send) and isinstance(opened(action).body, Rows)]
    assert {row.session for action in rows for row in opened(action).rows} == {session_of("a"), session_of("me")}


def test_a_joiner_shows_itself_to_all_it_has_just_heard_of() -> None:
    bench = Bench()
    bench.meet("a")
    bench.take()
    bench.hear("a", Rows(False, True), rows=[row_of(peer) for peer in PEERS])
    assert set(targets([a for a in bench.take() if rows_about([a], "me")])) == set(PEERS)


def test_a_node_is_synced_when_a_table_was_merged() -> None:
    bench = Bench()
    bench.hand_in(Join((address_of("a"),)))
    bench.meet("a")
    assert not bench.swim.is_synced
    bench.hear("a", Rows(False, True), rows=[row_of("b")])
    assert bench.swim.is_synced


def test_a_node_without_anybody_to_ask_is_synced_at_once() -> None:
    bench = Bench()
    assert not bench.swim.is_synced
    bench.hand_in(Join(()))
    assert bench.swim.is_synced
    bench.meet("a")
    assert bench.swim.is_synced


def test_a_node_whom_nobody_answers_is_synced_when_its_patience_ends() -> None:
    bench = Bench()
    bench.hand_in(Join((address_of("a"),)))
    bench.pass_s(JOIN_PATIENCE_S - 0.1)
    assert not bench.swim.is_synced
    bench.pass_s(0.5)
    assert bench.swim.is_synced


# ---- leaving and renewing


def test_leaving_and_left_are_told_at_once() -> None:
    for done, state in ((False, MemberState.LEAVING), (True, MemberState.LEFT)):
        bench = Bench(*PEERS)
        bench.take()
        bench.hand_in(Leave(done))
        told_to = targets([a for a in bench.actions if state in [row.state for row in rows_about([a], "me")]])
        assert set(told_to) == set(PEERS)


def test_who_has_left_probes_nobody_and_cannot_be_accused() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Leave(True))
    bench.hear("a", rows=[Row(session_of("me"), 9, MemberState.SUSPECT, Evidence.SILENT, "a")])
    bench.pass_s(5)
    assert bench.state("me") is MemberState.LEFT
    assert {bench.state(peer) for peer in PEERS} == {MemberState.ALIVE}


def test_a_member_that_left_is_not_suspected() -> None:
    bench = Bench(*PEERS)
    bench.hear("a", rows=[Row(session_of("a"), 1, MemberState.LEFT)], state=MemberState.LEFT, incarnation=1)
    bench.pass_s(10, answering=["b", "c", "d"])
    assert changes(bench.actions, "a")[-1] == (MemberState.LEFT, Evidence.NONE)


def test_a_member_that_drains_is_still_probed() -> None:
    bench = Bench("a")
    bench.hear("a", rows=[Row(session_of("a"), 1, MemberState.LEAVING)], state=MemberState.LEAVING, incarnation=1)
    bench.take()
    bench.pass_s(2 * CONFIG.probe_interval_s, answering=["a"])
    assert "a" in targets(bench.take(), Ping)


def test_a_fenced_node_is_told_and_goes_on_as_a_new_session() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Fenced(session_of("me")))
    assert changes(bench.actions, "me")[-1] == (MemberState.DEAD, Evidence.FENCED)
    bench.take()
    bench.hand_in(Renew(session_of("me", life=2)))
    assert bench.state("me") is MemberState.ALIVE
    assert {row.session for row in rows_about(bench.take(), "me")} == {session_of("me", life=2)}


def test_news_of_its_own_earlier_session_is_no_conflict() -> None:
    bench = Bench(*PEERS)
    bench.hand_in(Renew(session_of("me", life=2)))
    bench.take()
    bench.hear("a", rows=[row_of("me", life=1, incarnation=4)])
    assert not [action for action in bench.take() if isinstance(action, NameConflict)]


# ---- conflicts


def conflicts(bench: Bench, *, keep: bool = False) -> list[str]:
    return [a.other.session for a in (bench.actions if keep else bench.take()) if isinstance(a, NameConflict)]


def test_another_process_of_the_same_name_is_a_conflict_when_it_answers_and_is_told_once() -> None:
    bench = Bench("a")
    other = session_of("me", life=0)
    for seq in (1, 3):
        bench.now_s += 0.1
        bench.take()
        elsewhere(bench, seq, Ping(1, ""))
        assert conflicts(bench, keep=True) == []
        nr = sent(bench.take(), Ping, "elsewhere")[0].nr
        elsewhere(bench, seq + 1, Ack(nr, other))
        assert conflicts(bench) == ([other] if seq == 1 else [])
    bench.now_s += CONFLICT_SPACING_S
    elsewhere(bench, 5, Ping(1, ""))
    nr = sent(bench.take(), Ping, "elsewhere")[0].nr
    elsewhere(bench, 6, Ack(nr, other))
    assert conflicts(bench) == [other], "it was told while Redis was away, perhaps"


def elsewhere(bench: Bench, seq: int, body: Ping | Ack, life: int = 0) -> None:
    """Hand in a datagram of another life of this node, from another address."""
    packed = wire.pack("rumor", bench_head(session_of("me", life=life), seq), body)
    bench.hand_in(Datagram(("elsewhere.test", 5000), wire.PLAIN + packed))


def bench_head(session: str, seq: int) -> wire.Head:
    return wire.Head(session, 0, MemberState.ALIVE, seq, Digest(0, 0), 0, 0, b"")


def test_a_claimed_later_life_of_this_node_is_a_conflict() -> None:
    bench = Bench("a")
    bench.hear("a", rows=[row_of("me", life=5)])
    assert conflicts(bench) == [session_of("me", life=5)]


def test_a_claimed_later_life_elsewhere_is_a_conflict_once_it_answers() -> None:
    bench = Bench("a")
    bench.take()
    bench.hear("a", rows=[row_of("me", life=5, host="elsewhere.test")])
    (ping,) = sent(bench.actions, Ping, "elsewhere")
    assert conflicts(bench) == []
    elsewhere(bench, 1, Ack(ping.nr, session_of("me", life=5)), life=5)
    assert conflicts(bench) == [session_of("me", life=5)]


def test_an_earlier_life_at_another_address_is_asked_whether_it_lives() -> None:
    bench = Bench("a")
    bench.take()
    bench.hear("a", rows=[row_of("me", life=0, host="elsewhere.test")])
    assert targets(bench.actions, Ping) == ["elsewhere"]
    assert conflicts(bench) == []


def test_a_later_process_of_the_same_name_has_to_yield_not_the_earlier() -> None:
    bench = Bench("a")
    bench.take()
    elsewhere(bench, 1, Ping(1, ""), life=2)
    nr = sent(bench.actions, Ping, "elsewhere")[0].nr
    elsewhere(bench, 2, Ack(nr, session_of("me", life=2)), life=2)
    assert conflicts(bench) == []


def second_start(bench: Bench) -> None:
    """A second process with the name of `a` shows itself at another address."""
    later = row_of("a", life=2, host="elsewhere.test")
    bench.take()
    bench.hear("a", Ping(1, ""), source="elsewhere", session=later.session)
    asked = sent(bench.actions, Ping, "elsewhere")[-1]
    bench.hear("a", Ack(asked.nr, later.session), [later], source="elsewhere", session=later.session)


def test_a_mistaken_second_start_does_not_end_a_healthy_member() -> None:
    bench = Bench("a", "b")
    for _ in range(5):
        second_start(bench)
        bench.pass_s(0.5, answering=["a", "b"])
        for ping in sent(bench.actions, Ping, "a"):
            bench.hear("a", Ack(ping.nr, session_of("a")))
    member = bench.member("a")
    assert member is not None
    assert (member.identity.session, member.state) == (session_of("a"), MemberState.ALIVE)


def test_a_node_that_moved_is_taken_in_when_its_earlier_life_does_not_answer() -> None:
    bench = Bench("a", "b")
    second_start(bench)
    bench.pass_s(CONFIG.probe_timeout_s + 0.05, answering=["b"])
    second_start(bench)
    member = bench.member("a")
    assert member is not None
    assert (member.identity.host, member.state) == ("elsewhere.test", MemberState.ALIVE)


def test_an_earlier_life_at_this_address_is_just_over() -> None:
    bench = Bench("a")
    bench.take()
    bench.hear("a", rows=[row_of("me", life=0)])
    assert bench.take() == []


# ---- anti-entropy


@pytest.mark.parametrize("body", [Ping(1, ""), Ack(1, session_of("a"))])
def test_another_digest_is_pulled_at_once(body: Ping | Ack) -> None:
    bench = Bench(*PEERS)
    bench.now_s += 0.2
    bench.take()
    bench.hear("a", body, digest=OTHER_DIGEST)
    assert len(sent(bench.take(), Pull, "a")) == 1


def test_an_equal_digest_is_not_pulled() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("a", Ping(1, ""))
    assert not sent(bench.take(), Pull)


def test_pulls_from_one_member_are_spaced() -> None:
    bench = Bench(*PEERS)
    bench.now_s += 0.2
    bench.take()
    for nr in range(20):
        bench.hear("a", Ping(nr, ""), digest=OTHER_DIGEST)
    assert len(sent(bench.take(), Pull, "a")) == 1


def test_a_pull_is_answered_with_exactly_the_rows_that_differ() -> None:
    bench = Bench(*PEERS)
    hashes = {entry.node_id: short for short, entry in bench.swim._table.hashes().items()}
    bench.take()
    bench.hear("a", Pull(b"".join(hashes[name] for name in ("me", "a", "c")), True))
    answers = [a for a in bench.take() if isinstance(a, Send) and isinstance(opened(a).body, Rows)]
    assert sorted(row.session for a in answers for row in opened(a).rows) == [session_of("b"), session_of("d")]


def test_a_pull_that_shows_unknown_rows_is_pulled_back_but_not_for_ever() -> None:
    bench = Bench(*PEERS)
    for is_back, pulls in ((False, 1), (True, 0)):
        bench.take()
        bench.hear("a", Pull(b"abcd", is_back))
        assert len(sent(bench.take(), Pull, "a")) == pulls


def test_a_row_that_is_behind_is_answered_with_the_newer_one_once() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("d"), 0, MemberState.DEAD, Evidence.REFUSED, "b")])
    for is_final, answers in ((False, [MemberState.DEAD]), (True, [])):
        bench.take()
        bench.hear("a", Rows(False, is_final), rows=[row_of("d")])
        about = [a for a in bench.take() if isinstance(a, Send) and isinstance(opened(a).body, Rows)]
        assert [row.state for a in about for row in opened(a).rows] == answers


def test_the_table_of_a_large_cluster_goes_over_tcp() -> None:
    bench = Bench("a", *(f"m{number}" for number in range(wire.PULL_MAX_ROWS)))
    bench.now_s += 2
    bench.take()
    bench.hear("a", Ping(1, ""), digest=OTHER_DIGEST)
    assert [action.target for action in bench.take() if isinstance(action, PushPull)] == [address_of("a")]


def test_push_pull_makes_two_tables_equal() -> None:
    me, you = Bench("a", "b"), Bench("c")
    you.swim = Swim(CONFIG, identity_of("you"), (), me.swim._rng, 1000.0)
    for peer in ("c", "me"):
        you.meet(peer)
    me.meet("you")
    you.swim._outbox._seq = 100  # beyond the numbers of the datagrams that were forged in its name
    me.swim._exchange.sync_with(me.swim._table.live["a"], me.now_s)
    request = next(action for action in me.swim._outbox.out if isinstance(action, PushPull))
    (reply,) = [a for a in you.hand_in(PushPullRequest(4, request.data)) if isinstance(a, PushPullReply)]
    assert reply.ticket == 4
    me.hand_in(PushPullResponse(reply.data))
    assert me.digest() == you.digest()
    assert me.digest().count == 5


def test_a_push_pull_body_that_is_not_one_gets_no_answer() -> None:
    bench = Bench("a")
    for data in (
        b"",
        b"x" * 100,
        b"x" * (wire.SYNC_MAX_BYTES + 1),
        wire.PLAIN + wire.pack("rumor", bench_head(session_of("a"), 99), Gossip()),
    ):
        assert not [a for a in bench.hand_in(PushPullRequest(1, data)) if isinstance(a, PushPullReply)]


def test_a_member_is_exchanged_with_now_and_then_also_when_dead() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, Evidence.REFUSED, "b")])
    bench.take()
    bench.pass_s(40 * CONFIG.push_pull_interval_s, answering=["b", "c", "d"])
    asked = [action.target[0] for action in bench.take() if isinstance(action, PushPull)]
    assert 5 <= asked.count("a.test") <= 15
    assert len(asked) >= 25


def test_a_dead_member_is_pinged_now_and_then_and_told() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, Evidence.REFUSED, "b")])
    bench.take()
    bench.pass_s(10, answering=["b", "c", "d"])
    actions = bench.take()
    assert 8 <= len(sent(actions, Ping, "a")) <= 13
    assert MemberState.DEAD in [row.state for row in rows_about(actions, "a", to="a")]


def test_a_dead_member_is_forgotten_after_its_time() -> None:
    config = Config(forget_s=60.0, push_pull_interval_s=5.0)
    bench = Bench(*PEERS, config=config)
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.DEAD, Evidence.REFUSED, "b")])
    bench.pass_s(59, answering=["b", "c", "d"])
    assert bench.state("a") is MemberState.DEAD
    bench.pass_s(10, answering=["b", "c", "d"])
    assert bench.state("a") is None


def test_a_death_older_than_memory_is_not_taken_over() -> None:
    bench = Bench(*PEERS)
    bench.hear("b", Rows(False, True), rows=[row_of("x", state=MemberState.DEAD, age_s=int(CONFIG.forget_s) + 1)])
    assert bench.state("x") is None


# ---- what is dropped


def drop(bench: Bench, data: bytes) -> dict[str, int]:
    before = dict(bench.swim.stats)
    assert bench.hand_in(Datagram(address_of("a"), data)) == []
    return {
        name.removeprefix("dropped_"): count - before[name]
        for name, count in bench.swim.stats.items()
        if name.startswith("dropped_") and count != before[name]
    }


def test_what_cannot_be_used_is_counted_by_reason_and_dropped() -> None:
    bench = Bench("a")
    bench.take()
    bench.swim._ring_changed = False
    good = wire.pack("rumor", bench_head(session_of("a"), 50), Gossip())
    assert drop(bench, wire.PLAIN + b"junk") == {"malformed": 1}
    assert drop(bench, wire.SEALED + good) == {"unsealed": 1}
    assert drop(bench, wire.PLAIN + wire.pack("other", bench_head(session_of("a"), 51), Gossip())) == {
        "other_cluster": 1
    }
    assert drop(bench, wire.PLAIN + good + b"x" * 1400) == {"oversize": 1}
    assert drop(bench, wire.PLAIN + good) == {}
    assert drop(bench, wire.PLAIN + good) == {"replayed": 1}


@given(st.binary(max_size=1400))
def test_no_datagram_makes_a_node_raise(data: bytes) -> None:
    bench = Bench("a")
    bench.hand_in(Datagram(address_of("a"), data))
    bench.hand_in(Datagram(address_of("a"), wire.PLAIN + data))


# ---- dissemination


def test_news_is_told_a_bounded_number_of_times() -> None:
    news = News()
    news.add(row_of("a"), 0.0)
    taken = [news.take(1000, limit=4) for _ in range(10)]
    assert [len(rows) for rows in taken] == [1] * 4 + [0] * 6
    assert not news


def test_the_limit_grows_with_the_logarithm_of_the_cluster() -> None:
    assert retransmit_limit(9) * 2 == retransmit_limit(99)
    assert retransmit_limit(99) * 3 == retransmit_limit(999) * 2


def test_newer_news_of_a_member_replaces_older() -> None:
    news = News()
    news.add(row_of("a", incarnation=1), 0.0)
    news.add(row_of("a", incarnation=2), 0.0)
    assert news.take(1000, 9) == [wire.encode_row(row_of("a", incarnation=2))]


def test_suspicions_of_different_accusers_are_all_told_until_one_bound() -> None:
    news = News()
    for by in "bcdefgh":
        news.add(Row(session_of("a"), 0, MemberState.SUSPECT, Evidence.SILENT, by), 0.0)
    assert len(news.take(1000, 9)) == 4
    news.add(row_of("a", incarnation=1), 0.0)
    assert len(news.take(1000, 9)) == 1


def test_what_was_told_least_goes_first_and_nothing_exceeds_the_room() -> None:
    news = News()
    for number in range(20):
        news.add(row_of(f"m{number}"), 0.0)
    size = len(wire.encode_row(row_of("m1")))
    first, second = news.take(5 * size, 9), news.take(5 * size, 9)
    assert not set(first) & set(second)
    assert len(b"".join(first)) <= 5 * size


def test_what_is_old_is_told_no_more_and_a_death_is_old_first() -> None:
    news = News()
    for name, state, evidence in (
        ("a", MemberState.ALIVE, Evidence.NONE),
        ("b", MemberState.DEAD, Evidence.SILENT),
        ("c", MemberState.DEAD, Evidence.FENCED),
    ):
        news.add(Row(session_of(name), 0, state, evidence, "e"), 5.0)
    news.drop_old(5.0 + DEATH_NEWS_S)
    assert len(news.take(1000, 9)) == 2
    news.drop_old(5.0 + NEWS_S)
    assert not news


def test_gossip_stops_when_there_is_no_news() -> None:
    bench = Bench(*PEERS)
    bench.pass_s(20, answering=PEERS)
    bench.take()
    bench.pass_s(5, answering=PEERS)
    assert not sent(bench.take(), Gossip)


# ---- loads and epochs


def test_each_datagram_carries_the_senders_own_load() -> None:
    bench = Bench("a")
    bench.hand_in(SetLoad(b"busy"))
    bench.take()
    bench.hear("a", Ping(1, ""))
    (action,) = [action for action in bench.take() if isinstance(action, Send)]
    head = opened(action).head
    assert (head.load, head.load_seq) == (b"busy", 1)


def test_an_urgent_load_is_told_to_a_few_at_once_and_not_more_often_than_gossip() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hand_in(SetLoad(b"idle", is_urgent=True))
    bench.pass_s(0.01)
    assert 1 <= len(sent(bench.take(), Gossip)) <= LOAD_FANOUT
    bench.hand_in(SetLoad(b"busy", is_urgent=True))
    bench.pass_s(0.01)
    assert sent(bench.take(), Gossip) == [], "within one gossip interval it waits"
    bench.pass_s(bench.config.gossip_interval_s)
    assert sent(bench.take(), Gossip) != [], "and is not forgotten"
    bench.hand_in(SetLoad(b"a little busier"))
    bench.pass_s(0.01)
    assert sent(bench.take(), Gossip) == []


def test_only_a_later_load_replaces_the_known_one() -> None:
    bench = Bench("a", "b")
    bench.hear("a", load=b"new", load_seq=5)
    bench.hear("b", loads=[LoadRow(session_of("a"), 4, b"old")])
    bench.hear("a", load=b"older", load_seq=3)
    member = bench.member("a")
    assert member is not None
    assert (member.load, member.load_seq, member.load_at_s) == (b"new", 5, bench.now_s)


def test_loads_of_others_are_passed_on_a_few_times() -> None:
    bench = Bench("a", "b")
    bench.hear("a", load=b"new", load_seq=5)
    bench.take()
    for nr in range(10):
        bench.hear("b", Ping(nr, ""))
    passed = [load for action in bench.take() if isinstance(action, Send) for load in opened(action).loads]
    assert passed == [LoadRow(session_of("a"), 5, b"new")] * LOAD_RELAYS


def test_the_freshest_loads_go_first() -> None:
    loads = Loads()
    for name in ("a", "b", "c"):
        loads.add(name, name.encode() * 10)
    assert loads.take(20) == [b"c" * 10, b"b" * 10]


def test_datagrams_stay_within_their_bound_however_much_there_is_to_tell() -> None:
    bench = Bench()
    bench.hand_in(SetLoad(b"l" * wire.LOAD_MAX_BYTES))
    for number in range(100):
        name = f"member-with-a-rather-long-name-{number}"
        bench.meet(name, rows=[row_of(name, meta=b"m" * 200)], load=b"l" * 400, load_seq=1)
    bench.hear("x", Pull(b"", False))
    bench.pass_s(5)
    sizes = [len(action.data) for action in bench.take() if isinstance(action, Send)]
    assert max(sizes) <= wire.DATAGRAM_MAX_BYTES
    assert max(sizes) > 1000


def test_the_highest_epoch_is_kept_and_told() -> None:
    bench = Bench("a")
    bench.hear("a", epoch=7)
    bench.hand_in(SetEpoch(5))
    assert bench.swim.epoch == 7
    bench.hand_in(SetEpoch(9))
    bench.take()
    bench.hear("a", Ping(1, ""))
    assert {opened(action).head.epoch for action in bench.take() if isinstance(action, Send)} == {9}


# ---- the watch ring

name_lists = st.lists(st.sampled_from([f"n{number}" for number in range(20)]), unique=True)


@given(name_lists, st.integers(0, 5))
def test_watching_and_being_watched_are_the_same_relation(names: list[str], count: int) -> None:
    for name in names:
        for other in names:
            watches = other in successors(names, name, count)
            assert watches == (name in predecessors(names, other, count))


@given(name_lists, st.integers(0, 5))
def test_each_member_watches_as_many_others_as_there_are_up_to_the_limit(names: list[str], count: int) -> None:
    for name in names:
        watched = successors(names, name, count)
        assert len(set(watched)) == len(watched) == min(count, len(names) - 1)
        assert name not in watched


def test_the_watched_peers_follow_the_live_members() -> None:
    bench = Bench(*PEERS)
    watched = successors(("me", *PEERS), "me", CONFIG.watch_peers)
    gone = watched[0]
    other = next(peer for peer in PEERS if peer != gone)
    bench.hear(other, rows=[Row(session_of(gone), 0, MemberState.DEAD, Evidence.REFUSED, other)])
    (watch,) = [action for action in bench.take() if isinstance(action, Watch)]
    assert {peer.node_id for peer in watch.peers} == set(PEERS) - {gone}


def test_a_suspect_is_still_watched() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hear("b", rows=[Row(session_of("a"), 0, MemberState.SUSPECT, Evidence.SILENT, "b")])
    assert not [action for action in bench.take() if isinstance(action, Watch)]


def test_who_has_left_watches_nobody() -> None:
    bench = Bench(*PEERS)
    bench.take()
    bench.hand_in(Leave(True))
    assert [action.peers for action in bench.take() if isinstance(action, Watch)] == [()]


def test_members_are_sorted_and_include_this_node_and_the_dead() -> None:
    bench = Bench("c", "a", "b")
    bench.hand_in(Fenced(session_of("b")))
    assert [member.identity.node_id for member in bench.swim.members()] == ["a", "b", "c", "me"]
