"""A wire to Redis that a test holds: it keeps back what a node sends, as a cut does whose bytes wait in a kernel.

The node may give up and close its end; `release` delivers the old bytes all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Wire:
    """A proxy in front of a Redis."""

    def __init__(self, redis_port: int) -> None:
        self._redis_port = redis_port
        self._may_ask, self._may_answer = asyncio.Event(), asyncio.Event()
        self._may_ask.set()
        self._may_answer.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.answers = b""  # what Redis answered and is kept back
        self.held = b""  # questions that are kept back, of all connections
        self.delivered = 0  # connections whose node has gone, and whose questions Redis has all
        self.url = ""

    async def open(self) -> None:
        """Begin to listen."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._server = server
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"

    def hold(self) -> None:
        """Keep back what nodes send from now on; connections are accepted as ever."""
        self._may_ask.clear()

    def hold_answers(self) -> None:
        """Keep back what Redis answers from now on, and nothing else: it carries out what it is sent."""
        self._may_ask.set()
        self._may_answer.clear()

    def release(self) -> None:
        """Deliver all that was kept back, and keep back nothing more."""
        self._may_ask.set()
        self._may_answer.set()

    def drop(self) -> None:
        """Reset every connection to a node, and keep back nothing from those to come."""
        for writer in self._writers:
            writer.transport.abort()
        self._may_ask.set()
        self._may_answer.set()

    async def close(self) -> None:
        """End all."""
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.get_running_loop().create_task(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        below, above = await asyncio.open_connection("127.0.0.1", self._redis_port)
        answering = asyncio.create_task(self._answer(below, writer))
        try:
            while data := await _read(reader):
                if not self._may_ask.is_set():
                    self.held += data
                    await self._may_ask.wait()
                above.write(data)
            above.write_eof()
            await answering
            self.delivered += 1
        finally:
            self._writers.discard(writer)
            answering.cancel()
            above.close()
            writer.close()

    async def _answer(self, below: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await _read(below):
            if not self._may_answer.is_set():
                self.answers += data
                await self._may_answer.wait()
            with contextlib.suppress(OSError, RuntimeError):
                writer.write(data)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(65_536)
    except OSError:
        return b""


@contextlib.asynccontextmanager
async def wire_to(redis_port: int) -> AsyncIterator[Wire]:
    """A wire, ended with the test."""
    wire = Wire(redis_port)
    await wire.open()
    try:
        yield wire
    finally:
        await wire.close()
