"""What one node believes of the cluster at one moment, both witnesses side by side. Pure.

A view is immutable: a later one takes its place as a whole.

Does not know: how either witness came to its word, what follows from a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.hosts import hostport
from cluster.load import Load, Meta
from cluster.refusal import Refusal
from cluster.swim.events import Evidence, MemberState


class RedisWord(StrEnum):
    """The word of Redis, the second witness, about a session, as this node has seen it."""

    LIVE = "live"  # its heartbeat moves
    STALE = "stale"  # its heartbeat did not move for heartbeat_stale_s while this node watched
    GONE = "gone"  # fenced: a tombstone stands where its heartbeat stood
    UNKNOWN = "unknown"  # this node has not watched long enough, or cannot reach Redis


class Verdict(StrEnum):
    """What both witnesses together say of a session."""

    HEALTHY = "healthy"
    CUT_FROM_REDIS = "cut_from_redis"
    CUT_FROM_PEERS = "cut_from_peers"
    DEAD = "dead"


VERDICT = {  # (gossip holds it dead, Redis holds it live) -> verdict: only if both witnesses agree, it is a death
    (False, True): Verdict.HEALTHY,
    (False, False): Verdict.CUT_FROM_REDIS,
    (True, True): Verdict.CUT_FROM_PEERS,
    (True, False): Verdict.DEAD,
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One member as this node sees it; this node has a row too."""

    node_id: str
    session: str
    host: str
    port: int
    state: MemberState
    evidence: Evidence
    by: str
    incarnation: int
    rtt_s: float | None
    redis: RedisWord
    redis_age_s: float | None  # time for which this node has watched its heartbeat without a change
    verdict: Verdict
    load: Load | None
    meta: Meta | None
    is_vouched: bool = True  # Redis has shown its heartbeat; until then, only gossip knows it

    @property
    def url(self) -> str:
        """The URL at which it answers its peers."""
        return f"{self.meta.scheme if self.meta else 'http'}://{hostport(self.host, self.port)}"

    @property
    def public_url(self) -> str:
        """The URL at which it answers callers and browsers."""
        return (self.meta and self.meta.public_url) or self.url

    @property
    def is_able(self) -> bool:
        """Whether it may own shards: vouched for, alive, reaches Redis, not stalled, not leaving, has slots."""
        return (
            self.is_vouched
            and self.state is MemberState.ALIVE
            and self.load is not None
            and self.load.redis
            and not self.load.stalled
            and not self.load.leaving
            and self.meta is not None
            and sum(self.meta.queues.values()) > 0
        )


@dataclass(frozen=True, slots=True)
class Leader:
    """The session that holds the leader lease, by the last word of Redis. It leads nothing yet."""

    node_id: str
    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class View:
    """One node's whole belief. `members` is sorted by node_id and includes this node."""

    node_id: str
    session: str
    members: tuple[Peer, ...]
    leader: Leader | None
    epoch: int
    redis_ok: bool
    is_synced: bool  # whether it heard of the others: the seeds and the list in Redis answered, or were given up
    refusal: Refusal | None = None  # why Redis, which answers, refuses our heartbeat

    @property
    def is_refused_like_all(self) -> bool:
        """Whether Redis takes nobody's writes: it says so, and every member that may be running says the same.

        Nobody can fence this session there meanwhile. A silent member may be on the other side of a cut, with another
        master that takes its writes: then this session may be fenced after all.
        """
        if self.refusal is None or not self.refusal.is_of_all:
            return False
        proven = (Evidence.REFUSED, Evidence.FENCED, Evidence.SUPERSEDED)
        return all(
            peer.state is MemberState.LEFT
            or (peer.state is MemberState.DEAD and peer.evidence in proven)
            or (peer.state is not MemberState.DEAD and peer.load is not None and not peer.load.redis)
            for peer in self.members
            if peer.is_vouched
        )

    def me(self) -> Peer | None:
        """This node's own row."""
        return self.get(self.node_id)

    def get(self, node_id: str) -> Peer | None:
        """The row of the member of this name."""
        return next((peer for peer in self.members if peer.node_id == node_id), None)
