"""N membership nodes in virtual time, on a network that is as bad as a test asks for. Same seed, same run.

Each node is a real `Swim` with real, sealed datagrams; the simulator is its driver. It models these parts of the world:

- datagrams are lost, late, doubled and overtake each other, in each direction of each link by itself;
- the kernel of a live host accepts a TCP connect while the process exists, hung or not, and refuses it when the process
  is gone (soon the UDP port is closed too); a connect is silent if the host is, or a packet of the handshake is lost;
- a watch connection ends when the process at its other end does, and hangs when the network is cut;
- a paused process finds in its socket what came meanwhile, and reads it before it looks at the clock;
- a slow node handles everything late.

The seed and the faults alone decide a run: there is one `Random` for the network and one for each node, both seeded by
text, and no iteration over sets.

Does not know: real time, sockets, what a test claims.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from cluster import session
from cluster.config import Config
from cluster.swim.core import Swim
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
    Looked,
    Member,
    MemberState,
    NameConflict,
    PushPull,
    PushPullReply,
    PushPullRequest,
    PushPullResponse,
    Send,
    Tcp,
    TcpConnect,
    TcpOutcome,
    Tick,
    Unconfirmed,
    Vouched,
    Watch,
    WatchEnded,
)

KEY = bytes(range(32))
BOOT_WALL_MS = 1_764_000_000_000
TEARDOWN_S = (0.001, 0.003)  # time from a kill until each socket of the process closes, one after another
KNOCKS_S = 0.063  # time for which the driver asks for the UDP port after a refused connect
CONNECT_RETRY_S = 0.2  # time between a driver's tries to set up a watch connection
PUSH_PULL_TIMEOUT_S = 2.0
SOCKET_BUFFER = 1024  # datagrams that may wait for a process that does not read
SYN_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """How bad the network is, each way."""

    loss: float = 0.0
    delay_s: tuple[float, float] = (0.0002, 0.001)
    duplicate: float = 0.0
    reorder: float = 0.0  # share of datagrams that are `reorder_s` later
    reorder_s: float = 0.050
    tcp_loss: float = 0.0
    icmp: bool = True  # whether kernels may say that a UDP port is closed


@dataclass(frozen=True, slots=True)
class Start:
    """The node begins to run as a new session, and joins by the addresses of `seeds` (default: the first node).

    Its `node_id` is its name, unless this gives it another's.
    """

    name: str
    seeds: tuple[str, ...] = ()
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class Crash:
    """The process is gone: its sockets close one after another, each within `closes_s`; then its ports refuse.

    Until the TCP port is closed, it accepts a connect, or the closing socket drops its SYN (share: `syn_loss`).
    """

    name: str
    closes_s: tuple[float, float] = TEARDOWN_S
    syn_loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Vanish:
    """The host is gone: nothing comes back from it, not even a refusal."""

    name: str


@dataclass(frozen=True, slots=True)
class ClosePort:
    """A live node's TCP port refuses (a filter, a listener that failed), its watches end; its UDP port stays open."""

    name: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The process hangs; its kernel goes on."""

    name: str


@dataclass(frozen=True, slots=True)
class Resume:
    """The process goes on."""

    name: str


@dataclass(frozen=True, slots=True)
class Slow:
    """Everything that this node does happens up to `lag_s` late."""

    name: str
    lag_s: float


@dataclass(frozen=True, slots=True)
class Cut:
    """Nothing gets from `sources` to `targets` any more, nor the other way unless the cut is `one_way`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    one_way: bool = False


@dataclass(frozen=True, slots=True)
class Heal:
    """All cuts are over."""


@dataclass(frozen=True, slots=True)
class SetLink:
    """The network is as bad as this link from now on."""

    link: Link


@dataclass(frozen=True, slots=True)
class EndWatches:
    """The watch connections to a live node end (its HTTP side restarts, a proxy gives up); its port stays open."""

    name: str


@dataclass(frozen=True, slots=True)
class Tell:
    """The driver of a node hands this event in."""

    name: str
    event: Event


Fault = Start | Crash | ClosePort | Vanish | Pause | Resume | Slow | Cut | Heal | SetLink | EndWatches | Tell


