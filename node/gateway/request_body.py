"""Request bodies within their limits: a body over the limit is refused at once, and no more than the limit is held.

A body that comes together with its head, as nearly all do, costs no timer. Does not know: what the bytes mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import StreamReader, hdrs, web

from cluster.errors import TooLarge, TooSlow

LINES_MAX = 1000  # lines in one chunk
BODY_S = 20.0  # time for a body, and a second more for each RATE_MIN_BYTES that came: a slow line is no offence
RATE_MIN_BYTES = 16_384
PAUSE_S = 60.0  # longest pause between two pieces of a stream of lines; the stream itself may last


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The whole body; one that declares itself over the limit is refused unread. Raises TooLarge, TooSlow."""
    content = request.content
    declared = request.headers.get(hdrs.CONTENT_LENGTH)
    if declared is not None and len(declared) > 6 and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    if not content.is_eof():
        return await _in_time(content, max_bytes)
    body = await content.readany()
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


async def _in_time(content: StreamReader, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    began_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(began_s + BODY_S) as limit:
            while not content.at_eof():
                part = await content.readany()
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                limit.reschedule(began_s + BODY_S + size / RATE_MIN_BYTES)
    except TimeoutError:
        deadline_s = limit.when() or began_s
        raise TooSlow(
            f"only {size:,} bytes of the body came within {deadline_s - began_s:.0f} s.",
            f"Send at least {RATE_MIN_BYTES:,} bytes a second.",
        ) from None
    return b"".join(parts)


async def read_lines(request: web.Request, line_max_bytes: int) -> AsyncIterator[list[bytes]]:
    """Chunks of non-empty lines, as they arrive. Raises TooLarge, TooSlow."""
    rest = b""
    content = request.content
    while not content.at_eof():
        try:
            async with asyncio.timeout(PAUSE_S):
                data = await content.readany()
        except TimeoutError:
            raise TooSlow(
                f"no further line came within {PAUSE_S:g} s.", "Send the remaining lines in a new call."
            ) from None
        *lines, rest = (rest + data).split(b"\n")
        lines = [line for line in lines if line.strip()]
        for start in range(0, len(lines), LINES_MAX):
            yield lines[start : start + LINES_MAX]
        if len(rest) > line_max_bytes:
            raise _too_large(line_max_bytes, "line")
    if rest.strip():
        yield [rest]


def _too_large(max_bytes: int, what: str = "body") -> TooLarge:
    return TooLarge(
        f"the {what} is over {max_bytes:,} bytes ({_in_words(max_bytes)}).",
        "Send less at once, or store the data elsewhere and send a reference.",
    )


def _in_words(size_bytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= size:
            return f"{size_bytes / size:.3g} {unit}"
    return f"{size_bytes} bytes"
