"""A dict with a bound forgets what came in first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.bounded import Bounded


@given(st.integers(1, 5), st.lists(st.integers(0, 9)))
def test_the_newest_keys_are_there_and_no_more_than_the_bound(most: int, keys: list[int]) -> None:
    bounded: Bounded[int, int] = Bounded(most)
    expected: list[int] = []
    for n, key in enumerate(keys):
        bounded[key] = n
        if key not in expected:
            expected = [*expected, key][-most:]
        assert list(bounded) == expected
        assert bounded[key] == n


def test_a_key_that_is_popped_and_put_back_is_the_newest() -> None:
    bounded: Bounded[str, int] = Bounded(2)
    bounded["a"], bounded["b"] = 1, 2
    bounded["a"] = bounded.pop("a")
    bounded["c"] = 3
    assert list(bounded) == ["a", "c"]
