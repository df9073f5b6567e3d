"""Request bodies within their limits: refused as soon as they are known to be over, never held beyond.

Does not know: what the bytes mean.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import hdrs, web

from cluster.errors import TooLarge

LINES_MAX = 1000  # lines handed on at once


async def whole(request: web.Request, max_bytes: int) -> bytes:
    """The whole body; over the limit it is refused before it is read."""
    content = request.content
    declared = request.headers.get(hdrs.CONTENT_LENGTH)
    if declared is not None and len(declared) > 6 and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = await content.readany()
    if content.at_eof():
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    parts = [body]
    size = len(body)
    while not content.at_eof():
        part = await content.readany()
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


async def lines(request: web.Request, line_max_bytes: int) -> AsyncIterator[list[bytes]]:
    """Chunks of non-empty lines, as they arrive."""
    rest = b""
    async for data in request.content.iter_any():
        *found, rest = (rest + data).split(b"\n")
        found = [line for line in found if line.strip()]
        for start in range(0, len(found), LINES_MAX):
            yield found[start : start + LINES_MAX]
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
