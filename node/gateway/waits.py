"""Answers that stay open until their client goes: event streams, watch connections, calls that wait for a result.

A node that stops ends them all at once, so that they do not hold up the requests under way. A wait whose client has
gone ends within LOOK_S; one timer looks after all of them. Does not know: what each of them waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_S = 1.0  # time between two looks for clients that have gone

IsGone = Callable[[], bool]


def _never() -> bool:
    return False


class OpenWaits:
    """All open waits of one node."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, IsGone] = {}
        self._look: asyncio.TimerHandle | None = None
        self._is_closing = False

    @contextmanager
    def hold(self, is_gone: IsGone = _never) -> Iterator[asyncio.Timeout]:
        """A wait without a limit of its own: `async with` it.

        It raises TimeoutError when the node stops, or soon after its client `is_gone`.
        """
        wait = asyncio.timeout(0 if self._is_closing else None)
        self._waits[wait] = is_gone
        if self._look is None and is_gone is not _never:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._end_gone)
        try:
            yield wait
        finally:
            del self._waits[wait]

    def end_all(self) -> None:
        """The node stops: end every wait now, and each later one as soon as it begins."""
        self._is_closing = True
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())

    def _end_gone(self) -> None:
        loop = asyncio.get_running_loop()
        for wait, is_gone in self._waits.items():
            if is_gone():
                wait.reschedule(loop.time())
        looks = any(is_gone is not _never for is_gone in self._waits.values())
        self._look = loop.call_later(LOOK_S, self._end_gone) if looks else None
