"""Looking for members that are not alive here: among the seeds, and on the member list in Redis.

It looks again and again, so that two halves that lost each other meet again. If a row of the list names a session that
is not alive here, the second witness watches that session and fences it by its rules. If the session has ended, the
row is deleted.

Decides nothing about who is a member. Does not know: heartbeats, views.
"""

from __future__ import annotations

import asyncio
import contextlib

from cluster import session
from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.gossip.address import seed_addresses
from cluster.gossip.driver import GossipDriver
from cluster.kept_tasks import wait_for
from cluster.swim.core import Swim
from cluster.swim.events import Join, MemberState
from cluster.vitals.calls import MemberRow, Pulse
from cluster.vitals.fencing import Fencing

JOIN_S = 3.0  # time between two looks
LOOK_MIN_S = 0.5  # the same while members are in doubt


class Joiner:
    """One node's search for the others."""

    def __init__(self, config: Config, pulse: Pulse, swim: Swim, gossip: GossipDriver, fencing: Fencing) -> None:
        self._config = config
        self._pulse = pulse
        self._swim = swim
        self._gossip = gossip
        self._fencing = fencing
        self._now = asyncio.Event()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await wait_for(self._now, JOIN_S)
            await self.look()
            await asyncio.sleep(LOOK_MIN_S)

    def hurry(self) -> None:
        """Look now: a member is in doubt, and one that joined just now and is not known here may hear it."""
        self._now.set()

    async def look(self) -> None:
        """Have gossip try every address at which nobody is alive here, and clean the member list."""
        ended = (MemberState.DEAD, MemberState.LEFT)
        alive = {member.identity.session: member for member in self._swim.members() if member.state not in ended}
        reached = {(member.identity.host, member.identity.port) for member in alive.values()}
        seeds = await seed_addresses(self._config.seeds)
        listed: dict[str, MemberRow] = {}
        with contextlib.suppress(StoreUnavailable):
            listed = await self._pulse.members()
        rows = [(row.host, row.port) for row in listed.values() if row.session not in alive]
        addresses = dict.fromkeys([*seeds, *rows])  # each once, seeds first
        self._gossip.feed(Join(tuple(address for address in addresses if address not in reached)))
        for row in listed.values():
            if self._fencing.is_ended(row.session):
                with contextlib.suppress(StoreUnavailable):
                    await self._pulse.forget(row.session)
            elif row.session not in alive and session.node_of(row.session) != self._config.name:
                self._fencing.lives_at(row.session, (row.host, row.port))
                self._fencing.consider([row.session])
