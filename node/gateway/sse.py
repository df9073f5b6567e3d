"""Server-sent events over one response: the frames of a listener, a comment in a silence, an end for a slow client.

Plain aiohttp, not aiohttp-sse. Here a frame is encoded once for all clients, and one write takes all frames that wait.
aiohttp-sse encodes and writes event by event and client by client; it sends no comments, with which we tell a client
that it is too slow; and its pings run on a timer of their own, so that a client that reads nothing keeps two writers
waiting.

Does not know: what the events are, who listens.
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
HELLO = b": the timeline of this cluster so far and as it goes on; see GET /openapi.json\nretry: 500\n\n"
SILENCE = b": nothing new\n\n"
BYE = b": this node stops. Connect to another one.\n\n"
SILENCE_S = 5.0  # time without an event, after which a comment shows that the connection lives
SEND_WITHIN_S = 10.0  # time in which a client must take what was written, or it is let go


async def pour(request: web.Request, response: web.StreamResponse, listener: Listener) -> None:
    """Write until the client goes or is too slow. Raises ConnectionError when it is gone."""
    frames = HELLO
    while True:
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                await response.write(frames)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()  # A close would wait for ever until the client takes the rest.
            raise ConnectionResetError("the client does not read") from None
        if frames is DROPPED:
            return
        frames = await listener.next(SILENCE_S) or SILENCE
