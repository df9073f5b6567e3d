"""What a node says of itself in gossip: its fixed `Meta` and its changing `Load`, as compact msgpack.

Swim carries both as opaque bytes; the queue side decodes them here. Bounded: Meta in 200 bytes, Load in 400.
"""

from __future__ import annotations

import msgspec

from cluster.config import PUBLIC_URL
from cluster.errors import ConfigError

META_MAX_BYTES = 200
LOAD_MAX_BYTES = 400


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """Fixed for a session: what it serves and with how many slots, and where callers reach it."""

    queues: dict[str, int]
    pid: int = 0
    version: str = ""
    scheme: str = "http"
    public_url: str = ""


class QueueLoad(msgspec.Struct, array_like=True, frozen=True):
    """One queue on one node."""

    free: int  # slots without a task
    queued: int  # tasks ready in the shards it owns
    shards: int  # bitmap: bit n set = shard n (owned by it) holds queued work in this queue
    head: int = 0  # lowest score queued there; 0 when nothing is


class Load(msgspec.Struct, array_like=True, frozen=True):
    """A node's own account of itself, sent with every datagram."""

    redis: bool  # its last calls to Redis were answered
    stalled: bool  # its main loop does not tick
    leaving: bool
    queues: dict[str, QueueLoad]
    running: int = 0

    def turns(self, before: Load | None) -> bool:
        """Whether others should act otherwise than on the load before: a queue got or lost its free slots or its
        waiting tasks, or the node became idle, or able, or the contrary."""
        if before is None:
            return True
        if (self.redis, self.stalled, self.leaving, self.running > 0) != (
            before.redis,
            before.stalled,
            before.leaving,
            before.running > 0,
        ):
            return True
        nothing = QueueLoad(0, 0, 0)
        names = self.queues.keys() | before.queues.keys()
        pairs = ((self.queues.get(name, nothing), before.queues.get(name, nothing)) for name in names)
        return any((a.free > 0, a.queued > 0) != (b.free > 0, b.queued > 0) for a, b in pairs)


_encode = msgspec.msgpack.Encoder().encode
_load = msgspec.msgpack.Decoder(tuple)
_meta = msgspec.msgpack.Decoder(Meta)


def encode_meta(meta: Meta) -> bytes:
    """Bytes for Identity.meta. Raises ConfigError when over META_MAX_BYTES: too many or too long names."""
    data = _encode(meta)
    if len(data) > META_MAX_BYTES:
        raise ConfigError(
            f"the queues and the public_url of this node take {len(data)} bytes in gossip, at most {META_MAX_BYTES}.",
            "Serve fewer queues on one node, or give them shorter names.",
        )
    return data


def decode_meta(data: bytes) -> Meta | None:
    """Meta, or None for bytes of another form (a peer's bytes are never an error here)."""
    try:
        meta = _meta.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if meta.public_url and not PUBLIC_URL.fullmatch(meta.public_url):
        return msgspec.structs.replace(meta, public_url="")  # it would stand in headers, and in pages as a link
    return meta


def encode_load(load: Load) -> bytes:
    """Bytes for SetLoad. Queues that do not fit in LOAD_MAX_BYTES are left out, the last named first."""
    queues = {name: [q.free, q.queued, _bitmap(q.shards), q.head] for name, q in load.queues.items()}
    while True:
        data = _encode([load.redis, load.stalled, load.leaving, queues, load.running])
        if len(data) <= LOAD_MAX_BYTES or not queues:
            return data
        queues.popitem()


def decode_load(data: bytes) -> Load | None:
    """Load, or None for bytes of another form."""
    try:
        redis, stalled, leaving, queues, running, *_ = _load.decode(data)
        return Load(
            bool(redis),
            bool(stalled),
            bool(leaving),
            {
                str(k): QueueLoad(int(f), int(n), int.from_bytes(b, "big"), int(h))
                for k, (f, n, b, h, *_) in queues.items()
            },
            int(running),
        )
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError, AttributeError, OverflowError):
        return None


def _bitmap(shards: int) -> bytes:
    """Big-endian bytes, as shards may be more than the 64 bits of a msgpack integer."""
    return shards.to_bytes((shards.bit_length() + 7) // 8, "big")
