"""The driver of the leader lease: asks Redis what `Lease` wishes, gossips epochs, keeps the leader's snapshot.

It makes one call at a time, so that answers come in the order of their questions.

Decides nothing about who leads; see `lease`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Protocol

from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.gossip.driver import GossipDriver
from cluster.kept_tasks import wait_for
from cluster.swim.core import Swim
from cluster.swim.events import SetEpoch
from cluster.view import View
from cluster.vitals.calls import Pulse
from cluster.vitals.lease import Lease, Term

ASKS_MAX = 3  # questions in a row: the lease may turn out to be free, or a session that has ended may hold it


class Candidate(Protocol):
    """The life that takes part in the election, or the script that stands for it in a test."""

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes its heartbeats."""

    @property
    def view(self) -> View:
        """Its latest view."""

    def may_ask(self) -> bool:
        """Whether this node should ask for the lease at all."""

    def is_ended(self, name: str) -> bool:
        """Whether this node knows that this session was fenced."""

    def on_leader(self, leader: Term | None) -> None:
        """This node names another leader than before, or none."""


class Leading:
    """One node's part in the election. `leader` is whom this node names."""

    def __init__(
        self, config: Config, lease: Lease, pulse: Pulse, swim: Swim, gossip: GossipDriver, candidate: Candidate
    ) -> None:
        self.leader: Term | None = None
        self._config = config
        self._lease = lease
        self._pulse = pulse
        self._swim = swim
        self._gossip = gossip
        self._candidate = candidate
        self._turn = asyncio.Lock()
        self._ask_now = asyncio.Event()

    async def run(self) -> None:
        """Ask for the lease, or renew it, for ever."""
        while True:
            if self._candidate.may_ask():
                await self._ask()
                await self._keep_snapshot(self._candidate.view, self._config.forget_s)
            self.look()
            await wait_for(self._ask_now, self._config.leader_lease_s / 3)

    def hurry(self) -> None:
        """Ask now: Redis is back or away, or the leader's session has ended."""
        self._ask_now.set()

    def look(self) -> None:
        """Name the leader anew, and tell if it is another: a lease may have run out since.

        If gossip knows a later epoch than Redis named, ask Redis.
        """
        if self._lease.heard(self._swim.epoch):
            self.hurry()
        leader = self._lease.leader(time.monotonic()) if self._candidate.redis_ok else None
        if leader != self.leader:
            self.leader = leader
            self._candidate.on_leader(leader)

    async def _ask(self) -> None:
        """Acquire, renew or take over: one round."""
        async with self._turn:
            with contextlib.suppress(StoreUnavailable):
                for _ in range(ASKS_MAX):
                    if not await self._ask_once():
                        return

    async def _keep_snapshot(self, view: View, ttl_s: float) -> None:
        """If this node leads, keep its member table in Redis, where people can read it; no node does."""
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
                self._lease.lost(term)

    async def resign(self) -> None:
        """Stop leading, and give the lease back if Redis answers."""
        async with self._turn:
            term = self._lease.resign()
            if term is not None:
                with contextlib.suppress(StoreUnavailable):
                    await self._pulse.resign(term)
        self.look()

    async def _ask_once(self) -> bool:
        """One question. True: another one at once may get the lease."""
        self._lease.heard(self._swim.epoch)
        asked_s = time.monotonic()
        wish = self._lease.wish(asked_s)
        holder = await self._pulse.lease(wish, int(self._lease.ttl_s * 1000), self._lease.known_epoch)
        self._lease.answered(wish, holder, asked_s)
        if holder is None:
            return True
        self._gossip.feed(SetEpoch(holder.epoch))
        return self._candidate.is_ended(holder.session) and self._lease.died(holder.session)
