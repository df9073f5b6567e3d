"""This node's load as it gossips it: what the main loop says, and what only the vitals know. Pure.

Does not know: who wants the load, when it is looked at.
"""

from __future__ import annotations

from cluster.load import Load, encode_load
from cluster.swim.events import SetLoad


class OwnLoad:
    """The load that was gossiped last."""

    def __init__(self) -> None:
        self._load: Load | None = None
        self._encoded = b""

    def news(self, load: Load, *, redis_ok: bool, is_stalled: bool, is_leaving: bool) -> SetLoad | None:
        """What to gossip, if the load changed. Redis counts as reached while both loops reach it."""
        own = Load(
            redis=redis_ok and load.redis,
            stalled=is_stalled,
            leaving=is_leaving,
            queues=load.queues,
            running=load.running,
        )
        encoded = encode_load(own)
        if encoded == self._encoded:
            return None
        is_urgent = own.turns(self._load)
        self._load, self._encoded = own, encoded
        return SetLoad(encoded, is_urgent=is_urgent)
