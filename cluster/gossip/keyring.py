"""The gossip key ring, from the settings and the key file."""

from __future__ import annotations

import base64
import binascii
from itertools import pairwise
from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError

KEY_BYTES = 32
DEMO_KEY = b"rumor-demo-key-public-not-secret"  # that of docker-compose.yml
DISTINCT_MIN = 12  # different bytes in a key; 32 that are drawn have some 30


def gossip_keys(config: Config) -> list[bytes]:
    """The key ring from the settings and the key file.

    Raises ConfigError for a text that is no key, and for a key that others know where others reach this node.
    """
    keys = _all_keys(config)
    if not config.is_loopback and not config.insecure:
        for key in keys:
            if is_known(key):
                raise ConfigError(
                    f"host is {config.host}, which others can reach, and a gossip key is one that others know: that of "
                    "an example, or a pattern.",
                    "Make one with rumor keygen. For a demo in a network of its own, say --insecure.",
                )
    return keys


def is_known(key: bytes) -> bool:
    """Whether this key comes from an example, or was typed and not drawn."""
    steps = {(following - byte) % 256 for byte, following in pairwise(key)}
    return key == DEMO_KEY or len(set(key)) < DISTINCT_MIN or len(steps) == 1


def _all_keys(config: Config) -> list[bytes]:
    texts = list(config.gossip_keys)
    if config.gossip_key_file:
        try:
            texts += [line.strip() for line in Path(config.gossip_key_file).read_text("utf-8").splitlines()]
        except OSError as error:
            raise ConfigError(f"gossip_key_file cannot be read: {error}.", "Make one with rumor keygen.") from None
    return [_key(text) for text in texts if text and not text.startswith("#")]


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError("a gossip key is not 32 bytes in base64.", "Make one with rumor keygen.")
    return key
