"""When a child process is replaced: by its tasks, by its memory, and how long before that its successor starts."""

from __future__ import annotations

import pytest

from node.work.wear import AHEAD_S, GROWTH_MB, MB, Limits, Reason, Wear


def worn(limits: Limits, sizes_mb: list[float]) -> Wear:
    wear = Wear(limits, 0.0)
    for size in sizes_mb:
        wear.add(int(size * MB))
    return wear


@pytest.mark.parametrize(
    ("limits", "sizes_mb", "reason"),
    [
        (Limits(), [], None),
        (Limits(), [50] * 10_000, None),
        (Limits(tasks=3), [50] * 2, None),
        (Limits(tasks=3), [50] * 3, Reason.TASKS),
        (Limits(tasks=1), [50], Reason.TASKS),
        (Limits(memory_mb=100), [99], None),
        (Limits(memory_mb=100), [50, 100], Reason.MEMORY),
        (Limits(memory_mb=100), [300], Reason.MEMORY),  # a limit is a limit, also for what one task needs
        (Limits(tasks=2, memory_mb=100), [50, 300], Reason.TASKS),
        (Limits(), [4_000] * 100, None),  # what it holds from its first task on, it needs
        (Limits(), [50, 50 + GROWTH_MB - 1], None),
        (Limits(), [50, 50 + GROWTH_MB], Reason.MEMORY),
        (Limits(), [0] * 100, None),  # a system that does not say how large a process is
    ],
)
def test_a_child_is_worn_when_it_has_reached_a_limit(
    limits: Limits, sizes_mb: list[float], reason: Reason | None
) -> None:
    assert worn(limits, sizes_mb).over() is reason


@pytest.mark.parametrize(
    ("limits", "sizes_mb", "now_s", "is_near"),
    [
        (Limits(), [], 100.0, False),
        (Limits(), [50] * 100, 100.0, False),
        (Limits(tasks=1), [], 0.0, True),
        (Limits(tasks=10), [50] * 8, 1_000.0, False),
        (Limits(tasks=10), [50] * 9, 1_000.0, True),
        (Limits(tasks=1_000), [50] * 900, 9.0, True),  # 100 tasks a second: the last 100 take a second
        (Limits(tasks=1_000), [50] * 500, 5.0, False),
        (Limits(memory_mb=500), [100, 160], 1_000.0, False),
        (Limits(memory_mb=500), [100, 160, 220, 280, 340], 1_000.0, False),
        (Limits(memory_mb=500), [100, 160, 220, 280, 340, 400], 1_000.0, True),  # two steps of 60 from the limit
        (Limits(), [100, 100 + GROWTH_MB / 2 + 10], 1_000.0, True),
        (Limits(memory_mb=100), [100 + 1], 0.0, False),  # it is over, and does not begin another task
    ],
)
def test_its_successor_starts_before_its_last_task(
    limits: Limits, sizes_mb: list[float], now_s: float, is_near: bool
) -> None:
    assert worn(limits, sizes_mb).is_near(now_s) is is_near


def test_a_child_that_wears_evenly_is_near_its_end_for_the_time_that_a_successor_needs() -> None:
    wear, limits = Wear(Limits(tasks=10_000), 0.0), 10_000
    for n in range(1, limits):
        wear.add(50 * MB)
        left_s = (limits - n) / 500  # at 500 tasks a second
        if abs(left_s - AHEAD_S) > 0.001:
            assert wear.is_near(n / 500) is (left_s < AHEAD_S), n
