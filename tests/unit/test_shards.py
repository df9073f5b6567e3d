"""Which lane carries a call, how an answer reaches the caller, and what a reply means."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cluster import keys
from cluster.errors import StoreUnavailable, away
from cluster.redis_client import connect
from cluster.shards import lane as lanes
from cluster.shards.answers import Claims, QueueHead, SettleCode, StoreCode
from cluster.shards.calls import Calls
from cluster.shards.lane import Call
from cluster.shards.shards import Shards
from cluster.shards.task import Backoff, Spec, State, packed

CALLS = Calls(60.0, 1000, 60.0)
SESSION = "n1/018bcfe5680-00000001"
SPEC = Spec("noop", "default", 5, 3, 60.0, Backoff(0.0, 1.0, 0.0))
TASK = "01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f"


def ignore(_: Any) -> None: ...


def shards(count: int = 64) -> Shards:
    """Lanes that do not run."""
    return Shards(connect("redis://127.0.0.1:1"), CALLS, count, 1.0)


def test_everything_about_one_shard_is_in_one_lane() -> None:
    here = shards()
    for shard in range(64):
        calls = (
            CALLS.store(shard, SESSION, [], ignore),
            CALLS.claim(shard, "default", SESSION, 1, None, ignore),
            CALLS.settle(shard, SESSION, [], ignore),
            CALLS.reap(shard, SESSION, 0.5, ignore),
            CALLS.cancel(shard, TASK, 0, ignore),
            CALLS.replay(shard, [], ignore),
            CALLS.purge(shard, ignore),
            CALLS.sweep(shard, -1, ignore),
            CALLS.listing(shard, None, "", 1, 1, ("", "", ""), ignore),
            CALLS.counts(shard, ignore),
            CALLS.running(shard, ignore),
            CALLS.read(shard, TASK, ignore),
            CALLS.held(shard, SESSION, ignore),
            CALLS.progress(shard, SESSION, TASK, 1, b"1", ignore),
        )
        assert {here.lane_of_key(call.key) for call in calls} == {here.lane_of[shard]}
        assert shard in here.of_lane(here.lane_of[shard])
    assert sum(len(here.of_lane(lane)) for lane in here.lanes) == 64


def test_a_call_that_belongs_to_no_shard_has_a_lane_too() -> None:
    here = shards()
    for call in (
        CALLS.publish(SESSION, b"", ignore),
        CALLS.fenced_ms(SESSION, ignore),
        CALLS.timeline(ignore),
        CALLS.announce(b"", ignore),
        CALLS.tell([], 1, 1, ignore),
        CALLS.summed(1, ignore),
    ):
        assert keys.shard_of(call.key) is None
        assert here.lane_of_key(call.key) in here.lanes


@pytest.mark.parametrize("error", [ResponseError("OOM command not allowed"), away()])
async def test_what_redis_refuses_or_does_not_answer_is_raised_where_it_was_asked(error: Exception) -> None:
    here = shards()
    here.send = lambda call: call.on_reply(error)  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await here.ask(partial(CALLS.held, 1, SESSION))


async def test_a_reply_that_no_script_gives_ends_the_waiting_and_not_the_lane() -> None:
    taken: list[Any] = []
    lanes._answer(CALLS.claim(1, "default", SESSION, 1, None, taken.append), b"nonsense")
    lanes._answer(Call("", ("GET", "x"), [], taken.append), b"1")
    assert isinstance(taken[0], ValueError)
    assert taken[1] == b"1"
    here = shards()
    here.send = lambda call: lanes._answer(call, b"nonsense")  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="unpack"):
        await asyncio.wait_for(here.ask(partial(CALLS.cancel, 1, TASK, 0)), 5)


def test_an_unreadable_spec_spoils_no_other_task_of_a_claim() -> None:
    tokens = [b"2 1 0 1000 2500", 2, b"5 4 1 3600 -100", 1]
    bodies = [b"\1\0\5\xc15", packed(SPEC) + b"5", packed(SPEC) + b"6"]
    reply = [3500, 7, b"-250", [b"a", b"b", b"c"], tokens, bodies]
    answer = CALLS.claim(3, "default", SESSION, 9, None, ignore).decode(reply)
    assert isinstance(answer, Claims)
    assert (answer.now_ms, answer.left, answer.head_score) == (3500, 7, -250)
    assert [(task.id, task.shard, task.delivery, task.attempt, task.lost) for task in answer.tasks] == [
        ("b", 3, 1, 2, 0),
        ("c", 3, 4, 5, 1),
    ]
    assert [(task.spec, task.data) for task in answer.tasks] == [(SPEC, b"5"), (SPEC, b"6")]
    assert answer.waits == [(1, 2.5), (1, 0.0)], "a clock that was set back makes no wait negative"
    assert [task_id for task_id, _ in answer.unreadable] == ["a"]


def test_an_unreadable_spec_spoils_nothing_else_of_a_reap() -> None:
    rows = [b"a", 1, 1, 2500, b"\1\0\5\xc1", b"queued", b"b", 2, 1, 2500, packed(SPEC), b"dead"]
    answer = CALLS.reap(3, SESSION, 0.5, ignore).decode([7, 5, 0, [b"mail"], [b"default", 2, b"17"], rows])
    assert (answer.left, answer.queued, answer.dead, answer.heads) == (7, 5, ["mail"], [QueueHead("default", 2, 17)])
    (lost,) = answer.lost
    assert (lost.claimed.id, lost.ran_s, lost.outcome) == ("b", 2.5, State.DEAD)


def test_a_cluster_of_one_shard_has_one_lane() -> None:
    here = shards(1)
    assert [list(here.of_lane(lane)) for lane in here.lanes] == [[0]]
    assert list(here.idle()) == [0]
    assert here.lane_of_key(keys.wake(SESSION)) == 0


def test_the_shards_of_a_lane_that_is_down_count_for_no_other_lane() -> None:
    here = shards()
    assert here.of_others(0) == here.of_lane(1)
    here._lanes[1].is_up = False
    assert here.of_others(0) == frozenset()
    assert here.of_others(1) == here.of_lane(0)
    assert shards(1).of_others(0) == frozenset()


def test_a_kick_of_the_others_leaves_the_own_lane_at_rest() -> None:
    here = shards()
    here.kick_others(0)
    assert [lane.is_idle for lane in here._lanes] == [True, False]


def test_repeats_name_the_first_task_and_the_others_do_not() -> None:
    reply = [5, [b"q", b"i" + TASK.encode(), b"c", b"mother", b"x", b"s", b"f"], [b"default", 2, b"17"]]
    answer = CALLS.store(1, SESSION, [], ignore).decode(reply)
    assert answer.codes == [
        StoreCode.QUEUED,
        StoreCode.REPEAT,
        StoreCode.CLAIMED,
        StoreCode.MISMATCH,
        StoreCode.STORED_BEFORE,
        StoreCode.SCHEDULED,
        StoreCode.QUEUE_FULL,
    ]
    assert answer.firsts == {1: TASK, 3: "other"}
    assert answer.heads == [QueueHead("default", 2, 17)]


def test_a_refused_outcome_says_what_the_task_is_instead() -> None:
    answer = CALLS.settle(1, SESSION, [], ignore).decode([b"1", b"cancelled", b"y", b"gone"])
    assert answer.codes == [SettleCode.COMMITTED, SettleCode.REFUSED, SettleCode.ALREADY_YOURS, SettleCode.REFUSED]
    assert answer.refused == {1: "cancelled", 3: "gone"}


def test_a_cancellation_and_a_replay_say_what_stood_in_the_way() -> None:
    assert CALLS.cancel(1, TASK, 0, ignore).decode([b"", b"", 0]).was is None
    assert CALLS.cancel(1, TASK, 0, ignore).decode([b"running", b"s", 2]).was is State.RUNNING
    answer = CALLS.replay(1, [], ignore).decode([[b"1", b"", b"queued"], []])
    assert (answer.queued, answer.refused) == (1, {1: None, 2: State.QUEUED})
