"""How full Redis is, and what follows: finished tasks are dropped early, then submissions are refused.

Pure. At `maxmemory` Redis refuses every write, also one that would commit an outcome; both steps come before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHORT = 0.7  # share of maxmemory above which finished tasks are dropped before their time
FULL = 0.92  # share of maxmemory above which submissions get 429


@dataclass(frozen=True, slots=True)
class Memory:
    """One look at INFO memory."""

    used_bytes: int = 0
    limit_bytes: int = 0  # maxmemory; 0 when none is set
    is_short: bool = False
    is_full: bool = False

    @property
    def note(self) -> dict[str, str] | None:
        """The problem for /health; None while there is none."""
        if not self.is_full:
            return None
        return {
            "code": "redis_full",
            "severity": "error",
            "message": f"Redis uses {self.used_bytes} of {self.limit_bytes} bytes; submissions are refused (429).",
            "hint": "Raise maxmemory, or shorten retention_s; queued and running tasks go on.",
        }


def look(info: Mapping[str, Any], retention_max_bytes: int) -> Memory:
    """Judge an answer to INFO memory."""
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    is_short = used > retention_max_bytes or (limit > 0 and used > SHORT * limit)
    return Memory(used, limit, is_short, limit > 0 and used > FULL * limit)