@dataclass(frozen=True, slots=True)
class Seen:
    """One Changed action: which node saw it, when, and whether the session was really running then."""

    at_s: float
    observer: str
    change: Changed
    was_running: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """A session whose process or host was gone from then on."""

    at_s: float
    name: str
    session: str


@dataclass
class Node:
    """One host with at most one process."""

    name: str
    address: Address
    rng: Random
    swim: Swim | None = None
    session: str = ""
    is_paused: bool = False
    has_vanished: bool = False
    lag_s: float = 0.0
    life: int = 0  # rises with each start and crash, so that a process gets nothing that was meant for an earlier one
    refuses_s: float = 0.0  # when the TCP port of its last process closes
    udp_closed_s: float = 0.0  # when the UDP port of its last process closes
    syn_loss: float = 0.0  # share of SYNs that are lost until the TCP port closes
    is_port_closed: bool = False
    tick_s: float = float("inf")  # when its next tick is scheduled
    inbox: list[Event] = field(default_factory=list)  # events that came while it was paused
    watched: dict[str, Identity] = field(default_factory=dict)
    established: dict[str, None] = field(default_factory=dict)  # sessions to which it holds a watch connection
    conflicts: list[NameConflict] = field(default_factory=list)

    @property
    def is_running(self) -> bool:
        """Whether its process runs, hung or not, on a host that is there."""
        return self.swim is not None and not self.has_vanished


