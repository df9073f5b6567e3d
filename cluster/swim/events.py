"""What goes into the membership protocol and what comes out: the whole interface of `cluster.swim.core.Swim`.

The driver turns sockets and timers into events, hands them to `Swim.handle(event, now_s)`, and carries out the actions
it returns. Nothing here knows a socket, a clock or asyncio.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Address = tuple[str, int]


class MemberState(StrEnum):
    """What gossip alone holds of a member."""

    ALIVE = "alive"
    LEAVING = "leaving"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Evidence(StrEnum):
    """Why a member was suspected or declared dead: the kinds of silence, and the proofs."""

    SILENT = "silent"  # no ack and no TCP answer: the host is gone or cut off
    STALLED = "stalled"  # no ack, but its kernel accepts TCP: the process hangs
    REFUSED = "refused"  # connection refused, seen by two members (by one in a pair)
    SUPERSEDED = "superseded"  # a newer session of the same node_id exists
    FENCED = "fenced"  # its session has a tombstone in Redis
    NONE = "none"  # not accused


class Tcp(StrEnum):
    """What a TCP connect to a member's port said."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # its TCP port is closed; a filter can say that of a living process
    GONE = "gone"  # refused, and then its UDP port was found closed as well: no process has them open
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a member is for one life. `meta` is opaque here, at most 200 bytes, and fixed for the session."""

    node_id: str
    session: str
    host: str
    port: int
    meta: bytes = b""


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the member table, as a snapshot. Times are the driver's monotonic seconds."""

    identity: Identity
    incarnation: int
    state: MemberState
    evidence: Evidence
    since_s: float  # when this node learned of the state
    by: str  # node_id of the member that accused or declared it; "" when not accused
    rtt_s: float | None
    load: bytes  # opaque, at most 400 bytes; b"" until heard
    load_seq: int  # rises with each load of that session
    load_at_s: float  # when this node heard it (-inf: never)


# ---- events: handed to Swim.handle


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes from the UDP socket."""

    source: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has come (or simply: look at the clock)."""


@dataclass(frozen=True, slots=True)
class Join:
    """Addresses that may be members: seeds, the list in Redis. Pinged until they answer or are known."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class TcpOutcome:
    """The answer to a TcpConnect action. REFUSED may be followed by GONE, a little later."""

    session: str
    outcome: Tcp


@dataclass(frozen=True, slots=True)
class WatchEnded:
    """A watch connection that had been established to this session ended (EOF, reset). Never a verdict by itself."""

    session: str


@dataclass(frozen=True, slots=True)
class SetLoad:
    """This node's own load from now on; rides in every datagram. Urgent: others should act on it now, not when a
    datagram next goes their way; a few are told within a gossip interval."""

    load: bytes
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class SetEpoch:
    """An epoch that Redis gave to some leader; Swim keeps and gossips the highest."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """This session has a tombstone in Redis. Gossiped; the member is dead and cannot refute in that session."""

    session: str


@dataclass(frozen=True, slots=True)
class Renew:
    """This node goes on as another session (its old one was fenced)."""

    session: str


@dataclass(frozen=True, slots=True)
class Leave:
    """`done` False: say leaving (drains). True: say left (nothing in flight any more)."""

    done: bool


@dataclass(frozen=True, slots=True)
class PushPullRequest:
    """A peer's sealed full table came in over TCP; the answer is one PushPullReply with the same `ticket`."""

    ticket: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PushPullResponse:
    """The sealed answer to a PushPull action of ours."""

    data: bytes


Event = (
    Datagram
    | Tick
    | Join
    | TcpOutcome
    | WatchEnded
    | SetLoad
    | SetEpoch
    | Fenced
    | Renew
    | Leave
    | PushPullRequest
    | PushPullResponse
)


# ---- actions: returned by Swim.handle


@dataclass(frozen=True, slots=True)
class Send:
    """Send one datagram."""

    target: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class TcpConnect:
    """Try a TCP connect to `target` within `timeout_s` and report TcpOutcome for `session`.

    When it is refused, ask the kernel there for the UDP port too, where this platform tells (see Tcp.GONE).
    """

    target: Address
    session: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Watch:
    """The complete set of peers to hold a watch connection to from now on; others are closed (without WatchEnded)."""

    peers: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class PushPull:
    """POST these bytes to /gossip at `target` and report PushPullResponse if it answers."""

    target: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class PushPullReply:
    """The answer to a PushPullRequest."""

    ticket: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Changed:
    """A member's state, session, incarnation or evidence changed.

    `first` is True when its node_id was not known before; `was` is what this session was held to be, None for a session
    that was not known. A later session of a known node gives two: the earlier one dead (superseded), then the later one
    with `was` None and `first` False.
    """

    member: Member
    was: MemberState | None
    first: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """This node's name is used twice and this node must stop: an earlier life of it answers at another address, or the
    cluster has taken in a later life while this one runs."""

    other: Identity


Action = Send | TcpConnect | Watch | PushPull | PushPullReply | Changed | Conflict
