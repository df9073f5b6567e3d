"""The bytes of gossip: msgpack arrays, sealed with AES-256-GCM, within one datagram.

A datagram is `kind | nonce | ciphertext` (sealed) or `kind | msgpack` (no key given: loopback only). The msgpack is one
array: version, cluster name, the sender's account of itself, a body, rows of the member table, loads of others. New
fields are added at the end of an array only; a reader skips fields that it does not know.

The first key of the ring seals and every key opens, so keys rotate without downtime. Each session numbers its
datagrams, and a receiver takes each number once, within a window of the newest `WINDOW` of them. No clocks are
compared: the core finds out whether an unknown session, or a number outside of the window, is a recording, by a ping
that only the living answer.

Bytes of others never raise here: what does not decode is None, and the caller counts it.

Does not know: what any message means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta, Raw, Struct

from cluster.bounded import Bounded
from cluster.session import is_session
from cluster.swim.events import Evidence, MemberState, Tcp
from cluster.swim.plausible import SEQ_AHEAD, is_plausible

VERSION = 1

# Size below the usual 1,500-byte MTU with IPv6 and UDP headers, so that nothing is fragmented.
DATAGRAM_MAX_BYTES = 1400
SYNC_MAX_BYTES = 2_097_152  # a full table over TCP: TABLE_MAX rows with long names and meta
TABLE_MAX = 4096  # members remembered, dead ones included

META_MAX_BYTES = 200
LOAD_MAX_BYTES = 400
SESSION_MAX_CHARS = 88
NAME_MAX_CHARS = 63
HOST_MAX_CHARS = 253
HASH_BYTES = 4  # one row in a Pull
PULL_MAX_ROWS = 240
INCARNATION_MAX = 2**48

WINDOW = 1024
WINDOWS_MAX = 2 * TABLE_MAX

PLAIN, SEALED = b"\x01", b"\x02"
NONCE_BYTES = 12
SEAL_BYTES = 1 + NONCE_BYTES + 16
PLAIN_MAX_BYTES = DATAGRAM_MAX_BYTES - SEAL_BYTES

Session = Annotated[str, Meta(max_length=SESSION_MAX_CHARS)]
Name = Annotated[str, Meta(max_length=NAME_MAX_CHARS)]
Host = Annotated[str, Meta(max_length=HOST_MAX_CHARS)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=INCARNATION_MAX)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Load = Annotated[bytes, Meta(max_length=LOAD_MAX_BYTES)]
MetaBytes = Annotated[bytes, Meta(max_length=META_MAX_BYTES)]


class Row(Struct, array_like=True, frozen=True):
    """A claim about one member. News of a known session leaves out host, port and meta: they are fixed for it."""

    session: Session
    incarnation: Count
    state: MemberState
    evidence: Evidence = Evidence.NONE
    by: Name = ""
    host: Host = ""
    port: Port = 0
    meta: MetaBytes = b""
    age_s: Count = 0  # how long the member has been dead or left, so that all forget it at the same time


class LoadRow(Struct, array_like=True, frozen=True):
    """A load of another member, which the sender heard."""

    session: Session
    seq: Count
    load: Load


class Ping(Struct, array_like=True, frozen=True, tag=0):
    """Are you there? `target` is the session that is to answer, "" for whoever is at the address."""

    nr: Count
    target: Session


class PingReq(Struct, array_like=True, frozen=True, tag=1):
    """Ping this member for me; if urgent, try its TCP port in the same instant."""

    nr: Count
    target: Session
    host: Host
    port: Port
    is_urgent: bool


class Ack(Struct, array_like=True, frozen=True, tag=2):
    """The answer to a Ping, or to a PingReq when `subject` answered the helper."""

    nr: Count
    subject: Session


class Nack(Struct, array_like=True, frozen=True, tag=3):
    """A helper is there and hears nothing of the subject. `tcp`: how the helper's connect ended; None if it has not."""

    nr: Count
    subject: Session
    tcp: Tcp | None


class Gossip(Struct, array_like=True, frozen=True, tag=4):
    """News only."""


class Pull(Struct, array_like=True, frozen=True, tag=5):
    """These are hashes of my live rows: send me those of yours that differ. `is_back`: this answers a Pull of yours."""

    hashes: Annotated[bytes, Meta(max_length=HASH_BYTES * PULL_MAX_ROWS)]
    is_back: bool


class Rows(Struct, array_like=True, frozen=True, tag=6):
    """Rows of my table. `has_more`: pull again. `is_final`: do not answer with newer rows of yours."""

    has_more: bool
    is_final: bool


class Sync(Struct, array_like=True, frozen=True, tag=7):
    """The full table, over TCP."""


