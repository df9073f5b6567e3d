"""Rounds: which member is asked whether it answers, when, and with whose help. The `Judge` hears what comes of it.

This node probes each member once in a turn, in a shuffled order (SWIM §4.3); whatever makes a member doubtful starts a
round on it at once. The answers are collected here, with each peer's round trip and this node's own health (Lifeguard).

Does not know: suspicions, which claim stands, which news is told to whom.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from random import Random
from typing import Protocol

from cluster.bounded import Bounded
from cluster.config import Config
from cluster.session import node_of
from cluster.swim.events import Address, Evidence, MemberState, Tcp, TcpConnect
from cluster.swim.outbox import Outbox
from cluster.swim.probe import (
    AID_SHARE,
    PINGS_MAX,
    REFUSAL_GRACE_SHARE,
    TCP_LOST_S,
    Probe,
    Rtt,
    connect_timeout_s,
    health_after,
    spacing_s,
)
from cluster.swim.table import Entry, Table, accusation
from cluster.swim.wire import Ack, Nack, Ping, PingReq

PINGS_REMEMBERED = 1024  # numbers of pings whose late answers still count as a sign of life
REQUESTERS_MAX = 64  # members on whose behalf one round runs
NR_BITS = 48  # bits of a ping's number


class Judge(Protocol):
    """Draws the conclusions from rounds: the core."""

    def accuse(self, session: str, evidence: Evidence) -> None:
        """Hear that a round on this live member failed, or that the member refused this node."""

    def weigh(self, session: str) -> None:
        """Hear that this member refused a helper."""


class Rounds:
    """The rounds that run, on this node's behalf and on that of others."""

    def __init__(
        self,
        config: Config,
        name: str,
        table: Table,
        outbox: Outbox,
        rng: Random,
        stats: dict[str, int],
        judge: Judge,
        now_s: float,
    ) -> None:
        self.health = 0  # 0 is well; Lifeguard's local health multiplier, less one
        self._config = config
        self._name = name
        self._table = table
        self._outbox = outbox
        self._rng = rng
        self._stats = stats
        self._judge = judge
        self._probes: dict[str, Probe] = {}  # by session
        # nr -> (session that is to answer, the address that got the number or None: a helper has it, when it was sent)
        self._pings: Bounded[int, tuple[str, Address | None, float]] = Bounded(PINGS_REMEMBERED)
        self._order: list[str] = []  # node_ids still to be probed in this turn
        self._next_s = now_s + rng.random() * config.probe_interval_s

    @property
    def due_s(self) -> float:
        """When there is something to do in a round, or the next one starts."""
        return min(self._next_s, min((probe.due_s for probe in self._probes.values()), default=inf))

    def advance(self, now_s: float) -> None:
        """Do what is due in each round that runs."""
        for probe in [probe for probe in self._probes.values() if probe.due_s <= now_s]:
            self._advance(probe, now_s)

    def go_on(self, now_s: float) -> None:
        """Start the turn's next round if it is time."""
        if self._next_s <= now_s:
            self._next_s = now_s + self._config.probe_interval_s * (1 + self.health)
            self._probe_next(now_s)

    def restart(self, now_s: float) -> None:
        """End all rounds and begin a new one: this node was away, and answers may have come and gone."""
        self._probes.clear()
        self._next_s = now_s  # The digest in the answer shows what changed meanwhile.

    def clear(self) -> None:
        """End all rounds."""
        self._probes.clear()

    def drop(self, session: str) -> None:
        """End the round on this session: there is nothing left to find out about it."""
        self._probes.pop(session, None)

    def add(self, node_id: str) -> None:
        """Give a new member its place in this turn."""
        self._order.insert(self._rng.randint(0, len(self._order)), node_id)

    def feel(self, change: int) -> None:
        """Change this node's own health: better (-1) or worse (1)."""
        self.health = health_after(self.health, change)

    def start(self, entry: Entry, now_s: float, *, is_urgent: bool) -> None:
        """Start a round that accuses this member if it fails, unless such a round runs already.

        It takes the place of a round that runs for others only, and an urgent round that of one that is not urgent.
        """
        if entry.node_id == self._name or self._has_left:
            return
        probe = self._probes.get(entry.row.session)
        if probe is None or not probe.accuses or (is_urgent and not probe.is_urgent):
            requesters = probe.requesters if probe is not None else {}
            probe = Probe(entry.row.session, entry.address, now_s, now_s + self._length_s, True, is_urgent)
            probe.requesters = requesters
            self._probes[probe.session] = probe
            self._stats["probes"] += 1
            self._advance(probe, now_s)

    def ping(self, entry: Entry, now_s: float) -> None:
        """Send a single ping outside of any round."""
        ping = Ping(self._number(entry.row.session, entry.address, now_s), entry.row.session)
        self._outbox.send(entry.address, ping, accusation(entry))

    def ping_session(self, session: str, address: Address, now_s: float) -> int:
        """Send a single ping to a session that the table need not know. Returns the number of the ping."""
        nr = self._number(session, address, now_s)
        entry = self._table.of(session)
        self._outbox.send(address, Ping(nr, session), accusation(entry) if entry is not None else ())
        return nr

    def ping_address(self, address: Address, now_s: float) -> None:
        """Ping whoever is at this address, and say who we are."""
        self._outbox.send(address, Ping(self._number("", address, now_s), ""), [self._table[self._name].row])

    def press(self, entry: Entry, now_s: float, *, is_watcher: bool) -> None:
        """Look again at once if this node probes the member already, or watches it: it refused another member."""
        probe = self._probes.get(entry.row.session)
        if probe is not None:
            probe.press(now_s)
        elif is_watcher:
            self.start(entry, now_s, is_urgent=True)

    def refused_by(self, session: str) -> Mapping[str, None]:
        """Helpers whose connect this session refused, in the round that runs on it."""
        probe = self._probes.get(session)
        return probe.refused_by if probe is not None else {}

    # ---- what comes back

    def answers_from(self, answer: Ack) -> Address | None:
        """The address at which the sender of this got the number of our ping; None if it answers no ping of ours."""
        session, address, _ = self._pings.get(answer.nr, (None, None, 0.0))
        return address if session in ("", answer.subject) else None

    def answered(self, answer: Ack, now_s: float, *, is_direct: bool) -> None:
        """Take in an answer of a session: its own (`is_direct`), or one that a helper passed on."""
        session = answer.subject
        pinged, _, sent_s = self._pings.pop(answer.nr, (None, None, 0.0))
        if pinged is None or (pinged and pinged != session):
            return
        entry = self._table.of(session)
        if entry is None:
            return
        entry.answered_s = now_s
        rtt_s = now_s - sent_s
        if is_direct and rtt_s <= self._config.probe_timeout_s:
            entry.rtt.observe(rtt_s)
        probe = self._probes.get(session)
        if probe is None or (probe.is_urgent and sent_s < probe.started_s):
            return  # It answered a ping from before what made the round urgent, and may have died since.
        del self._probes[session]
        for address, requested_nr in probe.requesters:
            self._outbox.send(address, Ack(requested_nr, session))
        if probe.accuses:
            self.feel(-1)

    def nacked(self, nack: Nack, helper: str, now_s: float) -> None:
        """Take in a nack: a helper got no answer, and says how its connect ended."""
        probe = self._probes.get(nack.subject)
        if probe is None or probe.asked.get(helper, (None, 0.0))[0] != nack.nr:
            return
        probe.nacked[helper] = None
        match nack.tcp:
            case Tcp.REFUSED | Tcp.GONE:
                probe.refused_by[helper] = None
                probe.press(now_s)
                self._judge.weigh(probe.session)
            case Tcp.ACCEPTED:
                probe.is_host_up = True
            case Tcp.SILENT | None:
                pass

    def connected(self, session: str, outcome: Tcp, now_s: float) -> bool:
        """Take in how a connect ended. False if no round runs to which it could belong."""
        probe = self._probes.get(session)
        if probe is None:
            return False
        entry = self._table.of(session)
        rto_s = (entry.rtt.rto_s if entry is not None else None) or 0.0
        probe.tcp_ended(outcome, now_s, max(rto_s, REFUSAL_GRACE_SHARE * self._config.probe_timeout_s))
        return True

    def help(self, request: PingReq, source: Address, now_s: float) -> None:
        """Ping a member on behalf of another member."""
        probe = self._probes.get(request.target)
        if node_of(request.target) == self._name or self._has_left:
            return
        if probe is None:
            entry = self._table.of(request.target)
            if entry is None:
                # An address that somebody names is no reason to knock there: it may be anybody's.
                self._outbox.send(source, Nack(request.nr, request.target, None))
                return
            ends_s = now_s + AID_SHARE * self._config.probe_timeout_s
            probe = Probe(request.target, entry.address, now_s, ends_s, False, request.is_urgent)
            self._probes[request.target] = probe
            probe.requesters[source, request.nr] = None
            self._advance(probe, now_s)
            return
        if len(probe.requesters) < REQUESTERS_MAX:
            probe.requesters[source, request.nr] = None
        if request.is_urgent and not probe.is_urgent:
            probe.is_urgent = True
            self._connect(probe, now_s)
        if probe.is_refused:
            self._outbox.send(source, Nack(request.nr, request.target, Tcp.REFUSED))

    # ---- inside a round

    @property
    def _has_left(self) -> bool:
        return self._table[self._name].row.state is MemberState.LEFT

    @property
    def _length_s(self) -> float:
        return self._config.probe_timeout_s * (1 + self.health)

    def _probe_next(self, now_s: float) -> None:
        for _ in range(2):
            while self._order:
                entry = self._table.live.get(self._order.pop())
                if entry is not None and entry.node_id != self._name:
                    self.start(entry, now_s, is_urgent=False)
                    return
            self._order = [node_id for node_id in self._table.live if node_id != self._name]
            self._rng.shuffle(self._order)

    def _advance(self, probe: Probe, now_s: float) -> None:
        """Do what is due in a round."""
        if probe.refused_s <= now_s:
            self._believe_refusal(probe)
        if self._probes.get(probe.session) is not probe:
            return
        if probe.ends_s <= now_s:
            self._fail(probe, now_s)
            return
        if probe.next_ping_s <= now_s:
            self._ping_again(probe, now_s)
        if probe.tcp_until_s <= now_s:
            probe.tcp_lost(now_s)
        if probe.tcp_next_s <= now_s:
            self._connect(probe, now_s)

    def _ping_again(self, probe: Probe, now_s: float) -> None:
        """One more direct ping; from the second on (at once when urgent) also a relayed one and a TCP connect."""
        is_insisting = probe.is_urgent or probe.attempt > 0
        entry = self._table.of(probe.session)
        nr = self._number(probe.session, probe.target, now_s)
        self._outbox.send(probe.target, Ping(nr, probe.session), accusation(entry) if entry is not None else ())
        if is_insisting and not probe.tcp_tries:
            self._connect(probe, now_s)
        if is_insisting and probe.accuses:
            count = self._config.indirect_probes if probe.attempt < 2 else 1
            for helper in self._helpers(probe, count):
                asked_nr = self._number(probe.session, None, now_s)
                probe.asked.setdefault(helper.node_id, (asked_nr, now_s))
                host, port = probe.target
                self._outbox.send(helper.address, PingReq(asked_nr, probe.session, host, port, probe.is_urgent))
        rtt = entry.rtt if entry is not None else Rtt()
        wait_s = spacing_s(rtt, self._length_s, probe.attempt)
        probe.attempt += 1
        probe.next_ping_s = now_s + wait_s if probe.attempt < PINGS_MAX else inf

    def _helpers(self, probe: Probe, count: int) -> list[Entry]:
        """Members to ask for help: new ones first, then again those that were asked (an answer may have been lost)."""
        others = [
            entry
            for entry in self._table.live.values()
            if entry.row.session != probe.session
            and entry.node_id != self._name
            and entry.row.state is not MemberState.SUSPECT
        ]
        fresh = [entry for entry in others if entry.node_id not in probe.asked]
        if len(probe.asked) >= 2 * self._config.indirect_probes or not fresh:
            fresh = [entry for entry in others if entry.node_id in probe.asked]
        return self._rng.sample(fresh, min(count, len(fresh)))

    def _connect(self, probe: Probe, now_s: float) -> None:
        probe.tcp_next_s = inf
        if not probe.tcp_is_open or probe.is_pressed:
            entry = self._table.of(probe.session)
            rtt = entry.rtt if entry is not None else Rtt()
            left_s = probe.ends_s - now_s
            timeout_s = connect_timeout_s(rtt, left_s, probe.tcp_tries, self._config.probe_timeout_s)
            probe.tcp_until_s = now_s + timeout_s + TCP_LOST_S
            probe.tcp_tries += 1
            self._outbox.out.append(TcpConnect(probe.target, probe.session, timeout_s))

    def _number(self, session: str, address: Address | None, now_s: float) -> int:
        """A new number for a ping to this address (None: by a helper); an answer to it counts as that session's.

        Nobody else can guess it, so an answer to a ping of ours comes from the process at the pinged address.
        """
        nr = self._rng.getrandbits(NR_BITS)
        self._pings[nr] = (session, address, now_s)
        return nr

    def _believe_refusal(self, probe: Probe) -> None:
        """This node becomes a witness: its connect was refused, and the ping that left with it got no answer."""
        probe.refused_s = inf
        probe.is_refused = True
        self._report(probe, Tcp.REFUSED)
        if probe.accuses:
            self._judge.accuse(probe.session, Evidence.REFUSED)

    def _fail(self, probe: Probe, now_s: float) -> None:
        """End a round to which no answer came."""
        del self._probes[probe.session]
        self._report(probe, probe.tcp)
        if not probe.accuses:
            return
        self._stats["failed_rounds"] += 1
        if probe.nacks_missing():
            self.feel(1)
        self._judge.accuse(probe.session, probe.evidence)
        if probe.is_refused:
            # Nobody confirmed the refusal, and these helpers said nothing: what ended the member may have ended them.
            for helper in probe.asked:
                entry = self._table.live.get(helper)
                if entry is not None and helper not in probe.nacked:
                    self.start(entry, now_s, is_urgent=True)

    def _report(self, probe: Probe, tcp: Tcp | None) -> None:
        """Tell the members on whose behalf the round runs that no answer came, and how the connect ended."""
        for address, nr in probe.requesters:
            self._outbox.send(address, Nack(nr, probe.session, tcp))
