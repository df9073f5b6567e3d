"""The driver of the leader lease: asks Redis what `Lease` wishes, gossips epochs, keeps the leader's snapshot.

Decides nothing about who leads; see `lease`. The calls are one at a time, so that answers come in the order of their
questions.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable

from cluster.errors import StoreUnavailable
from cluster.gossip.driver import Gossip
from cluster.swim.core import Swim
from cluster.swim.events import SetEpoch
from cluster.view import View
from cluster.vitals.calls import Pulse
from cluster.vitals.lease import Lease, Term

ASKS_MAX = 3  # in a row: the lease may turn out to be free, or to be held by a session that has ended


class Leading:
    """One node's part in the election. `is_ended` tells which sessions are fenced."""

    def __init__(self, lease: Lease, pulse: Pulse, swim: Swim, gossip: Gossip, is_ended: Callable[[str], bool]) -> None:
        self._lease = lease
        self._pulse = pulse
        self._swim = swim
        self._gossip = gossip
        self._is_ended = is_ended
        self._turn = asyncio.Lock()

    def leader(self) -> Term | None:
        """Whom this node may name now."""
        return self._lease.leader(time.monotonic())

    async def ask(self) -> None:
        """Acquire, renew or take over: one round."""
        async with self._turn:
            with contextlib.suppress(StoreUnavailable):
                for _ in range(ASKS_MAX):
                    if not await self._ask_once():
                        return

    async def keep_snapshot(self, view: View, ttl_s: float) -> None:
        """The leader keeps its member table in Redis, for people and for whoever starts with nobody to ask."""
        term = self._lease.holder
        if term is None or not self._lease.may_lead(time.monotonic()):
            return
        rows = [
            {"node_id": p.node_id, "session": p.session, "url": p.url, "state": p.state, "verdict": p.verdict}
            for p in view.members
        ]
        table = json.dumps({"leader": term.session, "epoch": term.epoch, "members": rows}).encode()
        with contextlib.suppress(StoreUnavailable):
            if not await self._pulse.snapshot(term.epoch, table, int(ttl_s * 1000)):
                self._lease.heard(term.epoch + 1)  # Redis knows a later leader than we do.

    async def resign(self) -> None:
        """Stop leading, and give the lease back if Redis answers."""
        async with self._turn:
            term = self._lease.resign()
            if term is not None:
                with contextlib.suppress(StoreUnavailable):
                    await self._pulse.resign(term)

    async def _ask_once(self) -> bool:
        """True: it is worth asking again at once."""
        self._lease.heard(self._swim.epoch)
        asked_s = time.monotonic()
        wish = self._lease.wish(asked_s)
        holder = await self._pulse.lease(wish, int(self._lease.ttl_s * 1000), self._lease.epoch)
        self._lease.answered(wish, holder, asked_s)
        if holder is None:
            return True
        self._gossip.feed(SetEpoch(holder.epoch))
        return self._is_ended(holder.session) and self._lease.died(holder.session)
