"""Server-sent events over one response: what a listener gets, a comment when there is nothing, an end when it is slow.

Plain aiohttp, not aiohttp-sse: here a frame is encoded once for all clients, and all that waits goes in one write;
aiohttp-sse encodes and writes event by event and client by client, sends no comments (how a client is told that it is
too slow), and its pings run on a timer of their own, so that a client that reads nothing has two writers waiting.

Does not know: what happened, who listens.
"""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from node.observe.timeline import DROPPED, Listener

HEADERS: dict[str, str] = {
    hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
    hdrs.CACHE_CONTROL: "no-store",
    hdrs.SERVER: "rumor",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # nginx would hold it back
}
HELLO = b": the timeline of this cluster, then what happens; GET /openapi.json tells more\nretry: 500\n\n"
SILENCE = b": nothing new\n\n"
BYE = b": this node stops. Connect to another one.\n\n"
SILENCE_S = 5.0  # without an event, before a comment shows that the connection lives
SEND_WITHIN_S = 10.0  # a client that has not taken what was written by then is let go


async def pour(request: web.Request, response: web.StreamResponse, listener: Listener) -> None:
    """Write until the client goes, or is too slow. Raises ConnectionError when it is gone."""
    frames = HELLO
    while True:
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                await response.write(frames)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # What it did not take would hold the close up for ever.
            raise ConnectionResetError("the client does not read") from None
        if frames is DROPPED:
            return
        frames = await listener.next(SILENCE_S) or SILENCE
