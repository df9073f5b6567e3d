"""The leader lease: who may lead, and until when it may believe so.

Pure: the caller asks Redis what `wish` says and reports the answer here. A term is (session, epoch); renewing or
giving up names the exact term, so a late reply from an old term cannot touch a new one. Trust ends before Redis can let
the lease expire, because it is counted from when the request left, not from when the reply came.

An epoch is above every epoch that Redis or gossip knows, because a failover of Redis can take back its last writes; a
leader that hears of a higher one stops at once.

Does not know: Redis, asyncio, what a leader does with its time.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN_SHARE = 0.2  # of the lease: clocks of two machines drift, and a decision takes time to carry out


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
        self.holder: Term | None = None  # as Redis last said, this session included
        self.epoch = 0  # highest known: Redis's answers and gossip's
        self._trusted_until_s = 0.0
        self._dead = ""  # a holder that is known to be fenced

    def may_lead(self, now_s: float) -> bool:
        """Whether this session is the leader and may act on it now."""
        return (
            self.holder is not None
            and self.holder.session == self.session
            and self.holder.epoch >= self.epoch
            and now_s < self._trusted_until_s
        )

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
        """Redis answered a wish that left at `asked_s`: `holder` has the lease now (None: nobody has)."""
        if isinstance(wish, RenewTerm):
            asker = wish.term.session
            if wish.term != self.holder:
                return  # A late reply: that term was given up, or lost, meanwhile.
        else:
            asker = wish.session
        if asker != self.session:
            return  # Asked in an earlier session of this node.
        if holder is not None:
            self.epoch = max(self.epoch, holder.epoch)
        self.holder = holder
        # Another's lease may have been renewed just before we asked; it is named for at most one whole lease.
        is_own = holder is not None and holder.session == self.session
        self._trusted_until_s = asked_s + self.ttl_s - (self.margin_s if is_own else 0.0)

    def heard(self, epoch: int) -> None:
        """Gossip knows this epoch. Above our own, it ends our term: somebody was elected after us."""
        self.epoch = max(self.epoch, epoch)

    def died(self, session: str) -> bool:
        """This session was fenced. True: it holds the lease, and the next wish is to take it over."""
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
        """This node goes on as another session; whatever the old one held is over."""
        self.resign()
        self.session = session
