"""When Redis answers and will not do what it is asked: its reason in words, what to do, and whom else it refuses.

Redis may refuse to write although it lives: its disk is full, its replicas are gone. It says so to everybody, so nobody
can write a tombstone there meanwhile, and a heartbeat that cannot be written proves nothing against its session.
Pure. Does not know: what follows from a refusal (see `life`, and the engine).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refusal. `is_of_all`: the server refuses every write of everybody, by its own state."""

    words: str  # of Redis: its first sentence
    hint: str
    is_of_all: bool

    @property
    def is_of_one_key(self) -> bool:
        """Whether it is about one key alone: something else stands where ours should."""
        return self.words.startswith("WRONGTYPE")


KNOWN = {  # code of Redis -> (what to do, is it said to everybody)
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
# Redis 6.2 says where in a script it was, and then what; 7 the other way round.
_CODE = re.compile(rf"\b({'|'.join(KNOWN)})\b")
_END = re.compile(r"\. |,? script: [0-9a-f]{40}\b")


def refusal(text: str) -> Refusal:
    """What an error that Redis answered says."""
    found = _CODE.search(text)
    words = _END.split(text[found.start() :] if found else text, maxsplit=1)[0].rstrip(".")
    hint, is_of_all = KNOWN[found[1]] if found else ("See the log of Redis.", False)
    return Refusal(words, hint, is_of_all)
