"""The rhythm of this node's views: a change of state makes a new one at once, unless one was made just before.

Does not know: what a view holds (see `view_maker`) or what makes it change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from cluster.view import View
from cluster.vitals import view_maker
from cluster.vitals.told import NewView, Tell

VIEW_MIN_S = 0.05  # time between two views for changes of state


class Views:
    """This node's views, one after another. `make` builds one of its present beliefs."""

    def __init__(self, first: View, make: Callable[[], View], tell: Tell) -> None:
        self.latest = first
        self._make = make
        self._tell = tell
        self._essence: tuple[object, ...] = ()  # of the last view that the main loop heard of
        self._timer: asyncio.TimerHandle | None = None
        self._changed_s = 0.0  # when `soon` last led to a view

    def soon(self) -> None:
        """Make a new view in the next turn of the loop, or VIEW_MIN_S after the last one that this made."""
        if self._timer is None:
            wait_s = max(0.0, self._changed_s + VIEW_MIN_S - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._after_wait)

    def now(self) -> None:
        """Make a new view, and tell the main loop if there is anything new in it."""
        self.latest = self._make()
        essence = view_maker.essence(self.latest)
        if essence != self._essence:
            self._essence = essence
            self._tell(NewView(self.latest))

    def close(self) -> None:
        """Make no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _after_wait(self) -> None:
        self._timer = None
        self._changed_s = time.monotonic()
        self.now()
