"""The watch that the vitals thread keeps on the main loop: whether it stalls, and whether it will ever go on.

Decides nothing; see `main_loop`. Does not know: what a stalled node says of itself or how it ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cluster.vitals.main_loop import MainLoop

WATCH_MAIN_S = 0.25  # time between two looks


class MainWatch:
    """Looks every WATCH_MAIN_S. The main thread writes `ticked_s` to say that its loop turns.

    `on_stall` is called when the loop has been quiet for `stall_after_s`, and again when it ticks; `on_hang` when it
    has been quiet for `stall_limit_s`.
    """

    def __init__(
        self,
        stall_after_s: float,
        stall_limit_s: float,
        on_stall: Callable[[float], Awaitable[None]],
        on_hang: Callable[[float], Awaitable[None]],
    ) -> None:
        self.ticked_s: float | None = None
        self.is_stalled = False
        self._stall_after_s = stall_after_s
        self._stall_limit_s = stall_limit_s
        self._on_stall = on_stall
        self._on_hang = on_hang

    async def run(self) -> None:
        """Watch, for ever."""
        main = MainLoop(WATCH_MAIN_S, time.monotonic())
        while True:
            await asyncio.sleep(WATCH_MAIN_S)
            quiet_s = main.look(self.ticked_s, time.monotonic())
            if (quiet_s > self._stall_after_s) != self.is_stalled:
                self.is_stalled = not self.is_stalled
                await self._on_stall(quiet_s)
            if quiet_s > self._stall_limit_s:
                await self._on_hang(quiet_s)
