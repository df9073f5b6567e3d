"""What goes into the membership protocol and what comes out: the whole interface of `cluster.swim.core.Swim`. Pure.

The driver turns sockets and timers into events, hands them to `Swim.handle(event, now_s)`, and carries out the actions
that it returns.

Does not know: sockets, clocks, asyncio.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf

Address = tuple[str, int]


class MemberState(StrEnum):
    """A member's state as gossip alone holds it."""

    ALIVE = "alive"
    LEAVING = "leaving"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class Evidence(StrEnum):
    """Why a member is suspect or dead: the kinds of silence, and the proofs."""

    SILENT = "silent"  # no ack and no TCP answer: the host is gone or cut off
    STALLED = "stalled"  # no ack, but its kernel accepts TCP: the process hangs
    REFUSED = "refused"  # its port refused the connections of two members (of one in a pair)
    SUPERSEDED = "superseded"  # a newer session of the same node_id exists
    FENCED = "fenced"  # its session has a tombstone in Redis
    NONE = "none"  # not accused


class Tcp(StrEnum):
    """How a TCP connect to a member's port ended."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # its TCP port is closed, or a filter refuses in the name of a living process
    GONE = "gone"  # refused, and then its UDP port was closed as well: no process has them open
    SILENT = "silent"


class Sight(StrEnum):
    """What a look at a session saw."""

    ANSWERED = "answered"  # it answered the ping
    ACCEPTED = "accepted"  # no answer, but the kernel at its address takes connections: the process hangs
    REFUSED = "refused"  # nothing listens at its address, or another session answers there
    SILENT = "silent"  # nothing came back


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
    by: str  # node_id of the member that accused it or declared it dead; "" when it is not accused
    rtt_s: float | None
    load: bytes  # opaque, at most 400 bytes; b"" until this node heard one
    load_seq: int  # rises with each load of that session
    load_at_s: float  # when this node heard the load (-inf: never)
    is_vouched: bool = True  # Redis has shown the heartbeat of this session (or nobody can be asked)
    doubted_s: float = inf  # when this node began to hold it suspect, dead or left (inf: it does not)
    answered_s: float = -inf  # when it last answered a ping of this node, directly or through a helper
    accepted_s: float = -inf  # when its kernel first took a connection of this node after its last answer, if it did


# ---- events: handed to Swim.handle


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes from the UDP socket."""

    source: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Look at the clock: the deadline has come, or may have."""


@dataclass(frozen=True, slots=True)
class Join:
    """Addresses at which members may be: seeds, the list in Redis. Swim pings each until it answers or is known."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class TcpOutcome:
    """The answer to a TcpConnect action. REFUSED may be followed by GONE, a little later."""

    session: str
    outcome: Tcp
    look: int = 0  # as in the action


@dataclass(frozen=True, slots=True)
class Look:
    """Look at this session, and report Looked. `address`: where it was last known to be, if the table has no row of it.

    No outcome comes if this node is away meanwhile, or is no member any more.
    """

    session: str
    address: Address | None = None


@dataclass(frozen=True, slots=True)
class WatchEnded:
    """An established watch connection to this session ended (EOF, reset). Never a verdict by itself."""

    session: str


@dataclass(frozen=True, slots=True)
class SetLoad:
    """This node's own load from now on; it rides in every datagram.

    Urgent: others should act on it now, so Swim tells a few of them within a gossip interval. Otherwise they learn it
    from the next datagram that goes their way.
    """

    load: bytes
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class SetEpoch:
    """The epoch that Redis named. Swim gossips the highest, and believes no peer that names one far beyond it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """This session has a tombstone in Redis. Swim gossips it: the member is dead, and cannot refute in that session."""

    session: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """Redis shows that this session lives: an answer to Unconfirmed. Its address is Redis's, where Redis knows one."""

    identity: Identity


@dataclass(frozen=True, slots=True)
class Denied:
    """Redis shows nothing of what gossip said of this session: an answer to Unconfirmed."""

    session: str


@dataclass(frozen=True, slots=True)
class RegistryReach:
    """Whether Redis can be asked now. While it cannot, a newcomer's own answer to a ping of ours has to do."""

    is_up: bool


@dataclass(frozen=True, slots=True)
class Renew:
    """This node goes on as another session (its old one was fenced)."""

    session: str


@dataclass(frozen=True, slots=True)
class Leave:
    """`done` False: say that this node is leaving (it drains). True: say that it left (it has nothing in flight)."""

    done: bool


@dataclass(frozen=True, slots=True)
class PushPullRequest:
    """A peer's sealed full table came over TCP. Swim answers it with one PushPullReply of the same `ticket`."""

    ticket: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PushPullResponse:
    """The peer's sealed answer to our PushPull action."""

    data: bytes


Event = (
    Datagram
    | Tick
    | Join
    | TcpOutcome
    | Look
    | WatchEnded
    | SetLoad
    | SetEpoch
    | Fenced
    | Vouched
    | Denied
    | RegistryReach
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
    """Try a TCP connect to `target` within `timeout_s`, and report TcpOutcome for `session`.

    If it is refused, ask the kernel there for the UDP port too, where this platform tells (see Tcp.GONE).
    """

    target: Address
    session: str
    timeout_s: float
    look: int = 0  # the look that it belongs to; 0: to a round


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look saw."""

    session: str
    sight: Sight


@dataclass(frozen=True, slots=True)
class Watch:
    """Hold a watch connection to each of these peers from now on; close all others (without WatchEnded)."""

    peers: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class PushPull:
    """POST these bytes to /gossip at `target`, and report PushPullResponse if it answers."""

    target: Address
    data: bytes


@dataclass(frozen=True, slots=True)
class PushPullReply:
    """Answer the PushPullRequest of this `ticket` with these bytes."""

    ticket: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Changed:
    """A member's state, session, incarnation or evidence changed.

    `first`: whether its node_id was not known before. `was`: the state of this session before; None if the session was
    not known. A later session of a known node gives two actions: the earlier session is dead (superseded), then the
    later one has `was` None and `first` False.
    """

    member: Member
    was: MemberState | None
    first: bool


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """Gossip says what Redis can confirm: that this session is fenced (of our own: beat), or that it exists.

    Nothing is believed yet. The driver looks at the session's heartbeat, and hands in Fenced, Vouched or Denied.
    """

    identity: Identity
    is_fenced: bool


@dataclass(frozen=True, slots=True)
class NameConflict:
    """This node's name seems to be used twice; if it is, this node must stop.

    Either an earlier life of it answers at another address, or the cluster took in a later life while this one runs.
    A driver that has Redis asks it first.
    """

    other: Identity


Action = Send | TcpConnect | Looked | Watch | PushPull | PushPullReply | Changed | Unconfirmed | NameConflict
