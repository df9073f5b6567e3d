"""The member table: which of two claims about a member stands, and a digest of the claims that do.

Merging is a maximum. One sort key (`precedence`) orders the claims about one node_id, so that tables which heard the
same claims are equal, in whatever order and however often the claims came:

    a later session  >  fenced  >  higher incarnation  >  left > dead > suspect > leaving > alive  >  evidence, accuser

The incarnation stands below "fenced" and above all that follows: only the accused may raise it, and that refutes any
accusation but a tombstone. Host, port and meta are fixed for a session, so they merge by themselves.

Does not know: time (it is handed in), timers, who is probed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from cluster.session import node_of, order
from cluster.swim.events import Address, Evidence, Identity, Member, MemberState, Tcp
from cluster.swim.probe import Rtt
from cluster.swim.wire import HASH_BYTES, TABLE_MAX, Digest, Row

STATE_RANK = {
    MemberState.ALIVE: 0,
    MemberState.LEAVING: 1,
    MemberState.SUSPECT: 2,
    MemberState.DEAD: 3,
    MemberState.LEFT: 4,
}
EVIDENCE_RANK = {
    Evidence.NONE: 0,
    Evidence.SILENT: 1,
    Evidence.STALLED: 2,
    Evidence.REFUSED: 3,
    Evidence.SUPERSEDED: 4,
    Evidence.FENCED: 5,
}
LIVE = (MemberState.ALIVE, MemberState.LEAVING, MemberState.SUSPECT)
STEADY = (MemberState.ALIVE, MemberState.LEAVING)
CLOSING_S = 0.5  # time for which the sockets of a process that has ended may still accept

life = lru_cache(maxsize=2 * TABLE_MAX)(order)  # parses each session once: every datagram carries some

Precedence = tuple[tuple[int, str], bool, int, int, int, str]


def precedence(row: Row) -> Precedence:
    """The sort key of claims about one node_id."""
    return (
        life(row.session),
        row.evidence is Evidence.FENCED,
        row.incarnation,
        STATE_RANK[row.state],
        EVIDENCE_RANK[row.evidence],
        row.by,
    )


def merge(row: Row, other: Row) -> Row:
    """The claim that stands when both were heard. Commutative, associative, idempotent."""
    low, high = sorted((row, other), key=precedence)
    if low.session != high.session:
        return high
    host, port, meta = max((low.host, low.port, low.meta), (high.host, high.port, high.meta))
    age_s = max(low.age_s, high.age_s) if precedence(low) == precedence(high) else high.age_s
    return msgspec.structs.replace(high, host=host, port=port, meta=meta, age_s=age_s)


def is_same_claim(row: Row, other: Row) -> bool:
    """Whether the claims agree in everything of which others are told. Another accuser's name alone is no change."""
    return precedence(row)[:5] == precedence(other)[:5]


def fingerprint(row: Row) -> int:
    """64 bits that stand for a live row. They leave suspicion out: it comes and goes without changing who is there."""
    text = f"{row.session} {row.incarnation}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def short(row: Row) -> Row:
    """The claim without what is fixed for the session: enough for nodes that know the member."""
    return Row(row.session, row.incarnation, row.state, row.evidence, row.by)


