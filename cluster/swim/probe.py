"""Probe rounds: when to ping again, and what a round that got no answer proves.

A round is many pings, not one: after the first, direct and relayed pings repeat at a spacing that follows the peer's
measured round trip (RFC 6298), growing by half each time up to a fifth of the round, until its very end: neither a
third of all packets lost nor a cut that heals while a slow node's long round runs makes it fail.
In the same round the peer's TCP port is tried, because a kernel tells the truth about a process sooner than a clock.

Does not know: the table, the wire, who is asked to help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from cluster.swim.events import Address, Evidence, Tcp

PINGS_MAX = 12  # direct pings in one round; a usual one has 7, all of which fail once in a hundred rounds at 30 % loss
SPACING_MIN_S = 0.020
SPACING_SHARE = 0.2  # of the probe timeout: the longest first spacing, and the one used while the peer is unmeasured
SPACING_GROWTH = 1.5

# A TCP port may be closed, or filtered, while its process lives, and a living process may be slow to answer a ping. So
# a refusal alone is only trusted when this share of the probe timeout has passed without an answer, or the time that
# its answers usually take, if that is longer. A process that has its UDP port open is never GONE, however slow it is:
# that needs no time at all.
REFUSAL_GRACE_SHARE = 0.25

# A dying process closes its sockets one by one, some 30 ms from the first to the last in a bad case: a connect just
# after the end of a watch may still be accepted by a socket that is about to close, or be reset, or its SYN be dropped.
# So an accepted connect of an urgent round is tried again, soon; and a silent one of any round, because the kernel
# repeats a lost SYN only after a second.
TCP_TRIES_MAX = 8
TCP_RETRY_S = 0.003
TCP_RETRY_GROWTH = 2.0
TCP_RETRY_MAX_S = 0.050
TCP_TIMEOUT_MIN_S = 0.050  # of one try; the last one takes what is left of the round
TCP_TIMEOUT_RTOS = 2
TCP_LOST_S = 0.050  # beyond its timeout: then the driver has dropped the connect, or was away

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
    return min(first_s * SPACING_GROWTH**attempt, most_s)


def connect_timeout_s(rtt: Rtt, left_s: float, tries: int, timeout_s: float) -> float:
    """Seconds that connect number `tries` (from 0) may take, with `left_s` of a round of `timeout_s` to go."""
    left_s = max(left_s, timeout_s / 4)
    if tries >= TCP_TRIES_MAX - 1:
        return left_s
    soon_s = SPACING_SHARE * timeout_s if rtt.rto_s is None else TCP_TIMEOUT_RTOS * rtt.rto_s
    return min(max(soon_s, TCP_TIMEOUT_MIN_S), left_s)


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
    tcp_until_s: float = inf  # a connect is under way, and its outcome comes before this
    tcp_next_s: float = inf
    is_pressed: bool = False  # another member's refusal was heard in this round
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
        return min(self.next_ping_s, self.tcp_next_s, self.tcp_until_s, self.refused_s, self.ends_s)

    @property
    def tcp_is_open(self) -> bool:
        """Whether a connect is under way."""
        return self.tcp_until_s < inf

    @property
    def evidence(self) -> Evidence:
        """What a round without an answer says of the peer. An open connect at its end is no answer either."""
        if self.is_refused:
            return Evidence.REFUSED
        return Evidence.STALLED if self.is_host_up else Evidence.SILENT

    def tcp_ended(self, outcome: Tcp, now_s: float, grace_s: float) -> None:
        """Take note of a connect's outcome; decides whether and when to try again."""
        self.tcp, self.tcp_until_s = outcome, inf
        match outcome:
            case Tcp.REFUSED:
                self.refused_s = min(self.refused_s, now_s + grace_s)
                self.is_host_up = False
            case Tcp.GONE:
                self.tcp, self.refused_s = Tcp.REFUSED, now_s
                self.is_host_up = False
            case Tcp.ACCEPTED:
                self.refused_s = inf
                self.is_host_up = True
                if self.is_urgent and self.tcp_tries < TCP_TRIES_MAX:
                    wait_s = min(TCP_RETRY_S * TCP_RETRY_GROWTH ** (self.tcp_tries - 1), TCP_RETRY_MAX_S)
                    self.tcp_next_s = now_s + wait_s
            case Tcp.SILENT:
                if self.refused_s == inf and not self.is_refused and self.tcp_tries < TCP_TRIES_MAX:
                    self.tcp_next_s = now_s  # Its timeout was the wait.

    def tcp_lost(self, now_s: float) -> None:
        """The connect got no outcome from the driver, which says nothing of the peer: try again."""
        self.tcp_until_s = inf
        if self.tcp_tries < TCP_TRIES_MAX:
            self.tcp_next_s = now_s

    def press(self, now_s: float) -> None:
        """Another member was refused: whatever the connects said so far, look again at once (once in a round)."""
        self.is_urgent = True
        if not self.is_pressed and not self.is_refused:
            self.is_pressed, self.tcp_tries = True, 0
            self.tcp_next_s = now_s

    def nacks_missing(self) -> int:
        """Helpers that had the time to say that they are there, and did not (Lifeguard LHA-Probe)."""
        until_s = self.started_s + NACK_SHARE * (self.ends_s - self.started_s)
        return sum(1 for helper, (_, at_s) in self.asked.items() if at_s <= until_s and helper not in self.nacked)


def health_after(health: int, change: int) -> int:
    """Local health: 0 is well; each step slows this node's own rounds, so that a sick node accuses late."""
    return min(max(health + change, 0), HEALTH_MAX)
