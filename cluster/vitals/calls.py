"""The vitals' calls to Redis: one typed function per script, each with a deadline, on connections of their own.

There are three small pools, so that nothing important waits behind something slow: one for beats and the lease, one for
reading heartbeats (a new connection there restarts the watch, so it is reported), one for fences. The subscriber is a
plain connection under our control, since a client that reconnects by itself hides that it was deaf.

Every failure (no answer in time, no connection, a refusal by Redis) raises one exception, StoreUnavailable, which
carries the refusal if there was one. Decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from redis.exceptions import NoScriptError

from cluster import keys, scripts, session
from cluster.deadline import ends_within
from cluster.errors import StoreUnavailable, refused
from cluster.redis_client import connect
from cluster.swim import wire
from cluster.vitals.jury import FRESH_S, Ballot, Undecided
from cluster.vitals.lease import Acquire, RenewTerm, Takeover, Term, Wish
from cluster.vitals.witness import Fence

T = TypeVar("T")
Client = Any  # redis.asyncio.Redis, whose own types and published stubs disagree with each other
Connection = Any  # redis.asyncio.connection.AbstractConnection, likewise

SCRIPTS = ("heartbeat", "fence", "vote", "lease", "takeover", "resign", "snapshot", "forget")
FENCES_MAX = 8  # fences and words under way at a time
WORD_BEATS = 2  # beats for which a word counts
WORDS_TTL_MS = 60_000  # time for which words stay after the last of them: longer than any alibi stands
LOOK = b"\x01"  # first byte of the message that asks a session to look at another one, whose name follows
READ_MAX = 512  # heartbeats in one pipeline
MEMBERS_MAX = 10_000  # rows read of the member list


class MemberRow(msgspec.Struct, array_like=True, frozen=True):
    """A node's row in the member list. New fields come last: nodes of other versions read it too."""

    session: wire.Session
    host: wire.Host
    port: wire.Port
    meta: wire.MetaBytes = b""


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat."""

    tombstone: bytes | None  # None: the session lives
    subscribers: int
    redis_ms: int  # when Redis took it, by its own clock


@dataclass(frozen=True, slots=True)
class FenceReply:
    """The answer to a fence."""

    is_dead: bool
    is_ours: bool  # this very call wrote the tombstone
    value: bytes  # the tombstone, or the heartbeat of a session that lives


Vote = FenceReply | Undecided


class Pulse:
    """Redis as the vitals see it. `on_read_connection` is called when a new connection is about to read heartbeats."""

    def __init__(self, url: str, timeout_s: float, on_read_connection: Callable[[], None]) -> None:
        self.timeout_s = timeout_s
        self._beats = _client(url)
        self._fences = _client(url)
        self._subscriptions = _client(url)

        async def connected(connection: Connection) -> None:
            await connection.on_connect()
            on_read_connection()

        self._reads = _client(url, redis_connect_func=connected)
        self._fencing = asyncio.Semaphore(FENCES_MAX)

    async def load(self) -> None:
        """Load every script, so that the first fence is one round trip."""
        pipeline = self._fences.pipeline(transaction=False)
        for name in SCRIPTS:
            pipeline.script_load(scripts.script(name).text)
        await self._ask(pipeline.execute())

    async def beat(self, name: str, beat: int, ttl_ms: int, echo: bytes) -> Beat:
        """Say that this session lives."""
        answer, count, redis_ms = await self._script(
            self._beats,
            "heartbeat",
            [keys.heartbeat(name), keys.wake(name), keys.session_never(name)],
            [keys.heartbeat_value(beat), ttl_ms, echo],
        )
        return Beat(None if answer == b"ok" else bytes(answer), int(count), int(redis_ms))

    async def read(self, names: Sequence[str]) -> list[bytes | None]:
        """The heartbeats (or tombstones) of these sessions, in order."""
        values: list[bytes | None] = []
        for start in range(0, len(names), READ_MAX):
            pipeline = self._reads.pipeline(transaction=False)
            for name in names[start : start + READ_MAX]:
                pipeline.get(keys.heartbeat(name))
            values += await self._ask(pipeline.execute())
        return values

    async def subscribers(self, name: str) -> int:
        """How many connections are subscribed to the session's channel."""
        reply = await self._ask(self._beats.execute_command("PUBSUB", "NUMSUB", keys.wake(name)))
        return int(reply[0][1] if isinstance(reply[0], (list, tuple)) else reply[1])

    async def fence(self, fence: Fence, tombstone_ms: int, by: str) -> FenceReply:
        """Write the tombstone if Redis agrees."""
        name = fence.session
        async with self._fencing:
            code, value = await self._script(
                self._fences,
                "fence",
                [keys.heartbeat(name), keys.session_never(name)],
                [fence.path.value, fence.seen, fence.cause, tombstone_ms, by],
            )
        return FenceReply(int(code) != 0, int(code) == 1, bytes(value))

    async def vote(self, ballot: Ballot, said_ms: int, beat_s: float, cause: str, tombstone_ms: int, by: str) -> Vote:
        """Say a word on another session. `said_ms`: when its look ended, by Redis's clock."""
        name = ballot.session
        args: list[scripts.Arg] = [
            *(ballot.voter, ballot.word.value, said_ms, b"*" if ballot.seen is None else b"=" + ballot.seen),
            *(int(1000 * ballot.alibi_s), ballot.ways),
            *(int(1000 * WORD_BEATS * beat_s), int(1000 * FRESH_S), WORDS_TTL_MS),
            *(cause, tombstone_ms, by),
            *ballot.jury,
        ]
        slots = [keys.heartbeat(name), keys.words(name), keys.wake(name), keys.session_never(name)]
        async with self._fencing:
            code, value, *more = await self._script(self._fences, "vote", slots, args)
        if int(code):
            return FenceReply(True, int(code) == 1, bytes(value))
        subscribers, words, missing, alibis = more
        return Undecided(int(subscribers), int(words), _names(missing), _names(alibis))

    async def ask_to_look(self, names: Sequence[str], at: str) -> None:
        """Ask these sessions to look at another one."""
        pipeline = self._fences.pipeline(transaction=False)
        for name in names:
            pipeline.publish(keys.wake(name), LOOK + at.encode())
        await self._ask(pipeline.execute())

    async def lease(self, wish: Wish, ttl_ms: int, heard: int) -> Term | None:
        """Carry out a wish. Returns who holds the lease now."""
        slots = [keys.LEADER_LEASE, keys.LEADER_EPOCH, keys.LEADER_NEVER]
        match wish:
            case Acquire(session=name):
                reply = await self._script(self._beats, "lease", slots, [name, 0, ttl_ms, heard])
            case RenewTerm(term=term):
                reply = await self._script(self._beats, "lease", slots, [term.session, term.epoch, ttl_ms, heard])
            case Takeover(session=name, dead=dead):
                reply = await self._script(self._beats, "takeover", slots, [name, dead, ttl_ms, heard])
        holder = reply[1].decode("utf-8", "replace")
        return Term(holder, int(reply[2])) if holder else None

    async def resign(self, term: Term) -> None:
        """Give the lease back."""
        slots = [keys.LEADER_LEASE, keys.LEADER_NEVER]
        await self._script(self._beats, "resign", slots, [f"{term.session}|{term.epoch}"])

    async def snapshot(self, epoch: int, table: bytes, ttl_ms: int) -> bool:
        """Keep the leader's member table. False: a later leader exists."""
        slots = [keys.LEADER_SNAPSHOT, keys.LEADER_EPOCH, keys.LEADER_NEVER]
        return bool(await self._script(self._beats, "snapshot", slots, [epoch, table, ttl_ms]))

    async def enroll(self, node_id: str, record: MemberRow) -> None:
        """Put this node on the member list and among the active workers."""
        pipeline = self._beats.pipeline(transaction=False)
        pipeline.hset(keys.LEADER_MEMBERS, node_id, _pack(record))
        pipeline.sadd(keys.WORKERS_ACTIVE, node_id)
        await self._ask(pipeline.execute())

    async def forget(self, name: str) -> None:
        """Take a dead session's node off all lists, unless it lives on in a newer session."""
        node_id = session.node_of(name)
        slots = [keys.LEADER_MEMBERS, keys.LEADER_NEVER, keys.LEADER_KEYS]
        if not await self._script(self._fences, "forget", slots, [node_id, name]):
            await self._ask(self._fences.srem(keys.WORKERS_ACTIVE, node_id))

    async def look(
        self, names: Sequence[str], node_ids: Sequence[str]
    ) -> tuple[list[bytes | None], dict[str, MemberRow]]:
        """The heartbeats (or tombstones) of these sessions, in order, and these nodes' rows of the member list."""
        pipeline = self._fences.pipeline(transaction=False)
        for name in names:
            pipeline.get(keys.heartbeat(name))
        pipeline.hmget(keys.LEADER_MEMBERS, list(node_ids))
        *values, rows = await self._ask(pipeline.execute(raise_on_error=False))
        for value in values:
            if isinstance(value, Exception):
                raise StoreUnavailable(f"Redis shows no heartbeat: {value}") from value
        # What somebody else wrote in the place of the list is no silence of Redis.
        return values, {} if isinstance(rows, Exception) else _rows(zip(node_ids, rows, strict=True))

    async def members(self) -> dict[str, MemberRow]:
        """The member list, without rows of another form."""
        rows = await self._ask(self._fences.hgetall(keys.LEADER_MEMBERS))
        return _rows((name.decode("utf-8", "replace"), row) for name, row in list(rows.items())[:MEMBERS_MAX])

    @asynccontextmanager
    async def listen(self, name: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Subscribe to the session's channel; inside, iterate over what is published to it."""
        connection = self._subscriptions.connection_pool.make_connection()
        try:
            await self._ask(_subscribe(connection, keys.wake(name)))
            yield _messages(connection)
        finally:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """End every connection."""
        for client in (self._beats, self._fences, self._reads, self._subscriptions):
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.aclose()
            except scripts.UNANSWERED:
                continue

    async def _script(self, client: Client, name: str, slots: Sequence[str], args: Sequence[scripts.Arg]) -> Any:
        return await self._ask(scripts.call(client, name, slots, args))

    async def _ask(self, call: Awaitable[T]) -> T:
        """The answer. Raises StoreUnavailable, whatever went wrong."""
        task = asyncio.ensure_future(call)
        try:
            if await ends_within(task, self.timeout_s):
                return task.result()
        except NoScriptError as error:
            raise StoreUnavailable(f"Redis lost a script: {error}", may_have_happened=False) from error
        except scripts.UNANSWERED as error:
            if scripts.is_answer(error):
                raise refused(error) from error
            raise StoreUnavailable(f"Redis did not answer: {str(error).rstrip('.')}.") from error
        finally:
            if not task.done():
                task.cancel()
        raise StoreUnavailable(f"Redis gave no answer within {self.timeout_s} s.")


def _client(url: str, **more: Any) -> Client:
    """A client whose only deadlines are those of this module."""
    return connect(url, connect_within_s=None, **more)


async def _subscribe(connection: Connection, channel: str) -> None:
    await connection.connect()
    await connection.send_command("SUBSCRIBE", channel)
    await connection.read_response()


async def _messages(connection: Connection) -> AsyncIterator[bytes]:
    while True:
        try:
            reply = await connection.read_response()
        except scripts.UNANSWERED as error:
            raise StoreUnavailable(f"the subscription ended: {error}") from error
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            yield reply[2]


def _rows(pairs: Iterable[tuple[str, bytes | None]]) -> dict[str, MemberRow]:
    """Rows of the member list that a node of that name may have written."""
    members: dict[str, MemberRow] = {}
    for node_id, data in pairs:
        try:
            row = msgspec.msgpack.decode(data or b"", type=MemberRow)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if session.is_session(row.session) and session.node_of(row.session) == node_id:
            members[node_id] = row
    return members


def _names(rows: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(row.decode("utf-8", "replace") for row in rows)


def _pack(record: MemberRow) -> bytes:
    return msgspec.msgpack.encode(record)
