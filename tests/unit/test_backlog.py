"""The backlog's plans: best head first, over all shards and lanes, never more than there are slots."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.shards.answers import QueueHead
from cluster.shards.calls import BATCH_MAX
from node.queue.backlog import SHARE_MIN, SLACK_MS, Backlog, Pick

LANES = 2
LANE = [range(lane, 64, LANES) for lane in range(LANES)]
NO_LANE = range(0)
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


def plan(backlog: Backlog, free: int, lane: int) -> list[Pick]:
    """One lane's claims beside the other lane, of which none is sent."""
    return backlog.plan("q", free, LANE[lane], LANE[1 - lane])


def send(backlog: Backlog, free: int, lane: int) -> list[Pick]:
    """One lane's claims, as they leave: from now on they are under way."""
    picks = plan(backlog, free, lane)
    for pick in picks:
        backlog.ask("q", pick.shard, pick.limit)
    return picks


def taken(picks: list[Pick]) -> int:
    return sum(pick.limit for pick in picks)


def plans(heads: dict[int, tuple[int, int]], free: int) -> list[Pick]:
    """Both lanes' claims, each made as if the other had sent none."""
    return [pick for lane in range(LANES) for pick in plan(backlog_of(heads), free, lane)]


@given(HEADS, st.integers(-1, 1000))
def test_a_plan_never_takes_more_than_is_free_or_than_one_script_may(
    heads: dict[int, tuple[int, int]], free: int
) -> None:
    for lane in range(LANES):
        picks = plan(backlog_of(heads), free, lane)
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
        for pick in plan(backlog_of(heads), free, lane):
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
            for pick in plan(backlog, free, lane):
                score, count = rest[pick.shard]
                assert pick.highest is None or score <= pick.highest
                moved += pick.limit
                rest[pick.shard] = (score + 100, count - pick.limit)
                backlog.set("q", pick.shard, count - pick.limit, score + 100)
        assert moved
    assert all(count == 0 for _, count in rest.values())


def test_a_high_task_in_one_shard_goes_before_normal_ones_in_another() -> None:
    heads = {0: (NORMAL, 100), 2: (HIGH, 3)}
    assert plan(backlog_of(heads), 8, 0) == [
        Pick(2, 3, NORMAL + SLACK_MS),
        Pick(0, 5, None),
    ]
    assert plan(backlog_of(heads), 2, 0) == [Pick(2, 2, NORMAL + SLACK_MS)]


def test_what_is_clearly_worse_than_another_lanes_head_is_left_until_that_lane_has_claimed() -> None:
    heads = {0: (NORMAL, 100), 1: (HIGH, 3)}
    assert plan(backlog_of(heads), 8, 0) == []
    assert plan(backlog_of(heads), 8, 1) == [Pick(1, 3, NORMAL + SLACK_MS)]
    after = backlog_of(heads)
    after.set("q", 1, 0, 0)
    assert plan(after, 5, 0) == [Pick(0, 5, None)]


def test_within_the_slack_all_shards_count_as_equally_old() -> None:
    heads = {0: (NORMAL, 100), 1: (NORMAL - SLACK_MS, 100)}
    assert [pick.shard for pick in plans(heads, 10)] == [0, 1]
    heads[1] = (NORMAL - SLACK_MS - 1, 100)
    assert [pick.shard for pick in plans(heads, 10)] == [1]


@given(HEADS, st.integers(1, 300), st.integers(0, LANES - 1))
def test_lanes_together_claim_for_no_more_than_is_free_and_for_all_that_is(
    heads: dict[int, tuple[int, int]], free: int, first: int
) -> None:
    """Idle lanes plan in turn, as they do when each wakes the other after its claims."""
    backlog = backlog_of(heads)
    claims = {first: send(backlog, free, first)}
    for lane in (1 - first, first):
        if not claims.get(lane):
            claims[lane] = send(backlog, free - sum(map(taken, claims.values())), lane)
    total = sum(map(taken, claims.values()))
    best = min(heads.values())[0]
    equally_old = sum(count for score, count in heads.values() if score <= best + SLACK_MS)
    assert min(free, equally_old, BATCH_MAX) <= total <= free
    assert len({pick.shard for picks in claims.values() for pick in picks}) == sum(map(len, claims.values()))


