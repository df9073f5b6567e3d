"""Whether this node reaches Redis, from all parts that notice it; what follows for its lease, and what is told of it.

The heartbeat and each lane find out by themselves, at different moments. People hear of one outage once, as
`redis_away`, or as `redis_refuses` if Redis answers and says why; and of its end once, as `redis_back`, when every part
has been answered since.

Does not know: what is sent to Redis, who listens to events.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from cluster.refusal import Refusal
from cluster.shards.shards import Shards
from cluster.view import View
from node.queue.own_lease import OwnLease

READY_WITHIN_S = 3.0  # longest silence of a lane at which the node still is ready

log = structlog.get_logger("rumor.engine")


class Reach:
    """One node's reach of Redis. `tell(kind, **fields)` puts an event on the timeline."""

    def __init__(self, lease_s: float, shards: Shards, tell: Callable[..., None]) -> None:
        self._shards = shards
        self._tell = tell
        self._lease = OwnLease(lease_s)
        self._beats = True  # whether Redis takes the heartbeat
        self._refusal: Refusal | None = None  # why Redis takes no heartbeat
        self._away_s: float | None = None  # when the outage that lasts began, by time.monotonic()
        self._error = ""  # what the part met that noticed it first
        self._told = ""  # what was told of it last

    def beats(self, is_ok: bool, error: str, refusal: Refusal | None) -> None:
        """Redis does, or does not, take the heartbeat; `error` and `refusal` say why."""
        self._beats = is_ok
        self._lease.beats(is_ok, self._shards.is_up, time.monotonic())
        if not is_ok:
            self._lost(error)
            self._refusal = refusal

    def lanes(self, is_up: bool) -> None:
        """Redis does, or does not, answer the lanes."""
        self._lease.lanes(is_up, time.monotonic())
        if not is_up:
            self._lost(self._shards.trouble)

    def look(self, refusal: Refusal | None) -> None:
        """Tell what is new; call it every 100 ms or so. `refusal`: why Redis takes no heartbeat, as of now.

        A part that is refused often meets a closed connection first. So nothing is told before the next look.
        """
        why = refusal or (None if self._beats else self._refusal) or self._shards.refusal
        if why is not None and self._away_s is None:
            self._lost(why.words)  # of this node's rights: neither the beats nor the lanes are down
        if self._away_s is None:
            return
        if why is not None and why.words != self._told:
            self._told = why.words
            log.error("redis_refuses", words=why.words, hint=why.hint)
            self._tell("redis_refuses", words=why.words)
        elif not self._told:
            self._told = self._error or "no answer"
            log.warning("redis_away", error=self._told)
            self._tell("redis_away", error=self._told)
        away_for_s = time.monotonic() - self._away_s
        if why is None and self._beats and self._shards.is_up and self._shards.silent_s() < away_for_s:
            self._away_s, self._told = None, ""
            log.info("redis_back", after_s=round(away_for_s, 1))
            self._tell("redis_back", after_s=round(away_for_s, 1))

    def why_not(self, view: View) -> str:
        """Why this node does not reach Redis; "" if it does. An open socket is not enough: it answered lately."""
        if (refusal := view.refusal or self._shards.refusal) is not None:
            return f"Redis refuses: {refusal.words}"
        if not self._shards.is_up or self._shards.silent_s() > READY_WITHIN_S:
            return "Redis does not answer"
        return "" if view.redis_ok else "Redis does not take this node's heartbeat"

    @property
    def is_lease_running(self) -> bool:
        """Whether Redis does not vouch for this node's session now."""
        return self._lease.is_running

    def is_lease_over(self, stands_still: bool, now_s: float) -> bool:
        """Whether others may run this node's tasks by now; see `OwnLease.is_over`."""
        return self._lease.is_over(stands_still, now_s)

    def _lost(self, error: str) -> None:
        if self._away_s is None:
            self._away_s, self._error = time.monotonic(), error
