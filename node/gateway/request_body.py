"""Request bodies within their limits: a body over the limit is refused at once, and no more than the limit is held.

A compressed body is unpacked here, piece by piece, and only for a handler that asks for it: so nothing is unpacked for
a caller who may not call. A body that comes together with its head, as nearly all do, costs no timer.

Does not know: what the bytes mean.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator

from aiohttp import StreamReader, hdrs, web

from cluster.errors import BadRequest, TooLarge, TooSlow

LINES_MAX = 1000  # lines in one chunk
BODY_S = 20.0  # time for a body, and a second more for each RATE_MIN_BYTES that came: a slow line is no offence
RATE_MIN_BYTES = 16_384
EXCHANGES_MAX = 128  # member tables that are read at once; memberlist has the same bound
EXCHANGES_MAX_BYTES = 16_777_216
EXCHANGE_S = 3.0  # time for one; a peer waits no longer for the answer
PIECE_BYTES = 131_072  # bytes unpacked at a time
IDENTITY = "identity"
WINDOW_BITS = {  # content encoding -> zlib's word for its form; 0: nothing to unpack
    "gzip": 16 + zlib.MAX_WBITS,
    "x-gzip": 16 + zlib.MAX_WBITS,
    "deflate": zlib.MAX_WBITS,
    IDENTITY: 0,
    "": 0,
}
PAUSE_S = 60.0  # longest pause between two pieces of a stream of lines; the stream itself may last


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The whole body; one that declares itself over the limit is refused unread.

    Raises TooLarge, TooSlow, BadRequest.
    """
    content = request.content
    headers = request.headers
    declared = headers.get(hdrs.CONTENT_LENGTH)
    if declared is not None and len(declared) > 6 and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    if hdrs.CONTENT_ENCODING in headers:
        return await _unpacked(Unpacker(headers[hdrs.CONTENT_ENCODING]), content, max_bytes)
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


async def _unpacked(unpacker: Unpacker, content: StreamReader, max_bytes: int) -> bytes:
    packed = await _in_time(content, max_bytes)
    parts: list[bytes] = []
    size = 0
    for part in unpacker.feed(packed):
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        await asyncio.sleep(0)  # Few bytes can unpack to many: meanwhile others have their turn.
    unpacker.finish()
    return b"".join(parts)


class Exchanges:
    """Bodies that show only by their seal who sent them. What strangers can send instead is bounded, in all.

    A peer sends its table in one go, so it has little time. If there are too many at once, the oldest must go: then
    strangers who send theirs slowly keep no peer out.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._open: dict[asyncio.Timeout, int] = {}  # the time limit of each, the oldest first -> its size, or the most

    async def read(self, request: web.Request) -> bytes:
        """The body as it came, never unpacked. Raises TooLarge, TooSlow."""
        content = request.content
        declared = request.headers.get(hdrs.CONTENT_LENGTH)
        size = self._max_bytes if declared is None or len(declared) > 9 else int(declared)
        if size > self._max_bytes:
            raise _too_large(self._max_bytes)
        if content.is_eof():
            return await content.readany()
        limit = asyncio.timeout(EXCHANGE_S)
        self._open[limit] = size
        self._make_room()
        parts: list[bytes] = []
        read = 0
        try:
            async with limit:
                while not content.at_eof():
                    parts.append(await content.readany())
                    read += len(parts[-1])
                    if read > self._max_bytes:
                        raise _too_large(self._max_bytes)
        except TimeoutError:
            raise TooSlow(
                f"only {read:,} bytes of the table came within {EXCHANGE_S:g} s, or until others had to be read.",
                "Send it in one go.",
            ) from None
        finally:
            self._open.pop(limit, None)
        return b"".join(parts)

    def _make_room(self) -> None:
        while len(self._open) > EXCHANGES_MAX or sum(self._open.values()) > EXCHANGES_MAX_BYTES:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())


class Unpacker:
    """Unpacks a body piece by piece. Errors are BadRequest."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding.strip().lower()
        bits = WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise BadRequest(f"Content-Encoding is {encoding[:80]!r}.", "Use gzip, deflate or none.")
        self._zlib = None if bits == 0 else zlib.decompressobj(bits)
        self._is_new = True

    def feed(self, packed: bytes) -> Iterator[bytes]:
        """What these bytes unpack to, in pieces of at most PIECE_BYTES."""
        if self._zlib is None:
            yield packed
            return
        if self._is_new and packed:
            self._is_new = False
            if self._encoding == "deflate" and packed[0] & 15 != 8:  # no zlib header: some clients send none
                self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
        for start in range(0, len(packed), PIECE_BYTES):
            rest = packed[start : start + PIECE_BYTES]
            part = b""
            while rest or len(part) == PIECE_BYTES:  # A full piece may leave more inside zlib.
                try:
                    part = self._zlib.decompress(rest, PIECE_BYTES)
                except zlib.error:
                    raise self._broken() from None
                if self._zlib.unused_data:
                    raise self._broken()  # There is more behind the end.
                if part:
                    yield part
                rest = self._zlib.unconsumed_tail

    def finish(self) -> None:
        """All bytes were fed. Raises BadRequest if they end too early."""
        if self._zlib is not None and not self._zlib.eof and not self._is_new:
            raise self._broken()

    def _broken(self) -> BadRequest:
        return BadRequest(
            f"the body cannot be read: Can not decode content-encoding: {self._encoding}.",
            "Check its encoding and length.",
        )


async def read_lines(request: web.Request, line_max_bytes: int) -> AsyncIterator[list[bytes]]:
    """Chunks of non-empty lines, as they arrive. Raises TooLarge, TooSlow, BadRequest."""
    rest = b""
    content = request.content
    unpacker = Unpacker(request.headers.get(hdrs.CONTENT_ENCODING, IDENTITY))
    while not content.at_eof():
        try:
            async with asyncio.timeout(PAUSE_S):
                data = await content.readany()
        except TimeoutError:
            raise TooSlow(
                f"no further line came within {PAUSE_S:g} s.", "Send the remaining lines in a new call."
            ) from None
        for piece in unpacker.feed(data):
            *lines, rest = (rest + piece).split(b"\n")
            lines = [line for line in lines if line.strip()]
            for start in range(0, len(lines), LINES_MAX):
                yield lines[start : start + LINES_MAX]
            if len(rest) > line_max_bytes:
                raise _too_large(line_max_bytes, "line")
            await asyncio.sleep(0)
    unpacker.finish()
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
