"""A deadline that looks into the socket before it believes the clock.

A loop that was busy past a deadline serves its timer first, and only then the socket in which the answer may have lain
in time. So a deadline has a moment of grace, in which the loop reads what has arrived.
"""

from __future__ import annotations

import asyncio
from typing import Any

GRACE_S = 0.02  # after a deadline, for an answer that lies in the buffer


async def ends_within(task: asyncio.Future[Any], limit_s: float) -> bool:
    """Whether the task ends by then or within the grace that follows. A task that does not is its maker's to cancel."""
    for wait_s in (limit_s, GRACE_S):
        done, _ = await asyncio.wait((task,), timeout=wait_s)
        if done:
            return True
    return False
