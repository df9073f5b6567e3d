"""The clocks of this machine that more than one driver reads.

Does not know: who asks. A pure module is handed the time and never reads a clock.
"""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Milliseconds of this machine's wall clock: it may step, and others' clocks may differ."""
    return time.time_ns() // 1_000_000


def boot_s() -> float:
    """Monotonic seconds that go on while the machine sleeps, where the platform has them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
