"""This node's own lease: how long it may run its tasks while Redis does not hear from it. Pure.

Redis hears this node in two ways, by the heartbeat and by the lanes. While either gets no answer, the lease runs. When
it has run for `lease_s`, other nodes may have fenced this session and run its tasks. The lease stands still while Redis
writes for nobody and every member that may be running says the same: then nobody can write a tombstone.

Does not know: Redis, clocks, what the engine does when the lease is over.
"""

from __future__ import annotations


class OwnLease:
    """Tells when this node must stop the tasks that it runs. Times are seconds of one monotonic clock."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._beats = True  # whether Redis answers the heartbeat
        self._lost_s: float | None = None  # since when the lease runs; None while both ways are answered

    def beats(self, is_answered: bool, lanes_up: bool, now_s: float) -> None:
        """Redis does, or does not, answer the heartbeat. `lanes_up`: whether it answers the lanes now."""
        self._beats = is_answered
        self._note(is_answered and lanes_up, now_s)

    def lanes(self, is_answered: bool, now_s: float) -> None:
        """Redis does, or does not, answer the lanes."""
        self._note(is_answered and self._beats, now_s)

    @property
    def is_running(self) -> bool:
        """Whether the lease runs: Redis gives no answer to the heartbeat, or none to the lanes."""
        return self._lost_s is not None

    def is_over(self, stands_still: bool, now_s: float) -> bool:
        """Whether the lease has run for `lease_s`. Call it now and then, with rising times.

        While the lease `stands_still`, its time begins anew with each call.
        """
        if self._lost_s is None:
            return False
        if stands_still:
            self._lost_s = now_s
        return now_s - self._lost_s > self._lease_s

    def _note(self, is_up: bool, now_s: float) -> None:
        if is_up:
            self._lost_s = None
        elif self._lost_s is None:
            self._lost_s = now_s
