"""Who is heard before a silent session is fenced: one node's part in such a decision, but for its calls.

A session may be fenced before its lease is over if each juror's word stands in Redis and none is a veto. The jury is
every session that this node knows and that Redis has shown, but for

- the silent one, the fenced, and those that left;
- those whose heartbeat this node itself watched stand still for heartbeat_stale_s (one never read counts as live);
- those that do not vote (an older version of Rumor, during an upgrade);
- those that are *proven gone*: they refused this node's own connect, and nobody is subscribed to their channel.

Redis compares the words, in `lua/vote.lua`: the call of the last juror fences. Pure: the caller looks, reads, calls,
and reports what came of it.

Does not know: Redis, sockets, asyncio; what a word means (see `words`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from math import inf

from cluster import keys, session
from cluster.bounded import Bounded
from cluster.config import Config
from cluster.swim.core import Swim
from cluster.swim.events import Address, Evidence, Member, MemberState, Sight
from cluster.vitals.witness import Belief, Witness, believe
from cluster.vitals.words import Silence, Word, alibi_s, is_new, may_be_gone, word

CONSIDERED_MAX, CONSIDERED_S = 10_000, 60.0  # sessions considered at a time, and for how long each
REMEMBERED = 10_000  # nodes whose latest session, and sessions whose address, this node remembers
FRESH_S = 0.3  # time for which a word counts as one of this moment
ASKED_S = 2.0  # time for which this node looks at a session when another node asks it to
ASK_S = 1.0  # time between two calls to the others to look at one session
PROVEN_S = 0.5  # time for which a proof counts that a juror is gone itself
JURY_AT_ONCE_MAX = 64  # jurors up to which every call names them all; beyond, only calls that may decide


@dataclass(frozen=True, slots=True)
class Ballot:
    """What one call of `vote.lua` says. `ways` "": count the words that are there, and decide nothing."""

    session: str
    voter: str
    word: Word
    sight: Sight
    said_s: float  # when the look ended, by this node's monotonic clock
    seen: bytes | None  # the heartbeat that it is about; None: the one that stands there
    alibi_s: float
    ways: str
    jury: tuple[str, ...]  # the other jurors

    def counting(self) -> Ballot:
        """The same word, without the long list of those who must have spoken before."""
        return replace(self, ways="", jury=())


@dataclass(frozen=True, slots=True)
class Undecided:
    """The answer of `vote.lua` while a session is not fenced."""

    subscribers: int
    words: int  # words in the hash before this call
    missing: tuple[str, ...]  # jurors without a word that stands: they object, or could not speak yet
    alibis: tuple[str, ...]  # voters outside the jury that heard the session shortly before they fell silent


@dataclass(slots=True)
class _Considered:
    since_s: float
    until_s: float


class Jury:
    """One node's part. `own` says this node's present session; `ended` holds the sessions that are fenced."""

    def __init__(
        self, config: Config, swim: Swim, witness: Witness, ended: Container[str], own: Callable[[], str]
    ) -> None:
        self._own = own
        self._config = config
        self._swim = swim
        self._witness = witness
        self._ended = ended
        self._considered: dict[str, _Considered] = {}
        self._lives: Bounded[str, str] = Bounded(REMEMBERED)  # node_id -> the latest session that gossip named
        self._addresses: Bounded[str, Address] = Bounded(REMEMBERED)
        self._asked_s: Bounded[str, float] = Bounded(REMEMBERED)  # session -> until when to look at it
        self._proven_s: Bounded[str, float] = Bounded(REMEMBERED)  # session -> until when it is proven gone
        self._told: Bounded[str, Word] = Bounded(REMEMBERED)  # session -> what our last call left there
        self._called_s: Bounded[str, float] = Bounded(REMEMBERED)  # session -> when we last asked the others to look

    # ---- what this node knows of others

    def consider(self, name: str, now_s: float) -> bool:
        """Watch this session too, whatever gossip knows of it. False: there are too many."""
        known = self._considered.get(name)
        if known is None and len(self._considered) >= CONSIDERED_MAX:
            return False
        since_s = known.since_s if known is not None else now_s
        self._considered[name] = _Considered(since_s, now_s + CONSIDERED_S)
        return True

    def is_considered(self, name: str) -> bool:
        """Whether somebody asked about this session not long ago."""
        return name in self._considered

    def drop_old(self, now_s: float) -> list[str]:
        """Forget sessions about which nobody asks any more. Returns those that gossip does not know either."""
        over = [name for name, known in self._considered.items() if known.until_s < now_s]
        for name in over:
            del self._considered[name]
        return [name for name in over if self._swim.member(name) is None]

    def forget(self, name: str) -> None:
        """The session is fenced."""
        for memory in (self._considered, self._addresses, self._asked_s, self._proven_s, self._told, self._called_s):
            memory.pop(name, None)

    def lives_at(self, name: str, address: Address) -> None:
        """Remember where a session is, or was."""
        self._addresses[name] = address

    def address_of(self, name: str) -> Address | None:
        """Where the session was last known to be."""
        return self._addresses.get(name)

    def met(self, member: Member) -> str | None:
        """Gossip names this session. Returns the earlier life of its node that it ends, if it is a later one."""
        name, node_id = member.identity.session, member.identity.node_id
        self.lives_at(name, (member.identity.host, member.identity.port))
        last = self._lives.get(node_id)
        if last is not None and not session.is_newer(name, than=last):
            return None
        self._lives[node_id] = name
        return last

    def is_superseded(self, name: str) -> bool:
        """Whether gossip named a later life of the session's node, or this node is one."""
        newest = self._lives.get(session.node_of(name))
        later = (newest is not None and session.is_newer(newest, than=name)) or session.is_newer(self._own(), than=name)
        return later

    def belief(self, name: str, member: Member | None) -> Belief:
        """Gossip's word on a session; `member`: its row, if gossip has one."""
        state, evidence = (member.state, member.evidence) if member is not None else (None, Evidence.NONE)
        return believe(state, evidence, self.is_superseded(name), self._swim.is_synced)

    def beliefs(self) -> dict[str, Belief]:
        """Gossip's word on every session that this node watches: members, and those that it considers."""
        members = {member.identity.session: member for member in self._swim.members() if member.is_vouched}
        names = [*members, *(name for name in self._considered if name not in members)]
        return {
            name: self.belief(name, members.get(name))
            for name in names
            if name != self._own() and name not in self._ended
        }

    # ---- whom to look at

    def asked(self, name: str, now_s: float) -> None:
        """Another node asks everybody to look at this session."""
        self._asked_s[name] = now_s + ASKED_S

    def open_cases(self, beliefs: dict[str, Belief], now_s: float) -> list[str]:
        """The sessions that this node has to look at now, and go on looking at while they are listed here."""
        return [name for name, belief in beliefs.items() if self._is_open(name, belief, now_s)]

    def is_open(self, name: str, now_s: float) -> bool:
        """Whether this node has to look at this session."""
        if name == self._own() or name in self._ended:
            return False
        member = self._swim.member(name)
        return (member is not None or name in self._considered) and self._is_open(
            name, self.belief(name, member), now_s
        )

    def _is_open(self, name: str, belief: Belief, now_s: float) -> bool:
        """Nobody looks at a session that was cut off and whose heartbeat moves, unless somebody asks.

        The neighbours of a session that gossip holds alive look at it while its heartbeat stands still: their
        testimony outlives them.
        """
        if belief is Belief.ALIVE:
            watched = self._witness.watched(name)
            is_paused = watched is not None and watched.for_s >= self._config.heartbeat_stale_s / 2
            return name in self._told or (is_paused and self._swim.is_neighbour(name))
        if self._asked_s.get(name, -inf) > now_s or self._witness.is_stale(name):
            return True
        member = self._swim.member(name)
        if member is not None and member.state is MemberState.LEFT:
            return False  # It said so itself, and writes its own tombstone now.
        return may_be_gone(self.silence(name, now_s), self._witness.watched(name), now_s, self._config)

    def silence(self, name: str, now_s: float) -> Silence:
        """What gossip and this node's own sockets know of the session."""
        member = self._swim.member(name)
        belief = self.belief(name, member)
        if member is None:
            known = self._considered.get(name)
            return Silence(belief, known.since_s if known is not None else now_s, -inf, False)
        since_s = max(member.doubted_s, member.answered_s) if member.doubted_s < inf else member.answered_s
        is_accepted = member.accepted_s > member.answered_s or member.evidence is Evidence.STALLED
        return Silence(belief, since_s, member.answered_s, is_accepted)

    # ---- words

    def ballot(self, name: str, sight: Sight, now_s: float, *, is_hearing: bool) -> Ballot | None:
        """The call to make after a look that ended just now. None: a veto that nobody has to be told.

        `is_hearing`: whether this node's own subscription stands, without which an absent subscriber proves nothing.
        """
        config, silence, watched = self._config, self.silence(name, now_s), self._witness.watched(name)
        its_word = word(silence, sight, watched, now_s, config)
        alibi = alibi_s(silence, sight, watched, now_s, config) if self._swim.is_neighbour(name) else 0.0
        if its_word is Word.VETO and not alibi and name not in self._told:
            return None
        # While the silence is new, this node may not have read the last heartbeat yet.
        seen = None if watched is None or is_new(silence, now_s, config) else watched.value or b""
        ways = "" if its_word is Word.VETO else self._ways(name, now_s, is_hearing=is_hearing)
        jury = tuple(self._jurors(name, now_s, is_hearing=is_hearing)) if ways else ()
        return Ballot(name, self._own(), its_word, sight, now_s, seen, alibi, ways, jury)

    def _ways(self, name: str, now_s: float, *, is_hearing: bool) -> str:
        """The ways to a fence that this node's own watch permits. "n": none, but it may learn who is missing."""
        watched, fast = self._witness.watched(name), "f" if is_hearing else "n"
        if (
            watched is None
            or now_s - watched.asked_s > self._config.heartbeat_stale_s / 2
            or not self._witness.is_stale(name)
            or self._witness.is_suspect(name, self.beliefs())
        ):
            return fast
        return fast + ("su" if watched.for_s >= self._config.stalled_s else "s")

    def _jurors(self, name: str, now_s: float, *, is_hearing: bool) -> Iterator[str]:
        members = [
            member.identity.session
            for member in self._swim.members()
            if member.is_vouched and member.state is not MemberState.LEFT
        ]
        for other in dict.fromkeys([*members, *self._considered]):
            if other in (name, self._own()) or other in self._ended or self._witness.is_stale(other):
                continue
            watched = self._witness.watched(other)
            is_proven = is_hearing and self._proven_s.get(other, -inf) > now_s
            if not is_proven and (watched is None or keys.votes(watched.value)):
                yield other

    def voted(self, ballot: Ballot, reply: Undecided, now_s: float) -> bool:
        """The call was answered. True: it proves that the session, which is a juror for others, is gone."""
        if ballot.word is Word.VETO and not ballot.alibi_s:
            self._told.pop(ballot.session, None)
        else:
            self._told[ballot.session] = ballot.word
        if ballot.sight is not Sight.REFUSED or reply.subscribers:
            return False
        is_news = self._proven_s.get(ballot.session, -inf) <= now_s
        self._proven_s[ballot.session] = now_s + PROVEN_S
        return is_news

    def to_ask(self, ballot: Ballot, reply: Undecided, now_s: float) -> Iterable[str]:
        """The jurors who should be asked to look. Whoever speaks first asks; then the session's neighbours do.

        First those that no gossip of this node reaches; all others hear of the silence without being asked. While
        nothing is decided, everybody who was not heard: some may not know the session.
        """
        name = ballot.session
        last_s = self._called_s.get(name, -inf)
        if not ballot.jury or now_s - last_s < ASK_S or (reply.words and not self._swim.is_neighbour(name)):
            return ()
        self._called_s[name] = now_s
        if last_s > -inf or self._swim.member(name) is None:
            return reply.missing
        members = {other: self._swim.member(other) for other in ballot.jury}
        return [other for other, member in members.items() if self.belief(other, member) is not Belief.ALIVE]
