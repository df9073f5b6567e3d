"""Session names: one life of a node, as `<node_id>/<boot ms, hex>-<random hex>`. Pure.

The time in a name orders the lives of one node_id and is compared with nothing else. Sessions own work; node names
never do.

Does not know: clocks, chance; the caller hands in the wall-clock time and the randomness.
"""

from __future__ import annotations

import re
from random import Random

SESSION = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.:@-]{0,62})/([0-9a-f]{8,14})-([0-9a-f]{8})\Z")


def new(node_id: str, wall_ms: int, rng: Random) -> str:
    """The name of a session that begins at `wall_ms` (this node's own wall clock)."""
    return f"{node_id}/{wall_ms:011x}-{rng.getrandbits(32):08x}"


def is_session(text: str) -> bool:
    """Whether the text has the form of a session name."""
    return SESSION.match(text) is not None


def node_of(session: str) -> str:
    """The node_id that the session is a life of."""
    return session.partition("/")[0]


def order(session: str) -> tuple[int, str]:
    """Sort key among the sessions of one node_id: a later life is greater. Raises ValueError if it is no session."""
    match = SESSION.match(session)
    if match is None:
        raise ValueError(f"not a session: {session!r}")
    return int(match[2], 16), match[3]


def is_newer(session: str, than: str) -> bool:
    """Whether both are lives of the same node, and `session` is the later one."""
    return node_of(session) == node_of(than) and order(session) > order(than)
