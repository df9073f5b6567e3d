"""When this node must stop its tasks, since another node may run them by now."""

from __future__ import annotations

from node.queue.own_lease import OwnLease


def test_while_both_ways_are_answered_the_lease_does_not_run() -> None:
    lease = OwnLease(30.0)
    assert not lease.is_running
    assert not lease.is_over(False, 1e9)


def test_the_lease_is_over_when_either_way_had_no_answer_for_all_of_it() -> None:
    for lose in (lambda of: of.beats(False, True, 10.0), lambda of: of.lanes(False, 10.0)):
        lease = OwnLease(30.0)
        lose(lease)
        assert not lease.is_over(False, 40.0)
        assert lease.is_over(False, 40.1)


def test_it_counts_from_the_first_loss_until_both_are_answered_again() -> None:
    lease = OwnLease(30.0)
    lease.lanes(False, 10.0)
    lease.beats(False, False, 20.0)
    lease.lanes(True, 30.0)  # the heartbeat has no answer yet
    assert lease.is_over(False, 41.0)
    lease.beats(True, True, 42.0)
    assert not lease.is_running
    lease.beats(False, True, 50.0)
    assert not lease.is_over(False, 79.0), "it begins anew"


def test_while_redis_refuses_everybody_it_stands_still_and_then_begins_anew() -> None:
    lease = OwnLease(30.0)
    lease.beats(False, True, 0.0)
    assert not lease.is_over(True, 100.0)
    assert not lease.is_over(False, 130.0)
    assert lease.is_over(False, 130.1)
