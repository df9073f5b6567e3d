"""Looks: what a node says of a session as a witness comes from a ping and a connect of its own, begun when asked."""

from __future__ import annotations

from cluster.swim.events import Action, Address, Evidence, Look, Looked, MemberState, Sight, Tcp, TcpConnect, TcpOutcome
from cluster.swim.probe import REFUSAL_GRACE_SHARE
from cluster.swim.wire import Ack, Ping
from tests.forged import CONFIG, Bench, address_of, connects, sent, session_of

A = session_of("a")
LOOK_S = REFUSAL_GRACE_SHARE * CONFIG.probe_timeout_s


class Looking:
    """A bench on which a look at `a` has begun, or at a session that the table does not know."""

    def __init__(self, session: str = A, address: Address | None = None) -> None:
        self.bench = Bench("a", "b", "c")
        self.bench.take()
        self.session = session
        self.actions: list[Action] = self.bench.hand_in(Look(session, address))

    def tcp(self, outcome: Tcp) -> None:
        (connect,) = [action for action in self.actions if isinstance(action, TcpConnect)]
        self.bench.hand_in(TcpOutcome(self.session, outcome, connect.look))

    @property
    def sights(self) -> list[Sight]:
        return [action.sight for action in self.bench.actions if isinstance(action, Looked)]


def test_a_look_is_one_ping_and_one_connect_of_its_own() -> None:
    look = Looking()
    assert connects(look.actions) == [A]
    assert len(sent(look.actions, Ping, "a")) == 1


def test_a_session_that_answers_the_ping_was_seen_at_once() -> None:
    look = Looking()
    look.bench.hear("a", Ack(sent(look.actions, Ping, "a")[0].nr, A))
    assert look.sights == [Sight.ANSWERED]


def test_the_answer_to_an_earlier_ping_is_not_the_answer_to_this_look() -> None:
    look = Looking()
    nr = sent(look.actions, Ping, "a")[0].nr
    look.bench.hear("a", Ack(nr - 1, A))
    assert look.sights == []


def test_both_ports_closed_are_a_refusal_at_once_and_one_alone_waits_for_the_ping() -> None:
    look = Looking()
    look.tcp(Tcp.REFUSED)
    assert look.sights == []
    look.tcp(Tcp.GONE)
    assert look.sights == [Sight.REFUSED]
    look = Looking()
    look.tcp(Tcp.REFUSED)
    look.bench.pass_s(LOOK_S + 0.01)
    assert look.sights == [Sight.REFUSED]


def test_a_kernel_that_accepts_and_silence_are_told_apart_when_the_time_is_over() -> None:
    look = Looking()
    look.tcp(Tcp.ACCEPTED)
    assert look.sights == []
    look.bench.pass_s(LOOK_S + 0.01)
    assert look.sights == [Sight.ACCEPTED]
    look = Looking()
    look.bench.pass_s(LOOK_S + 0.01)
    assert look.sights == [Sight.SILENT]


def test_the_outcome_of_a_rounds_connect_is_none_of_a_look() -> None:
    look = Looking()
    look.bench.hand_in(TcpOutcome(A, Tcp.GONE))
    assert look.sights == []


def test_a_session_without_an_address_is_silent_and_one_at_our_own_address_is_gone() -> None:
    stranger = "z/0190aaaaaaaa-0badcafe"
    assert Looking(stranger).sights == [Sight.SILENT]
    assert Looking(stranger, address_of("me")).sights == [Sight.REFUSED]


def test_another_session_that_answers_at_its_address_proves_it_gone_and_one_elsewhere_does_not() -> None:
    earlier = session_of("b", life=0)
    look = Looking(earlier, address_of("b"))
    look.bench.hear("b", Ack(sent(look.actions, Ping, "b")[0].nr, session_of("b")))
    assert look.sights == [Sight.REFUSED]
    look = Looking(earlier, address_of("c"))
    look.bench.hear("b", Ack(sent(look.actions, Ping, "c")[0].nr, session_of("b")))
    assert look.sights == []


def test_a_node_that_was_away_saw_nothing() -> None:
    look = Looking()
    look.bench.now_s += 5.0
    look.bench.pass_s(0.5)
    assert look.sights == []


def test_a_first_acceptance_is_kept_until_an_answer_and_undone_only_by_a_refusal_just_after_it() -> None:
    look = Looking()
    look.bench.now_s += 0.001
    look.tcp(Tcp.ACCEPTED)
    first_s = look.bench.now_s
    member = look.bench.swim.member(A)
    assert member is not None
    assert member.accepted_s == first_s
    for outcome, after_s in ((Tcp.ACCEPTED, 0.4), (Tcp.REFUSED, 0.4), (Tcp.SILENT, 0.1)):
        look.bench.now_s += after_s
        look.bench.hand_in(TcpOutcome(A, outcome))
        member = look.bench.swim.member(A)
        assert member is not None
        assert member.accepted_s == first_s
    look = Looking()
    look.bench.now_s += 0.001
    look.tcp(Tcp.ACCEPTED)
    look.bench.now_s += 0.005
    look.bench.hand_in(TcpOutcome(A, Tcp.REFUSED))
    member = look.bench.swim.member(A)
    assert member is not None
    assert member.accepted_s < 0, "a dying process closes one socket after another"


def test_a_doubt_begins_once_and_ends_with_a_refutation() -> None:
    bench = Bench("a", "b", "c")
    member = bench.swim.member(A)
    assert member is not None
    assert member.doubted_s == float("inf")
    bench.swim.accuse(A, Evidence.SILENT)
    began_s = bench.swim.member(A).doubted_s  # type: ignore[union-attr]
    assert began_s < float("inf")
    bench.pass_s(5.0, answering=("b", "c"))
    member = bench.swim.member(A)
    assert member is not None
    assert (member.state, member.doubted_s) == (MemberState.DEAD, began_s)
