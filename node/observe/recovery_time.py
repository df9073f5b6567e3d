"""When a session's end was first noticed here, for the time that its recovery took.

Pure: times are handed in. A refuted suspicion is forgotten, and so is a session once it was reaped. Does not know: what
a death is, who decides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIGNS = ("member_suspect", "member_dead", "session_fenced")
RECOVERED = ("member_alive", "member_joined")
SESSIONS_MAX = 1_000  # a session that held nothing is never reaped, and must not stay for ever


class Signs:
    """The first sign of each session's end."""

    def __init__(self) -> None:
        self._first_s: dict[str, float] = {}

    def see(self, event: Mapping[str, Any], now_s: float) -> None:
        """A line of the timeline."""
        session = event.get("session")
        if not session:
            return
        if event["kind"] in SIGNS:
            self._first_s.setdefault(session, now_s)
            if len(self._first_s) > SESSIONS_MAX:
                del self._first_s[next(iter(self._first_s))]
        elif event["kind"] in RECOVERED:
            self._first_s.pop(session, None)

    def ago_s(self, session: str, now_s: float) -> float:
        """Seconds since the first sign; 0 if there was none."""
        return now_s - self._first_s.get(session, now_s)

    def took_s(self, session: str, now_s: float) -> float | None:
        """Seconds since the first sign, for the reaping; None if there was none, or this was asked before."""
        first_s = self._first_s.pop(session, None)
        return None if first_s is None else now_s - first_s
