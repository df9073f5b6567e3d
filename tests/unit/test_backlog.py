"""The backlog's plans: best head first, over all shards and lanes, never more than there are slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.shards.answers import QueueHead
from cluster.shards.calls import BATCH_MAX
from node.queue.backlog import SLACK_MS, Backlog, Pick

LANES = 2
LANE = [range(lane, 64, LANES) for lane in range(LANES)]
NORMAL, HIGH = 1_000_000, 1_000_000 - 180_000  # heads of the same age, three levels apart
HEADS = st.dictionaries(
    st.integers(0, 63), st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 600)), min_size=1, max_size=12
)


def backlog_of(heads: dict[int, tuple[int, int]]) -> Backlog:
    """A backlog of queue `q` with these heads: shard -> (score, count)."""
    backlog = Backlog()
    for shard, (score, count) in heads.items():
        backlog.set("q", shard, count, score)
    return backlog


def plans(heads: dict[int, tuple[int, int]], free: int) -> list[Pick]:
    """Both lanes' claims."""
    return [pick for lane in range(LANES) for pick in backlog_of(heads).plan("q", free, LANE[lane])]


@given(HEADS, st.integers(-1, 1000))
def test_a_plan_never_takes_more_than_is_free_or_than_one_script_may(
    heads: dict[int, tuple[int, int]], free: int
) -> None:
    for lane in range(LANES):
        picks = backlog_of(heads).plan("q", free, LANE[lane])
        assert sum(pick.limit for pick in picks) <= max(0, free)
        for pick in picks:
            assert 1 <= pick.limit <= min(BATCH_MAX, heads[pick.shard][1])
            assert pick.shard % LANES == lane
        assert len({pick.shard for pick in picks}) == len(picks)


@given(HEADS, st.integers(1, 1000))
def test_the_best_head_is_always_claimed(heads: dict[int, tuple[int, int]], free: int) -> None:
    """A lane may leave shards to the other, but together they never leave the best head: no queue stands still."""
    best = min((score, shard) for shard, (score, _) in heads.items())
    pick = next(pick for pick in plans(heads, free) if pick.shard == best[1])
    assert pick.highest is None or pick.highest >= best[0]


@given(HEADS, st.integers(1, 1000))
def test_a_claim_takes_nothing_that_is_clearly_worse_than_another_shards_head(
    heads: dict[int, tuple[int, int]], free: int
) -> None:
    for lane in range(LANES):
        claimed: set[int] = set()
        for pick in backlog_of(heads).plan("q", free, LANE[lane]):
            claimed.add(pick.shard)
            for shard, (score, _) in heads.items():
                if shard not in claimed:
                    assert pick.highest is not None
                    assert pick.highest <= score + SLACK_MS


@given(HEADS, st.integers(1, 1000))
def test_claims_answered_by_the_truth_drain_everything_in_the_end(heads: dict[int, tuple[int, int]], free: int) -> None:
    """Every planned claim makes progress, so lanes that wait for each other cannot wait for ever."""
    rest, backlog = dict(heads), backlog_of(heads)
    for _ in range(10_000):
        if backlog.is_empty("q"):
            break
        moved = 0
        for lane in range(LANES):
            for pick in backlog.plan("q", free, LANE[lane]):
                score, count = rest[pick.shard]
                assert pick.highest is None or score <= pick.highest
                moved += pick.limit
                rest[pick.shard] = (score + 100, count - pick.limit)
                backlog.set("q", pick.shard, count - pick.limit, score + 100)
        assert moved
    assert all(count == 0 for _, count in rest.values())


def test_a_high_task_in_one_shard_goes_before_normal_ones_in_another() -> None:
    heads = {0: (NORMAL, 100), 2: (HIGH, 3)}
    assert backlog_of(heads).plan("q", 8, LANE[0]) == [
        Pick(2, 3, NORMAL + SLACK_MS),
        Pick(0, 5, None),
    ]
    assert backlog_of(heads).plan("q", 2, LANE[0]) == [Pick(2, 2, NORMAL + SLACK_MS)]


def test_what_is_clearly_worse_than_another_lanes_head_is_left_until_that_lane_has_claimed() -> None:
    heads = {0: (NORMAL, 100), 1: (HIGH, 3)}
    assert backlog_of(heads).plan("q", 8, LANE[0]) == []
    assert backlog_of(heads).plan("q", 8, LANE[1]) == [Pick(1, 3, NORMAL + SLACK_MS)]
    after = backlog_of(heads)
    after.set("q", 1, 0, 0)
    assert after.plan("q", 5, LANE[0]) == [Pick(0, 5, None)]


def test_within_the_slack_all_shards_count_as_equally_old() -> None:
    heads = {0: (NORMAL, 100), 1: (NORMAL - SLACK_MS, 100)}
    assert [pick.shard for pick in plans(heads, 10)] == [0, 1]
    heads[1] = (NORMAL - SLACK_MS - 1, 100)
    assert [pick.shard for pick in plans(heads, 10)] == [1]


def test_what_is_heard_later_corrects_what_was_heard_before() -> None:
    backlog = Backlog()
    backlog.heard(4, [QueueHead("q", 7, 50), QueueHead("p", 2, 60)])
    assert backlog.queues() == ["q", "p"]
    assert backlog.queued("q", range(8)) == (7, 1 << 4, 50)
    backlog.heard(4, [QueueHead("q", 3, -70)])
    assert backlog.queued("q", range(8)) == (3, 1 << 4, -70)
    backlog.heard(4, [QueueHead("q", 0, 0)])
    assert backlog.is_empty("q")
    assert backlog.queues() == ["p"]
    assert backlog.plan("q", 10, LANE[0]) == []
    backlog.heard(4, [QueueHead("never seen", 0, 0)])
    assert backlog.queues() == ["p"]


def test_what_is_queued_is_summed_over_the_shards_that_are_asked_for() -> None:
    backlog = backlog_of({1: (50, 3), 2: (-5, 4), 9: (7, 100)})
    assert backlog.queued("q", (1, 2, 3)) == (7, 0b110, -5)
    assert backlog.queued("q", ()) == (0, 0, 0)
    assert backlog.queued("other", (1, 2)) == (0, 0, 0)


def test_what_was_heard_of_shards_that_moved_away_is_forgotten() -> None:
    backlog = Backlog()
    backlog.set("default", 1, 5, 100)
    backlog.set("default", 2, 5, 100)
    backlog.keep_only([2])
    assert [pick.shard for pick in backlog.plan("default", 10, range(64))] == [2]
