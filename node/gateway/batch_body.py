"""Arrays of tasks: read and parsed in turns, so that neither a large one nor many at once take the loop or the memory.

A batch takes several times its size until it is stored and answered. So there is room for so many bytes of batches at a
time, and one that finds none waits for its turn, unread. A stream of lines needs no room: it holds a chunk at a time.

Does not know: what becomes of the tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import hdrs, web

from cluster.config import Config
from cluster.errors import TooManyBatches
from node.gateway import parse

LARGEST_AT_ONCE = 2  # batches of the largest size that there is room for
TURN_WITHIN_S = 10.0  # longest wait for room


async def parsed(body: bytes, config: Config, item_max_bytes: int) -> list[parse.Parsed]:
    """The items of an array, each in its place. Others have their turn after each part."""
    items: list[parse.Parsed] = []
    for part in parse.batch(body, config.batch_max_tasks, config.nesting_max, item_max_bytes):
        if items:
            await asyncio.sleep(0)
        items += part
    return items


async def parsed_lines(chunk: Sequence[bytes], config: Config, first: int) -> list[parse.Parsed]:
    """The same of lines; `first` is the number of the first line."""
    items: list[parse.Parsed] = []
    for start in range(0, len(chunk), parse.PART_ITEMS):
        await asyncio.sleep(0)
        items += parse.lines(chunk[start : start + parse.PART_ITEMS], config.nesting_max, first + start)
    return items


class BatchRoom:
    """Room for the bytes of the batches under way, given in the order of asking."""

    def __init__(self, largest_bytes: int) -> None:
        self._largest_bytes = largest_bytes
        self._free_bytes = LARGEST_AT_ONCE * largest_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, request: web.Request) -> AsyncIterator[None]:
        """Room for this request's body, until it is answered. Raises TooManyBatches."""
        size = self._size(request)
        await self._take(size)
        try:
            yield
        finally:
            self._free_bytes += size
            self._let_in()

    def _size(self, request: web.Request) -> int:
        """What its body may take: as it says itself, unless it is to be unpacked."""
        declared = request.headers.get(hdrs.CONTENT_LENGTH)
        if declared is None or hdrs.CONTENT_ENCODING in request.headers:
            return self._largest_bytes
        return min(int(declared), self._largest_bytes)

    async def _take(self, size: int) -> None:
        if not self._waiting and size <= self._free_bytes:
            self._free_bytes -= size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(TURN_WITHIN_S):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_let_in` has passed it over already.
                    self._waiting.remove((size, turn))
            else:  # its turn came at the same moment
                self._free_bytes += size
            self._let_in()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TooManyBatches(
                f"this node works on other batches, and had no room for this one within {TURN_WITHIN_S:g} s.",
                "Send it again, or to another node.",
            ) from None

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free_bytes:
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free_bytes -= size
                turn.set_result(None)
