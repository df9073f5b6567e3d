"""One node that has a Redis, among members one of which lies: Redis is asked where it can tell, the rest has bounds."""

from __future__ import annotations

import pytest

from cluster.swim.core import ASK_SPACING_S
from cluster.swim.events import (
    Changed,
    Denied,
    Evidence,
    Fenced,
    Identity,
    MemberState,
    NameConflict,
    RegistryReach,
    Send,
    SetEpoch,
    TcpConnect,
    Unconfirmed,
    Vouched,
)
from cluster.swim.plausible import EPOCH_AHEAD, INCARNATION_AHEAD, LOAD_AHEAD, SEQ_AHEAD
from cluster.swim.wire import INCARNATION_MAX, Ack, LoadRow, Nack, Ping, PingReq, Row, Rows, Sync
from tests.forged import (
    Bench,
    accusation,
    address_of,
    changes,
    identity_of,
    row_of,
    rows_about,
    sent,
    session_of,
    targets,
)

PEERS = ("a", "b", "c")
A = session_of("a")
FAR = "a/ffffffffffffff-00000001"


def cluster() -> Bench:
    bench = Bench(*PEERS, has_registry=True)
    bench.take()
    return bench


def asked(bench: Bench) -> list[tuple[str, bool]]:
    """The sessions about which the driver is asked, and whether they are said to be fenced."""
    return [(a.identity.session, a.is_fenced) for a in bench.take() if isinstance(a, Unconfirmed)]


def fenced(session: str) -> Row:
    return Row(session, 0, MemberState.DEAD, Evidence.FENCED, "b")


# ---- tombstones


def test_a_tombstone_that_gossip_tells_of_is_looked_for_and_not_believed() -> None:
    bench = cluster()
    bench.hear("b", rows=[fenced(A)])
    assert not rows_about(bench.actions, "a"), "nor passed on"
    assert asked(bench) == [(A, True)]
    assert bench.state("a") is MemberState.ALIVE
    bench.hand_in(Denied(A))
    assert bench.state("a") is MemberState.ALIVE
    assert bench.swim.stats["dropped_unconfirmed"] == 1
    bench.hand_in(Fenced(A))
    assert changes(bench.take(), "a") == [(MemberState.DEAD, Evidence.FENCED)]


def test_a_node_that_is_said_to_be_fenced_asks_redis_about_itself() -> None:
    bench = cluster()
    for _ in range(3):
        bench.hear("b", rows=[fenced(session_of("me"))])
    assert asked(bench) == [(session_of("me"), True)], "once, however often it is told"
    assert bench.state("me") is MemberState.ALIVE
    bench.now_s += ASK_SPACING_S
    bench.hear("b", rows=[fenced(session_of("me"))])
    assert asked(bench) == [(session_of("me"), True)]


def test_without_redis_a_rumor_has_no_effect() -> None:
    bench = cluster()
    bench.hand_in(RegistryReach(False))
    bench.hear("b", rows=[fenced(A), fenced(session_of("me")), row_of("a", life=2), row_of("x")])
    assert asked(bench) == []
    assert (bench.state("a"), bench.state("me"), bench.state("x")) == (MemberState.ALIVE, MemberState.ALIVE, None)
    assert bench.swim.stats["dropped_unconfirmed"] >= 4


def test_superseded_is_a_suspicion_if_gossip_alone_says_so() -> None:
    bench = cluster()
    bench.hear("b", rows=[Row(A, 0, MemberState.DEAD, Evidence.SUPERSEDED, "b")])
    assert bench.state("a") is MemberState.SUSPECT


# ---- sessions that exist nowhere


@pytest.mark.parametrize("session", [session_of("a", life=2), FAR, session_of("x")])
def test_a_session_of_which_others_tell_waits_for_redis(session: str) -> None:
    bench = cluster()
    row = Row(session, 0, MemberState.ALIVE, host="x.test", port=5000)
    for body in (None, Rows(False, False), Sync()):
        bench.hear("b", body, rows=[row])
    assert asked(bench) == [(session, False)]
    assert bench.member("x") is None
    member = bench.member("a")
    assert member is not None
    assert member.identity == identity_of("a")


def test_a_later_life_for_which_redis_vouches_ends_the_earlier() -> None:
    bench = cluster()
    bench.hear("b", rows=[row_of("a", life=2)])
    bench.take()
    bench.hand_in(Vouched(identity_of("a", life=2)))
    assert changes(bench.actions, "a") == [(MemberState.DEAD, Evidence.SUPERSEDED), (MemberState.ALIVE, Evidence.NONE)]
    assert "a" in targets(bench.take(), Ping), "its answer brings its load"


