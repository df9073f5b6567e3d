"""The leader lease: one leader per epoch, and trust that ends before the lease can."""

from __future__ import annotations

import pytest

from cluster.swim.plausible import EPOCH_AHEAD
from cluster.vitals.lease import Acquire, Lease, RenewTerm, Takeover, Term

TTL_S = 5.0


def leading(session: str = "a", epoch: int = 1, asked_s: float = 0.0) -> Lease:
    lease = Lease(session, TTL_S)
    lease.answered(Acquire(session), Term(session, epoch), asked_s)
    assert lease.may_lead(asked_s)
    return lease


def test_nobody_leads_before_redis_says_so() -> None:
    lease = Lease("a", TTL_S)
    assert not lease.may_lead(0.0)
    assert lease.wish(0.0) == Acquire("a")


def test_trust_ends_before_the_lease_can() -> None:
    lease = leading(asked_s=10.0)
    assert lease.may_lead(10.0 + TTL_S - lease.margin_s - 0.001)
    assert not lease.may_lead(10.0 + TTL_S - lease.margin_s)


def test_a_slow_renewal_does_not_extend_trust() -> None:
    lease = leading()
    wish = lease.wish(1.0)
    assert wish == RenewTerm(Term("a", 1))
    # Asked at 1, answered at 3.9: what counts is when the request left.
    lease.answered(wish, Term("a", 1), asked_s=1.0)
    assert not lease.may_lead(1.0 + TTL_S - lease.margin_s)


def test_a_term_that_ran_out_is_not_renewed_but_asked_for_anew() -> None:
    assert leading().wish(TTL_S) == Acquire("a")


def test_a_late_reply_of_an_old_term_cannot_touch_a_new_one() -> None:
    lease = leading()
    late = lease.wish(1.0)
    lease.answered(Acquire("a"), Term("a", 7), asked_s=6.0)
    lease.answered(late, None, asked_s=1.0)
    assert lease.may_lead(6.5)
    assert lease.holder == Term("a", 7)


def test_an_answer_to_an_earlier_session_gives_nothing_to_the_new_one() -> None:
    lease = Lease("a", TTL_S)
    wish = lease.wish(0.0)
    lease.renamed("a2")
    lease.answered(wish, Term("a", 1), asked_s=0.0)
    assert not lease.may_lead(0.1)
    assert lease.holder is None


def test_a_higher_epoch_heard_by_gossip_is_a_reason_to_ask_redis_and_no_more() -> None:
    lease = leading(epoch=3)
    assert lease.heard(4)
    assert not lease.heard(4), "it was asked about that already"
    assert lease.may_lead(0.1)
    assert lease.wish(0.1) == RenewTerm(Term("a", 3))
    assert lease.known_epoch == 4
    lease.answered(RenewTerm(Term("a", 3)), Term("b", 4), asked_s=0.1)
    assert not lease.may_lead(0.2)


@pytest.mark.parametrize("epoch", [3 + EPOCH_AHEAD + 1, 10**15, 2**63 - 1])
def test_an_epoch_far_beyond_what_redis_named_counts_for_nothing(epoch: int) -> None:
    lease = leading(epoch=3)
    assert not lease.heard(epoch)
    assert lease.known_epoch == lease.epoch == 3
    assert lease.may_lead(0.1)


def test_a_redis_that_lost_its_epochs_still_decides() -> None:
    lease = leading(epoch=5_000)
    lease.answered(Acquire("a"), Term("a", 1), asked_s=9.0)
    assert lease.may_lead(9.1)
    assert lease.epoch == 1


def test_a_leader_whose_snapshot_was_refused_has_lost_its_term() -> None:
    lease = leading(epoch=3)
    lease.lost(Term("a", 2))
    assert lease.may_lead(0.1)
    lease.lost(Term("a", 3))
    assert not lease.may_lead(0.1)
    assert lease.wish(0.1) == Acquire("a")


def test_a_refused_renewal_ends_the_term() -> None:
    lease = leading()
    lease.answered(RenewTerm(Term("a", 1)), Term("b", 2), asked_s=1.0)
    assert not lease.may_lead(1.1)
    assert lease.leader(1.1) == Term("b", 2)


def test_a_fenced_leader_is_taken_over_without_waiting() -> None:
    lease = Lease("a", TTL_S)
    lease.answered(Acquire("a"), Term("b", 2), asked_s=0.0)
    lease.died("c")
    assert lease.wish(0.1) == Acquire("a")
    lease.died("b")
    assert lease.wish(0.1) == Takeover("a", "b")
    lease.answered(Takeover("a", "b"), Term("a", 3), asked_s=0.1)
    assert lease.may_lead(0.2)


def test_another_leader_is_named_for_one_lease_at_most() -> None:
    lease = Lease("a", TTL_S)
    lease.answered(Acquire("a"), Term("b", 2), asked_s=0.0)
    assert lease.leader(TTL_S - 0.01) == Term("b", 2)
    assert lease.leader(TTL_S) is None


def test_resigning_names_the_exact_term_and_only_once() -> None:
    lease = leading(epoch=9)
    assert lease.resign() == Term("a", 9)
    assert lease.resign() is None
    assert not lease.may_lead(0.1)