class Sim:
    """A cluster in virtual time. Give it faults with `at`, let it run, look at `seen`, `views_of` and the nodes."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        link: Link = Link(),
        config: Config | None = None,
        *,
        has_registry: bool = False,
    ) -> None:
        """`has_registry`: the nodes have a Redis, which knows their sessions and confirms what gossip says of them."""
        self.seed = seed
        self.config = config or Config()
        self.link = link
        self.now_s = 0.0
        self.seen: list[Seen] = []
        self.sent: dict[str, int] = {}  # name -> bytes
        self.ended: list[Ended] = []
        self.has_registry = has_registry
        self.registered: dict[str, Identity] = {}  # sessions whose heartbeat stands in the registry
        self.tombstones: dict[str, None] = {}
        self.on_looked: Callable[[Node, Looked], None] = lambda node, looked: None
        self._rng = Random(f"network {seed}")
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._cuts: list[Cut] = []
        self._faults: list[tuple[float, Fault]] = []
        self.nodes: dict[str, Node] = {}
        self._by_address: dict[Address, Node] = {}
        for number in range(1, nodes + 1):
            self.add(f"n{number}")
            self.at(0.0 if number == 1 else self._rng.random() * 0.1, Start(f"n{number}"))

    # ---- what a test does

    def add(self, name: str) -> None:
        """A further host, without a process yet."""
        number = len(self.nodes) + 1
        address = (f"10.0.{number // 250}.{number % 250 + 1}", 5000)
        self.nodes[name] = self._by_address[address] = Node(name, address, Random(f"node {self.seed} {name}"))

    def at(self, at_s: float, fault: Fault) -> None:
        """Let this fault happen at that time."""
        self._faults.append((at_s, fault))
        self._at(at_s, lambda: self._apply(fault))

    def run_until(self, until_s: float) -> None:
        """Go on until that time."""
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()
        self.now_s = until_s

    def run_while(self, condition: Callable[[], bool], limit_s: float, step_s: float = 0.01) -> bool:
        """Go on in steps while the condition holds. False if it still holds after `limit_s`."""
        until_s = self.now_s + limit_s
        while condition():
            if self.now_s >= until_s:
                return False
            self.run_until(self.now_s + step_s)
        return True

    def running(self) -> list[Node]:
        """Nodes whose process runs and is not paused."""
        return [node for node in self.nodes.values() if node.is_running and not node.is_paused]

    def view(self, observer: str, of: str) -> Member | None:
        """What one node holds of another."""
        swim = self.nodes[observer].swim
        members = swim.members() if swim is not None else ()
        return next((member for member in members if member.identity.node_id == of), None)

    def views_of(self, name: str, session: str | None = None) -> dict[str, MemberState | None]:
        """What each other running node holds of a node's session (default: its latest). None: not known."""
        session = session or self.nodes[name].session
        views: dict[str, MemberState | None] = {}
        for node in self.running():
            if node.name != name:
                member = self.view(node.name, name)
                is_this_life = member is not None and member.identity.session == session
                views[node.name] = member.state if member is not None and is_this_life else None
        return views

    def is_converged(self) -> bool:
        """Whether every running node holds exactly the running ones alive, in their present sessions."""
        running = {session.node_of(node.session): node.session for node in self.running()}
        for node in self.running():
            assert node.swim is not None
            held = {m.identity.node_id: m.identity.session for m in node.swim.members() if m.state is MemberState.ALIVE}
            if held != running:
                return False
        return True

    def false_deaths(self) -> list[Seen]:
        """Deaths that a node declared or believed although the session was running (a hung process is running)."""
        return [seen for seen in self.seen if seen.change.member.state is MemberState.DEAD and seen.was_running]

    def known_dead_s(self, session: str) -> dict[str, float]:
        """When each observer first held this session dead."""
        times: dict[str, float] = {}
        for seen in self.seen:
            member = seen.change.member
            if member.identity.session == session and member.state is MemberState.DEAD:
                times.setdefault(seen.observer, seen.at_s)
        return times

    def evidence_of(self, session: str) -> set[Evidence]:
        """The evidence with which any node held this session dead."""
        members = (seen.change.member for seen in self.seen)
        return {
            member.evidence
            for member in members
            if member.identity.session == session and member.state is MemberState.DEAD
        }

    def total(self, counter: str) -> int:
        """The sum of a counter over the processes that run."""
        return sum(node.swim.stats[counter] for node in self.nodes.values() if node.swim is not None)

    def replay_hint(self) -> str:
        """The seed and the faults, to see this run again."""
        faults = sorted(self._faults, key=lambda planned: planned[0])
        return "\n".join(
            [
                f"seed {self.seed}, {len(self.nodes)} nodes, at {self.now_s:.3f} s; the faults:",
                *(f"  {at_s:8.3f} s  {fault}" for at_s, fault in faults[:100] if at_s > 0.1),
            ]
        )

    # ---- faults

    def _apply(self, fault: Fault) -> None:
        match fault:
            case Start(name, seeds, node_id):
                self._start(self.nodes[name], seeds, node_id or name)
            case Crash(name):
                if self.nodes[name].swim is not None:
                    self._crash(self.nodes[name], fault)
            case ClosePort(name):
                self.nodes[name].is_port_closed = True
                self._end_watches(self.nodes[name].session, TEARDOWN_S)
            case Vanish(name):
                self.nodes[name].has_vanished = True
                self.ended.append(Ended(self.now_s, name, self.nodes[name].session))
            case Pause(name):
                self.nodes[name].is_paused = True
            case Resume(name):
                self._resume(self.nodes[name])
            case Slow(name, lag_s):
                self.nodes[name].lag_s = lag_s
            case Cut():
                self._cuts.append(fault)
            case Heal():
                self._cuts.clear()
            case SetLink(link):
                self.link = link
            case EndWatches(name):
                self._end_watches(self.nodes[name].session, TEARDOWN_S)
            case Tell(name, event):
                self._hand_in(self.nodes[name], event)

    def _start(self, node: Node, seeds: tuple[str, ...], node_id: str) -> None:
        assert node.swim is None, f"{node.name} runs already"
        node.session = session.new(node_id, self._wall_ms(), node.rng)
        node.life += 1
        node.is_paused, node.has_vanished, node.inbox, node.is_port_closed = False, False, [], False
        node.watched, node.established = {}, {}
        me = Identity(node_id, node.session, *node.address, b"meta of " + node.name.encode())
        node.swim = Swim(
            self.config,
            me,
            (KEY,),
            node.rng,
            self.now_s,
            nonce=lambda: self._rng.getrandbits(96).to_bytes(12, "big"),
            has_registry=self.has_registry,
        )
        self.registered[node.session] = me
        names = seeds or tuple(self.nodes)[:1]
        self._hand_in(node, Join(tuple(self.nodes[name].address for name in names if name != node.name)))

    def _crash(self, node: Node, how: Crash) -> None:
        self.ended.append(Ended(self.now_s, node.name, node.session))
        node.swim, node.tick_s, node.is_paused = None, float("inf"), False
        node.life += 1
        node.refuses_s = self.now_s + self._rng.uniform(*how.closes_s)
        node.udp_closed_s = self.now_s + self._rng.uniform(*how.closes_s)
        node.syn_loss = how.syn_loss
        self._end_watches(node.session, how.closes_s)

    def _end_watches(self, ended: str, closes_s: tuple[float, float]) -> None:
        """The session's kernel says goodbye on every connection to it, where that still gets through."""
        end = self._host_of(ended)
        for node in self.nodes.values():
            if ended in node.established and self._gets_through(end, node):
                del node.established[ended]
                self._deliver(node, WatchEnded(ended), self._rng.uniform(*closes_s))

    def _host_of(self, session_name: str) -> Node:
        """The host that runs or last ran this session, else the host of the session's name."""
        hosts = (node for node in self.nodes.values() if node.session == session_name)
        return next(hosts, self.nodes[session.node_of(session_name)])

    def _resume(self, node: Node) -> None:
        node.is_paused = False
        inbox, node.inbox = node.inbox, []
        for event in inbox:
            self._hand_in(node, event)
        self._hand_in(node, Tick())

    # ---- the driver of a node

    def _hand_in(self, node: Node, event: Event) -> None:
        if node.swim is None or node.has_vanished:
            return
        if node.is_paused:
            if len(node.inbox) < SOCKET_BUFFER:
                node.inbox.append(event)
            return
        for action in node.swim.handle(event, self.now_s):
            self._carry_out(node, action)
        self._schedule_tick(node)

    def _schedule_tick(self, node: Node) -> None:
        assert node.swim is not None
        at_s = max(node.swim.deadline_s(), self.now_s) + node.rng.random() * node.lag_s
        if at_s < node.tick_s:
            node.tick_s = at_s
            life = node.life
            self._at(at_s, lambda: self._tick(node, life, at_s))

    def _tick(self, node: Node, life: int, at_s: float) -> None:
        if node.life != life or node.tick_s != at_s or node.swim is None:
            return
        node.tick_s = float("inf")
        if node.is_paused:
            return  # It looks at the clock when it resumes.
        if node.swim.deadline_s() <= self.now_s:
            self._hand_in(node, Tick())
        else:
            self._schedule_tick(node)

    def _carry_out(self, node: Node, action: Action) -> None:
        match action:
            case Send(target, data):
                assert len(data) <= 1400, f"a datagram of {len(data)} bytes"
                self.sent[node.name] = self.sent.get(node.name, 0) + len(data)
                self._transmit(node, target, data)
            case TcpConnect():
                self._connect(node, action)
            case Looked():
                self.on_looked(node, action)
            case Watch(peers):
                self._watch(node, peers)
            case PushPull(target, data):
                self._push_pull(node, target, data)
            case PushPullReply():
                raise AssertionError("a PushPullReply that answers no PushPullRequest")
            case Changed(member):
                self._note(node, action, member)
            case Unconfirmed(identity):
                if identity.session != node.session:
                    self._deliver(node, self._registry_says(action), self._delay_s())
            case NameConflict(other):
                if not self.has_registry or other.session in self.registered:
                    node.conflicts.append(action)

    def _registry_says(self, rumor: Unconfirmed) -> Event:
        """What the second witness answers: see `cluster.vitals.vouching`."""
        name = rumor.identity.session
        if name in self.tombstones:
            return Fenced(name)
        if name not in self.registered or rumor.is_fenced:
            return Denied(name)
        return Vouched(self.registered[name])

    def _note(self, node: Node, change: Changed, member: Member) -> None:
        subject = self._by_address.get((member.identity.host, member.identity.port))
        is_running = subject is not None and subject.is_running and subject.session == member.identity.session
        self.seen.append(Seen(self.now_s, node.name, change, is_running))

    # ---- the network

    def _transmit(self, node: Node, target: Address, data: bytes) -> None:
        to = self._by_address.get(target)
        if to is None or not self._gets_through(node, to):
            return
        for _ in range(2 if self._rng.random() < self.link.duplicate else 1):
            if self._rng.random() >= self.link.loss:
                delay_s = self._delay_s() + (self.link.reorder_s if self._rng.random() < self.link.reorder else 0.0)
                self._deliver(to, Datagram(node.address, data), delay_s)

    def _connect(self, node: Node, connect: TcpConnect) -> None:
        to, timeout_s = self._by_address.get(connect.target), connect.timeout_s

        def tell(outcome: Tcp, delay_s: float) -> None:
            self._deliver(node, TcpOutcome(connect.session, outcome, connect.look), delay_s)

        if to is None or not self._is_reachable(node, to):
            tell(Tcp.SILENT, timeout_s)
            return
        took_s = self._delay_s() + self._delay_s()
        while self._rng.random() < 1 - (1 - self.link.tcp_loss) ** 2:
            took_s += SYN_RETRY_S
        is_closing = to.swim is None and self.now_s < to.refuses_s
        if is_closing and to.syn_loss and self._rng.random() < to.syn_loss:
            took_s += SYN_RETRY_S
        if took_s > timeout_s:
            tell(Tcp.SILENT, timeout_s)
        elif is_closing or (to.swim is not None and not to.is_port_closed):
            tell(Tcp.ACCEPTED, took_s)
        else:
            tell(Tcp.REFUSED, took_s)
            knock_s = self.now_s + took_s
            if self.link.icmp and to.swim is None and to.udp_closed_s < knock_s + KNOCKS_S:
                gone_s = max(to.udp_closed_s, knock_s) + self._delay_s() + self._delay_s()
                tell(Tcp.GONE, gone_s - self.now_s)

    def _watch(self, node: Node, peers: Iterable[Identity]) -> None:
        node.watched = {peer.session: peer for peer in peers}
        node.established = {name: None for name in node.established if name in node.watched}
        for peer in node.watched:
            if peer not in node.established:
                self._establish(node, peer, node.life)

    def _establish(self, node: Node, peer: str, life: int) -> None:
        if node.life != life or peer not in node.watched or peer in node.established:
            return
        to = self._host_of(peer)
        is_open = to.session == peer and to.is_running and not to.is_paused and not to.is_port_closed
        if is_open and self._is_reachable(node, to):
            node.established[peer] = None
        else:
            self._later(CONNECT_RETRY_S, lambda: self._establish(node, peer, life))

    def _push_pull(self, node: Node, target: Address, data: bytes) -> None:
        to = self._by_address.get(target)
        if to is None or not self._is_reachable(node, to):
            return
        life, until_s = node.life, self.now_s + PUSH_PULL_TIMEOUT_S

        def ask() -> None:
            if to.swim is None or to.is_paused or to.has_vanished:
                return
            for action in to.swim.handle(PushPullRequest(0, data), self.now_s):
                if isinstance(action, PushPullReply):
                    if node.life == life and self.now_s < until_s and self._gets_through(to, node):
                        self._deliver(node, PushPullResponse(action.data), self._delay_s())
                else:
                    self._carry_out(to, action)
            self._schedule_tick(to)

        self._later(2 * self._delay_s(), ask)

    def _is_reachable(self, node: Node, to: Node) -> bool:
        return not to.has_vanished and self._gets_through(node, to) and self._gets_through(to, node)

    def _gets_through(self, source: Node, target: Node) -> bool:
        if source.has_vanished or target.has_vanished:
            return False
        return not any(
            (source.name in cut.sources and target.name in cut.targets)
            or (not cut.one_way and target.name in cut.sources and source.name in cut.targets)
            for cut in self._cuts
        )

    def _delay_s(self) -> float:
        return self._rng.uniform(*self.link.delay_s)

    def _deliver(self, node: Node, event: Event, delay_s: float) -> None:
        life = node.life
        lag_s = node.rng.random() * node.lag_s if node.lag_s else 0.0

        def hand_in() -> None:
            if node.life == life or isinstance(event, Datagram):
                self._hand_in(node, event)

        self._later(delay_s + lag_s, hand_in)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._at(self.now_s + delay_s, action)

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (max(at_s, self.now_s), self._count, action))

    def _wall_ms(self) -> int:
        return BOOT_WALL_MS + int(self.now_s * 1000)
