"""The scripts of one shard against a model: every operation, in any order, by several sessions, right and wrong.

What is compared after each step is listed in `shard_model`. A failing walk is replayed by its seed alone:
`pytest tests/integration/test_shard_model.py -k 'walk and 17'`.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.conftest import RedisServer

pytest.register_assert_rewrite("tests.integration.shard_model")

from tests.integration.shard_model import OPERATIONS, ShardPair  # noqa: E402

WALKS = 40
STEPS = 250


@pytest.fixture
def port(redis_server: RedisServer) -> int:
    return redis_server.port


def walk(pair: ShardPair, rng: Random, operations: list[str]) -> None:
    try:
        for operation in operations:
            pair.do(operation, rng)
        pair.drop_everything()
    except AssertionError as error:
        error.add_note("after " + " ".join(pair.trail))
        raise
    finally:
        pair.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(sorted(set(OPERATIONS))), min_size=1, max_size=25))
def test_any_few_operations_leave_the_shard_as_the_model_says(port: int, rng: Random, operations: list[str]) -> None:
    """Few, so that Hypothesis can shrink what fails."""
    walk(ShardPair(port, 1), rng, operations)


@pytest.mark.parametrize("decade", range(WALKS // 10))
def test_a_long_walk_leaves_the_shard_as_the_model_says(port: int, decade: int) -> None:
    for seed in range(decade * 10, decade * 10 + 10):
        rng = Random(seed)
        try:
            walk(ShardPair(port, seed), rng, rng.choices(OPERATIONS, k=STEPS))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