@given(HEADS, st.integers(1, 300), st.integers(0, LANES - 1))
def test_the_first_of_two_lanes_takes_at_least_half_of_what_it_may_have(
    heads: dict[int, tuple[int, int]], free: int, lane: int
) -> None:
    """It leaves no more than half, and none when the other lane has nothing that is its turn."""
    alone = {shard: head for shard, head in heads.items() if shard in LANE[lane]}
    beside, by_itself = plan(backlog_of(heads), free, lane), backlog_of(alone).plan("q", free, LANE[lane], NO_LANE)
    if beside:
        best = alone[beside[0].shard][0]
        rivals = [head for shard, head in heads.items() if shard not in alone]
        if not any(score <= best + SLACK_MS for score, _ in rivals) or free < SHARE_MIN:
            left = 0
        else:
            left = min(free // 2, sum(count for score, count in rivals if score <= best + SLACK_MS))
        limit = min(free - left, taken(by_itself))
        assert taken(beside) <= free - left
        first = min(limit, alone[beside[0].shard][1], BATCH_MAX)
        assert beside[0].limit == first


@given(
    st.integers(SHARE_MIN, 300).map(lambda slots: slots - slots % 2),
    st.lists(st.integers(0, LANES - 1), min_size=4, max_size=40),
)
def test_lanes_with_work_for_all_slots_come_to_share_them_in_halves(slots: int, answered: list[int]) -> None:
    """One lane has claimed all slots before the other had work; whoever is answered has run its tasks and plans."""
    backlog, under_way = backlog_of({0: (NORMAL, 10_000), 1: (NORMAL, 10_000)}), [slots, 0]
    backlog.ask("q", 0, slots)
    for lane in answered:
        if under_way[lane]:
            backlog.answered("q", lane)
            under_way[lane] = 0
        for each in (lane, 1 - lane):
            if not under_way[each]:
                under_way[each] = taken(send(backlog, slots - sum(under_way), each))
        assert sum(under_way) == slots
    if 0 in answered:
        assert under_way == [slots // 2, slots // 2]


def test_a_lane_has_all_slots_while_the_other_has_no_tasks_for_them() -> None:
    assert plan(backlog_of({0: (NORMAL, 500)}), 100, 0) == [Pick(0, 100, None)]
    assert taken(plan(backlog_of({0: (NORMAL, 500), 1: (NORMAL, 3)}), 100, 0)) == 97
    far_worse = {0: (HIGH, 500), 1: (NORMAL, 500)}
    assert taken(plan(backlog_of(far_worse), 100, 0)) == 100
    down = backlog_of({0: (NORMAL, 500), 1: (HIGH, 500)})
    assert down.plan("q", 100, LANE[0], NO_LANE) == [Pick(0, 100, None)]


def test_a_lane_leaves_nothing_beyond_what_the_other_has_claimed_already() -> None:
    backlog = backlog_of({0: (NORMAL, 500), 1: (NORMAL, 500)})
    backlog.ask("q", 1, 50)
    assert taken(plan(backlog, 50, 0)) == 50
    backlog.ask("q", 1, 20)
    assert taken(plan(backlog, 80, 0)) == 50


def test_few_slots_are_not_shared() -> None:
    heads = {0: (NORMAL, 100), 1: (NORMAL, 100)}
    for free in range(1, SHARE_MIN):
        assert taken(plan(backlog_of(heads), free, 0)) == free
    assert taken(plan(backlog_of(heads), SHARE_MIN, 0)) == SHARE_MIN // 2


def test_a_better_head_that_is_being_claimed_whole_holds_up_nobody() -> None:
    backlog = backlog_of({0: (NORMAL, 100), 1: (HIGH, 3)})
    assert plan(backlog, 8, 0) == []
    backlog.ask("q", 1, 2)
    assert plan(backlog, 6, 0) == []
    backlog.ask("q", 1, 3)
    assert plan(backlog, 5, 0) == [Pick(0, 5, None)]


def test_what_claims_under_way_ask_for_is_offered_to_nobody() -> None:
    backlog = backlog_of({3: (NORMAL, 5), 4: (HIGH, 9), 5: (HIGH, 9)})
    backlog.ask("q", 3, 5)
    backlog.ask("q", 4, 7)
    assert backlog.heads("q", range(5)) == [(HIGH, 4, 2)]
    backlog.answered("q", 3)
    assert backlog.heads("q", range(4)) == [(NORMAL, 3, 5)]


def test_one_claim_at_a_time_is_under_way_in_a_queue_of_a_shard() -> None:
    backlog = backlog_of({0: (NORMAL, 500), 2: (NORMAL, 500)})
    backlog.ask("q", 0, 10)
    assert backlog.is_asking("q", 0)
    assert not backlog.is_asking("p", 0)
    assert [pick.shard for pick in plan(backlog, 100, 0)] == [2]
    backlog.answered("q", 0)
    assert not backlog.is_asking("q", 0)
    assert [pick.shard for pick in plan(backlog, 100, 0)] == [0]


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
    assert plan(backlog, 10, 0) == []
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
    assert [pick.shard for pick in backlog.plan("default", 10, range(64), NO_LANE)] == [2]


def test_a_queue_in_which_nothing_is_queued_leaves_no_name_behind() -> None:
    backlog = Backlog()
    for n in range(100):
        backlog.set(f"once-{n}", n % 2, 1, 100)
        backlog.ask(f"once-{n}", n % 2, 1)
    backlog.keep_queues(0, {"once-0"})
    assert backlog.queued("once-0", [0]) == (1, 1, 100)
    assert set(backlog.queues()) == {"once-0", *(f"once-{n}" for n in range(1, 100, 2))}
    backlog.keep_only([0])
    assert backlog.queues() == ["once-0"]
    for n in range(100):
        backlog.answered(f"once-{n}", n % 2)
    backlog.set("once-0", 0, 0, 0)
    assert (backlog._queues, backlog._asked) == ({}, {})


def test_what_a_lane_has_just_asked_for_to_steal_it_makes_no_room_for_the_other() -> None:
    """A limit below 0 would mean to Redis: the whole queue."""
    backlog = backlog_of({2: (NORMAL, 10), 1: (NORMAL, 100)})
    backlog.ask("q", 0, 16)
    assert plan(backlog, 4, 0) == [Pick(2, 4, NORMAL + SLACK_MS)]