@dataclass(slots=True)
class Entry:
    """One member and what this node knows of it. Replace `row` through `Table.put` only."""

    row: Row
    since_s: float
    print: int = 0  # the row's fingerprint
    rtt: Rtt = field(default_factory=Rtt)
    load: bytes = b""
    load_seq: int = 0
    load_at_s: float = float("-inf")
    heard_s: float = float("-inf")  # when its last datagram came
    answered_s: float = float("-inf")  # when it last answered a ping of ours, directly or through a helper
    pulled_s: float = float("-inf")  # when we last asked it for rows
    told_s: float = float("-inf")  # when we last told it that it is held dead
    is_vouched: bool = True  # Redis has shown this session's heartbeat, or this node has no Redis to ask
    own_incarnation: int = 0  # in its last answer to a ping of ours
    own_load_seq: int = 0  # likewise
    doubted_s: float = float("inf")  # when we began to hold it suspect, dead or left
    accepted_s: float = float("-inf")  # when its kernel first took a connection of ours in this silence

    @property
    def node_id(self) -> str:
        """Its stable name."""
        return node_of(self.row.session)

    @property
    def address(self) -> Address:
        """Where its gossip is reached."""
        return self.row.host, self.row.port

    @property
    def is_live(self) -> bool:
        """Whether it takes part in the cluster: alive, leaving or suspect."""
        return self.row.state in LIVE

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return Identity(self.node_id, self.row.session, self.row.host, self.row.port, self.row.meta)

    def kernel_said(self, outcome: Tcp, now_s: float) -> None:
        """Take in how a connect of ours ended. A dying process's sockets close one after another: at first one accepts.

        A refusal long after an acceptance does not undo it: the process may hang behind a firewall that is new.
        """
        if outcome is Tcp.ACCEPTED:
            self.accepted_s = self.accepted_s if self.accepted_s > self.answered_s else now_s
        elif outcome is not Tcp.SILENT and now_s - self.accepted_s <= CLOSING_S:
            self.accepted_s = float("-inf")

    def aged(self, now_s: float) -> Row:
        """The row as others are to take it in: with its age if it is dead or left."""
        if self.is_live:
            return self.row
        return msgspec.structs.replace(self.row, age_s=max(int(now_s - self.since_s), 0))

    def member(self) -> Member:
        """A snapshot for the driver."""
        row = self.row
        return Member(
            identity=self.identity,
            incarnation=row.incarnation,
            state=row.state,
            evidence=row.evidence,
            since_s=self.since_s,
            by=row.by,
            rtt_s=self.rtt.srtt_s,
            load=self.load,
            load_seq=self.load_seq,
            load_at_s=self.load_at_s,
            is_vouched=self.is_vouched,
            doubted_s=self.doubted_s,
            answered_s=self.answered_s,
            accepted_s=self.accepted_s,
        )


class Table:
    """Rows by node_id, at most TABLE_MAX, and an up-to-date digest of the live ones."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._live: dict[str, Entry] = {}
        self._hash = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, node_id: str) -> Entry:
        """The entry of a name that is certainly there: this node's own."""
        return self._entries[node_id]

    def get(self, node_id: str) -> Entry | None:
        """The entry of that name."""
        return self._entries.get(node_id)

    def of(self, session: str) -> Entry | None:
        """The entry of exactly that session."""
        entry = self._entries.get(node_of(session))
        return entry if entry is not None and entry.row.session == session else None

    @property
    def live(self) -> dict[str, Entry]:
        """Entries of the live members, this node included, in the order they came."""
        return self._live

    @property
    def digest(self) -> Digest:
        """Two numbers that stand for the live rows."""
        return Digest(len(self._live), self._hash)

    def hashes(self) -> dict[bytes, Entry]:
        """The live rows by the short hash that stands for them in a Pull."""
        return {entry.print.to_bytes(8, "big")[:HASH_BYTES]: entry for entry in self._live.values()}

    def dead(self) -> list[Entry]:
        """Dead members that may come back and whose address is known."""
        return [entry for entry in self if entry.row.state is MemberState.DEAD and entry.row.host]

    def put(self, row: Row, now_s: float) -> Entry | None:
        """Make `row` the entry of its node_id. None if the node_id is new and the table is full of live members."""
        node_id = node_of(row.session)
        entry = self._entries.get(node_id)
        if entry is None or entry.row.session != row.session:
            if entry is None and len(self._entries) >= TABLE_MAX and not self._make_room():
                return None
            self.forget(node_id)
            entry = self._entries[node_id] = Entry(row, now_s - row.age_s)
        else:
            if self._live.get(node_id) is entry:
                self._hash ^= entry.print
            if entry.row.state is not row.state:
                entry.since_s = now_s - row.age_s
            entry.row = row
        if entry.is_live:
            entry.print = fingerprint(row)
            self._hash ^= entry.print
            self._live[node_id] = entry
        else:
            self._live.pop(node_id, None)
        return entry

    def forget_before(self, since_s: float) -> None:
        """Drop members that were dead or left before `since_s`."""
        for entry in [entry for entry in self if not entry.is_live and entry.since_s < since_s]:
            self.forget(entry.node_id)

    def _make_room(self) -> bool:
        """Forget whoever ended first; if all live, a member for which Redis has not vouched."""
        ended = [entry for entry in self if not entry.is_live] or [entry for entry in self if not entry.is_vouched]
        if ended:
            self.forget(min(ended, key=lambda entry: entry.since_s).node_id)
        return bool(ended)

    def forget(self, node_id: str) -> None:
        """Drop the entry of this name."""
        self._entries.pop(node_id, None)
        live = self._live.pop(node_id, None)
        if live is not None:
            self._hash ^= live.print


def accusation(entry: Entry) -> list[Row]:
    """The claim against this member, if there is one: it has to hear it so that it can refute."""
    return [] if entry.row.state in (MemberState.ALIVE, MemberState.LEAVING) else [short(entry.row)]
