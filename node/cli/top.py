"""`rumor top`: the picture of `top_picture`, fed by any node and redrawn for as long as somebody looks.

Three things go on side by side: asking for the state of the cluster, following its events, and listening for q. When
the node behind it is gone, the client goes on with another. Does not know: what the picture shows.
"""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from rich.console import Console, ConsoleRenderable
from rich.live import Live

from cluster.errors import ConfigError, RumorError, Unauthorized
from node.cli.top_picture import EVENTS_KEPT, Board
from node.client.asynchronous import Client
from node.escapes import harmless, one_line

DRAW_MIN_S = 0.1  # the time between two pictures, however much happens
ASK_WITHIN_S = 3.0
EVENTS_AGAIN_S = 1.0
ONCE_LISTENS_S = 1.3  # a little more than a second, since task sums come once a second
ONCE_EVENTS = 10
ENDS, ESCAPE = "qQ\x03", "\x1b"  # an arrow begins with an escape


def main_top(urls: Sequence[str], ca_file: str, interval_s: float, once: bool) -> int:
    """Run it to its end. Returns the exit status."""
    top = Top(urls, ca_file, interval_s)
    return asyncio.run(top.once() if once else top.run())


class NoTerminal(ConfigError):
    """Without a terminal nobody could look, or press q. No node was asked."""

    code = "no_terminal"


class Top:
    """One run."""

    def __init__(self, urls: Sequence[str], ca_file: str, interval_s: float) -> None:
        self._client = Client(urls, ca_file=ca_file, within_s=ASK_WITHIN_S)
        self._interval_s = interval_s
        self._board = Board()
        self._news = asyncio.Event()
        self._end = asyncio.Event()
        self._console = Console()

    async def once(self) -> int:
        """Print it once."""
        async with self._client:
            await self._begin()
            try:
                async with asyncio.timeout(ONCE_LISTENS_S):
                    await self._listen()
            except TimeoutError:
                pass
        is_terminal = self._console.is_terminal
        self._console.print(self._picture(self._console.height if is_terminal else 10_000, ONCE_EVENTS))
        return 0

    async def run(self) -> int:
        """Show it until somebody ends it."""
        if not (sys.stdin.isatty() and self._console.is_terminal):
            raise NoTerminal(
                "rumor top needs a terminal.",
                "rumor top --once prints the picture; rumor status --json is for programs.",
            )
        async with self._client:
            await self._begin()  # raises, before any picture, if no node is there or the token is wrong
            with keys(self._end), Live(console=self._console, screen=True, auto_refresh=False) as live:
                tasks = [asyncio.create_task(job) for job in (self._keep_asking(), self._listen(), self._draw(live))]
                end = asyncio.create_task(self._end.wait())
                try:
                    await asyncio.wait([*tasks, end], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in [*tasks, end]:
                        task.cancel()
                    outcomes = await asyncio.gather(*tasks, end, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return 0

    async def _begin(self) -> None:
        await self._ask()
        with suppress(RumorError):  # while Redis is away, no node knows the sums
            self._board.begin(harmless(await self._client.sums()))

    async def _keep_asking(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._ask()
                self._board.trouble = ""
            except RumorError as error:
                self._board.trouble = one_line(error.message)
            self._news.set()

    async def _ask(self) -> None:
        client, board = self._client, self._board
        answers = await asyncio.gather(client.cluster(events=0), client.health(), client.workers())
        board.view, board.health, workers = map(harmless, answers)
        board.slots = {row["node_id"]: row.get("queues", {}) for row in workers}
        board.url = client.nodes.first

    async def _listen(self) -> None:
        while True:
            try:
                async for event in self._client.events(within_s=float("inf")):
                    self._board.take(replace(event, data=harmless(event.data)), time.monotonic())
                    self._news.set()
            except Unauthorized:
                raise
            except RumorError:
                await asyncio.sleep(EVENTS_AGAIN_S)  # an old node serves no events; the picture goes on without

    async def _draw(self, live: Live) -> None:
        while True:
            self._news.clear()
            live.update(self._picture(self._console.height), refresh=True)
            await asyncio.sleep(DRAW_MIN_S)
            try:
                async with asyncio.timeout(1.0):  # draw anyway: the clock moves, and the terminal may have been resized
                    await self._news.wait()
            except TimeoutError:
                pass

    def _picture(self, height: int, events_max: int = EVENTS_KEPT) -> ConsoleRenderable:
        return self._board.picture(time.monotonic(), time.strftime("%H:%M:%S"), height, self._console.width, events_max)


@contextmanager
def keys(end: asyncio.Event) -> Iterator[None]:
    """Set `end` when a key that ends it is pressed. Afterwards the terminal is as it was before."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        text = os.read(fd, 64).decode(errors="replace")
        if not text or text == ESCAPE or any(key in ENDS for key in text):
            end.set()

    try:
        tty.setcbreak(fd)
        loop.add_reader(fd, pressed)
        yield
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
