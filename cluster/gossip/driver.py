"""The driver of the membership protocol: one UDP socket, TCP connects, watch connections, full exchanges, one deadline.

It does four things: read, `handle`, carry out, sleep until the deadline. It empties the socket before it lets a
deadline fire: an event loop may hand over one datagram per wakeup, and a node that was busy would accuse peers whose
acks are already in its buffer. For the same reason it looks once more at a connect that timed out.

Decides nothing. Does not know: Redis, sessions' work, who is dead and why.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from functools import lru_cache
from typing import Any, Protocol

import structlog

from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import ConfigError, bind_hint
from cluster.gossip import http1, watch_token
from cluster.hosts import hostport
from cluster.swim.events import (
    Action,
    Address,
    Changed,
    Datagram,
    Event,
    Identity,
    Looked,
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
    Watch,
    WatchEnded,
)

try:
    import fcntl
    import termios

    UNACKED = getattr(termios, "TIOCOUTQ", None)  # SIOCOUTQ: bytes the peer's kernel has not acknowledged
except ImportError:
    UNACKED = None

log = structlog.get_logger("gossip")

DATAGRAM_MAX_BYTES = 65_536  # most that the socket may hand over; the protocol drops what is above its own limit
DATAGRAMS_PER_TURN = 512  # datagrams read before the loop gets a turn; deadlines wait on
MAPPED = "::ffff:"  # before an IPv4 address on an IPv6 socket
UDP_BUFFER_BYTES = 1 << 20
CONNECTS_MAX = 256
EXCHANGES_MAX = 8
EXCHANGE_TIMEOUT_S = 3.0
EXCHANGE_MAX_BYTES = 8 << 20
WATCH_CONNECT_TIMEOUT_S = 1.0
WATCH_RETRY_MIN_S, WATCH_RETRY_MAX_S = 0.1, 5.0
DEADLINE_MAX_S = 3600.0
KNOCKS_S = (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)  # waits for an answer, after each empty datagram
TICK_AGAIN_S = 0.5  # pause after a tick that failed
AWAY_S = 0.25  # lateness of a timer from which on this node was away, and a silence proves nothing


class Machine(Protocol):
    """The protocol as the driver sees it: `cluster.swim.core.Swim`, or a script in a test."""

    def handle(self, event: Event, now_s: float) -> list[Action]: ...

    def deadline_s(self) -> float: ...


class GossipDriver:
    """Runs one Machine on the running event loop. Calls `on_changed` and `on_conflict` after all else is done."""

    def __init__(
        self,
        config: Config,
        keys: Sequence[bytes],
        machine: Machine,
        on_changed: Callable[[Changed], None],
        on_conflict: Callable[[NameConflict], object],
        on_seen: Callable[[str, str], None] = lambda kind, session: None,
        on_unconfirmed: Callable[[Unconfirmed], None] = lambda rumor: None,
        on_looked: Callable[[Looked], None] = lambda looked: None,
    ) -> None:
        self.config = config
        self.keys = tuple(keys)
        self.machine = machine
        self.stats: Counter[str] = Counter()
        self._on_changed = on_changed
        self._on_conflict = on_conflict
        self._on_unconfirmed = on_unconfirmed
        self.on_seen = on_seen  # hears what this node itself saw on a session's sockets: for people, decides nothing
        self._on_looked = on_looked
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._connects = 0
        self._exchanges = 0
        self._watchers: dict[str, _Watcher] = {}
        self._ticket = 0
        self.tls: ssl.SSLContext | None = None
        if config.tls_cert:
            # The gossip key inside authenticates peers. The certificate's name is for people's clients.
            self.tls = ssl.create_default_context()
            self.tls.check_hostname = False
            self.tls.verify_mode = ssl.CERT_NONE

    def bind(self) -> None:
        """Take the UDP port. Raises ConfigError when another has it, or when others could reach unsealed gossip."""
        if not self.keys and not self.config.is_loopback and not self.config.insecure:
            raise ConfigError(
                f"host is {self.config.host}, which others can reach, and there is no gossip key.",
                "Set gossip_keys or gossip_key_file (rumor keygen makes a key), or say --insecure.",
            )
        host, port = self.config.host, self.config.port
        sock: socket.socket | None = None
        try:
            family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
            sock.bind(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise ConfigError(
                f"UDP {hostport(host, port)} cannot be bound: {error.strerror or error}.",
                bind_hint(error, port),
            ) from error
        self._socket = sock

    def start(self) -> None:
        """Begin to read and to keep the deadline."""
        assert self._socket is not None, "bind() first"
        self._loop.add_reader(self._socket.fileno(), self._drain)
        self._arm()

    def feed(self, event: Event) -> list[Action]:
        """Hand one event to the protocol and carry out its actions, which are returned too."""
        actions = self.machine.handle(event, time.monotonic())
        news: list[Changed | NameConflict | Unconfirmed | Looked] = []
        for action in actions:
            match action:
                case Send():
                    self._send(action)
                case TcpConnect():
                    self._connect(action)
                case Watch():
                    self._watch(action)
                case PushPull():
                    self._exchange(action)
                case Changed() | NameConflict() | Unconfirmed() | Looked():
                    # Last, since a listener may feed the next event, whose actions are newer than the rest of these.
                    news.append(action)
                case PushPullReply():
                    pass  # It is for the caller that fed the request.
        self._arm()
        for item in news:
            match item:
                case Changed():
                    self._on_changed(item)
                case NameConflict():
                    self._on_conflict(item)
                case Unconfirmed():
                    self._on_unconfirmed(item)
                case Looked():
                    self._on_looked(item)
        return actions

    def answer(self, body: bytes) -> bytes | None:
        """The reply to a peer's full exchange. None: the protocol refused it."""
        self._ticket += 1
        for action in self.feed(PushPullRequest(self._ticket, body)):
            if isinstance(action, PushPullReply) and action.ticket == self._ticket:
                return action.data
        return None

    async def close(self) -> None:
        """Stop reading, end every connection."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        tasks = [*self._tasks, *(watcher.task for watcher in self._watchers.values())]
        self._watchers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- read

    def _drain(self) -> bool:
        """Hand in every datagram that has arrived. False: there may be more, and the loop should have a turn first."""
        if self._socket is None:
            return True
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                data, source = self._socket.recvfrom(DATAGRAM_MAX_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                # An ICMP error of an earlier datagram, on platforms that report those here.
                self.stats["receive_errors"] += 1
                continue
            if data:  # An empty datagram only asks the kernel whether this port is open.
                # A socket for both families (host ::) tells an IPv4 address inside an IPv6 one.
                self.feed(Datagram((source[0].removeprefix(MAPPED), source[1]), data))
            if self._socket is None:
                return True
        return False

    # ---- the deadline

    def _arm(self) -> None:
        deadline_s = self.machine.deadline_s()
        if deadline_s == self._timer_s or self._socket is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = deadline_s
        delay_s = min(max(0.0, deadline_s - time.monotonic()), DEADLINE_MAX_S)
        self._timer = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer_s = float("inf")
        if not self._drain():
            # There is more in the socket, and its news may make this deadline needless.
            self._timer = self._loop.call_later(0, self._fire)
            return
        if time.monotonic() - self.machine.deadline_s() < 0:
            self._arm()  # A datagram moved the deadline, or the timer was a little early.
            return
        try:
            self.feed(Tick())
        except Exception:
            # Without a timer gossip would stand still until the next datagram; with a deadline gone by it would spin.
            self.stats["tick_failures"] += 1
            log.exception("tick_failed")
            self._timer = self._loop.call_later(TICK_AGAIN_S, self._fire)

    # ---- carry out

    def _send(self, action: Send) -> None:
        if self._socket is None:
            return
        if not _is_numeric(action.target[0]):
            self.stats["unresolved"] += 1  # The system would look up the name, and block meanwhile.
            return
        host, port = action.target
        if self._socket.family == socket.AF_INET6 and ":" not in host:
            host = MAPPED + host
        try:
            self._socket.sendto(action.data, (host, port))
        except BlockingIOError:
            self.stats["send_drops"] += 1
        except OSError:
            self.stats["send_errors"] += 1  # No route, host down: silence, as the protocol expects it.

    def _connect(self, action: TcpConnect) -> None:
        if self._connects >= CONNECTS_MAX:
            self.stats["connect_drops"] += 1  # Without an outcome there is no evidence.
            return
        self._connects += 1
        self._spawn(self._try_connect(action))

    async def _try_connect(self, action: TcpConnect) -> None:
        watcher = self._watchers.get(action.session)
        if watcher is not None:
            watcher.nudge()
        try:
            outcome = await tcp_outcome(action.target, action.timeout_s)
            if outcome is Tcp.SILENT and watcher is not None and watcher.is_acknowledged():
                # Its kernel takes our bytes. A stopped process whose backlog is full hangs; it is not gone.
                outcome = Tcp.ACCEPTED
        finally:
            self._connects -= 1
        if outcome is Tcp.REFUSED and not action.look:  # Everybody looks at one that is gone; a few tell people.
            self.on_seen("connection_refused", action.session)
        if outcome is not None:
            self.feed(TcpOutcome(action.session, outcome, action.look))
        if outcome is Tcp.REFUSED and await is_udp_closed(action.target):
            self.feed(TcpOutcome(action.session, Tcp.GONE, action.look))

    def _watch(self, action: Watch) -> None:
        peers = {peer.session: peer for peer in action.peers}
        for session in [session for session in self._watchers if session not in peers]:
            self._watchers.pop(session).task.cancel()
        for session, peer in peers.items():
            if session not in self._watchers:
                self._watchers[session] = _Watcher(self, peer)

    def _exchange(self, action: PushPull) -> None:
        if self._exchanges >= EXCHANGES_MAX:
            self.stats["exchange_drops"] += 1
            return
        self._exchanges += 1
        self._spawn(self._post(action))

    async def _post(self, action: PushPull) -> None:
        try:
            reply = await self._request(action.target, action.data)
        except (OSError, TimeoutError, ValueError, EOFError, RuntimeError):
            self.stats["exchange_failures"] += 1
            return
        finally:
            self._exchanges -= 1
        self.feed(PushPullResponse(reply))

    async def _request(self, target: Address, body: bytes) -> bytes:
        """POST /gossip. Raises OSError, TimeoutError, EOFError or ValueError when there is no usable answer.

        uvloop raises RuntimeError for a write to a connection that was lost before.
        """
        async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*target, ssl=self.tls)
            try:
                writer.write(http1.post(target, "/gossip", body))
                await writer.drain()
                status, length = http1.parse_response(await reader.readuntil(http1.HEAD_END))
                if status != 200 or length is None or length > EXCHANGE_MAX_BYTES:
                    raise ValueError(f"POST /gossip answered {status}")
                reply = await reader.readexactly(length)
                self.stats["exchange_bytes"] += len(body) + length
                return reply
            finally:
                writer.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("gossip_task_failed", error=repr(error))


class _Watcher:
    """One standing TCP connection to one session of a peer. Only its end is news, and that alone is no verdict."""

    def __init__(self, gossip: GossipDriver, peer: Identity) -> None:
        self.gossip = gossip
        self.peer = peer
        self.writer: asyncio.StreamWriter | None = None
        self.task = asyncio.get_running_loop().create_task(self._run())

    def nudge(self) -> None:
        """Send two bytes that mean nothing, for the peer's kernel to acknowledge."""
        if self.writer is not None and not self.writer.is_closing():
            with contextlib.suppress(RuntimeError):  # uvloop raises this when the connection has just been lost.
                self.writer.write(b"\r\n")

    def is_acknowledged(self) -> bool:
        """Whether the peer's kernel has acknowledged every byte. False where the platform does not tell."""
        sock = None if self.writer is None else self.writer.get_extra_info("socket")
        if sock is None or UNACKED is None or self.writer is None or self.writer.is_closing():
            return False
        unacked = array.array("i", [0])
        try:
            fcntl.ioctl(sock.fileno(), UNACKED, unacked)
        except OSError:
            return False
        return unacked[0] == 0

    async def _run(self) -> None:
        retry_s = WATCH_RETRY_MIN_S
        while True:
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(WATCH_CONNECT_TIMEOUT_S):
                    reader, writer = await asyncio.open_connection(self.peer.host, self.peer.port, ssl=self.gossip.tls)
            except (OSError, TimeoutError):
                self.gossip.stats["watch_failures"] += 1
            else:
                # From here on the end counts, even if no answer came: a blocked main loop accepts late and is alive.
                self.writer = writer
                try:
                    is_refused = await self._hold(reader, writer)
                except Exception:  # An answer of any form: the watch goes on.
                    is_refused = True
                    log.exception("watch_failed", session=self.peer.session)
                finally:
                    self.writer = None
                    writer.close()
                if is_refused:
                    self.gossip.stats["watch_refusals"] += 1
                else:
                    self.gossip.stats["watch_ends"] += 1
                    self.gossip.on_seen("connection_ended", self.peer.session)
                    self.gossip.feed(WatchEnded(self.peer.session))
                    if time.monotonic() - began_s > WATCH_RETRY_MAX_S:
                        retry_s = WATCH_RETRY_MIN_S
            await asyncio.sleep(retry_s)
            retry_s = min(WATCH_RETRY_MAX_S, retry_s * 2)

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Ask, then read until the end. True: the peer answered that it does not let us watch it."""
        config, peer = self.gossip.config, self.peer
        claim = watch_token.Pass(config.cluster, config.name, peer.node_id, wall_ms())
        token = watch_token.seal(self.gossip.keys, claim, os.urandom(watch_token.NONCE_BYTES))
        head = b""
        try:
            writer.write(http1.get((peer.host, peer.port), watch_token.PATH, watch_token.HEADER, token))
            while data := await reader.read(http1.HEAD_MAX_BYTES):
                if len(head) < http1.HEAD_MAX_BYTES:
                    head += data
        except (OSError, RuntimeError):
            pass  # A reset is an end like any other. uvloop raises RuntimeError for it on a write.
        return bool(head) and http1.parse_response(head)[0] != 200


async def tcp_outcome(target: Address, timeout_s: float) -> Tcp | None:
    """What a TCP connect says within `timeout_s`. None: it proves nothing, as this node itself was away meanwhile."""
    loop = asyncio.get_running_loop()
    try:
        numeric = ipaddress.ip_address(target[0])
    except ValueError:
        return None
    sock = socket.socket(socket.AF_INET6 if numeric.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    began_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, target)
        return Tcp.ACCEPTED
    except ConnectionRefusedError:
        return Tcp.REFUSED
    except TimeoutError:
        # The answer may have come, and the loop served the timer first.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
            return Tcp.REFUSED
        with contextlib.suppress(OSError):
            sock.getpeername()
            return Tcp.ACCEPTED
        return Tcp.SILENT if time.monotonic() - began_s < timeout_s + AWAY_S else None
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        return Tcp.ACCEPTED  # Its kernel took the connection, and closed it a moment later with the listening socket.
    except OSError:
        return Tcp.SILENT  # No route, host down: the peer itself gave no answer.
    finally:
        sock.close()


async def is_udp_closed(target: Address) -> bool:
    """Whether the kernel at `target` says (by ICMP) that no process has that UDP port open.

    This asks for some milliseconds, with empty datagrams, which cost their receiver nothing. On loopback the answer is
    there when `send` returns.
    """
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(target)
            for wait_s in KNOCKS_S:
                sock.send(b"")
                await asyncio.sleep(wait_s)
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED:
                    return True
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


@lru_cache(4096)
def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
