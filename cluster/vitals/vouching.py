"""What gossip says and Redis can confirm: this looks at the sessions' keys at once, and tells gossip what stands there.

Who holds the gossip key can say in anybody's name that a session was fenced, or that one exists. So gossip alone does
neither: it asks here. A tombstone that stands in Redis ends the session, here as everywhere. A heartbeat vouches for
its session, for no other process writes it; and where the member list names the session, its address is the one that
stands there. Redis that gives no answer changes nothing.

Decides nothing about who is dead. Does not know: who said it, how gossip believes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Protocol

from cluster import keys, session
from cluster.errors import StoreUnavailable
from cluster.gossip.driver import GossipDriver
from cluster.kept_tasks import wait_for
from cluster.swim.core import Swim
from cluster.swim.events import Denied, Identity, MemberState, Unconfirmed, Vouched
from cluster.vitals.calls import MemberRow, Pulse

LOOK_S = 0.5  # time between two looks at members that came while Redis could not be asked
RUMORS_MAX = 512  # sessions in one look; later ones are heard of again
RETRY_S = 0.025  # time until a second look at a new life of a known name: it tells its peers, then Redis
RETRIES_MAX = 4
ENDED = (MemberState.DEAD, MemberState.LEFT)


class Believer(Protocol):
    """The life for which this looks, or the script that stands for it in a test."""

    @property
    def session(self) -> str:
        """This node's own session."""

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes its heartbeats."""

    def on_own_rumor(self) -> None:
        """Gossip says that our own session was fenced: only a heartbeat can tell."""

    def on_tombstone(self, name: str, tombstone: bytes) -> None:
        """This session's tombstone stands in Redis."""


class Vouching:
    """One node's looks at Redis on gossip's behalf."""

    def __init__(self, pulse: Pulse, swim: Swim, gossip: GossipDriver, believer: Believer, stats: Counter[str]) -> None:
        self._pulse = pulse
        self._swim = swim
        self._gossip = gossip
        self._believer = believer
        self._stats = stats
        self._rumors: dict[str, Unconfirmed] = {}
        self._tries: Counter[str] = Counter()
        self._now = asyncio.Event()
        self._all_s = 0.0

    def hear(self, rumor: Unconfirmed) -> None:
        """Look at this session now."""
        name = rumor.identity.session
        if name == self._believer.session:
            self._believer.on_own_rumor()
        elif len(self._rumors) < RUMORS_MAX:
            self._rumors.setdefault(name, rumor)
            self._now.set()
        else:
            self._stats["rumors_dropped"] += 1

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await wait_for(self._now, RETRY_S if self._tries else LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look at every session of which gossip spoke since the last time."""
        self._add_unvouched()
        rumors, self._rumors = self._rumors, {}
        if not rumors or not self._believer.redis_ok:
            self._tries.clear()
            return
        rivals = self._rivals(rumors)
        names = list(rumors)
        try:
            values, rows = await self._pulse.look([*names, *rivals.values()], [session.node_of(name) for name in names])
        except StoreUnavailable:
            self._stats["looks_failed"] += 1
            return
        self._stats["looks"] += 1
        shown = dict(zip([*names, *rivals.values()], values, strict=True))
        for name, rumor in rumors.items():
            value, rival = shown[name], shown.get(rivals.get(name, ""))
            if value is not None and keys.is_tombstone(value):
                self._tries.pop(name, None)
                self._believer.on_tombstone(name, value)
            elif value is None or rumor.is_fenced:
                self._deny(rumor)
            elif rival is None:
                self._tries.pop(name, None)
                self._gossip.feed(Vouched(_at_home(rumor.identity, rows.get(session.node_of(name)))))

    def _add_unvouched(self) -> None:
        """Members that gossip took in while Redis was away, now and then."""
        now_s = time.monotonic()
        if now_s - self._all_s < LOOK_S:
            return
        self._all_s = now_s
        for member in self._swim.members():
            if not member.is_vouched and member.state not in ENDED and len(self._rumors) < RUMORS_MAX:
                self._rumors.setdefault(member.identity.session, Unconfirmed(member.identity, False))

    def _rivals(self, rumors: dict[str, Unconfirmed]) -> dict[str, str]:
        """The later sessions of the same names that gossip holds. One of which Redis knows anything has the name.

        If it has ended, the earlier one hears so from its peers, and takes a later name.
        """
        held = {member.identity.node_id: member.identity.session for member in self._swim.members()}
        names = {name: held.get(session.node_of(name), "") for name in rumors}
        return {name: other for name, other in names.items() if other and session.is_newer(other, than=name)}

    def _deny(self, rumor: Unconfirmed) -> None:
        """Redis shows nothing of it. A new life of a known name may have been a moment too early."""
        name = rumor.identity.session
        is_known = any(member.identity.node_id == rumor.identity.node_id for member in self._swim.members())
        if is_known and not rumor.is_fenced and self._tries[name] < RETRIES_MAX and len(self._tries) < RUMORS_MAX:
            self._tries[name] += 1
            self._rumors.setdefault(name, rumor)
            return
        self._tries.pop(name, None)
        self._gossip.feed(Denied(name))


def _at_home(identity: Identity, row: MemberRow | None) -> Identity:
    """The identity with the address, and what it says of itself, from the member list, if that names the session."""
    if row is None or row.session != identity.session:
        return identity
    return Identity(identity.node_id, row.session, row.host, row.port, row.meta or identity.meta)
