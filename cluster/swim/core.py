"""SWIM + Lifeguard + evidence: membership as one node sees it. The dispatcher: it owns the state and the branches.

Feed it events, carry out the actions it returns, and hand in Tick() no later than `deadline_s()`. Timers fire on Tick
only, so a driver that empties its socket first never accuses a peer whose answer is already there. Bytes go in and
bytes come out: encoding and sealing are inside, so that the simulator tests what production sends.

How a member is found dead, from fast to slow:

- its watch connection ends, or it misses a ping: other members try its TCP port too. If two of them are *refused* (one,
  when nobody else is left to ask), it is dead at once;
- a later session of its name appears: the earlier one is dead at once;
- it is silent, and so is its host: it is suspect, then dead after `suspicion_min_s` to `suspicion_max_s`;
- it is silent, but its kernel accepts: it is suspect, then dead after `stalled_s`.

A higher incarnation, which only the accused may take, refutes any accusation but a tombstone. A node that was away
itself (a late tick) cancels its rounds and accuses nobody. See `table` for which of two claims stands, `rounds` for who
is asked, `suspicion` for how long a suspect has, `dissemination` for which news is told when, `anti_entropy` for how
tables become equal, `newcomers` for who is let in, `outbox` for what is sent, `wire` for the bytes.

A session that is not in the table is a stranger: this node believes nothing that it says until it has answered a ping
of ours, which a recording of its datagrams cannot do. All other replays are harmless, because every merge is a maximum.

A member may lie: it has the key, and can speak in anybody's name. So gossip alone does nothing that Redis can confirm.
A tombstone counts once it was read in Redis (`Fenced`). A session that this node has not met enters the table when
Redis vouches for it (`Vouched`). Until then there is the action `Unconfirmed`, and nothing else happens. While Redis is
away, the session's own answer to a ping of ours has to do, and it stays unvouched. Numbers that only rise are measured
against what their owner said at first hand: see `plausible`. Without a registry (`rumor agent`) hearsay is believed,
within bounds.

Does not know: sockets, asyncio, the wall clock, Redis, what load, meta and epochs mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from math import inf
from random import Random

import msgspec

from cluster.bounded import Bounded
from cluster.config import Config
from cluster.session import is_newer, node_of
from cluster.swim import wire
from cluster.swim.anti_entropy import Exchange
from cluster.swim.events import (
    Action,
    Address,
    Changed,
    Datagram,
    Denied,
    Event,
    Evidence,
    Fenced,
    Identity,
    Join,
    Leave,
    Look,
    Looked,
    Member,
    MemberState,
    NameConflict,
    PushPullReply,
    PushPullRequest,
    PushPullResponse,
    RegistryReach,
    Renew,
    SetEpoch,
    SetLoad,
    Sight,
    Tcp,
    TcpOutcome,
    Tick,
    Unconfirmed,
    Vouched,
    Watch,
    WatchEnded,
)
from cluster.swim.looks import Looks
from cluster.swim.newcomers import Challenges, Contest, Contests, Joins
from cluster.swim.outbox import Outbox
from cluster.swim.plausible import EPOCH_AHEAD, INCARNATION_AHEAD, LOAD_AHEAD, is_plausible
from cluster.swim.probe import REFUSAL_GRACE_SHARE
from cluster.swim.rounds import Rounds
from cluster.swim.suspicion import CONFIRMATIONS, Suspicion, witnesses_needed
from cluster.swim.table import LIVE, STEADY, Entry, Table, accusation, is_same_claim, merge, precedence, short
from cluster.swim.watch_ring import predecessors, successors
from cluster.swim.wire import (
    Ack,
    Freshness,
    Gossip,
    Head,
    LoadRow,
    Nack,
    Packet,
    Ping,
    PingReq,
    Pull,
    Row,
    Rows,
    Sync,
)

LOAD_FANOUT = 4  # members told at once of an urgent load
GOSSIP_FANOUT = 3  # members told at each gossip interval while there is news
URGENT_FANOUT = 3  # members told at once by a node that heard urgent news
URGENT_DIRECT_MAX = 64  # members told at once by the node from which the urgent news comes
RING_REPAIR_S = 1.0  # time between pings to members held dead, by which a healed cut merges by itself
SOUGHT_MAX = 4  # members held dead that are pinged at once, if more than one is due
SOUGHT_SHARE = 0.05  # share of the time a member has been dead after which it is due again, however many are dead
TELL_SHARE = 0.5  # share of the probe interval between two pings by which an accuser tells the suspect
JOIN_PATIENCE_S = 3.0  # time without an answer from any address after which a node counts itself as the first
TOLD_SPACING_S = 0.05  # time between pings to a member that is held dead and is heard all the same
# Share of the shortest suspicion. A member that was suspect here for less time than that is not held dead on another
# member's word that it is silent.
HERALD_SHARE = 0.5
CONFLICTS_MAX = 256
CONFLICT_SPACING_S = 10.0  # time between two words about one conflict: the first may have come while Redis was away
TOMBSTONES_MAX = 1024
VOUCHED_MAX = 2 * wire.TABLE_MAX
ASKED_MAX = 2 * wire.TABLE_MAX
ASK_SPACING_S = 0.25  # time between two questions about one session

COUNTERS = (
    "probes",
    "failed_rounds",
    "suspicions",
    "refutations",
    "refuted",
    "late_ticks",
    "pulls",
    "push_pulls",
    "conflicts",
    "deaths_silent",
    "deaths_stalled",
    "deaths_refused",
    "deaths_superseded",
    "deaths_fenced",
    "datagrams_in",
    "datagrams_out",
    "bytes_in",
    "bytes_out",
    "dropped_malformed",
    "dropped_unsealed",
    "dropped_other_cluster",
    "dropped_replayed",
    "dropped_oversize",
    "dropped_implausible",
    "dropped_unconfirmed",
)


class Swim:
    """Membership as one node sees it."""

    def __init__(
        self,
        config: Config,
        me: Identity,
        keys: Sequence[bytes],
        rng: Random,
        now_s: float,
        *,
        nonce: Callable[[], bytes] = lambda: os.urandom(wire.NONCE_BYTES),
        has_registry: bool = False,
    ) -> None:
        """`has_registry`: the driver has Redis, and answers Unconfirmed."""
        assert len(me.meta) <= wire.META_MAX_BYTES, f"meta is {len(me.meta)} bytes"
        self._config = config
        self._rng = rng
        self._me = me
        self._past: dict[str, None] = {}  # sessions this process had before (Renew)
        self._load_told_s = inf  # when a few members are told our load; inf: it rides in datagrams that leave anyway
        self._load_next_s = now_s  # the earliest time at which they may be told again
        self._stats = dict.fromkeys(COUNTERS, 0)
        self._table = Table()
        self._outbox = Outbox(config.cluster, me.node_id, keys, nonce, self._table, self._stats)
        self._looks = Looks()
        self._exchange = Exchange(self._table, self._outbox, rng, self._stats)
        self._tombstones: Bounded[str, None] = Bounded(TOMBSTONES_MAX)
        self._has_registry = has_registry
        self._can_ask = has_registry
        self._vouched: Bounded[str, None] = Bounded(VOUCHED_MAX)  # sessions whose heartbeat Redis has shown
        self._asked_s: Bounded[tuple[str, bool], float] = Bounded(ASKED_MAX)  # (session, is_fenced) -> last Unconfirmed
        self._epoch = -1  # the last that Redis named; -1: none yet
        self._suspicions: dict[str, Suspicion] = {}  # by session
        self._joins = Joins()
        self._challenges = Challenges()
        self._contests = Contests(config.probe_timeout_s)
        self._has_merged = False
        self._conflicts: Bounded[str, float] = Bounded(CONFLICTS_MAX)  # session -> when it was last told
        self._claimed: Bounded[str, None] = Bounded(CONFLICTS_MAX)  # later lives of our name, by others' word
        self._watched: tuple[Identity, ...] = ()
        self._ring_changed = False
        self._urgent_own: list[Row] = []
        self._urgent_heard: list[Row] = []

        self._now_s = self._started_s = now_s
        self._rounds = Rounds(config, me.node_id, self._table, self._outbox, rng, self._stats, self, now_s)
        self._gossip_s = now_s
        self._push_pull_s = now_s + (0.5 + rng.random()) * config.push_pull_interval_s
        self._ring_repair_s = now_s + (1 + rng.random()) * RING_REPAIR_S
        self._put_me(0, MemberState.ALIVE)
        self._deadline_s = self._next_s()

    # ---- the interface

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one event at `now_s` (monotonic seconds). Returns what the driver is to do."""
        # A driver works off a backlog in one visit to the socket, so only the first event of it counts as late.
        late_s = now_s - max(self._deadline_s, self._now_s)
        self._now_s = max(now_s, self._now_s)
        if late_s > self._config.probe_interval_s:
            self._was_away(late_s)
        match event:
            case Datagram():
                self._on_datagram(event)
            case Tick():
                self._on_tick()
            case TcpOutcome():
                self._on_tcp(event)
            case Look():
                self._on_look(event)
            case WatchEnded():
                self._on_watch_ended(event.session)
            case Join():
                self._on_join(event.addresses)
            case SetLoad():
                self._on_load(event.load, event.is_urgent)
            case SetEpoch():
                self._on_epoch(event.epoch)
            case Fenced():
                self._on_fenced(event.session)
            case Vouched():
                self._on_vouched(event.identity)
            case Denied():
                self._on_denied(event.session)
            case RegistryReach():
                self._can_ask = self._has_registry and event.is_up
            case Renew():
                self._on_renew(event.session)
            case Leave():
                self._on_leave(event.done)
            case PushPullRequest():
                if self._on_sync(event.data):
                    self._outbox.out.append(PushPullReply(event.ticket, self._outbox.full_table(self._now_s)))
            case PushPullResponse():
                self._on_sync(event.data)
        self._flush_urgent()
        self._update_watch()
        self._deadline_s = self._next_s()
        out, self._outbox.out = self._outbox.out, []
        self._looks.take(out)
        return out

    def deadline_s(self) -> float:
        """Hand in Tick() no later than this."""
        return self._deadline_s

    def members(self) -> tuple[Member, ...]:
        """All rows, sorted by node_id: this node's too, and those of the dead and the left while it remembers them."""
        return tuple(sorted((entry.member() for entry in self._table), key=lambda member: member.identity.node_id))

    def member(self, session: str) -> Member | None:
        """The row of exactly this session."""
        entry = self._table.of(session)
        return entry.member() if entry is not None else None

    def is_neighbour(self, session: str) -> bool:
        """Whether this node is one of the few that stand before this session on the ring."""
        return self._me.node_id in predecessors(self._table.live, node_of(session), CONFIRMATIONS + 1)

    @property
    def epoch(self) -> int:
        """The highest epoch heard."""
        return self._outbox.epoch

    @property
    def is_synced(self) -> bool:
        """Whether this node heard the others: it merged a table, or there is nobody to hear, or nobody answers."""
        return self._has_merged or self._now_s - self._started_s >= JOIN_PATIENCE_S

    @property
    def health(self) -> int:
        """Local health: 0 is well (Lifeguard's local health multiplier, less one)."""
        return self._rounds.health

    @property
    def stats(self) -> Mapping[str, int]:
        """Counters since the start."""
        return self._stats

    # ---- time

    def _next_s(self) -> float:
        return min(
            self._rounds.due_s,
            self._looks.due_s,
            self._gossip_s if self._outbox.news else inf,
            self._load_told_s,
            self._push_pull_s,
            self._ring_repair_s,
            self._joins.due_s,
            min((min(s.tell_s, self._suspicion_ends_s(s)) for s in self._suspicions.values()), default=inf),
        )

    def _on_tick(self) -> None:
        now_s = self._now_s
        self._rounds.advance(now_s)
        self._looks.advance(now_s)
        for suspicion in list(self._suspicions.values()):
            self._pursue(suspicion)
        for address in self._joins.due(now_s):
            self._rounds.ping_address(address, self._now_s)
        self._rounds.go_on(now_s)
        if self._load_told_s <= now_s:
            self._load_told_s, self._load_next_s = inf, now_s + self._config.gossip_interval_s
            for entry in self._some(LOAD_FANOUT):
                self._outbox.send(entry.address, Gossip())
        if self._gossip_s <= now_s and self._outbox.news:
            self._gossip_s = now_s + self._config.gossip_interval_s
            self._outbox.news.drop_old(now_s)
            for entry in self._some(GOSSIP_FANOUT):
                self._outbox.send(entry.address, Gossip())
            if len(self._table.live) < 2:
                self._outbox.news.clear()  # There is nobody to tell. A member that comes later gets the whole table.
        if self._ring_repair_s <= now_s:
            self._ring_repair_s = now_s + RING_REPAIR_S
            self._seek_the_dead()
        if self._push_pull_s <= now_s:
            self._push_pull_s = now_s + (0.5 + self._rng.random()) * self._config.push_pull_interval_s
            self._table.forget_before(now_s - self._config.forget_s)
            self._exchange.anti_entropy(self._others(), now_s)

    def _seek_the_dead(self) -> None:
        """Ping the dead member whose last ping is the most overdue, and a few more that are due.

        Overdue is the time since this node last told it, as a share of the time it has been dead. That way a member
        that was just cut off is not lost among all that ended long ago.
        """

        def overdue(entry: Entry) -> float:
            return (self._now_s - entry.told_s) / max(self._now_s - entry.since_s, RING_REPAIR_S / SOUGHT_SHARE)

        first = nlargest(SOUGHT_MAX, self._table.dead(), key=lambda entry: (overdue(entry), self._rng.random()))
        for entry in first[:1] + [entry for entry in first[1:] if overdue(entry) >= SOUGHT_SHARE]:
            entry.told_s = self._now_s
            self._rounds.ping(entry, self._now_s)

    def _was_away(self, late_s: float) -> None:
        """This node did not run for a while. The answers it waited for may have come and gone, so it accuses nobody."""
        self._stats["late_ticks"] += 1
        self._rounds.feel(1)
        self._rounds.restart(self._now_s)
        self._looks.clear()
        self._outbox.news.drop_old(self._now_s)
        for suspicion in self._suspicions.values():
            suspicion.excused_s += late_s

    # ---- evidence

    def _on_tcp(self, event: TcpOutcome) -> None:
        session, outcome = event.session, event.outcome
        entry = self._table.of(session)
        if entry is not None:
            entry.kernel_said(outcome, self._now_s)
        if event.look:
            self._looks.connected(event.look, outcome)
            return
        if self._rounds.connected(session, outcome, self._now_s):
            return
        # The outcome is too late for its round. It still tells which kind of silence the suspicion is about.
        suspicion = self._suspicions.get(session)
        if entry is None or suspicion is None or self._me.node_id not in suspicion.accusers:
            return
        if entry.answered_s < suspicion.started_s and outcome is not Tcp.SILENT:
            self.accuse(session, Evidence.STALLED if outcome is Tcp.ACCEPTED else Evidence.REFUSED)

    def _on_look(self, look: Look) -> None:
        """Ping and connect, and say soon what came of it."""
        session, entry = look.session, self._table.of(look.session)
        address = entry.address if entry is not None else look.address
        if session == self._me.session or self._has_left:
            return
        if address == (self._me.host, self._me.port):
            self._outbox.out.append(Looked(session, Sight.REFUSED))  # This process has that address now.
        elif address is None:
            self._outbox.out.append(Looked(session, Sight.SILENT))
        else:
            rto_s = (entry.rtt.rto_s if entry is not None else None) or 0.0
            length_s = max(rto_s, REFUSAL_GRACE_SHARE * self._config.probe_timeout_s)
            self._looks.begin(
                session, address, self._rounds.ping_session(session, address, self._now_s), self._now_s, length_s
            )

    def _on_watch_ended(self, session: str) -> None:
        entry = self._table.of(session)
        if entry is not None and entry.is_live:
            self._rounds.start(entry, self._now_s, is_urgent=True)

    def accuse(self, session: str, evidence: Evidence) -> None:
        """This node suspects a live member."""
        entry = self._table.of(session)
        if entry is None or not entry.is_live or self._has_left:
            return
        row = Row(session, entry.row.incarnation, MemberState.SUSPECT, evidence, self._me.node_id)
        self._learn(row)
        suspicion = self._suspicions.get(session)
        if suspicion is not None:
            # Lifeguard's Buddy System: the suspect is told first.
            suspicion.tell_s = min(suspicion.tell_s, self._now_s)
            self._pursue(suspicion)
        self.weigh(session)
        if evidence is Evidence.REFUSED:
            for other in [other for other in self._suspicions if other != session]:
                self.weigh(other)  # One member fewer can confirm that suspicion.

    def weigh(self, session: str) -> None:
        """Declare the member dead if it refused enough different members."""
        entry = self._table.of(session)
        if entry is None or not entry.is_live:
            return
        suspicion = self._suspicions.get(session)
        witnesses = {**(suspicion.refusers() if suspicion else {}), **self._rounds.refused_by(session)}
        if not witnesses:
            return
        able = sum(1 for other in self._table.live.values() if other is not entry and not self._seems_gone(other))
        if len(witnesses) >= witnesses_needed(able):
            self._declare(entry, Evidence.REFUSED)

    def _seems_gone(self, entry: Entry) -> bool:
        """Whether this member refused this node, and was not heard since. Then it will not confirm anything."""
        suspicion = self._suspicions.get(entry.row.session)
        return (
            suspicion is not None
            and suspicion.accusers.get(self._me.node_id) is Evidence.REFUSED
            and entry.heard_s <= suspicion.started_s
        )

    def _suspicion_ends_s(self, suspicion: Suspicion) -> float:
        return suspicion.ends_s(self._config, len(self._table.live))

    def _pursue(self, suspicion: Suspicion) -> None:
        """Tell the suspect while its time runs, and declare it dead when its time is over."""
        entry = self._table.of(suspicion.session)
        if entry is None or self._suspicions.get(suspicion.session) is not suspicion:
            return
        if suspicion.tell_s <= self._now_s:
            suspicion.tell_s = self._now_s + TELL_SHARE * self._config.probe_interval_s
            self._rounds.ping(entry, self._now_s)
        if self._suspicion_ends_s(suspicion) <= self._now_s:
            if entry.answered_s > suspicion.started_s:
                # It answers us, so it lives, and it was told: its refutation is on the way, or its accuser is cut off.
                suspicion.excused_s += self._config.suspicion_min_s
                self._rounds.ping(entry, self._now_s)
            else:
                self._declare(entry, suspicion.verdict())

    def _declare(self, entry: Entry, evidence: Evidence) -> None:
        """Hold the member dead, and say so to everybody at once."""
        row = Row(entry.row.session, entry.row.incarnation, MemberState.DEAD, evidence, self._me.node_id)
        self._learn(row)

    # ---- claims

    def _learn(self, row: Row, found_at: Address | None = None) -> bool:
        """Merge one claim. False if this node holds a newer one.

        `found_at`: the address at which the session itself answered a ping of ours, with this row about itself.
        """
        node_id = node_of(row.session)
        if node_id == self._me.node_id:
            return self._hear_of_me(row)
        entry = self._table.get(node_id)
        if row.session in self._tombstones:
            row = msgspec.structs.replace(row, state=MemberState.DEAD, evidence=Evidence.FENCED, by="")
        elif row.evidence is Evidence.FENCED:
            if entry is not None and entry.row.session == row.session:
                self._ask(entry.identity, is_fenced=True)
            return True
        if entry is None or is_newer(row.session, entry.row.session):
            if self._may_enter(row, entry, found_at):
                self._meet(row, entry, is_first_hand=found_at is not None)
            return True
        if entry.row.session != row.session:
            if found_at is not None:
                self._ask(_identity(row), is_fenced=False)  # It lives, so the later one may have been invented.
            return False
        if not is_plausible(row.incarnation, entry.own_incarnation, INCARNATION_AHEAD):
            self._drop_implausible(entry)
            return True
        if entry.row.host:  # It is fixed for a session: nobody moves a member that this node knows.
            row = msgspec.structs.replace(row, host=entry.row.host, port=entry.row.port, meta=entry.row.meta)
        is_surprising = self._is_surprising(entry, row)
        if is_surprising:
            # An old refusal, perhaps from across a cut, is no second witness to a refusal that is seen now.
            is_proof = row.evidence in (Evidence.REFUSED, Evidence.SUPERSEDED)
            evidence = Evidence.SILENT if is_proof else row.evidence
            row = msgspec.structs.replace(row, state=MemberState.SUSPECT, evidence=evidence, age_s=0)
        before, was = entry.row, entry.row.state
        is_older = precedence(row) < precedence(before)
        if not is_older and not is_same_claim(before, row):
            self._table.put(merge(before, row), self._now_s)
            self._changed(entry, was, before)
        if row.state is MemberState.SUSPECT and entry.row.state is MemberState.SUSPECT:
            self._confirm(entry, row)
        if is_surprising:
            self._rounds.start(entry, self._now_s, is_urgent=False)  # Its pings tell the suspect, so that it refutes.
        return not is_older

    def _is_surprising(self, entry: Entry, row: Row) -> bool:
        """Whether the row claims a death of which this node should have heard before.

        Such a claim most likely comes from a member that was cut off. A fresh death is told within a second, and a
        member that is dead by silence was suspect for seconds before; only a refusal is a death at once. If this node
        believed the claim, members that never lost each other would hold each other dead when a cut heals. Taken as a
        suspicion, it is refuted in one round trip; and if it is true, it soon becomes a death again.
        """
        if not entry.is_live or row.state is not MemberState.DEAD or row.evidence is Evidence.FENCED:
            return False
        suspicion = self._suspicions.get(row.session)
        suspect_s = self._now_s - suspicion.started_s if suspicion is not None else 0.0
        is_heralded = row.evidence is Evidence.REFUSED or suspect_s >= HERALD_SHARE * self._config.suspicion_min_s
        return row.age_s >= 1 or not is_heralded

    def _may_enter(self, row: Row, old: Entry | None, found_at: Address | None) -> bool:
        """Whether to take in this session, which is not known here; if not, ask who may know it.

        Names never end, and a later session ends the one before it. So Redis must know it: even whoever answers from
        the earlier one's address may be a node of another cluster that has the port now. Without Redis, the session's
        own answer has to do, and hearsay never does.
        """
        if row.session in self._vouched or row.session in self._tombstones:
            return True
        if self._can_ask:
            if row.state in LIVE:  # Nobody misses a member that ended before this node knew it.
                self._ask(_identity(row), is_fenced=False)
            return False
        if found_at is not None:
            return True
        if self._has_registry:
            self._stats["dropped_unconfirmed"] += 1
            return False
        if old is not None and old.is_live:
            if row.host and self._challenges.is_due((row.host, row.port), self._now_s):
                self._rounds.ping_address((row.host, row.port), self._now_s)
            return False
        return True

    def _ask(self, identity: Identity, *, is_fenced: bool) -> None:
        """Have the driver look in Redis, unless it was told to a moment ago. Without Redis, nothing comes of it."""
        key = (identity.session, is_fenced)
        if not self._can_ask or self._now_s - self._asked_s.get(key, -inf) < ASK_SPACING_S:
            self._stats["dropped_unconfirmed"] += not self._can_ask
            return
        self._asked_s.pop(key, None)
        self._asked_s[key] = self._now_s
        self._outbox.out.append(Unconfirmed(identity, is_fenced))

    def _drop_implausible(self, entry: Entry) -> None:
        """Somebody named an incarnation that this member can hardly have. If it has it, its answer will say so."""
        self._stats["dropped_implausible"] += 1
        if self._now_s - entry.told_s >= TOLD_SPACING_S:
            entry.told_s = self._now_s
            self._rounds.ping(entry, self._now_s)

    def _meet(self, row: Row, old: Entry | None, *, is_first_hand: bool = False) -> None:
        """Take in a session that was not known: a new member, or a new life of a known one."""
        if not row.host or (row.state not in LIVE and row.age_s > self._config.forget_s):
            return
        is_plain = is_first_hand or is_plausible(row.incarnation, 0, INCARNATION_AHEAD)
        if not is_plain:
            row = Row(row.session, 0, MemberState.ALIVE, Evidence.NONE, "", row.host, row.port, row.meta)
        if old is not None:
            self._end_session(old)
        entry = self._table.put(row, self._now_s)
        if entry is None:
            return
        entry.is_vouched = not self._has_registry or row.session in self._vouched
        if is_first_hand:
            entry.own_incarnation = row.incarnation
        if not is_plain:
            self._drop_implausible(entry)
        if row.state in LIVE:
            self._rounds.add(entry.node_id)
        self._changed(entry, None, None, first=old is None)
        if row.state is MemberState.SUSPECT:
            self._confirm(entry, row)

    def _end_session(self, entry: Entry) -> None:
        """A later session of the same name is here: the earlier one is over, whatever state it was in."""
        self._forget_work(entry.row.session)
        row = entry.row
        if row.state is MemberState.LEFT or row.evidence in (Evidence.FENCED, Evidence.SUPERSEDED):
            return
        entry.row = msgspec.structs.replace(row, state=MemberState.DEAD, evidence=Evidence.SUPERSEDED, by="")
        self._stats["deaths_superseded"] += 1
        self._outbox.out.append(Changed(entry.member(), row.state, False))
        entry.row = row  # The table still holds this row, until the later session takes its place.

    def _changed(self, entry: Entry, was: MemberState | None, before: Row | None, *, first: bool = False) -> None:
        """The entry has a new row: keep suspicions, rounds, news and the ring in step, and tell the driver."""
        row = entry.row
        was_live = was in LIVE
        entry.doubted_s = inf if row.state in STEADY else min(entry.doubted_s, self._now_s)
        self._outbox.out.append(Changed(entry.member(), was, first))
        self._outbox.news.add(row if before is None or row.state is MemberState.ALIVE else short(row), self._now_s)
        if not before or was_live != entry.is_live:
            self._ring_changed = True
        suspicion = self._suspicions.get(row.session)
        if suspicion is not None and (row.state is not MemberState.SUSPECT or suspicion.incarnation != row.incarnation):
            del self._suspicions[row.session]
        if row.state is MemberState.DEAD and was_live:
            self._stats[f"deaths_{row.evidence}"] = self._stats.get(f"deaths_{row.evidence}", 0) + 1
        if not entry.is_live:
            self._forget_work(row.session)
            if row.by == self._me.node_id:
                self._urgent_own.append(short(row))
            else:
                self._urgent_heard.append(short(row))
        elif was in (MemberState.SUSPECT, MemberState.DEAD) and row.state is not MemberState.SUSPECT:
            self._stats["refuted"] += 1
            self._urgent_heard.append(row)

    def _confirm(self, entry: Entry, row: Row) -> None:
        """Count this accusation of a member that is suspect by now."""
        if row.incarnation != entry.row.incarnation:
            return
        suspicion = self._suspicions.get(row.session)
        if suspicion is None:
            suspicion = self._suspicions[row.session] = Suspicion(row.session, row.incarnation, self._now_s)
            self._stats["suspicions"] += 1
            neighbours = predecessors(self._table.live, entry.node_id, CONFIRMATIONS + 1)
            if row.by != self._me.node_id and self._me.node_id in neighbours:
                # Enough neighbours look for themselves at once: independent confirmations make a verdict fast.
                self._rounds.start(entry, self._now_s, is_urgent=False)
        if suspicion.confirm(row.by, row.evidence):
            self._outbox.news.add(short(row), self._now_s)
            if row.by != self._me.node_id:
                if row.evidence is Evidence.REFUSED:
                    is_watcher = self._me.node_id in predecessors(
                        self._table.live, entry.node_id, self._config.watch_peers
                    )
                    self._rounds.press(entry, self._now_s, is_watcher=is_watcher)
                self.weigh(row.session)

    def _forget_work(self, session: str) -> None:
        """Drop all work on this session: there is nothing left to find out about it."""
        self._rounds.drop(session)
        self._suspicions.pop(session, None)
        self._outbox.loads.drop(session)

    # ---- this node

    @property
    def _my_entry(self) -> Entry:
        return self._table[self._me.node_id]

    @property
    def _my_row(self) -> Row:
        return self._my_entry.row

    @property
    def _has_left(self) -> bool:
        return self._my_row.state is MemberState.LEFT

    def _put_me(self, incarnation: int, state: MemberState) -> Row:
        me = self._me
        row = Row(me.session, incarnation, state, Evidence.NONE, "", me.host, me.port, me.meta)
        self._table.put(row, self._now_s)
        self._outbox.news.add(row, self._now_s)
        self._ring_changed = True
        return row

    def _hear_of_me(self, row: Row) -> bool:
        """Answer a claim about this node's own name. False if what this node holds is newer."""
        mine = self._my_row
        if row.session != self._me.session:
            if row.session in self._past:
                return False
            if is_newer(row.session, self._me.session):
                self._hear_of_later_life(row)
            elif row.state in LIVE and row.host and (row.host, row.port) != (self._me.host, self._me.port):
                # This is an earlier life at another address. If it answers, the name is used twice.
                self._rounds.ping_address((row.host, row.port), self._now_s)
            return False
        if precedence(row) <= precedence(mine):
            return precedence(row) == precedence(mine)
        if row.evidence is Evidence.FENCED:
            self._ask(self._me, is_fenced=True)
        elif not is_plausible(row.incarnation, mine.incarnation, INCARNATION_AHEAD):
            self._stats["dropped_implausible"] += 1  # Nobody else takes it for ours either.
        elif row.incarnation < wire.INCARNATION_MAX and not self._has_left and mine.evidence is not Evidence.FENCED:
            # Only the accused may raise the incarnation (SWIM §4.2); that refutes the rumor.
            self._stats["refutations"] += 1
            self._rounds.feel(1)
            refutation = self._put_me(row.incarnation + 1, mine.state)
            accuser = self._table.get(row.by)
            if accuser is not None:
                self._outbox.send(accuser.address, Gossip(), [refutation])
            self._urgent_own.append(refutation)
            self._outbox.out.append(Changed(self._my_entry.member(), mine.state, False))
        return True

    def _fence_me(self) -> None:
        was = self._my_row
        if was.evidence is not Evidence.FENCED:
            row = msgspec.structs.replace(was, state=MemberState.DEAD, evidence=Evidence.FENCED)
            self._table.put(row, self._now_s)
            self._outbox.news.add(row, self._now_s)
            self._ring_changed = True
            self._outbox.out.append(Changed(self._my_entry.member(), was.state, False))

    def _hear_of_later_life(self, row: Row) -> None:
        """The cluster knows a later session of our name, or somebody says so. Without Redis to tell, it must answer."""
        address = (row.host, row.port)
        if self._has_registry or not row.host or address == (self._me.host, self._me.port):
            self._conflict(_identity(row))
            return
        self._claimed[row.session] = None
        if self._challenges.is_due(address, self._now_s):
            self._rounds.ping_address(address, self._now_s)

    def _conflict(self, other: Identity) -> None:
        if self._now_s - self._conflicts.get(other.session, -inf) < CONFLICT_SPACING_S:
            return
        self._conflicts.pop(other.session, None)
        self._conflicts[other.session] = self._now_s
        self._stats["conflicts"] += 1
        self._outbox.out.append(NameConflict(other))

    def _on_renew(self, session: str) -> None:
        assert is_newer(session, self._me.session), f"{session} does not come after {self._me.session}"
        was = self._my_row.state
        self._past[self._me.session] = None
        self._me = Identity(self._me.node_id, session, self._me.host, self._me.port, self._me.meta)
        row = self._put_me(0, MemberState.LEAVING if was is MemberState.LEAVING else MemberState.ALIVE)
        self._urgent_own.append(row)
        self._outbox.out.append(Changed(self._my_entry.member(), None, False))

    def _on_leave(self, done: bool) -> None:
        mine = self._my_row
        if mine.state in (MemberState.LEFT, MemberState.DEAD) or (mine.state is MemberState.LEAVING and not done):
            return
        incarnation = min(mine.incarnation + 1, wire.INCARNATION_MAX)
        row = self._put_me(incarnation, MemberState.LEFT if done else MemberState.LEAVING)
        self._urgent_own.append(row)
        self._outbox.out.append(Changed(self._my_entry.member(), mine.state, False))
        if done:
            self._rounds.clear()
            self._looks.clear()
            self._suspicions.clear()
            self._joins.clear()

    def _on_fenced(self, session: str) -> None:
        self._tombstones[session] = None
        if node_of(session) == self._me.node_id:
            if session == self._me.session:
                self._fence_me()
            return
        entry = self._table.of(session)
        row = Row(session, 0, MemberState.DEAD, Evidence.FENCED, self._me.node_id)
        if entry is not None:
            self._learn(msgspec.structs.replace(row, incarnation=entry.row.incarnation))
        elif self._table.get(node_of(session)) is None:
            self._outbox.news.add(row, self._now_s)  # No row of the table can carry it.

    def _on_denied(self, session: str) -> None:
        """Redis shows nothing. Whoever came in while Redis was away, and is not known to it, is none of us."""
        self._stats["dropped_unconfirmed"] += 1
        entry = self._table.of(session)
        if entry is not None and not entry.is_vouched:
            self._forget_work(session)
            self._table.forget(entry.node_id)
            self._ring_changed = True
            self._outbox.out.append(Changed(entry.member(), entry.row.state, False))

    def _on_vouched(self, identity: Identity) -> None:
        """Redis vouches for this session, so it is its name's: a later one in the table has nothing to show there."""
        node_id, session = identity.node_id, identity.session
        if node_id == self._me.node_id or session in self._tombstones:
            return
        self._vouched[session] = None
        entry = self._table.get(node_id)
        if entry is None or entry.row.session != session:
            self._meet(Row(session, 0, MemberState.ALIVE, Evidence.NONE, "", *_place(identity)), entry)
            entry = self._table.of(session)
            if entry is not None:
                self._rounds.ping(entry, self._now_s)  # Its answer brings its incarnation and load.
            return
        host, port, meta = _place(identity)
        is_moved = (entry.row.host, entry.row.port, entry.row.meta) != (host, port, meta)
        if entry.is_vouched and not is_moved:
            return
        entry.is_vouched = True
        if is_moved:  # Redis knows it better than who was heard first.
            self._table.put(msgspec.structs.replace(entry.row, host=host, port=port, meta=meta), self._now_s)
            self._ring_changed = True
        self._outbox.out.append(Changed(entry.member(), entry.row.state, False))

    def _on_load(self, load: bytes, is_urgent: bool) -> None:
        assert len(load) <= wire.LOAD_MAX_BYTES, f"load is {len(load)} bytes"
        self._outbox.load, self._outbox.load_seq = load, self._outbox.load_seq + 1
        mine = self._my_entry
        mine.load, mine.load_seq, mine.load_at_s = load, self._outbox.load_seq, self._now_s
        if is_urgent:
            self._load_told_s = min(self._load_told_s, self._load_next_s)

    def _on_join(self, addresses: Iterable[Address]) -> None:
        live = {entry.address for entry in self._table.live.values()}  # with this node's own
        for address in addresses:
            if address not in live and self._joins.add(address, self._now_s):
                self._rounds.ping_address(address, self._now_s)
        if not self._joins and len(self._table) == 1:
            self._has_merged = True  # There is nobody to hear.

    # ---- datagrams

    def _on_datagram(self, event: Datagram) -> None:
        self._stats["datagrams_in"] += 1
        self._stats["bytes_in"] += len(event.data)
        if len(event.data) > wire.DATAGRAM_MAX_BYTES:
            self._stats["dropped_oversize"] += 1
            return
        packet = self._outbox.open(event.data)
        if packet is None:
            return
        session = packet.head.session
        self._joins.drop(event.source)
        if session == self._me.session or session in self._past:
            return
        found_at = self._found_at(packet)
        freshness = self._outbox.freshness(packet.head, is_first_hand=found_at is not None)
        if freshness is not Freshness.NEW:
            if freshness is not Freshness.REPEATED:
                self._doubt(packet, event.source)
        elif self._table.of(session) is None and found_at is None:
            self._hear_stranger(packet, event.source)
        elif node_of(session) == self._me.node_id:
            # The earlier life was here first, so the later one has to yield, unless the cluster took that in.
            if is_newer(self._me.session, session) or session in self._claimed:
                self._conflict(Identity(self._me.node_id, session, *event.source))
        else:
            self._hear(packet, event.source, found_at)

    def _found_at(self, packet: Packet) -> Address | None:
        """The address at which the sender itself answered a ping of ours. None if this is no such answer.

        Who is asked at its own address can answer in the name of a member that is elsewhere: that is none.
        """
        body = packet.body
        if not isinstance(body, Ack) or body.subject != packet.head.session:
            return None
        found_at = self._rounds.answers_from(body)
        entry = self._table.of(body.subject)
        return found_at if entry is None or entry.address == found_at else None

    def _doubt(self, packet: Packet, source: Address) -> None:
        """The number of this datagram is old, or far ahead. Believe nothing of it, and ask its sender.

        If somebody else named a number in its name, its answer brings the window back to it. Until then it must not
        take this node for dead.
        """
        if isinstance(packet.body, Ping):
            self._outbox.send(source, Ack(packet.body.nr, self._me.session), with_news=False)
        if self._challenges.is_due(source, self._now_s):
            entry = self._table.of(packet.head.session)
            if entry is not None:
                self._rounds.ping(entry, self._now_s)
            else:
                self._rounds.ping_address(source, self._now_s)

    def _hear_stranger(self, packet: Packet, source: Address) -> None:
        """Answer it, show it the table, believe nothing that it says, and ask who is there."""
        match packet.body:
            case Ping():
                self._outbox.send(source, Ack(packet.body.nr, self._me.session), [self._my_row])
            case Pull():
                self._exchange.answer_pull(packet.body, source, self._now_s)
            case _:
                pass
        if self._challenges.is_due(source, self._now_s):
            self._rounds.ping_address(source, self._now_s)

    def _hear(self, packet: Packet, source: Address, found_at: Address | None) -> None:
        head, body = packet.head, packet.body
        lost = self._take_in(packet, found_at)
        match body:
            case Ping():
                self._outbox.send(source, Ack(body.nr, self._me.session), self._answer_rows(body, head))
            case Ack():
                is_direct = body.subject == head.session
                self._rounds.answered(body, self._now_s, is_direct=is_direct)
                if is_direct:
                    self._looks.answered(body.nr, head.session, source)
            case PingReq():
                self._rounds.help(body, source, self._now_s)
            case Nack():
                self._rounds.nacked(body, node_of(head.session), self._now_s)
            case Pull():
                self._exchange.answer_pull(body, source, self._now_s)
            case Rows():
                self._merged()
                if not body.is_final and lost:
                    self._exchange.send_rows(source, lost, self._now_s, is_final=True)
            case Gossip() | Sync():
                pass
        if isinstance(body, Ping | Ack) or (isinstance(body, Rows) and body.has_more):
            self._compare(head, source)

    def _take_in(self, packet: Packet, found_at: Address | None = None) -> list[Entry]:
        """Learn everything that a packet claims. Returns the entries whose rows here are newer."""
        head = packet.head
        self._hear_epoch(head.epoch)
        lost: list[Entry] = []
        sender = self._table.of(head.session)
        if sender is not None and found_at is not None:
            sender.own_incarnation, sender.own_load_seq = head.incarnation, head.load_seq
        for row in packet.rows:
            is_own = row.session == head.session
            if is_own and self._is_contested(row):
                continue
            if not self._learn(row, found_at if is_own else None):
                entry = self._table.get(node_of(row.session))
                if entry is not None:
                    lost.append(entry)
        sender = self._table.of(head.session)
        if sender is not None:
            sender.heard_s = self._now_s
            # The head is the member's own word about itself: any datagram of an accused member refutes the accusation.
            if (head.incarnation, head.state) != (sender.row.incarnation, sender.row.state) and head.state in LIVE:
                self._learn(Row(head.session, head.incarnation, head.state))
            self._hear_load(LoadRow(head.session, head.load_seq, head.load), is_first_hand=found_at is not None)
            if sender.row.state is MemberState.DEAD and self._now_s - sender.told_s >= TOLD_SPACING_S:
                sender.told_s = self._now_s
                self._rounds.ping(sender, self._now_s)  # It lives, and may not know that it is held dead.
        for load in packet.loads:
            self._hear_load(load)
        return lost

    def _is_contested(self, row: Row) -> bool:
        """Whether a newcomer bears the name of a live member at another address, and that member still has the name.

        This node asks the earlier life first.
        """
        entry = self._table.get(node_of(row.session))
        if (
            entry is None
            or not entry.is_live
            or entry.row.session == row.session
            or entry.address == (row.host, row.port)
        ):
            return False
        contest = self._contests.weigh(row.session, entry.answered_s, self._now_s)
        if contest is Contest.ASK:
            self._rounds.ping(entry, self._now_s)
        return contest is not Contest.OVER

    def _on_epoch(self, epoch: int) -> None:
        """Redis names this epoch. It may be a lower one than before, if Redis lost what it held."""
        self._epoch = epoch
        if self._outbox.epoch < epoch or not is_plausible(self._outbox.epoch, epoch, EPOCH_AHEAD):
            self._outbox.epoch = epoch

    def _hear_epoch(self, epoch: int) -> None:
        """Keep the highest epoch that can be right by Redis's word. Before that, none can be judged."""
        if epoch <= self._outbox.epoch or (self._has_registry and self._epoch < 0):
            return
        if is_plausible(epoch, max(self._epoch, 0), EPOCH_AHEAD):
            self._outbox.epoch = epoch
        else:
            self._stats["dropped_implausible"] += 1

    def _hear_load(self, load: LoadRow, *, is_first_hand: bool = False) -> None:
        """Keep a newer load, or one that the member itself tells in answer to us: that one is right."""
        entry = self._table.of(load.session)
        if entry is None or load.session == self._me.session:
            return
        if is_first_hand and load.seq == 0 and not load.load:
            return  # Its datagram had no room for a load.
        if load.seq > entry.load_seq or (is_first_hand and load.seq != entry.load_seq):
            if not is_plausible(load.seq, entry.own_load_seq, LOAD_AHEAD):
                self._stats["dropped_implausible"] += 1
                return
            entry.load, entry.load_seq, entry.load_at_s = load.load, load.seq, self._now_s
            self._outbox.loads.add(load.session, wire.encode_row(load))

    def _answer_rows(self, ping: Ping, head: Head) -> list[Row]:
        """The rows that a ping's sender is told first: who we are, if it does not know, and what it is accused of."""
        mine = [] if ping.target == self._me.session else [self._my_row]
        sender = self._table.of(head.session)
        return mine if sender is None else mine + accusation(sender)

    def _compare(self, head: Head, source: Address) -> None:
        """Pull at once if the sender's table differs from ours."""
        entry = self._table.of(head.session)  # None: the sender is a newcomer whose name is contested
        if entry is not None and self._exchange.compare(head.digest, entry, source, self._now_s):
            self._merged()

    # ---- push and pull of the full table

    def _on_sync(self, data: bytes) -> bool:
        """Merge a full table. False, and counted, if the bytes are none."""
        if len(data) > wire.SYNC_MAX_BYTES:
            self._stats["dropped_oversize"] += 1
            return False
        packet = self._outbox.open(data)
        if packet is None or not isinstance(packet.body, Sync) or node_of(packet.head.session) == self._me.node_id:
            return False
        if self._outbox.freshness(packet.head, is_first_hand=False) is not Freshness.NEW:
            return False
        if self._table.of(packet.head.session) is not None:
            self._take_in(packet)
            self._merged()
        return True

    def _merged(self) -> None:
        """A member's table is merged into ours. The first time, this node shows itself to all of whom it just heard."""
        if not self._has_merged:
            self._has_merged = True
            self._urgent_own.append(self._my_row)

    # ---- sending

    def _some(self, count: int) -> list[Entry]:
        """Random live members other than this one."""
        others = self._others()
        return self._rng.sample(others, min(count, len(others)))

    def _others(self) -> list[Entry]:
        return [entry for entry in self._table.live.values() if entry.row.session != self._me.session]

    def _flush_urgent(self) -> None:
        """Tell deaths and refutations now: they do not wait for the next gossip interval."""
        own, self._urgent_own = self._urgent_own, []
        heard, self._urgent_heard = self._urgent_heard, []
        if own or heard:
            for entry in self._some(URGENT_DIRECT_MAX if own else URGENT_FANOUT):
                self._outbox.send(entry.address, Gossip(), own + heard)

    def _update_watch(self) -> None:
        if not self._ring_changed:
            return
        self._ring_changed = False
        names = () if self._has_left else successors(self._table.live, self._me.node_id, self._config.watch_peers)
        peers = tuple(self._table.live[name].identity for name in names)
        if peers != self._watched:
            self._watched = peers
            self._outbox.out.append(Watch(peers))


def _identity(row: Row) -> Identity:
    return Identity(node_of(row.session), row.session, row.host, row.port, row.meta)


def _place(identity: Identity) -> tuple[str, int, bytes]:
    """What is fixed for a session, as fields of a row."""
    return identity.host, identity.port, identity.meta
