"""Probe rounds: when to ping again, and what a round without an answer proves.

A round is many pings, not one. After the first, direct and relayed pings repeat until the very end of the round. Their
spacing follows the peer's measured round trip (RFC 6298) and grows by half each time, up to a fifth of the round. So a
round survives the loss of a third of all packets, and a cut that heals while a slow node's long round runs.
In the same round this node tries the peer's TCP port, because a kernel tells the truth about a process sooner than a
clock.

Does not know: the table, the wire, which members help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from cluster.swim.events import Address, Evidence, Tcp

PINGS_MAX = 12  # direct pings in one round; a usual round has 7: at 30 % loss all of them fail in 1 round of 100
SPACING_MIN_S = 0.020
SPACING_SHARE = 0.2  # share of the probe timeout: the longest spacing, and the only one while the peer is unmeasured
SPACING_GROWTH = 1.5

# Share of the probe timeout that must pass without an answer before a refusal alone is trusted; the time that the
# peer's answers usually take, if that is longer. A TCP port may be closed or filtered while its process lives, and a
# living process may answer a ping slowly. GONE needs no such time: a process that has its UDP port open is never GONE,
# however slow it is.
REFUSAL_GRACE_SHARE = 0.25

# A dying process closes its sockets one by one, in a bad case over some 30 ms. So just after the end of a watch a
# socket that is about to close may still accept the connect, or reset it, or drop its SYN. In an urgent round an
# accepted connect is therefore tried again soon. In any round a silent connect is tried again, because the kernel
# repeats a lost SYN only after a second.
TCP_TRIES_MAX = 8
TCP_RETRY_S = 0.003
TCP_RETRY_GROWTH = 2.0
TCP_RETRY_MAX_S = 0.050
TCP_TIMEOUT_MIN_S = 0.050  # shortest timeout of one try; the last try has what is left of the round
TCP_TIMEOUT_RTOS = 2
TCP_LOST_S = 0.050  # time beyond a try's timeout after which the driver has dropped the connect, or was away

AID_SHARE = 0.6  # share of the probe timeout for which a helper tries, so that its nack arrives in time
NACK_SHARE = 0.35  # share of the round: helpers that are asked within it owe a nack

HEALTH_MAX = 8


@dataclass(slots=True)
class Rtt:
    """The round trip of one peer, smoothed as in RFC 6298."""

    srtt_s: float | None = None
    rttvar_s: float = 0.0

    def observe(self, rtt_s: float) -> None:
        """Take in one measured round trip. Each ping has its own number, so no answer is ambiguous (Karn)."""
        if self.srtt_s is None:
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
        else:
            self.rttvar_s += (abs(self.srtt_s - rtt_s) - self.rttvar_s) / 4
            self.srtt_s += (rtt_s - self.srtt_s) / 8

    @property
    def rto_s(self) -> float | None:
        """Seconds after which an answer is late; None before the first measurement."""
        return None if self.srtt_s is None else self.srtt_s + 4 * self.rttvar_s


def spacing_s(rtt: Rtt, timeout_s: float, attempt: int) -> float:
    """Seconds from ping `attempt` (counted from 0) to the next one."""
    longest_s = SPACING_SHARE * timeout_s
    first_s = longest_s if rtt.rto_s is None else min(max(rtt.rto_s, SPACING_MIN_S), longest_s)
    return min(first_s * SPACING_GROWTH**attempt, longest_s)


def connect_timeout_s(rtt: Rtt, left_s: float, tries: int, timeout_s: float) -> float:
    """Seconds that connect number `tries` (from 0) may take if `left_s` is left of a round of `timeout_s`."""
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
    tcp_until_s: float = inf  # when the connect that is under way must have had its outcome; inf: none is under way
    tcp_next_s: float = inf  # when to connect again
    is_pressed: bool = False  # whether this node heard of another member's refusal in this round
    refused_s: float = inf  # when the refusal may be believed
    is_refused: bool = False  # whether it was believed, because no answer came before then
    is_host_up: bool = False  # whether the peer's kernel accepted a connect, of this node or of a helper
    refused_by: dict[str, None] = field(default_factory=dict)  # helpers whose connect was refused
    asked: dict[str, tuple[int, float]] = field(default_factory=dict)  # helper -> (number of its PingReq, when)
    nacked: dict[str, None] = field(default_factory=dict)
    requesters: dict[tuple[Address, int], None] = field(default_factory=dict)

    @property
    def due_s(self) -> float:
        """When there is something to do in this round."""
        return min(self.next_ping_s, self.tcp_next_s, self.tcp_until_s, self.refused_s, self.ends_s)

    @property
    def tcp_is_open(self) -> bool:
        """Whether a connect is under way."""
        return self.tcp_until_s < inf

    @property
    def evidence(self) -> Evidence:
        """What a round without an answer says of the peer. A connect that is still under way is no answer either."""
        if self.is_refused:
            return Evidence.REFUSED
        return Evidence.STALLED if self.is_host_up else Evidence.SILENT

    def tcp_ended(self, outcome: Tcp, now_s: float, grace_s: float) -> None:
        """Take in a connect's outcome, and decide whether and when to try again."""
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
                    self.tcp_next_s = now_s  # Its timeout was the wait already.

    def tcp_lost(self, now_s: float) -> None:
        """Try again: the driver reported no outcome of the connect, and that says nothing of the peer."""
        self.tcp_until_s = inf
        if self.tcp_tries < TCP_TRIES_MAX:
            self.tcp_next_s = now_s

    def press(self, now_s: float) -> None:
        """Look again at once, whatever the connects said so far: another member was refused (once in a round)."""
        self.is_urgent = True
        if not self.is_pressed and not self.is_refused:
            self.is_pressed, self.tcp_tries = True, 0
            self.tcp_next_s = now_s

    def nacks_missing(self) -> int:
        """The number of helpers that had time to say that they are there and did not (Lifeguard LHA-Probe)."""
        until_s = self.started_s + NACK_SHARE * (self.ends_s - self.started_s)
        return sum(1 for helper, (_, at_s) in self.asked.items() if at_s <= until_s and helper not in self.nacked)


def health_after(health: int, change: int) -> int:
    """Local health after a change. 0 is well; each step slows this node's rounds, so that a sick node accuses late."""
    return min(max(health + change, 0), HEALTH_MAX)
