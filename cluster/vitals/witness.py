"""The second witness: what this node may conclude from watching heartbeats in Redis, and whom it may fence for it.

A heartbeat counts as stale, and a lease as run out, only if this node itself read that session unchanged for that long,
by its own monotonic clock, with all its own calls answered. Anything that breaks the watch (a call without an answer, a
late reply, a new connection, a pause of this node itself) starts it again: a Redis that was away fences nobody.

Gossip is the first witness; its word comes in as a `Belief`. A lease that has run out ends a session by itself. Before
that, the sessions that are left say their words (see `words` and `jury`), and this watch is half of each. Redis
decides, inside its scripts. Pure: the caller reads Redis, reports what it read, and carries out the fences.

Does not know: Redis, asyncio, gossip's reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.keys import is_tombstone
from cluster.swim.events import Evidence, MemberState
from cluster.view import RedisWord


class Belief(StrEnum):
    """What gossip holds of a session."""

    ALIVE = "alive"  # or suspect, or leaving: it may still answer
    DEAD = "dead"  # silent, hung, left, or unknown although this node knows the others
    GONE = "gone"  # proof that its process is gone: a refused connection, or a newer life of its node


class Path(StrEnum):
    """What the fence script checks inside Redis before it writes the tombstone."""

    LEASE = "lease"  # does its heartbeat still stand where the fencer watched it?
    OWN = "own"  # nothing: a session ends itself


@dataclass(frozen=True, slots=True)
class Fence:
    """A session to fence now. `seen` is the heartbeat that this node watched (b"": there was none)."""

    session: str
    path: Path
    seen: bytes
    cause: str


@dataclass(frozen=True, slots=True)
class Standstill:
    """A heartbeat that stands still: this node read `value`, and nothing else, from `since_s` to `asked_s`, often."""

    value: bytes | None
    since_s: float
    asked_s: float

    @property
    def for_s(self) -> float:
        """How long it stood still for certain."""
        return max(0.0, self.asked_s - self.since_s)


@dataclass(slots=True)
class _Watch:
    """One session as read. Two start times: a gap too long for a 1 s proof can still be short within a 30 s one."""

    value: bytes | None
    stale_since_s: float  # when a reply first showed this value, with no gap since as long as half of stale_s
    lease_since_s: float  # the same, with no gap since as long as half of lease_s
    asked_s: float  # when the last read left
    has_moved: bool


class Witness:
    """Report every reading (`read`) and every break (`restart`), and ask whom to fence (`fences`)."""

    def __init__(self, stale_s: float, lease_s: float) -> None:
        self.stale_s = stale_s
        self.lease_s = lease_s
        self._watches: dict[str, _Watch] = {}

    def read(self, session: str, value: bytes | None, asked_s: float, now_s: float) -> None:
        """Redis, asked at `asked_s`, answered at `now_s` that the heartbeat is `value` (None: there is none).

        It read the value at some moment between the two. To claim no more than that, an age runs from the first reply
        that showed the value to the last question.
        """
        if now_s - asked_s > self.stale_s / 2:
            # The cause that held up our call may have held up every heartbeat too.
            self.restart()
        watch = self._watches.get(session)
        if watch is None or watch.value != value:
            self._watches[session] = _Watch(value, now_s, now_s, asked_s, has_moved=watch is not None)
            return
        # Between two readings this node saw nothing. It may have been stopped, and all others with it (on a paused
        # machine), so a gap must be the smaller part of the time that it helps to prove.
        gap_s = asked_s - watch.asked_s
        if gap_s > self.stale_s / 2:
            watch.stale_since_s = now_s
        if gap_s > self.lease_s / 2:
            watch.lease_since_s = now_s
        watch.asked_s = asked_s

    def restart(self) -> None:
        """An outage, a late reply, a new connection or a new master broke the watch: all of it begins again."""
        self._watches.clear()

    def forget(self, session: str) -> None:
        """Nobody asks about this session any more."""
        self._watches.pop(session, None)

    def tombstone(self, session: str) -> bytes | None:
        """Its tombstone, if this node has read one."""
        watch = self._watches.get(session)
        return watch.value if watch is not None and is_tombstone(watch.value) else None

    def age_s(self, session: str) -> float | None:
        """How long this node has watched its heartbeat stand unchanged. None: it does not watch it."""
        watch = self._watches.get(session)
        return None if watch is None else max(0.0, watch.asked_s - watch.lease_since_s)

    def is_stale(self, session: str) -> bool:
        """Whether this node has watched its heartbeat stand still for stale_s."""
        watch = self._watches.get(session)
        return watch is not None and watch.asked_s - watch.stale_since_s >= self.stale_s

    def is_expired(self, session: str) -> bool:
        """Whether this node has watched its heartbeat stand still for lease_s: it lost its right to its tasks."""
        watch = self._watches.get(session)
        return watch is not None and watch.asked_s - watch.lease_since_s >= self.lease_s

    def word(self, session: str) -> RedisWord:
        """This witness's word on a session, for the view."""
        if self.tombstone(session):
            return RedisWord.GONE
        if self.is_stale(session):
            return RedisWord.STALE
        watch = self._watches.get(session)
        return RedisWord.LIVE if watch and watch.has_moved else RedisWord.UNKNOWN

    def watched(self, session: str) -> Standstill | None:
        """What this node saw of its heartbeat without a gap. None: nothing yet."""
        watch = self._watches.get(session)
        return Standstill(watch.value, watch.stale_since_s, watch.asked_s) if watch is not None else None

    def expired(self, sessions: Iterable[str]) -> list[Fence]:
        """Fences for those of these sessions whose lease has run out, whatever anybody else says of them."""
        return [
            Fence(session, Path.LEASE, self._seen(session), "lease")
            for session in sessions
            if self.is_expired(session) and not self.tombstone(session)
        ]

    def is_suspect(self, session: str, beliefs: Mapping[str, Belief]) -> bool:
        """Whether the fault is likelier the witness's than the session's: too many sessions went stale together.

        Too many are more than a third of those that this node watches, and at least two, whose last signs of life lie
        within stale_s of this one's. If gossip holds all of them dead, both witnesses agree: a rack is gone.
        """
        watch = self._watches.get(session)
        if watch is None:
            return True
        together = [
            other
            for other, its in self._watches.items()
            if self.is_stale(other)
            and not self.tombstone(other)
            and abs(its.stale_since_s - watch.stale_since_s) <= self.stale_s
        ]
        if len(together) < 2 or 3 * len(together) <= len(self._watches):
            return False
        return any(beliefs.get(other, Belief.ALIVE) is Belief.ALIVE for other in together)

    def _seen(self, session: str) -> bytes:
        watch = self._watches.get(session)
        return (watch and watch.value) or b""


def believe(state: MemberState | None, evidence: Evidence, is_superseded: bool, is_synced: bool) -> Belief:
    """Gossip's word on a session as a belief; `state` None: gossip does not know the session.

    An unknown session holds work in Redis, or nobody would ask. It counts as dead once this node knows the others. A
    session that left counts as dead too, since its process may have been killed while it drained.
    """
    if is_superseded:
        return Belief.GONE
    if state is None:
        return Belief.DEAD if is_synced else Belief.ALIVE
    if state not in (MemberState.DEAD, MemberState.LEFT):
        return Belief.ALIVE
    return Belief.GONE if evidence in (Evidence.REFUSED, Evidence.SUPERSEDED) else Belief.DEAD