Body = Ping | PingReq | Ack | Nack | Gossip | Pull | Rows | Sync


class Digest(Struct, array_like=True, frozen=True):
    """Two numbers that stand for the live rows of a table; equal digests mean equal tables."""

    count: Count
    hash: int  # 64 bits, which msgspec cannot state as a bound and msgpack cannot exceed


class Head(Struct, array_like=True, frozen=True):
    """The sender's account of itself, in every datagram."""

    session: Session
    incarnation: Count
    state: MemberState
    seq: Number
    digest: Digest
    epoch: Number
    load_seq: Count
    load: Load


class Packet(Struct, array_like=True, frozen=True):
    """One datagram, or one push-pull body."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    cluster: Name
    head: Head
    body: Body
    rows: Annotated[list[Row], Meta(max_length=TABLE_MAX)] = []
    loads: Annotated[list[LoadRow], Meta(max_length=TABLE_MAX)] = []


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Packet)

LIST_BYTES = 2 * 4  # growth of two array headers, from 1 byte to at most 5 each


def encode_row(row: Row | LoadRow) -> bytes:
    """The bytes of one row by itself, so that a sender knows its size before it packs."""
    return _encode(row)


def pack(cluster: str, head: Head, body: Body, rows: Sequence[bytes] = (), loads: Sequence[bytes] = ()) -> bytes:
    """The bytes of a packet; `rows` and `loads` are encoded already."""
    return _encode((VERSION, cluster, head, body, [Raw(row) for row in rows], [Raw(load) for load in loads]))


def decode(data: bytes) -> Packet | None:
    """A packet, or None for anything that is not one: wrong shape, wrong bounds, names that are not sessions."""
    try:
        packet = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    names = [packet.head.session, *(row.session for row in packet.rows), *(load.session for load in packet.loads)]
    return packet if all(map(is_session, names)) else None


class Seal:
    """AES-256-GCM under a key ring. Without keys it passes bytes through, marked as plain, and opens only those."""

    def __init__(self, keys: Sequence[bytes], nonce: Callable[[], bytes]) -> None:
        self._ciphers = [AESGCM(key) for key in keys]
        self._nonce = nonce

    def seal(self, data: bytes) -> bytes:
        """Seal `data` under the first key. The nonce must never repeat: it is 96 random bits."""
        if not self._ciphers:
            return PLAIN + data
        nonce = self._nonce()
        return SEALED + nonce + self._ciphers[0].encrypt(nonce, data, SEALED)

    def open(self, data: bytes) -> bytes | None:
        """The plain bytes. None if no key of the ring opens `data`, or if it is plain although there are keys."""
        kind, rest = data[:1], data[1:]
        if not self._ciphers:
            return rest if kind == PLAIN else None
        if kind != SEALED or len(data) < SEAL_BYTES:
            return None
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], SEALED)
            except InvalidTag:
                continue
        return None


class Freshness(StrEnum):
    """How the number of a datagram stands to those that its session sent before."""

    NEW = "new"
    REPEATED = "repeated"  # seen before
    OLD = "old"  # older than the window
    FAR = "far"  # further ahead than the session can have come: see `plausible`


class ReplayWindow:
    """Takes each (session, seq) once; keeps the newest WINDOW numbers of at most WINDOWS_MAX sessions."""

    def __init__(self) -> None:
        # session -> highest seq, bitmap of it and those below
        self._seen: Bounded[str, tuple[int, int]] = Bounded(WINDOWS_MAX)

    def take(self, session: str, seq: int, *, is_first_hand: bool = False) -> Freshness:
        """How new this datagram is. Remembers it if it is NEW.

        `is_first_hand`: the session itself answers a ping of ours in it. No recording can do that, so its number is
        right, and the window moves there, also back from a number that somebody else named.
        """
        top, bits = self._seen.pop(session, (seq, 0))
        if is_first_hand and not top - WINDOW < seq <= top + SEQ_AHEAD:
            top, bits = seq, 0
        freshness = Freshness.NEW
        if not is_plausible(seq, top, SEQ_AHEAD):
            freshness = Freshness.FAR
        elif seq > top:
            shift = seq - top
            top, bits = seq, ((bits << shift) & ((1 << WINDOW) - 1) if shift < WINDOW else 0) | 1
        elif top - seq >= WINDOW:
            freshness = Freshness.OLD
        elif bits & 1 << (top - seq):
            freshness = Freshness.REPEATED
        else:
            bits |= 1 << (top - seq)
        # Popped and put back: the session that was used the longest ago is the one to forget.
        self._seen[session] = (top, bits)
        return freshness
