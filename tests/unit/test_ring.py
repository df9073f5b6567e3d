"""Rendezvous hashing moves only what it must, in proportion to weight."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ring import owners

SHARDS = 64
NODES = st.text("abcdefghij0123456789.:", min_size=1, max_size=8)
WEIGHTS = st.dictionaries(NODES, st.integers(1, 500), min_size=1, max_size=8)


@given(WEIGHTS, st.data())
def test_a_member_that_leaves_moves_only_its_own_shards(weights: dict[str, int], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = owners(weights, SHARDS)
    after = owners({node: weight for node, weight in weights.items() if node != gone}, SHARDS)
    assert all(new == old for old, new in zip(before, after, strict=True) if old != gone)
    assert gone not in after


@given(WEIGHTS, NODES, st.integers(1, 500))
def test_a_member_that_joins_only_takes(weights: dict[str, int], joiner: str, weight: int) -> None:
    weights.pop(joiner, None)
    before = owners(weights, SHARDS)
    after = owners({**weights, joiner: weight}, SHARDS)
    assert all(new in (old, joiner) for old, new in zip(before, after, strict=True))


@given(WEIGHTS, st.data())
def test_a_member_that_grows_only_gains(weights: dict[str, int], data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(sorted(weights)))
    before = owners(weights, SHARDS)
    after = owners({**weights, node: weights[node] + 50}, SHARDS)
    assert all(new in (old, node) for old, new in zip(before, after, strict=True))


@given(WEIGHTS)
def test_all_nodes_agree_whatever_order_they_heard_of_each_other_in(weights: dict[str, int]) -> None:
    assert owners(weights, SHARDS) == owners(dict(reversed(weights.items())), SHARDS)


def test_shards_are_owned_in_proportion_to_weight() -> None:
    weights = {"small": 50, "middle": 100, "large": 350}
    held = Counter(owners(weights, 4096))
    for node, weight in weights.items():
        assert held[node] == pytest.approx(4096 * weight / 500, rel=0.15)


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 0, "b": -1}])
def test_nobody_able_owns_nothing(weights: dict[str, int]) -> None:
    assert owners(weights, 4) == ("",) * 4


@given(WEIGHTS)
def test_who_has_no_slots_owns_nothing_and_changes_nothing(weights: dict[str, int]) -> None:
    assert owners({**weights, "without": 0}, SHARDS) == owners(weights, SHARDS)
