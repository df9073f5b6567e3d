"""Session names: one life of a node, as `<node_id>/<boot ms, hex>-<random hex>`.

The time in the name orders the lives of one node_id and is compared with nothing else. Work is owned by sessions,
never by node names. Does not know: clocks; the caller hands in the wall-clock time and the randomness.
"""

from __future__ import annotations

import re
from random import Random

SESSION = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.:@-]{0,62})/([0-9a-f]{8,14})-([0-9a-f]{8})\Z")


def new(node_id: str, wall_ms: int, rng: Random) -> str:
    """A session that begins at `wall_ms` (this node's own wall clock)."""
    return f"{node_id}/{wall_ms:011x}-{rng.getrandbits(32):08x}"


def is_session(text: str) -> bool:
    """Whether the text has the form of a session name."""
    return SESSION.match(text) is not None


def node_of(session: str) -> str:
    """The node_id that the session is a life of."""
    return session.partition("/")[0]


def order(session: str) -> tuple[int, str]:
    """Sort key among the sessions of one node_id: later lives are greater. Raises ValueError on another form."""
    match = SESSION.match(session)
    if match is None:
        raise ValueError(f"not a session: {session!r}")
    return int(match[2], 16), match[3]


def is_newer(session: str, than: str) -> bool:
    """Whether `session` is a later life than `than`, of the same node."""
    return node_of(session) == node_of(than) and order(session) > order(than)
