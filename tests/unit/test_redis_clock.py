"""The estimate of Redis's clock: a call in time is never refused because of it, a late one is, and it follows answers.

Redis's clock runs ahead of the node's by any amount. A question takes `there` seconds, its answer `back`.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.deadline import GRACE_S
from cluster.shards.redis_clock import ASK_EVERY_S, SLACK_S, RedisClock, carried_out_within_s

TIMEOUT_S = 0.8
trips = st.floats(0, TIMEOUT_S + GRACE_S)
times = st.floats(0, 1e6)


def redis_ms(at_s: float, ahead_s: float) -> int:
    """What Redis answers to TIME at this moment of the node's clock."""
    return int(1000 * (at_s + ahead_s))


@given(asked_s=times, ahead_s=st.floats(1e6, 2e9), there_s=trips, later_s=st.floats(0, 60), arrives_s=trips)
def test_a_call_that_redis_reads_within_its_deadline_is_never_late(
    asked_s: float, ahead_s: float, there_s: float, later_s: float, arrives_s: float
) -> None:
    clock = RedisClock()
    clock.heard(redis_ms(asked_s + there_s, ahead_s), asked_s)
    sent_s = asked_s + there_s + later_s
    assert redis_ms(sent_s + arrives_s, ahead_s) <= clock.not_after_ms(sent_s + TIMEOUT_S)


@given(asked_s=times, ahead_s=st.floats(1e6, 2e9), there_s=trips, later_s=st.floats(0, 60))
def test_no_call_is_carried_out_later_than_promised(
    asked_s: float, ahead_s: float, there_s: float, later_s: float
) -> None:
    clock = RedisClock()
    clock.heard(redis_ms(asked_s + there_s, ahead_s), asked_s)
    sent_s = asked_s + there_s + later_s
    reads_s = sent_s + carried_out_within_s(TIMEOUT_S) + 0.01
    assert redis_ms(reads_s, ahead_s) > clock.not_after_ms(sent_s + TIMEOUT_S)


def test_the_shortest_retention_is_longer_than_a_call_may_be_late() -> None:
    from cluster.config import Config
    from cluster.shards.calls import Calls

    for timeout_s in (0.05, Config().redis_timeout_s, 2.0, 30.0):
        calls = Calls(60.0, 1000, 60.0, timeout_s=timeout_s)
        assert calls.retention_min_s > carried_out_within_s(timeout_s)
        assert calls.retention_min_s >= 5.0, "as the docs say"


def test_a_clock_that_is_set_is_followed_by_the_next_answer_in_both_directions() -> None:
    clock = RedisClock()
    for redis_s in (1e9, 2e9, 1.5e9):
        clock.heard(int(redis_s * 1000), 10.0)
        within_ms = clock.not_after_ms(10.0 + TIMEOUT_S) - redis_s * 1000
        assert 0 < within_ms <= 1000 * (TIMEOUT_S + GRACE_S + SLACK_S) + 1


def test_before_the_first_answer_redis_refuses_and_says_what_time_it_is() -> None:
    clock = RedisClock()
    assert clock.not_after_ms(5.0) == 0
    assert clock.is_old(5.0)
    clock.heard(1_000_000, 5.0)
    assert not clock.is_old(5.0 + ASK_EVERY_S / 2)
    assert clock.is_old(5.0 + ASK_EVERY_S)
