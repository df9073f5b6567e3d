"""Both witnesses side by side: the verdict is a death only where they agree."""

from __future__ import annotations

import pytest

from cluster.load import Load, encode_load
from cluster.swim.events import Evidence, Identity, Member, MemberState
from cluster.view import RedisWord, Verdict, View
from cluster.vitals import view_maker
from cluster.vitals.lease import Term

SESSION = "n1/0190aaaaaaaa-0badcafe"


def member(state: MemberState, load: Load | None = None, evidence: Evidence = Evidence.NONE) -> Member:
    return Member(
        Identity("n1", SESSION, "127.0.0.1", 5000),
        incarnation=0,
        state=state,
        evidence=evidence,
        since_s=0.0,
        by="",
        rtt_s=0.001,
        load=b"" if load is None else encode_load(load),
        load_seq=0,
        load_at_s=0.0,
    )


@pytest.mark.parametrize(
    ("state", "redis", "verdict"),
    [
        (MemberState.ALIVE, RedisWord.LIVE, Verdict.HEALTHY),
        (MemberState.SUSPECT, RedisWord.LIVE, Verdict.HEALTHY),
        (MemberState.ALIVE, RedisWord.UNKNOWN, Verdict.HEALTHY),
        (MemberState.ALIVE, RedisWord.STALE, Verdict.CUT_FROM_REDIS),
        (MemberState.DEAD, RedisWord.LIVE, Verdict.CUT_FROM_PEERS),
        (MemberState.DEAD, RedisWord.UNKNOWN, Verdict.CUT_FROM_PEERS),
        (MemberState.DEAD, RedisWord.STALE, Verdict.DEAD),
        (MemberState.LEFT, RedisWord.STALE, Verdict.DEAD),
        (MemberState.ALIVE, RedisWord.GONE, Verdict.DEAD),
    ],
)
def test_the_verdict_of_both_witnesses(state: MemberState, redis: RedisWord, verdict: Verdict) -> None:
    assert view_maker.peer(member(state), redis, None).verdict is verdict


def test_a_live_member_is_believed_when_it_says_that_redis_does_not_answer() -> None:
    away = Load(redis=False, stalled=False, leaving=False, queues={})
    assert view_maker.peer(member(MemberState.ALIVE, away), RedisWord.LIVE, 0.1).verdict is Verdict.CUT_FROM_REDIS
    assert view_maker.peer(member(MemberState.DEAD, away), RedisWord.LIVE, 0.1).verdict is Verdict.CUT_FROM_PEERS


def test_ages_alone_are_not_worth_telling() -> None:
    def view(age_s: float, redis: RedisWord) -> View:
        leader = view_maker.leader(Term(SESSION, 3))
        return View("n1", SESSION, (view_maker.peer(member(MemberState.ALIVE), redis, age_s),), leader, 3, True, True)

    assert view_maker.essence(view(0.1, RedisWord.LIVE)) == view_maker.essence(view(0.2, RedisWord.LIVE))
    assert view_maker.essence(view(0.1, RedisWord.LIVE)) != view_maker.essence(view(0.1, RedisWord.STALE))


def test_a_node_knows_by_itself_whether_redis_takes_its_heartbeats() -> None:
    assert view_maker.own_row(member(MemberState.ALIVE), True, 0.1).redis is RedisWord.LIVE
    row = view_maker.own_row(member(MemberState.ALIVE), False, 7.0)
    assert (row.redis, row.redis_age_s, row.verdict) == (RedisWord.STALE, 7.0, Verdict.CUT_FROM_REDIS)


def test_a_tombstone_that_gossip_tells_of_needs_no_reading_here() -> None:
    assert view_maker.word(member(MemberState.DEAD, evidence=Evidence.FENCED), RedisWord.LIVE) is RedisWord.GONE
    assert view_maker.word(member(MemberState.DEAD, evidence=Evidence.REFUSED), RedisWord.LIVE) is RedisWord.LIVE
