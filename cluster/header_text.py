"""Text that travels in HTTP headers: which may, and its bytes. The same for every client, the gateway and the settings.

Pure.

A header's value is text in UTF-8, whoever sends it. HTTP ends it at a line break and cuts off the blanks around it, so
that such a text would arrive as another one, or not at all: it is refused before it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import BadRequest

IDEMPOTENCY_KEY_MAX = 255  # characters
SHOWN_MAX = 80  # characters of a text that an error repeats


def idempotency_key(key: object, longest: int = IDEMPOTENCY_KEY_MAX) -> str:
    """The key, if a header can carry it. Raises BadRequest."""
    if not isinstance(key, str):
        raise BadRequest(f"the Idempotency-Key is {_shown(repr(key))}: no text.", "Give it as a string.")
    if key and len(key) <= longest and (obstacle := unfit(key)) is None:
        return key
    if len(key) > longest:
        obstacle = f"it has {len(key)} characters"
    elif not key:
        obstacle = "it is empty"
    raise BadRequest(
        f"the Idempotency-Key {_shown(repr(key))} cannot be used: {obstacle}.",
        f"Use 1 to {longest} printable characters without blanks around them, or leave the key out.",
    )


def unfit(text: str) -> str | None:
    """Why a header cannot carry this text unchanged; None if it can."""
    if not text.isprintable():  # False for line breaks, control characters and halves of surrogate pairs
        odd = next(character for character in text if not character.isprintable())
        return f"it has the unprintable character {odd!a}"
    return "a blank stands at its beginning or its end" if text != text.strip() else None


def as_bytes(headers: Mapping[str, str]) -> dict[str, bytes]:
    """The headers as they are sent."""
    return {name: value.encode() for name, value in headers.items()}


def _shown(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"
