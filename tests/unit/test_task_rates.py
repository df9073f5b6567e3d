"""Sums of tasks: the difference of two readings, merged by adding; percentiles lie within their bucket."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from node.observe.metrics import OTHER, SECONDS, Metrics
from node.observe.task_rates import (
    SETTLED_S,
    STEP_S,
    STEPS_KEPT,
    TYPES_MAX,
    Sum,
    Summing,
    count,
    counted,
    percentiles_ms,
    quantile,
    report,
    steps,
)


def test_a_sum_is_what_happened_since_the_last_one() -> None:
    metrics = Metrics()
    metrics.accepted.add(5)
    summing = Summing("n1", metrics)
    assert summing.take().is_empty
    metrics.accepted.add(2)
    metrics.commits.add("succeeded", 3)
    metrics.commits_by_type.add(("mail", "succeeded"), 3)
    metrics.run_s.add(0.004)
    taken = summing.take()
    assert (taken.accepted, taken.outcomes, taken.types) == (2, {"succeeded": 3}, {"mail": {"succeeded": 3}})
    assert taken.run == {bisect_left(SECONDS, 0.004): 1}
    assert summing.take().is_empty


@given(st.lists(st.builds(
    Sum, by=st.text(), accepted=st.integers(0, 9), refused=st.integers(0, 9), reaped=st.integers(0, 9),
    outcomes=st.dictionaries(st.sampled_from(["succeeded", "dead"]), st.integers(1, 9)),
    wait=st.dictionaries(st.integers(0, len(SECONDS)), st.integers(1, 9)),
    run=st.dictionaries(st.integers(0, len(SECONDS)), st.integers(1, 9)),
)))  # fmt: skip
def test_counters_to_which_sums_were_added_are_their_sum(sums: list[Sum]) -> None:
    counters: dict[str, int] = {}
    for each in sums:
        count(each, counters)
    assert report([counted(counters)]) == report(sums)


def test_counters_of_another_version_are_passed_over() -> None:
    assert counted({"outcome:succeeded": 2, "wait:x": 1, "by": 7, "more": 1, "run:²": 1}).outcomes == {"succeeded": 2}


def test_a_step_is_told_once_all_nodes_have_told_it() -> None:
    assert steps(1000.0 + SETTLED_S)[-1] == steps(1004.9 + SETTLED_S)[-1] == 1000 // STEP_S - 1
    assert len(steps(1000.0)) == STEPS_KEPT


def test_types_are_bounded_and_nothing_is_left_out() -> None:
    metrics = Metrics()
    summing = Summing("n1", metrics)
    for n in range(3 * TYPES_MAX):
        metrics.commits_by_type.add((f"type{n}", "succeeded"))
    types = summing.take().types
    assert len(types) <= TYPES_MAX + 1
    assert sum(counts["succeeded"] for counts in types.values()) == 3 * TYPES_MAX
    assert OTHER in types


def test_sums_of_many_nodes_are_added() -> None:
    total = report(
        [Sum("n1", accepted=1, outcomes={"dead": 1}, run={3: 2}), Sum("n2", outcomes={"dead": 2}, run={99: 1})]
    )
    assert (total["accepted"], total["outcomes"], total["wait_ms"]) == (1, {"dead": 3}, None)
    assert total["run_ms"]["p50"] <= 1000 * SECONDS[3]


@given(st.lists(st.floats(0, 4000), min_size=1))
def test_a_percentile_lies_in_the_bucket_of_its_value(values: list[float]) -> None:
    counts = [0] * (len(SECONDS) + 1)
    for value in values:
        counts[bisect_left(SECONDS, value)] += 1
    for share in (0.5, 0.95, 0.99):
        true = sorted(values)[max(0, -(-int(share * 10_000) * len(values) // 10_000) - 1)]
        bucket = bisect_left(SECONDS, true)
        value = quantile(counts, share)
        assert (SECONDS[bucket - 1] if bucket else 0) <= value <= SECONDS[min(bucket, len(SECONDS) - 1)]


def test_nothing_has_no_percentiles() -> None:
    assert percentiles_ms([0] * (len(SECONDS) + 1)) is None
