"""When this node first noticed the end of each session; from that follows how long its recovery took.

Pure: times are handed in. A refuted suspicion is forgotten, and so is a session once it has been reaped.

Does not know: what a death is, who decides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.bounded import Bounded

SIGNS = ("member_suspect", "member_dead", "session_fenced")
RECOVERED = ("member_alive", "member_joined")
SESSIONS_MAX = 1_000  # bound on sessions that held nothing: nobody reaps those, and they must not stay for ever


class Signs:
    """The first sign of each session's end."""

    def __init__(self) -> None:
        self._first_s: Bounded[str, float] = Bounded(SESSIONS_MAX)

    def see(self, event: Mapping[str, Any], now_s: float) -> None:
        """Take one event of the timeline into account."""
        session = event.get("session")
        if not session:
            return
        if event["kind"] in SIGNS:
            if session not in self._first_s:
                self._first_s[session] = now_s
        elif event["kind"] in RECOVERED:
            self._first_s.pop(session, None)

    def ago_s(self, session: str, now_s: float) -> float:
        """Seconds since the session's first sign; 0 if there was none."""
        return now_s - self._first_s.get(session, now_s)

    def took_s(self, session: str, now_s: float) -> float | None:
        """Seconds from the first sign to the reaping, and forget the session; None if there was none (any more)."""
        first_s = self._first_s.pop(session, None)
        return None if first_s is None else now_s - first_s
