"""What a node says of itself in gossip: its fixed `Meta` and its changing `Load`, as compact msgpack. Pure.

Swim carries both as opaque bytes; the queue side encodes and decodes them here. Both are bounded: Meta by 200
bytes, Load by 400.

Does not know: when a load is sent, what follows from one.
"""

from __future__ import annotations

import msgspec

from cluster.config import PUBLIC_URL
from cluster.errors import ConfigError

META_MAX_BYTES = 200
LOAD_MAX_BYTES = 400


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """What is fixed for a session: which queues it serves, with how many slots, and where callers reach it."""

    queues: dict[str, int]  # queue -> slots
    pid: int = 0
    version: str = ""
    scheme: str = "http"
    public_url: str = ""


class QueueLoad(msgspec.Struct, array_like=True, frozen=True):
    """One queue on one node."""

    free: int  # slots without a task
    queued: int  # tasks ready in the shards that the node owns
    shards: int  # bitmap: bit n is set if the node owns shard n and this queue has queued tasks there
    head: int = 0  # lowest score queued in those shards; 0 if none is queued


class Load(msgspec.Struct, array_like=True, frozen=True):
    """A node's own account of itself, sent with every datagram."""

    redis: bool  # Redis answered the node's last calls
    stalled: bool  # the node's main loop does not tick
    leaving: bool
    queues: dict[str, QueueLoad]
    running: int = 0

    def turns(self, before: Load | None) -> bool:
        """Whether other nodes should act differently than on the load before.

        They should if a queue has its first free slot or its last one is taken, if its first task is queued or its
        last one is claimed, and if the node becomes idle or busy, able or unable.
        """
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
        return any((now.free > 0, now.queued > 0) != (old.free > 0, old.queued > 0) for now, old in pairs)


_encode = msgspec.msgpack.Encoder().encode
_load = msgspec.msgpack.Decoder(tuple)
_meta = msgspec.msgpack.Decoder(Meta)


def encode_meta(meta: Meta) -> bytes:
    """Bytes for Identity.meta. Raises ConfigError if they exceed META_MAX_BYTES: names are too many or too long."""
    data = _encode(meta)
    if len(data) > META_MAX_BYTES:
        raise ConfigError(
            f"the queues and the public_url of this node take {len(data)} bytes in gossip, at most {META_MAX_BYTES}.",
            "Serve fewer queues on one node, or give them shorter names.",
        )
    return data


def decode_meta(data: bytes) -> Meta | None:
    """Meta, or None for bytes of another form: a peer's bytes never raise an error here."""
    try:
        meta = _meta.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if meta.public_url and not PUBLIC_URL.fullmatch(meta.public_url):
        return msgspec.structs.replace(meta, public_url="")  # A public URL stands in headers, and in pages as a link.
    return meta


def encode_load(load: Load) -> bytes:
    """Bytes for SetLoad. Drops queues, the last named first, until the rest fits in LOAD_MAX_BYTES."""
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
                str(name): QueueLoad(int(free), int(queued), int.from_bytes(shards, "big"), int(head))
                for name, (free, queued, shards, head, *_) in queues.items()
            },
            int(running),
        )
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError, AttributeError, OverflowError):
        return None


def _bitmap(shards: int) -> bytes:
    """Big-endian bytes, because there may be more shards than the 64 bits of a msgpack integer."""
    return shards.to_bytes((shards.bit_length() + 7) // 8, "big")
