"""What follows from how full Redis is."""

from __future__ import annotations

import pytest

from node.observe.redis_memory import Memory, look

MIB = 1_048_576


@pytest.mark.parametrize(
    ("used", "limit", "short", "full"),
    [
        (10 * MIB, 0, False, False),
        (101 * MIB, 0, True, False),
        (60 * MIB, 100 * MIB, False, False),
        (71 * MIB, 100 * MIB, True, False),
        (93 * MIB, 100 * MIB, True, True),
    ],
)
def test_finished_tasks_go_first_and_submissions_are_refused_before_redis_refuses_writes(
    used: int, limit: int, short: bool, full: bool
) -> None:
    seen = look({"used_memory": used, "maxmemory": limit}, 100 * MIB)
    assert (seen.is_short, seen.is_full) == (short, full)
    assert (seen.note is not None) == full


def test_a_server_that_says_nothing_of_its_memory_is_not_short() -> None:
    assert look({}, MIB) == Memory()