def test_who_answers_from_the_address_of_the_earlier_life_waits_for_redis() -> None:
    """It may be a node of another cluster, which has the port and the name now."""
    bench = cluster()
    bench.renew("a")
    assert asked(bench) == [(session_of("a", life=2), False)]
    member = bench.member("a")
    assert member is not None
    assert member.identity.session == A


def test_without_redis_a_later_life_that_answers_is_shown_until_redis_denies_it() -> None:
    bench = cluster()
    bench.hand_in(RegistryReach(False))
    later = session_of("a", life=2)
    bench.renew("a")
    member = bench.member("a")
    assert member is not None
    assert (member.identity.session, member.is_vouched) == (later, False)
    bench.hand_in(RegistryReach(True))
    bench.hand_in(Denied(later))
    assert bench.member("a") is None


def test_an_answer_from_anywhere_else_does_not_take_the_name() -> None:
    """The liar is asked at its own address, and answers there as a later life of `a`."""
    bench = cluster()
    later = session_of("a", life=2)
    nr = sent(bench.hear("a", Ping(1, ""), session=later, source="evil"), Ping, "evil")[-1].nr
    row = row_of("a", life=2, host="evil.test")
    bench.pass_s(2 * bench.config.probe_timeout_s, answering=PEERS)
    bench.hear("a", Ack(nr, later), rows=[row], session=later, source="evil")
    member = bench.member("a")
    assert member is not None
    assert member.identity.session == A


def test_a_session_that_redis_shows_has_its_name_whatever_later_one_was_heard_of() -> None:
    bench = cluster()
    bench.hand_in(Vouched(Identity("x", "x/ffffffffffffff-00000001", "x.test", 5000)))  # A clock that was ahead.
    bench.take()
    real = session_of("x")
    nr = sent(bench.hear("x", Ping(1, "")), Ping, "x")[-1].nr
    bench.hear("x", Ack(nr, real), rows=[row_of("x")])
    assert asked(bench) == [(real, False)]
    bench.hand_in(Vouched(identity_of("x")))
    member = bench.member("x")
    assert member is not None
    assert member.identity.session == real


def test_a_later_life_of_this_node_is_told_to_the_driver_again_and_again_and_decides_nothing() -> None:
    bench = cluster()
    row = Row("me/ffffffffffffff-00000001", 0, MemberState.ALIVE, host="x.test", port=5000)
    for _ in range(3):
        bench.hear("b", rows=[row])
    assert len([action for action in bench.take() if isinstance(action, NameConflict)]) == 1
    assert bench.state("me") is MemberState.ALIVE
    bench.now_s += 10.0
    bench.hear("b", rows=[row])
    assert len([action for action in bench.take() if isinstance(action, NameConflict)]) == 1


def test_names_that_never_end_do_not_enter_the_table() -> None:
    bench = cluster()
    for number in range(2_000):
        bench.hear("b", rows=[row_of(f"x{number}-{n}") for n in range(5)])
    assert len(bench.swim.members()) == 4
    assert len(bench.swim._asked_s) <= 8192


# ---- a member's address


def test_nobody_moves_a_member() -> None:
    bench = cluster()
    bench.hear("b", rows=[row_of("a", incarnation=1, host="zz.test", meta=b"zz")])
    member = bench.member("a")
    assert member is not None
    assert (member.identity, member.incarnation) == (identity_of("a"), 1)


def test_the_address_that_redis_names_is_the_right_one() -> None:
    bench = cluster()
    bench.hear("b", rows=[row_of("x", host="zz.test")])
    assert asked(bench) == [(session_of("x"), False)]
    bench.hand_in(Vouched(identity_of("x")))
    member = bench.member("x")
    assert member is not None
    assert member.identity == identity_of("x")


def test_a_newcomer_that_came_while_redis_was_away_is_shown_and_not_vouched_for() -> None:
    bench = cluster()
    bench.hand_in(RegistryReach(False))
    bench.meet("x")
    member = bench.member("x")
    assert member is not None
    assert not member.is_vouched
    bench.take()
    bench.hand_in(Vouched(identity_of("x")))
    (change,) = [action for action in bench.take() if isinstance(action, Changed)]
    assert change.member.is_vouched


# ---- numbers that only rise


@pytest.mark.parametrize("incarnation", [INCARNATION_AHEAD + 1, INCARNATION_MAX - 1, INCARNATION_MAX])
def test_nobody_is_suspected_at_an_incarnation_that_it_cannot_have(incarnation: int) -> None:
    bench = cluster()
    bench.hear("b", rows=[accusation("a", "b", incarnation=incarnation)])
    assert bench.state("a") is MemberState.ALIVE
    assert bench.swim.stats["dropped_implausible"] == 1
    assert "a" in targets(bench.take(), Ping), "if it has it, its answer says so"
    bench.hear("b", rows=[accusation("me", "b", incarnation=incarnation)])
    assert bench.incarnation("me") == 0


