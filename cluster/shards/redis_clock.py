"""Redis's clock, as one lane estimates it, and the moment after which a call may no longer be carried out. Pure.

Redis's answer to TIME was made after the question had left. So its clock never shows more than that answer plus the
time since the question left, and the estimate is ahead by one round trip at most: a call that Redis reads in time is
never refused because of it. `SLACK_S` covers clocks that run unevenly or are set by a little. If Redis's clock is set
forward by more, or another Redis answers, it refuses calls with its time in the answer, and the estimate follows at
once. If its clock is set back, calls may come late by as much until the next answer, within `ASK_EVERY_S`.

Does not know: Redis, this machine's wall clock.
"""

from __future__ import annotations

from cluster.deadline import GRACE_S

ASK_EVERY_S = 1.0  # age of the estimate at which the next group asks Redis for its time
SLACK_S = 0.5  # by which Redis's clock may be set, or the two clocks drift apart, before a call in time is refused


def carried_out_within_s(timeout_s: float) -> float:
    """The longest time after which Redis may carry out a call that a lane with this deadline sent."""
    return 2 * (timeout_s + GRACE_S) + SLACK_S


class RedisClock:
    """One lane's estimate. Times in seconds are those of the caller's monotonic clock."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None  # Redis's clock less the monotonic one, at most
        self._asked_s = 0.0

    def heard(self, redis_ms: int, asked_s: float) -> None:
        """Redis's clock showed this after the question had left."""
        self._ahead_ms = redis_ms - 1000 * asked_s
        self._asked_s = asked_s

    def is_old(self, now_s: float) -> bool:
        """Whether to ask Redis for its time again."""
        return self._ahead_ms is None or now_s - self._asked_s >= ASK_EVERY_S

    def not_after_ms(self, until_s: float) -> int:
        """The last moment, by Redis's clock, for a call whose answer is waited for until then.

        Before the first answer it is 0: Redis then refuses, and says what time it is.
        """
        if self._ahead_ms is None:
            return 0
        return int(self._ahead_ms + 1000 * (until_s + GRACE_S + SLACK_S)) + 1
