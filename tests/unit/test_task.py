"""Ids tell their time and their shard; backoff stays under its ceiling. These hold for any clock and any numbers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shards.task import Backoff, Ids, backoff_s, made_at_ms, shard_of

WALL_MS = st.integers(0, 2**48)
SHARDS = 64


@given(st.lists(st.tuples(WALL_MS, st.integers(0, SHARDS - 1)), min_size=2, max_size=30), st.integers(0, 2**32))
def test_ids_of_one_process_rise_strictly_even_when_the_clock_steps_back(
    moments: list[tuple[int, int]], seed: int
) -> None:
    ids = Ids(seed)
    task_ids = [ids.next(wall_ms, shard) for wall_ms, shard in moments]
    assert task_ids == sorted(set(task_ids))


@given(WALL_MS, WALL_MS, st.integers(0, 2**32), st.integers(0, 2**32))
def test_ids_sort_by_time_across_processes(one_ms: int, other_ms: int, one_seed: int, other_seed: int) -> None:
    one, other = Ids(one_seed).next(one_ms, 63), Ids(other_seed).next(other_ms, 0)
    if one_ms != other_ms:
        assert (one < other) == (one_ms < other_ms)


@given(WALL_MS, st.integers(0, 255))
def test_an_id_ends_in_its_shard(wall_ms: int, shard: int) -> None:
    task_id = Ids().next(wall_ms, shard)
    assert task_id.endswith(f"-{shard:02x}")
    assert shard_of(task_id, 256) == shard
    assert shard_of(task_id, shard) is None, "a cluster with fewer shards has no such task"


def test_two_processes_do_not_make_the_same_ids() -> None:
    assert Ids().next(1, 0) != Ids().next(1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_a_process_makes_a_thousand_ids_in_one_millisecond(seed: int) -> None:
    ids = Ids(seed)
    assert len({ids.next(5, 1) for _ in range(1000)}) == 1000


@given(st.text(max_size=40))
def test_what_is_no_id_has_no_shard(text: str) -> None:
    assert shard_of(text, SHARDS) is None


GOOD = Ids(1).next(1_700_000_000_000, 0x1F)


@pytest.mark.parametrize(
    "text",
    [
        GOOD[:-1],
        GOOD + "0",
        GOOD[1:],
        "0" + GOOD,
        GOOD.replace("-", ""),
        GOOD.replace("-", "_"),
        GOOD[:-2] + "1F",
        GOOD[:-2] + "+1",
        GOOD[:-2] + " 1",
        GOOD[:-2] + "4f",
        GOOD[:-3] + "--1",
        GOOD + "-1f",
        "\u0665" * 26 + "-1f",
        GOOD[:10] + "\n" + GOOD[11:],
        GOOD[:10] + " " + GOOD[11:],
        GOOD[:10] + "{" + GOOD[11:],
        "",
        "-1f",
    ],
)
def test_what_is_nearly_an_id_has_no_shard(text: str) -> None:
    assert shard_of(GOOD, SHARDS) == 0x1F
    assert shard_of(text, SHARDS) is None


@given(
    st.floats(0, 86_400),
    st.floats(1, 100),
    st.floats(0, 604_800),
    st.integers(1, 100_000),
    st.integers(0, 2**32),
)
def test_a_backoff_lies_between_nothing_and_its_ceiling(
    base_s: float, factor: float, max_s: float, failures: int, seed: int
) -> None:
    wait_s = backoff_s(Backoff(base_s, factor, max_s), failures, Random(seed))
    assert 0.0 <= wait_s <= max_s
    if base_s == 0:
        assert wait_s == 0.0
    elif failures < 100:
        assert wait_s <= base_s * factor ** (failures - 1) * (1 + 1e-9)


def test_the_jitter_is_full() -> None:
    rng = Random(7)
    waits = [backoff_s(Backoff(2.0, 3.0, 1000.0), 3, rng) for _ in range(4000)]
    tenths = [sum(n * 1.8 <= wait < (n + 1) * 1.8 for wait in waits) for n in range(10)]
    assert min(tenths) > 300
    assert max(tenths) < 500


def test_the_ceiling_grows_by_the_factor_until_the_maximum() -> None:
    class Highest(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    waits = [backoff_s(Backoff(1.0, 2.0, 10.0), failures, Highest()) for failures in range(1, 7)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@given(st.integers(0, 2**48 - 1), st.integers(0, 255))
def test_an_id_tells_when_it_was_made(at_ms: int, shard: int) -> None:
    assert made_at_ms(Ids(seed=1).next(at_ms, shard)) == at_ms
