"""Refusals of Redis: the reason in its own words, what to do, and whether it refuses everybody. Pure.

A Redis that lives may refuse to write: its disk is full, its replicas are gone. It then refuses everybody, so nobody
can write a tombstone there meanwhile, and a heartbeat that cannot be written proves nothing against its session. Or it
may refuse this node alone: its password was changed, its user may not do what a node does.

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


_RIGHTS = "Give this user the keys, channels and commands that its ACL lacks."
_SIGN_IN = (
    "Put the password (and the user) that Redis wants into redis_url, and start the node again; or let Redis take the "
    "old one: CONFIG SET requirepass, ACL SETUSER."
)

KNOWN = {  # Redis's error code -> (hint, whether Redis refuses everybody)
    "MISCONF": (
        "Make room on its disk and read its log: it writes again after its next good save. "
        "CONFIG SET stop-writes-on-bgsave-error no lets it write unsaved.",
        True,
    ),
    "NOREPLICAS": ("Bring its replicas back, or CONFIG SET min-replicas-to-write 0.", True),
    "OOM": ("Raise its maxmemory, or shorten retention_s.", False),
    "READONLY": ("This server is a replica: redis_url must name the master.", False),
    "NOAUTH": (_SIGN_IN, False),
    "WRONGPASS": (_SIGN_IN, False),
    "NOPERM": (_RIGHTS, False),
    "DENIED": ("Give Redis a password or addresses to bind; it lets nobody in from other machines.", False),
    "LOADING": ("Wait: it reads its data. It answers as soon as it is done.", False),
    "BUSY": ("Somebody's script holds it: SCRIPT KILL ends one that has written nothing.", False),
    "MASTERDOWN": ("This server is a replica without its master: redis_url must name the master.", False),
    "WRONGTYPE": ("Something else writes into this database: give the cluster one of its own.", False),
}
PLAIN = {  # words of an error that has no code of its own -> hint
    "ACL failure in script": _RIGHTS,
    "can't access at least one of the keys": _RIGHTS,
    "called without any password configured": "Redis wants no password: take it out of redis_url.",
    "invalid password": _SIGN_IN,
    "max number of clients reached": "Look who holds its connections (CLIENT LIST), or raise its maxclients.",
    "DB index is out of range": "redis_url must name one of its databases: 0 to 15, if it is as usual.",
}
_CODE = re.compile(rf"\b({'|'.join(KNOWN)})\b")
# The place in a script stands before the error in Redis 6.2, and behind it in Redis 7.
_END = re.compile(r"\. |,? script: [0-9a-f]{40}\b")


def refusal(text: str) -> Refusal:
    """The refusal in the text of an error that Redis answered."""
    code = _CODE.search(text)
    words = _END.split(text[code.start() :] if code else text, maxsplit=1)[0].rstrip(".")
    if code:
        return Refusal(words, *KNOWN[code[1]])
    hint = next((hint for phrase, hint in PLAIN.items() if phrase in text), "See the log of Redis.")
    return Refusal(words, hint, False)


def lacks_rights(why: Refusal) -> bool:
    """Whether this node's user may not do what a node does."""
    return why.hint is _RIGHTS


def refusal_in(error: BaseException) -> Refusal:
    """The refusal in an error as redis-py raises it, which takes the code out of the text."""
    code, text = getattr(error, "status_code", None), str(error)
    return refusal(f"{code} {text}" if code and not text.startswith(str(code)) else text)