def test_what_others_believe_of_a_node_it_can_refute() -> None:
    """The bounds of both sides fit, however often somebody lies."""
    bench = cluster()
    for _ in range(5):
        mine = bench.incarnation("me")
        bench.hear("b", rows=[accusation("me", "b", incarnation=mine + INCARNATION_AHEAD)])
        assert bench.incarnation("me") == mine + INCARNATION_AHEAD + 1
    bench.hear("b", rows=[accusation("a", "b", incarnation=INCARNATION_AHEAD)])
    bench.hear("b", rows=[accusation("a", "b", incarnation=2 * INCARNATION_AHEAD)])
    assert bench.incarnation("a") == INCARNATION_AHEAD, "counted from what it said itself"


def test_a_member_that_refuted_often_is_believed_at_first_hand() -> None:
    bench = cluster()
    bench.hear("b", rows=[accusation("a", "b", incarnation=5_000)])
    nr = sent(bench.take(), Ping, "a")[-1].nr
    bench.hear("a", Ack(nr, A), rows=[row_of("a", incarnation=5_001)], incarnation=5_001)
    assert bench.incarnation("a") == 5_001
    bench.hear("b", rows=[accusation("a", "b", incarnation=5_001)])
    assert bench.state("a") is MemberState.SUSPECT


def test_only_the_member_itself_answers_for_itself() -> None:
    """Asked at its own address, or by way of a helper, a liar gets numbers that it may use in another's name."""
    bench = cluster()
    bench.pass_s(bench.config.probe_interval_s)
    asked_b = sent(bench.actions, Ping, "b")
    helper_nrs = [request.nr for request in sent(bench.take(), PingReq)]
    for nr in [*(ping.nr for ping in asked_b), *helper_nrs]:
        bench.hear("a", Ack(nr, A), rows=[row_of("a", incarnation=9_000)], incarnation=9_000, source="b")
    assert bench.incarnation("a") == 0


@pytest.mark.parametrize("seq", [2**62, 2**63 - 1, SEQ_AHEAD // 2])
def test_nobody_is_muted(seq: int) -> None:
    bench = cluster()
    bench.now_s += 1.0
    bench.hear("a", seq=seq)
    bench.take()
    bench.hear("a", Ping(7, session_of("me")))
    assert sent(bench.actions, Ack, "a") == [Ack(7, session_of("me"))], "it is answered in any case"
    pings = sent(bench.take(), Ping, "a")
    if pings:  # It was taken for old: it is asked, and heard again from then on.
        bench.hear("a", Ack(pings[-1].nr, A))
    bench.hear("a", rows=[accusation("b", "a")])
    assert bench.state("b") is MemberState.SUSPECT


@pytest.mark.parametrize("seq", [LOAD_AHEAD + 1, INCARNATION_MAX])
def test_no_load_is_the_last_one(seq: int) -> None:
    bench = cluster()
    bench.hear("b", loads=[LoadRow(A, seq, b"lie")])
    bench.hear("b", loads=[LoadRow(A, LOAD_AHEAD, b"lie too")])
    bench.pass_s(bench.config.probe_interval_s * 4, answering=("b", "c"))
    nr = sent(bench.take(), Ping, "a")[-1].nr
    bench.hear("a", Ack(nr, A), load_seq=3, load=b"mine")
    member = bench.member("a")
    assert member is not None
    assert (member.load, member.load_seq) == (b"mine", 3)


@pytest.mark.parametrize("epoch", [EPOCH_AHEAD + 6, 10**15, 2**63 - 1])
def test_no_epoch_far_beyond_redis_is_believed(epoch: int) -> None:
    bench = cluster()
    bench.hear("a", epoch=4)
    assert bench.swim.epoch == 0, "before Redis named one, none can be judged"
    bench.hand_in(SetEpoch(5))
    bench.hear("a", epoch=epoch)
    assert bench.swim.epoch == 5
    assert bench.swim.stats["dropped_implausible"] == 1
    bench.hear("a", epoch=5 + EPOCH_AHEAD)
    assert bench.swim.epoch == 5 + EPOCH_AHEAD
    bench.hand_in(SetEpoch(1))
    assert bench.swim.epoch == 1, "Redis lost what it held, and decides"


def test_a_request_for_help_makes_nobody_knock_at_a_foreign_address() -> None:
    bench = cluster()
    bench.hear("b", PingReq(9, A, "10.9.9.9", 22, True))
    assert {action.target for action in bench.take() if isinstance(action, Send | TcpConnect)} == {address_of("a")}
    stranger = session_of("x")
    bench.hear("b", PingReq(9, stranger, "10.9.9.9", 22, True))
    assert sent(bench.take(), Nack, "b") == [Nack(9, stranger, None)]
