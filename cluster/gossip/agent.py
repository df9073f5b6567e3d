"""Membership alone: a Swim, its driver, the smallest TCP side, and one JSON object a line on stdout.

This is a node without its queue, for other programs to use and for measuring: no Redis, no tasks. Its TCP port does
what evidence needs: it takes and holds watch connections and answers POST /gossip, and a connect that it refuses means
that no process is there. The agent leaves when its standard input closes, or on SIGTERM, SIGINT or SIGHUP.

Decides nothing about members. Does not know: Redis, load, tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from random import SystemRandom
from typing import cast

from cluster import output, session
from cluster.clock import wall_ms
from cluster.config import Config
from cluster.errors import ConfigError, bind_hint
from cluster.gossip import http1, site, watch_token
from cluster.gossip.address import own_host, seed_addresses
from cluster.gossip.driver import GossipDriver
from cluster.gossip.keyring import gossip_keys
from cluster.hosts import hostport
from cluster.kept_tasks import Nursery
from cluster.swim.core import Swim
from cluster.swim.events import Changed, Identity, Join, Leave, MemberState, NameConflict, Renew
from cluster.swim.wire import SYNC_MAX_BYTES

JOIN_S = 3.0  # time between two looks for seeds that are not alive here
LINGER_GOSSIPS = 3  # gossip intervals from the word that we left until we fall silent
BACKLOG = 4096  # length of the accept queue: once it is full, a stopped process looks like one whose kernel is silent
CONNECTIONS_MAX = 4096
STRANGERS_MAX_BYTES = 16_777_216  # bytes of requests that are not whole yet, of all connections
REQUEST_LIMIT_S = 5.0  # time that a connection has to send its request, and to take the answer
EXIT_CONFLICT = 3
EXIT_BROKEN = 70
FAR_MS = 10 * 365 * 86_400_000  # time by which an earlier life's clock may have been ahead: ten years


def main_agent(config: Config) -> int:
    """Run one agent in this process; the exit status."""
    gc.freeze()  # The objects that the imports made stay for good.
    try:
        import uvloop

        return uvloop.run(run(config))
    except ImportError:
        return asyncio.run(run(config))


async def run(config: Config) -> int:
    """Run one agent until its standard input closes. Raises ConfigError when it cannot start."""
    agent = Agent(config, gossip_keys(config), await own_host(config))
    try:
        await agent.begin()
        await agent.stop.wait()
        await agent.leave()
    finally:
        await agent.close()
        output.flush()
    return EXIT_CONFLICT if agent.has_conflict else EXIT_BROKEN if agent.fault else 0


class Agent:
    """One member."""

    def __init__(self, config: Config, keys: Sequence[bytes], host: str) -> None:
        self.config = config
        self.keys = tuple(keys)
        self.stop = asyncio.Event()
        self.has_conflict = False
        self.connections: set[Connection] = set()
        self.strangers: dict[Connection, None] = {}  # those whose request is not whole yet, the oldest first
        self.strangers_bytes = 0
        self._rng = SystemRandom()
        self._me = self._life(host, wall_ms())
        self.swim = Swim(config, self._me, self.keys, self._rng, time.monotonic())
        self.gossip = GossipDriver(config, self.keys, self.swim, self._on_changed, self._on_conflict)
        self._server: asyncio.Server | None = None
        self.fault = ""  # why it can go on no longer
        self._kept = Nursery(self._broke_down)

    async def begin(self) -> None:
        """Bind both ports and join. Raises ConfigError when a port is taken."""
        tell("start", self.config.name)
        loop = asyncio.get_running_loop()
        self.gossip.bind()
        try:
            # The TCP port opens before gossip: peers that know a member and are refused there take it for dead.
            self._server = await loop.create_server(
                lambda: Connection(self), self.config.host, self.config.port, backlog=BACKLOG
            )
        except OSError as error:
            raise ConfigError(
                f"TCP {self.config.address} cannot be bound: {error.strerror or error}.",
                bind_hint(error, self.config.port),
            ) from error
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup ignores it for its program, and means it
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGUSR1, self._tell_stats)
        threading.Thread(target=watch_stdin, args=(loop, self.stop), name="stdin", daemon=True).start()
        self.gossip.start()
        self._kept.keep("join", self._joins)
        tell("ready", self.config.name)

    async def leave(self) -> None:
        """Say that we left, and stay for a moment so that the word spreads."""
        self.gossip.feed(Leave(done=True))
        await asyncio.sleep(LINGER_GOSSIPS * self.config.gossip_interval_s)

    async def close(self) -> None:
        """End every task and connection."""
        await self._kept.halt()
        await self.gossip.close()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close()

    def accepts_watch(self, token: str) -> bool:
        """Whether the bearer of this token may hold a watch connection."""
        return watch_token.is_valid(self.keys, token, self.config.cluster, self.config.name, wall_ms())

    async def _joins(self) -> None:
        while True:
            live = (m.identity for m in self.swim.members() if m.state not in (MemberState.DEAD, MemberState.LEFT))
            reached = {(identity.host, identity.port) for identity in live}
            missing = [address for address in await seed_addresses(self.config.seeds) if address not in reached]
            self.gossip.feed(Join(tuple(missing)))
            await asyncio.sleep(JOIN_S)

    def _broke_down(self, message: str) -> None:
        self.fault = message
        self.stop.set()

    def _on_changed(self, change: Changed) -> None:
        identity, state, was = change.member.identity, change.member.state, change.was
        if identity.node_id != self.config.name:
            for event in events(state, was):
                tell(event, identity.node_id)

    def _life(self, host: str, began_ms: int) -> Identity:
        name = self.config.name
        return Identity(name, session.new(name, began_ms, self._rng), host, self.config.port)

    def _on_conflict(self, conflict: NameConflict) -> None:
        other, me = conflict.other, self._me
        if session.order(other.session)[0] > wall_ms() + FAR_MS:
            return  # No clock was ever that far ahead: somebody invented it.
        if (other.host, other.port) in ((me.host, me.port), ("", 0)):
            # That is no second process but an earlier life of ours, and the clock was set back since. Nobody listens
            # to a session that comes before it.
            last_ms = max(session.order(identity.session)[0] for identity in (other, me))
            self._me = self._life(me.host, last_ms + 1)
            self.gossip.feed(Renew(self._me.session))
            return
        print(f"the name {other.node_id} is used twice: also at {hostport(other.host, other.port)}.", file=sys.stderr)
        self.has_conflict = True
        self.stop.set()

    def _tell_stats(self) -> None:
        live = sum(1 for member in self.swim.members() if member.state not in (MemberState.DEAD, MemberState.LEFT))
        state = {"live": live, "health": self.swim.health, "cpu_s": round(time.process_time(), 4)}
        tell("stats", self.config.name, **state, **self.swim.stats, **self.gossip.stats)


def events(state: MemberState, was: MemberState | None) -> list[str]:
    """The events that a change of state is on stdout; none for a change that is no news to others (it drains)."""
    is_back = was in (None, MemberState.DEAD, MemberState.LEFT)
    match state:
        case MemberState.ALIVE | MemberState.LEAVING:
            return ["join"] if is_back else ["alive"] if was is MemberState.SUSPECT else []
        case MemberState.SUSPECT:
            return [] if was is MemberState.SUSPECT else ["join", "suspect"] if is_back else ["suspect"]
        case MemberState.DEAD | MemberState.LEFT:
            return [] if was in (None, state) else [state.value]


def watch_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Wait for the end of standard input, on a thread: not every kind of file can be polled."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # The loop has ended already.
        loop.call_soon_threadsafe(stop.set)


def tell(event: str, subject: str, **more: object) -> None:
    """One line on stdout, with the time. `output` sees to it that no reader holds up the member."""
    print(json.dumps({"t": round(time.monotonic(), 6), "event": event, "subject": subject, **more}), flush=True)


class Connection(asyncio.Protocol):
    """One TCP connection from a peer: one request, then the answer and the end, or a watch that is held."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        agent = self._agent
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not asyncio's by name.
        if len(agent.connections) >= CONNECTIONS_MAX:
            if not agent.strangers:
                self._transport.abort()
                return
            next(iter(agent.strangers)).abort()  # Who asks slowly keeps nobody out.
        agent.connections.add(self)
        agent.strangers[self] = None
        self._timer = asyncio.get_running_loop().call_later(REQUEST_LIMIT_S, self.abort)

    def connection_lost(self, error: Exception | None) -> None:
        self._agent.connections.discard(self)
        self._settle()
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self not in self._agent.strangers:
            return  # A watch: these bytes only show that both kernels are there.
        self._data += data
        self._agent.strangers_bytes += len(data)
        while self._agent.strangers_bytes > STRANGERS_MAX_BYTES:
            next(iter(self._agent.strangers)).abort()
        head, end, body = self._data.partition(http1.HEAD_END)
        if not end:
            if len(head) > http1.HEAD_MAX_BYTES:
                self._answer(b"431 Request Header Fields Too Large")
            return
        method, path, headers = http1.parse_request(head)
        host = headers.get(b"host", b"").decode("latin-1")
        if any(name.lower().encode() in headers for name in site.BROWSER_HEADERS) or not site.is_own_host(host, ()):
            self._answer(b"403 Forbidden")
        elif (method, path) == (b"GET", watch_token.PATH.encode()):
            self._hold(headers.get(watch_token.HEADER.lower().encode(), b""))
        elif (method, path) == (b"POST", b"/gossip"):
            length = http1.parse_length(headers.get(b"content-length", b""))
            if length is None or length > SYNC_MAX_BYTES:
                self._answer(b"413 Content Too Large")
            elif len(body) >= length:
                reply = self._agent.gossip.answer(body[:length])
                self._answer(b"403 Forbidden" if reply is None else b"200 OK", reply or b"")
        else:
            self._answer(b"404 Not Found")

    def abort(self) -> None:
        """End it at once, also if the other side does not read."""
        self._agent.connections.discard(self)
        self._settle()
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End it from this side."""
        if self._transport is not None:
            self._transport.close()

    def _hold(self, token: bytes) -> None:
        if not self._agent.accepts_watch(token.decode("latin-1")):
            self._answer(b"403 Forbidden")
            return
        assert self._transport is not None
        assert self._timer is not None
        self._timer.cancel()
        self._settle()
        self._transport.write(http1.endless_answer())

    def _answer(self, status: bytes, body: bytes = b"") -> None:
        assert self._transport is not None
        self._settle()
        self._transport.write(http1.answer(status, body))
        self._transport.close()

    def _settle(self) -> None:
        """Its request is dealt with, or will never be whole."""
        if self in self._agent.strangers:
            del self._agent.strangers[self]
            self._agent.strangers_bytes -= len(self._data)
        self._data = b""
