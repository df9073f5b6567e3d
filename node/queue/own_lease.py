"""Our own lease: since when Redis may have taken the word of others about this session, and not ours.

Pure. Redis hears this node in two ways, by the heartbeat and by the lanes; while either gets no answer the lease runs.
What a session still runs after `lease_s` of that may be somebody else's by now. The lease stands still while Redis
writes for nobody and every member that may be running says the same: nobody can write a tombstone then.

Does not know: Redis, clocks, what is done about an overdue lease.
"""

from __future__ import annotations


class OwnLease:
    """Tells from when on this node must stop what it runs. Times are of one monotonic clock, in seconds."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._beats = True  # the heartbeat is answered
        self._lost_s: float | None = None

    def beats(self, is_answered: bool, lanes_up: bool, now_s: float) -> None:
        """The heartbeat is (not) answered; the lanes are as they are."""
        self._beats = is_answered
        self._note(is_answered and lanes_up, now_s)

    def lanes(self, is_answered: bool, now_s: float) -> None:
        """The lanes are (not) answered."""
        self._note(is_answered and self._beats, now_s)

    @property
    def is_running(self) -> bool:
        """Whether the time counts: Redis gives no answer to the heartbeat, or none to the lanes."""
        return self._lost_s is not None

    def is_over(self, stands_still: bool, now_s: float) -> bool:
        """Whether Redis could not vouch for this session during `lease_s`. Ask it now and then, with rising times."""
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
