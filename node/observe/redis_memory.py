"""How full Redis is, and what follows: finished tasks go early, then submissions are refused, before writes fail.

Redis refuses writes at `maxmemory`, also those that would commit an outcome. Everything here happens before that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHORT = 0.7  # of maxmemory: finished tasks are dropped before their time
FULL = 0.92  # of maxmemory: submissions get 429


@dataclass(frozen=True, slots=True)
class Memory:
    """One look at INFO memory."""

    used_bytes: int = 0
    limit_bytes: int = 0  # 0: none set
    is_short: bool = False
    is_full: bool = False

    @property
    def note(self) -> dict[str, str] | None:
        """For /health, when there is something to say."""
        if not self.is_full:
            return None
        return {
            "code": "redis_full",
            "severity": "error",
            "message": f"Redis uses {self.used_bytes} of {self.limit_bytes} bytes; submissions are refused (429).",
            "hint": "Raise maxmemory, or shorten retention_s; queued and running tasks go on.",
        }


def look(told: Mapping[str, Any], retention_max_bytes: int) -> Memory:
    """Judge what INFO memory says."""
    used, limit = int(told.get("used_memory", 0)), int(told.get("maxmemory", 0))
    is_short = used > retention_max_bytes or (limit > 0 and used > SHORT * limit)
    return Memory(used, limit, is_short, limit > 0 and used > FULL * limit)
