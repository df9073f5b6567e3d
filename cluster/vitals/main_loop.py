"""Whether the main loop still turns: how long it has been quiet, counting only time in which this process ran.

A process that was stopped (SIGSTOP, a sleeping machine) must not blame its main loop: the watcher missed its own looks
too, and that time does not count. Pure: the times are handed in.
"""

from __future__ import annotations


class MainLoop:
    """What the vitals thread knows of the main loop. Call `look` every `every_s`."""

    def __init__(self, every_s: float, now_s: float) -> None:
        self._every_s = every_s
        self._looked_s = now_s
        self._ticked_s: float | None = None
        self._away_s = 0.0  # time since the last tick in which this process did not run

    def look(self, ticked_s: float | None, now_s: float) -> float:
        """Seconds without a tick; `ticked_s` is when the last one came (None: the main loop has not begun)."""
        late_s = now_s - self._looked_s - self._every_s
        self._looked_s = now_s
        if ticked_s is None:
            return 0.0
        if ticked_s != self._ticked_s:
            self._ticked_s, self._away_s = ticked_s, 0.0
        if late_s > self._every_s:
            self._away_s += late_s
        return max(0.0, now_s - ticked_s - self._away_s)
