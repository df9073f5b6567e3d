"""The gossip key ring, from the settings and the key file."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError


def gossip_keys(config: Config) -> list[bytes]:
    """The key ring from the settings and the key file. Raises ConfigError for a text that is no key."""
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
    if len(key) != 32:
        raise ConfigError("a gossip key is not 32 bytes in base64.", "Make one with rumor keygen.")
    return key
