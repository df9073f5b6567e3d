"""Answers that stay open until their client goes: event streams, watch connections, reads that wait for a result.

A node that stops ends them all at once, so that they do not hold up the requests under way. Does not know: what each
of them waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class OpenWaits:
    """All open waits of one node."""

    def __init__(self) -> None:
        self._waits: set[asyncio.Timeout] = set()
        self._is_closing = False

    @contextmanager
    def hold(self) -> Iterator[asyncio.Timeout]:
        """A wait without a limit of its own: `async with` it. When the node stops it raises TimeoutError."""
        wait = asyncio.timeout(0 if self._is_closing else None)
        self._waits.add(wait)
        try:
            yield wait
        finally:
            self._waits.discard(wait)

    def end_all(self) -> None:
        """The node stops: end every wait now, and each later one as soon as it begins."""
        self._is_closing = True
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
