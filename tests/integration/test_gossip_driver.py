"""The gossip driver on real sockets, with a script in the protocol's place."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.gossip import watch_token
from cluster.gossip.driver import GossipDriver, is_udp_closed, tcp_outcome
from cluster.gossip.http1 import parse_response
from cluster.swim.events import (
    Action,
    Changed,
    Datagram,
    Event,
    Identity,
    NameConflict,
    PushPull,
    PushPullReply,
    PushPullRequest,
    PushPullResponse,
    Send,
    SetEpoch,
    Tcp,
    TcpConnect,
    TcpOutcome,
    Tick,
    Watch,
    WatchEnded,
)
from tests.integration.conftest import free_port

KEY = b"k" * 32
LIMIT_S = 20.0
SESSION = "n2/0190aaaaaaaa-0badcafe"


class Script:
    """Stands for the protocol: remembers what it was handed, answers what it was told to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.due_s = float("inf")
        self.reply: Callable[[Event], list[Action]] = lambda event: []

    def handle(self, event: Event, now_s: float) -> list[Action]:
        self.events.append(event)
        if isinstance(event, Tick):
            self.due_s = float("inf")
        return self.reply(event)

    def deadline_s(self) -> float:
        return self.due_s

    def heard(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def driven(script: Script, *, is_started: bool = True) -> AsyncIterator[GossipDriver]:
    news: list[Changed | NameConflict] = []
    gossip = GossipDriver(Config(port=free_port(), node_id="n1"), [KEY], script, news.append, news.append)
    gossip.bind()
    if is_started:
        gossip.start()
    try:
        yield gossip
    finally:
        await gossip.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, f"not within {LIMIT_S} s: {what}"
        await asyncio.sleep(0.005)


@contextmanager
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


def act(gossip: GossipDriver, script: Script, *actions: Action) -> None:
    """Make the driver carry these out."""
    script.reply = lambda event: list(actions)
    gossip.feed(SetEpoch(0))
    script.reply = lambda event: []


async def test_every_datagram_in_the_socket_is_handed_in_before_a_deadline_fires() -> None:
    script = Script()
    async with driven(script, is_started=False) as gossip:
        script.due_s = time.monotonic() + 0.01
        gossip.start()
        with udp() as peer:
            for number in range(200):
                peer.sendto(b"%d" % number, ("127.0.0.1", gossip.config.port))
        time.sleep(0.05)  # noqa: ASYNC251 - this node was busy: the deadline is past, the datagrams are there.
        await until(lambda: script.heard(Tick), "the tick")
        tick = next(i for i, event in enumerate(script.events) if isinstance(event, Tick))
        assert len(script.heard(Datagram)) == 200
        assert all(isinstance(event, Datagram) for event in script.events[:tick])
        assert tick == 200


async def test_a_deadline_that_news_moved_does_not_fire() -> None:
    script = Script()
    async with driven(script, is_started=False) as gossip:

        def later(event: Event) -> list[Action]:
            if isinstance(event, Datagram):
                script.due_s = float("inf")
            return []

        script.reply = later
        script.due_s = time.monotonic() + 0.01
        gossip.start()
        with udp() as peer:
            peer.sendto(b"ack", ("127.0.0.1", gossip.config.port))
        time.sleep(0.05)  # noqa: ASYNC251 - see above.
        await until(lambda: script.heard(Datagram), "the datagram")
        assert not script.heard(Tick)


async def test_datagrams_are_sent_and_names_are_never_looked_up() -> None:
    script = Script()
    async with driven(script) as gossip:
        with udp() as peer:
            act(gossip, script, Send(peer.getsockname(), b"hello"), Send(("localhost", 9), b"blocked"))
            peer.settimeout(LIMIT_S)
            assert peer.recv(100) == b"hello"
        assert gossip.stats["unresolved"] == 1


async def test_a_listener_that_feeds_the_next_event_comes_after_all_other_actions() -> None:
    script = Script()
    async with driven(script) as gossip:
        with udp() as peer:
            seen: list[int] = []

            def on_conflict(conflict: NameConflict) -> None:
                peer.settimeout(LIMIT_S)
                seen.append(int(peer.recv(100)))

            gossip._on_conflict = on_conflict
            conflict = NameConflict(Identity("n1", SESSION, "127.0.0.1", 1))
            act(gossip, script, conflict, Send(peer.getsockname(), b"1"))
            assert seen == [1]


async def test_tcp_connects_tell_accepted_from_refused() -> None:
    script = Script()
    async with driven(script) as gossip:
        with socket.create_server(("127.0.0.1", 0)) as server:
            act(gossip, script, TcpConnect(server.getsockname(), "open", 1.0))
            act(gossip, script, TcpConnect(("127.0.0.1", free_port()), "shut", 1.0))
            with udp() as peer:
                act(gossip, script, TcpConnect(peer.getsockname(), "tcp shut", 1.0))
                await until(lambda: len(script.heard(TcpOutcome)) == 4, "all outcomes")
                await until(lambda: not gossip._tasks, "the end of the asking")
    outcomes = {
        name: [event.outcome for event in script.heard(TcpOutcome) if event.session == name]
        for name in ("open", "shut", "tcp shut")
    }
    assert outcomes == {"open": [Tcp.ACCEPTED], "shut": [Tcp.REFUSED, Tcp.GONE], "tcp shut": [Tcp.REFUSED]}


async def test_a_connect_is_tried_although_the_watch_has_just_been_lost() -> None:
    """uvloop raises RuntimeError for a write to a connection that has ended and whose reader has not noticed yet."""

    class Lost:
        def is_closing(self) -> bool:
            return False

        def write(self, data: bytes) -> None:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

        def close(self) -> None:
            pass

    script = Script()
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with driven(script) as gossip:
            act(gossip, script, Watch((Identity("n2", SESSION, *server.getsockname()),)))
            await until(lambda: gossip._watchers[SESSION].writer is not None, "the watch connection")
            writer, gossip._watchers[SESSION].writer = gossip._watchers[SESSION].writer, Lost()  # type: ignore[assignment]
            act(gossip, script, TcpConnect(server.getsockname(), SESSION, 1.0))
            await until(lambda: script.heard(TcpOutcome), "the outcome")
            gossip._watchers[SESSION].writer = writer


async def test_a_udp_port_that_closes_a_little_later_is_found_closed() -> None:
    with udp() as peer:
        asking = asyncio.ensure_future(is_udp_closed(peer.getsockname()))
        await asyncio.sleep(0.01)
        assert not asking.done()
    assert await asyncio.wait_for(asking, LIMIT_S)


async def test_an_empty_datagram_is_not_handed_in() -> None:
    script = Script()
    async with driven(script) as gossip:
        with udp() as peer:
            peer.sendto(b"", ("127.0.0.1", gossip.config.port))
            peer.sendto(b"more", ("127.0.0.1", gossip.config.port))
            await until(lambda: script.heard(Datagram), "the datagram")
    assert [event.data for event in script.heard(Datagram)] == [b"more"]


async def test_a_connect_that_is_reset_by_a_closing_socket_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sock_connect(sock: socket.socket, target: Any) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    assert await tcp_outcome(("127.0.0.1", 9), 0.3) is Tcp.ACCEPTED


async def test_a_connect_that_nobody_answers_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        fillers = []
        try:
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(server.getsockname())
                fillers.append(filler)
            assert await tcp_outcome(server.getsockname(), 0.3) is Tcp.SILENT
        finally:
            for filler in fillers:
                filler.close()


@pytest.mark.skipif(sys.platform != "linux", reason="SIOCOUTQ on a stopped process's full backlog")
async def test_a_stopped_process_with_a_full_backlog_is_hung_and_not_gone() -> None:
    script = Script()
    with watched_process() as (process, port):
        async with driven(script) as gossip:
            peer = Identity("n2", SESSION, "127.0.0.1", port)
            act(gossip, script, Watch((peer,)))
            await until(lambda: gossip._watchers[SESSION].writer is not None, "the watch connection")
            os.kill(process.pid, signal.SIGSTOP)
            fillers: list[socket.socket] = []
            try:
                while await tcp_outcome(("127.0.0.1", port), 0.3) is Tcp.ACCEPTED:
                    fillers.append(socket.socket())
                    fillers[-1].setblocking(False)
                    fillers[-1].connect_ex(("127.0.0.1", port))
                act(gossip, script, TcpConnect(("127.0.0.1", port), SESSION, 0.3))
                await until(lambda: script.heard(TcpOutcome), "the outcome")
            finally:
                for filler in fillers:
                    filler.close()
            assert script.heard(TcpOutcome)[0].outcome is Tcp.ACCEPTED
            assert not script.heard(WatchEnded)


@pytest.mark.parametrize("is_answered", [True, False])
async def test_the_end_of_a_watched_process_is_heard_answered_or_not(is_answered: bool) -> None:
    script = Script()
    with watched_process(is_answered) as (process, port):
        async with driven(script) as gossip:
            act(gossip, script, Watch((Identity("n2", SESSION, "127.0.0.1", port),)))
            await until(lambda: gossip._watchers[SESSION].writer is not None, "the watch connection")
            began_s = time.monotonic()
            process.kill()
            await until(lambda: script.heard(WatchEnded), "the end")
            print(f"kill -9 to WatchEnded: {1000 * (time.monotonic() - began_s):.1f} ms")
            assert script.heard(WatchEnded) == [WatchEnded(SESSION)]


@contextmanager
def watched_process(is_answered: bool = True) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that listens, and answers a watch request or does not even accept it."""
    program = (
        "import socket, time\n"
        "server = socket.create_server(('127.0.0.1', 0), backlog=2)\n"
        "print(server.getsockname()[1], flush=True)\n"
        f"while {is_answered}:\n"
        "    peer, _ = server.accept()\n"
        "    peer.recv(4096); peer.send(b'HTTP/1.1 200 OK\\r\\n\\r\\n'); kept = peer\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_watch_that_is_no_longer_wanted_is_closed_without_a_word() -> None:
    script = Script()
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        ended.append(await reader.read())
        writer.close()

    ended: list[bytes] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, driven(script) as gossip:
        act(gossip, script, Watch((Identity("n2", SESSION, "127.0.0.1", port),)))
        await until(lambda: requests, "the request")
        act(gossip, script, Watch(()))
        await until(lambda: ended, "the end")
        assert not script.heard(WatchEnded)
    lines = dict(line.split(b": ", 1) for line in requests[0].split(b"\r\n")[1:] if line)
    token = lines[watch_token.HEADER.encode()].decode()
    assert watch_token.is_valid([KEY], token, "rumor", "n2", time.time_ns() // 1_000_000)


async def test_a_peer_that_does_not_want_to_be_watched_is_not_dead() -> None:
    script = Script()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, driven(script) as gossip:
        act(gossip, script, Watch((Identity("n2", SESSION, "127.0.0.1", server.sockets[0].getsockname()[1]),)))
        await until(lambda: gossip.stats["watch_refusals"] >= 2, "two refusals")
        assert not script.heard(WatchEnded)


async def test_full_exchanges_go_over_http_both_ways() -> None:
    script = Script()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(parse_response(b"HTTP/1.1 200 OK\r\n" + head)[1] or 0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[::-1]))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, driven(script) as gossip:
        act(gossip, script, PushPull(server.sockets[0].getsockname(), b"table"))
        await until(lambda: script.heard(PushPullResponse), "the answer")
        assert script.heard(PushPullResponse) == [PushPullResponse(b"elbat")]
        script.reply = lambda event: (
            [PushPullReply(event.ticket, b"ours")] if isinstance(event, PushPullRequest) and event.data == b"ok" else []
        )
        assert gossip.answer(b"ok") == b"ours"
        assert gossip.answer(b"forged") is None


async def test_a_taken_port_is_said_in_words() -> None:
    script = Script()
    async with driven(script) as gossip:
        other = GossipDriver(gossip.config, [KEY], script, lambda change: None, lambda conflict: None)
        with pytest.raises(ConfigError, match=f"UDP 127.0.0.1:{gossip.config.port} cannot be bound"):
            other.bind()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_socket_for_both_families_speaks_to_each_by_its_plain_address(host: str) -> None:
    script = Script()
    config = Config(host="::", port=free_port(), node_id="n1", insecure=True)
    gossip = GossipDriver(config, [KEY], script, lambda change: None, lambda conflict: None)
    gossip.bind()
    gossip.start()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((host, 0))
        peer.settimeout(LIMIT_S)
        address = peer.getsockname()[:2]
        peer.sendto(b"ping", (host, config.port))
        await until(lambda: script.heard(Datagram), "the datagram")
        assert script.heard(Datagram)[0].source == address
        act(gossip, script, Send(address, b"ack"))
        assert await asyncio.to_thread(peer.recv, 100) == b"ack"
    assert not gossip.stats["send_errors"]
    await gossip.close()


async def test_gossip_that_others_can_reach_is_never_unsealed() -> None:
    config = Config(host="0.0.0.0", port=free_port(), node_id="n1", gossip_key_file="empty", api_token="t")
    gossip = GossipDriver(config, [], Script(), lambda change: None, lambda conflict: None)
    with pytest.raises(ConfigError, match="no gossip key"):
        gossip.bind()


async def test_a_tick_that_fails_is_counted_and_gossip_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.gossip.driver.TICK_AGAIN_S", 0.01)

    def fail(event: Event) -> list[Action]:
        if isinstance(event, Tick) and len(script.heard(Tick)) < 3:
            script.due_s = 0.0
            raise RuntimeError("a fault of the protocol")
        return []

    script = Script()
    script.reply = fail
    script.due_s = time.monotonic()
    async with driven(script) as gossip:
        await until(lambda: len(script.heard(Tick)) >= 3, "the deadline fires again")
        assert gossip.stats["tick_failures"] == 2
