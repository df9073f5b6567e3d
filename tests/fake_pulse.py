"""Redis as the vitals call it, kept in dicts: what a life and its parts are tested on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from cluster import keys
from cluster.errors import StoreUnavailable, away
from cluster.vitals.calls import LOOK, WORD_BEATS, Beat, FenceReply, MemberRow, Vote
from cluster.vitals.jury import FRESH_S, Ballot
from cluster.vitals.lease import Term, Wish
from cluster.vitals.witness import Fence
from tests.vote_model import Slot


class FakePulse:
    """Answers at once, unless `failure` is set. `calls` names what changed something, in order."""

    def __init__(self, url: str = "", timeout_s: float = 1.0, on_read_connection: Callable[[], None] = lambda: None):
        self.timeout_s = timeout_s
        self.failure: StoreUnavailable | None = None
        self.heartbeats: dict[str, bytes] = {}
        self.moving: dict[str, int] = {}  # sessions that live elsewhere: subscribed, and each reading finds a beat
        self.rows: dict[str, MemberRow] = {}
        self.channels: dict[str, list[asyncio.Queue[bytes]]] = {}
        self.leader: Term | None = None
        self.calls: list[str] = []
        self.slots: dict[str, Slot] = {}

    def go_away(self) -> None:
        """Answer nothing from now on."""
        self.failure = away()

    def publish(self, name: str, message: bytes) -> None:
        """Hand a message to whoever is subscribed to the session's channel."""
        for queue in self.channels.get(name, ()):
            queue.put_nowait(message)

    def _ask(self, call: str = "") -> None:
        if self.failure is not None:
            raise self.failure
        if call:
            self.calls.append(call)

    async def load(self) -> None:
        self._ask("load")

    async def beat(self, name: str, beat: int, ttl_ms: int, echo: bytes) -> Beat:
        self._ask()
        value = self.heartbeats.get(name)
        if keys.is_tombstone(value):
            return Beat(value, await self.subscribers(name), self._now_ms())
        self.heartbeats[name] = keys.heartbeat_value(beat).encode()
        self.publish(name, echo)
        return Beat(None, await self.subscribers(name), self._now_ms())

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        self._ask()
        for name in self.moving:
            self.moving[name] += 1
            self.heartbeats[name] = b"%d" % self.moving[name]
        return [self.heartbeats.get(name) for name in names]

    async def look(
        self, names: Sequence[str], node_ids: Sequence[str]
    ) -> tuple[list[bytes | None], dict[str, MemberRow]]:
        self._ask()
        rows = {node_id: self.rows[node_id] for node_id in node_ids if node_id in self.rows}
        return [self.heartbeats.get(name) for name in names], rows

    async def subscribers(self, name: str) -> int:
        self._ask()
        return len(self.channels.get(name, ())) + (name in self.moving)

    async def fence(self, fence: Fence, tombstone_ms: int, by: str) -> FenceReply:
        self._ask(f"fence {fence.session} {fence.cause}")
        value = self.heartbeats.get(fence.session)
        if value is not None and keys.is_tombstone(value):
            return FenceReply(True, False, value)
        self.heartbeats[fence.session] = f"fenced {fence.cause} 0 {by}".encode()
        return FenceReply(True, True, self.heartbeats[fence.session])

    async def vote(self, ballot: Ballot, said_ms: int, beat_s: float, cause: str, tombstone_ms: int, by: str) -> Vote:
        self._ask(f"vote {ballot.session} {ballot.word}")
        slot = self.slots.setdefault(ballot.session, Slot())
        slot.heartbeat = self.heartbeats.get(ballot.session)
        slot.subscribers = await self.subscribers(ballot.session)
        reply = slot.vote(
            *(ballot.voter, ballot.word, said_ms, ballot.seen, int(1000 * ballot.alibi_s), ballot.ways, ballot.jury),
            stands_ms=int(1000 * WORD_BEATS * beat_s),
            fresh_ms=int(1000 * FRESH_S),
            cause=cause,
            by=by,
            now_ms=self._now_ms(),
        )
        if isinstance(reply, FenceReply):
            self.heartbeats[ballot.session] = reply.value
        return reply

    async def ask_to_look(self, names: Sequence[str], at: str) -> None:
        self._ask()
        for name in names:
            self.publish(name, LOOK + at.encode())

    def _now_ms(self) -> int:
        return int(1000 * time.monotonic())

    async def lease(self, wish: Wish, ttl_ms: int, heard: int) -> Term | None:
        self._ask()
        return self.leader

    async def resign(self, term: Term) -> None:
        self._ask("resign")

    async def snapshot(self, epoch: int, table: bytes, ttl_ms: int) -> bool:
        self._ask()
        return True

    async def enroll(self, node_id: str, record: MemberRow) -> None:
        self._ask(f"enroll {record.session}")
        self.rows[node_id] = record

    async def forget(self, name: str) -> None:
        self._ask(f"forget {name}")

    async def members(self) -> dict[str, MemberRow]:
        self._ask()
        return dict(self.rows)

    @asynccontextmanager
    async def listen(self, name: str) -> AsyncIterator[AsyncIterator[bytes]]:
        self._ask()
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.channels.setdefault(name, []).append(queue)

        async def messages() -> AsyncIterator[bytes]:
            while True:
                yield await queue.get()

        try:
            yield messages()
        finally:
            if queue in self.channels[name]:
                self.channels[name].remove(queue)

    async def close(self) -> None:
        pass
