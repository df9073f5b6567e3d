"""Probe rounds: when to ping again, and what a round that got no answer proves.

A round is many pings, not one: after the first, direct and relayed pings repeat at a spacing that follows the peer's
measured round trip (RFC 6298), growing by half each time, so that a third of all packets lost does not fail a round.
In the same round the peer's TCP port is tried, because a kernel tells the truth about a process sooner than a clock.

Does not know: the table, the wire, who is asked to help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from cluster.swim.events import Address, Evidence, Tcp

PINGS_MAX = 7  # direct pings in one round; at 30 % loss all of them fail once in a hundred rounds
SPACING_MIN_S = 0.020
SPACING_SHARE = 0.2  # of the probe timeout: the longest first spacing, and the one used while the peer is unmeasured
SPACING_GROWTH = 1.5

# A refusal comes back as fast as the answer to a ping sent with it; this is what the peer's process may be slower than
# its kernel. Refusal is only trusted when that has passed without an answer.
REFUSAL_GRACE_MIN_S = 0.004
REFUSAL_GRACE_MAX_S = 0.050

# A dying process closes its sockets one by one: a connect just after the end of a watch may still be accepted by a
# socket that is about to close. So an accepted connect of an urgent round is tried again, soon.
TCP_TRIES_MAX = 5
TCP_RETRY_S = 0.003
TCP_RETRY_GROWTH = 2.0

AID_SHARE = 0.6  # of the probe timeout: how long a helper tries, so that its nack is in time
NACK_SHARE = 0.35  # of the round: helpers asked before this owe a nack

HEALTH_MAX = 8


@dataclass(slots=True)
class Rtt:
    """Round trip of one peer, smoothed as in RFC 6298."""

    srtt_s: float | None = None
    rttvar_s: float = 0.0

    def observe(self, rtt_s: float) -> None:
        """One measured round trip. Each ping has its own number, so no answer is ambiguous (Karn)."""
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
        else:
            self.rttvar_s += (abs(self.srtt_s - rtt_s) - self.rttvar_s) / 4
            self.srtt_s += (rtt_s - self.srtt_s) / 8

    @property
    def rto_s(self) -> float | None:
        """After this long an answer is late; None while nothing was measured."""
        return None if self.srtt_s is None else self.srtt_s + 4 * self.rttvar_s


def spacing_s(rtt: Rtt, timeout_s: float, attempt: int) -> float:
    """Seconds from ping `attempt` (counted from 0) to the next one."""
    most_s = SPACING_SHARE * timeout_s
    first_s = most_s if rtt.rto_s is None else min(max(rtt.rto_s, SPACING_MIN_S), most_s)
    return first_s * SPACING_GROWTH**attempt


def refusal_grace_s(rtt: Rtt) -> float:
    """Seconds a refusal waits for an answer to the ping that left with it."""
    return min(max(4 * rtt.rttvar_s, REFUSAL_GRACE_MIN_S), REFUSAL_GRACE_MAX_S)


@dataclass(slots=True)
class Probe:
    """One round on one peer, for this node (`accuses`), for others (`requesters`), or both."""

    session: str
    target: Address
    started_s: float
    ends_s: float
    accuses: bool
    is_urgent: bool
    attempt: int = 0
    next_ping_s: float = 0.0
    tcp: Tcp | None = None
    tcp_tries: int = 0
    tcp_is_open: bool = False  # a connect is under way
    tcp_next_s: float = inf
    refused_s: float = inf  # when the refusal may be believed
    is_refused: bool = False  # ... and it was: nobody answered in the meantime
    is_host_up: bool = False  # this node or a helper saw its kernel accept
    refused_by: dict[str, None] = field(default_factory=dict)  # helpers whose connect was refused
    asked: dict[str, tuple[int, float]] = field(default_factory=dict)  # helper -> number of its PingReq, when
    nacked: dict[str, None] = field(default_factory=dict)
    requesters: dict[tuple[Address, int], None] = field(default_factory=dict)

    @property
    def due_s(self) -> float:
        """When there is something to do."""
        return min(self.next_ping_s, self.tcp_next_s, self.refused_s, self.ends_s)

    @property
    def evidence(self) -> Evidence:
        """What a round without an answer says of the peer. An open connect at its end is no answer either."""
        if self.is_refused:
            return Evidence.REFUSED
        return Evidence.STALLED if self.is_host_up else Evidence.SILENT

    def tcp_ended(self, outcome: Tcp, now_s: float, grace_s: float) -> None:
        """Take note of a connect's outcome; decides whether and when to try again."""
        self.tcp, self.tcp_is_open = outcome, False
        match outcome:
            case Tcp.REFUSED:
                self.refused_s = now_s + grace_s
                self.is_host_up = False
            case Tcp.ACCEPTED:
                self.is_host_up = True
                if self.is_urgent and self.tcp_tries < TCP_TRIES_MAX:
                    self.tcp_next_s = now_s + TCP_RETRY_S * TCP_RETRY_GROWTH ** (self.tcp_tries - 1)
            case Tcp.SILENT:
                pass

    def nacks_missing(self) -> int:
        """Helpers that had the time to say that they are there, and did not (Lifeguard LHA-Probe)."""
        until_s = self.started_s + NACK_SHARE * (self.ends_s - self.started_s)
        return sum(1 for helper, (_, at_s) in self.asked.items() if at_s <= until_s and helper not in self.nacked)


def health_after(health: int, change: int) -> int:
    """Local health: 0 is well; each step slows this node's own rounds, so that a sick node accuses late."""
    return min(max(health + change, 0), HEALTH_MAX)
