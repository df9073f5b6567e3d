"""The leader lease: who may lead, and until when it may believe so.

Pure: the caller asks Redis for what `wish` returns and reports the answer here. A term is (session, epoch). Whoever
renews a term or gives it up names it exactly, so a late reply to an old term cannot touch a new one. Trust ends before
Redis can let the lease expire: it is counted from when the request left, not from when the reply came.

Redis alone decides who leads. A new epoch is above every epoch that Redis named before, and above those that gossip
knows, because a failover of Redis can take back its last writes. Gossip may lie: an epoch that is far beyond Redis's
counts for nothing, and a nearer one is no more than a reason to ask Redis.

Does not know: Redis, asyncio, what a leader does with its time.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.swim.plausible import EPOCH_AHEAD, is_plausible

MARGIN_SHARE = 0.2  # share of the lease that is not trusted: clocks drift, and carrying out a decision takes time


@dataclass(frozen=True, slots=True)
class Term:
    """One session's leadership under one epoch."""

    session: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Acquire:
    """Ask for a new term."""

    session: str


@dataclass(frozen=True, slots=True)
class RenewTerm:
    """Ask for more time for exactly this term."""

    term: Term


@dataclass(frozen=True, slots=True)
class Takeover:
    """Ask for the lease of a session that both witnesses hold dead."""

    session: str
    dead: str


Wish = Acquire | RenewTerm | Takeover


class Lease:
    """The lease as one session sees it."""

    def __init__(self, session: str, ttl_s: float) -> None:
        self.session = session
        self.ttl_s = ttl_s
        self.margin_s = ttl_s * MARGIN_SHARE
        self.holder: Term | None = None  # who has the lease by Redis's last answer; it may be this session
        self.epoch = 0  # the last that Redis named
        self._heard_epoch = 0  # the last that gossip named
        self._trusted_until_s = 0.0
        self._dead = ""  # a holder that was fenced

    def may_lead(self, now_s: float) -> bool:
        """Whether this session is the leader and may act on it now."""
        return self.holder is not None and self.holder.session == self.session and now_s < self._trusted_until_s

    def leader(self, now_s: float) -> Term | None:
        """Whom this node may name as the leader: itself while it may lead, another while its lease may last."""
        if self.holder is None or (self.holder.session == self.session and not self.may_lead(now_s)):
            return None
        return self.holder if now_s < self._trusted_until_s else None

    def wish(self, now_s: float) -> Wish:
        """What to ask Redis for."""
        if self.holder is not None and self.holder.session == self.session:
            return RenewTerm(self.holder) if self.may_lead(now_s) else Acquire(self.session)
        if self.holder is not None and self.holder.session == self._dead:
            return Takeover(self.session, self.holder.session)
        return Acquire(self.session)

    def answered(self, wish: Wish, holder: Term | None, asked_s: float) -> None:
        """Redis answered a wish that left at `asked_s`: `holder` has the lease now (None: nobody)."""
        if isinstance(wish, RenewTerm):
            asker = wish.term.session
            if wish.term != self.holder:
                return  # A late reply: this node gave that term up, or lost it, meanwhile.
        else:
            asker = wish.session
        if asker != self.session:
            return  # Asked in an earlier session of this node.
        if holder is not None:
            self.epoch = holder.epoch
        self.holder = holder
        # Another may have renewed its lease just before we asked. We name it for at most one whole lease.
        is_own = holder is not None and holder.session == self.session
        self._trusted_until_s = asked_s + self.ttl_s - (self.margin_s if is_own else 0.0)

    @property
    def known_epoch(self) -> int:
        """The epoch that a new term has to exceed."""
        return self._heard_epoch if self._is_ahead else self.epoch

    def heard(self, epoch: int) -> bool:
        """Gossip knows this epoch. True: somebody may have been elected whom we do not know, so ask Redis now."""
        is_news = epoch != self._heard_epoch
        self._heard_epoch = epoch
        return is_news and self._is_ahead

    @property
    def _is_ahead(self) -> bool:
        return self._heard_epoch > self.epoch and is_plausible(self._heard_epoch, self.epoch, EPOCH_AHEAD)

    def lost(self, term: Term) -> None:
        """Redis knows a later leader than the one of this term."""
        if self.holder == term:
            self.holder = None

    def died(self, session: str) -> bool:
        """This session was fenced. True: it holds the lease, so the next wish is to take that over."""
        if self.holder is None or self.holder.session != session or session == self.session:
            return False
        self._dead = session
        return True

    def resign(self) -> Term | None:
        """Stop leading now. Returns the term to give back to Redis, if there is one."""
        term = self.holder if self.holder is not None and self.holder.session == self.session else None
        if term is not None:
            self.holder = None
        return term

    def renamed(self, session: str) -> None:
        """This node goes on as another session; the old one's term is over."""
        self.resign()
        self.session = session
