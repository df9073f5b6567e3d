"""Refusals of Redis: the reason in its own words, what to do, and whether it refuses everybody. Pure.

A Redis that lives may refuse to write: its disk is full, its replicas are gone. It then refuses everybody, so nobody
can write a tombstone there meanwhile, and a heartbeat that cannot be written proves nothing against its session.

Does not know: what follows from a refusal (see `life`, and the engine).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal. `is_of_all`: the server's own state makes it refuse every write of everybody."""

    words: str  # the first sentence of Redis's error
    hint: str
    is_of_all: bool


KNOWN = {  # Redis's error code -> (hint, whether Redis refuses everybody)
    "MISCONF": (
        "Make room on its disk and read its log: it writes again after its next good save. "
        "CONFIG SET stop-writes-on-bgsave-error no lets it write unsaved.",
        True,
    ),
    "NOREPLICAS": ("Bring its replicas back, or CONFIG SET min-replicas-to-write 0.", True),
    "OOM": ("Raise its maxmemory, or shorten retention_s.", False),
    "READONLY": ("This server is a replica: redis_url must name the master.", False),
    "NOPERM": ("Give this user the keys, channels and commands that its ACL lacks.", False),
    "WRONGTYPE": ("Something else writes into this database: give the cluster one of its own.", False),
}
_CODE = re.compile(rf"\b({'|'.join(KNOWN)})\b")
# The place in a script stands before the error in Redis 6.2, and behind it in Redis 7.
_END = re.compile(r"\. |,? script: [0-9a-f]{40}\b")


def refusal(text: str) -> Refusal:
    """The refusal in the text of an error that Redis answered."""
    code = _CODE.search(text)
    words = _END.split(text[code.start() :] if code else text, maxsplit=1)[0].rstrip(".")
    hint, is_of_all = KNOWN[code[1]] if code else ("See the log of Redis.", False)
    return Refusal(words, hint, is_of_all)
