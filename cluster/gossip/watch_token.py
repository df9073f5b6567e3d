"""The token of a watch connection: who watches whom, sealed under the gossip key, and valid for a short time.

A watch connection is a plain TCP connection to a member's HTTP port. It carries nothing after its request; its end is
what counts. The token keeps strangers from holding such connections open.

Pure: the wall clock and the nonce are handed in. Does not know: sockets, HTTP.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BadBase64
from collections.abc import Sequence

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HEADER = "Rumor-Watch"
PATH = "/gossip/watch"
VALID_S = 60  # difference that the clocks of two machines may have; a stolen token is worth one idle connection
NONCE_BYTES = 12
TOKEN_MAX_CHARS = 512
CONTEXT = b"rumor watch 1"  # purpose of the seal: a datagram must not pass for a token, nor a token for a datagram


class Pass(msgspec.Struct, array_like=True, frozen=True):
    """The claim that a token seals."""

    cluster: str
    watcher: str  # node_id
    watched: str  # node_id
    at_ms: int


def seal(keys: Sequence[bytes], claim: Pass, nonce: bytes) -> str:
    """The header's value. Without keys (loopback only) the token is readable, and anybody can make one."""
    plain = msgspec.msgpack.encode(claim)
    sealed = nonce + AESGCM(keys[0]).encrypt(nonce, plain, CONTEXT) if keys else plain
    return urlsafe_b64encode(sealed).decode()


def is_valid(keys: Sequence[bytes], token: str, cluster: str, watched: str, wall_ms: int) -> bool:
    """Whether this token lets its bearer watch `watched` now. No text makes this raise, whatever it is."""
    if len(token) > TOKEN_MAX_CHARS:
        return False
    try:
        sealed = urlsafe_b64decode(token.encode("ascii"))
    except (ValueError, BadBase64):
        return False
    for plain in [_open(key, sealed) for key in keys] if keys else [sealed]:
        if plain is None:
            continue
        try:
            claim = msgspec.msgpack.decode(plain, type=Pass)
        except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: text that is not UTF-8
            return False
        is_ours = claim.cluster == cluster and claim.watched == watched
        return is_ours and abs(wall_ms - claim.at_ms) <= VALID_S * 1000
    return False


def _open(key: bytes, sealed: bytes) -> bytes | None:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], CONTEXT)
    except (InvalidTag, ValueError):
        return None
