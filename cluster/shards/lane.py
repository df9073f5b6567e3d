"""A lane: one connection to Redis on which calls form groups. Group commit without a timer.

While one group is under way, new calls wait and form the next one: no added latency when idle, large batches under
load. A shard always uses the same lane, so one group at a time also puts this node's calls to a shard in order. That
order makes it sound to compare the in-flight set in Redis with what runs here.

Every group has a deadline. A group without an answer fails as a whole with StoreUnavailable, which says whether Redis
may have carried it out. The lane then connects anew, since it could take the late answer for that of the next group.
The old bytes may still be on their way. So scripts that must not be carried out late get the last moment for it, by
Redis's clock (`redis_clock`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import redis.asyncio
import structlog
from hiredis import pack_command
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from cluster.deadline import Deadline
from cluster.errors import TaskUnreadable, away, refused, too_late, unanswered
from cluster.kept_tasks import Nursery, OnEnd, unheard
from cluster.refusal import Refusal, lacks_rights, refusal_in
from cluster.scripts import UNANSWERED, Arg, is_answer, script
from cluster.shards.redis_clock import RedisClock

T = TypeVar("T")
OnReply = Callable[[T | Exception], None]  # takes the answer, or the exception that this call met
Reply = Any  # Redis's own answer, or the exception that this call met
BACK_WITHIN_S = 0.5  # time within which a connection that dropped is mostly there again
PROBE_INTERVAL_S = 0.1  # pause between two looks of a lane that is down
ANY_TIME_MS = 1 << 53  # later than Redis's clock will ever be
AGAIN_MAX = 2  # times that a group sends calls again which Redis certainly did not carry out
TIME: tuple[Arg, ...] = ("TIME",)
LATE = "LATE "  # the beginning of a refusal by lua/include/not_after.lua; Redis's clock follows

log = structlog.get_logger("rumor.lane")


def as_it_is(reply: Any) -> Any:
    """The reply itself."""
    return reply


@dataclass(slots=True)
class Call(Generic[T]):
    """One command of a group: a script by name (`keys` then count as KEYS), or a plain command when `script` is "".

    A plain command's name is the first of `keys`, its key the second. `decode` turns Redis's reply into the answer.
    """

    script: str
    keys: tuple[str, ...]
    args: list[Arg]
    on_reply: OnReply[T]
    decode: Callable[[Any], T] = as_it_is

    @property
    def key(self) -> str:
        """The first key, which chooses the lane."""
        return self.keys[0] if self.script else self.keys[1]

    def command(self, not_after_ms: int = ANY_TIME_MS, by_text: bool = False) -> tuple[Arg, ...]:
        """The words to send to Redis; `not_after_ms` goes to a script that must not be carried out late."""
        if not self.script:
            return (*self.keys, *self.args)
        lua = script(self.script)
        head: tuple[Arg, ...] = ("EVAL", lua.text) if by_text else ("EVALSHA", lua.sha)
        if lua.is_dated:
            return (*head, len(self.keys), *self.keys, not_after_ms, *self.args)
        return (*head, len(self.keys), *self.keys, *self.args)


class Lane:
    """Groups calls on one connection. As each group leaves, the lane asks `collect` for more calls to go with it."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        timeout_s: float,
        collect: Callable[[], list[Call[Any]]],
        on_state: Callable[[bool], None],
        on_latency: Callable[[float], None] | None = None,
    ) -> None:
        self._on_latency = on_latency
        # redis-py does not document a bare connection, so setup.cfg has an upper bound. Before you raise it, look up
        # make_connection of a pool, and of a connection: connect (does nothing if connected), disconnect(nowait=),
        # send_packed_command(bytes, check_health=), read_response (raises a reply that is an error); run test_lane.py.
        self._connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout_s = timeout_s
        self._clock = RedisClock()
        self._collect = collect
        self._on_state = on_state
        self._calls: list[Call[Any]] = []
        self._has_work = asyncio.Event()
        self.kick: Callable[[], None] = self._has_work.set  # asks `collect`, although there is no call to add
        self._kept = Nursery()
        self._is_busy = False
        self.is_talking = False  # whether a group is under way: what is added now waits for its answer
        self.is_up = True  # whether Redis answered the last group, or the last look for it
        self.refusal: Refusal | None = None  # why Redis, which answers, lets this lane do nothing
        self.back_by_s = 0.0  # loop time until when it is worth while to wait for a lane that is down
        self.trouble = ""  # why the last group, or the last look for Redis, got no answer
        self.groups = 0  # answered groups
        self.last_answer_s = 0.0  # loop time at the end of the last answered group
        self.latency_s = 0.0  # seconds that the last answered group took

    def start(self, on_end: OnEnd = unheard) -> None:
        """Begin to exchange; needs the running loop. `on_end` hears when the lane has ended for good.

        It is at its first failure: whoever waits for an answer of the group under way would wait for ever.
        """
        self._kept = Nursery(on_end)
        self._kept.keep("lane", self._run, restarts=0)

    def add(self, call: Call[Any]) -> None:
        """Send a call with the next group. While the lane is down, fail it in the next turn of the loop.

        The lane calls `on_reply` exactly once, never from inside `add`.
        """
        if self.is_up:
            self._calls.append(call)
            self._has_work.set()
        else:
            asyncio.get_running_loop().call_soon(_answer, call, away(why=self.refusal))

    def doubt(self) -> None:
        """Look for Redis before the next group. A lane at rest does not notice that its connection is gone."""
        self._set_up(False)

    @property
    def is_idle(self) -> bool:
        """Whether no group is under way and none waits."""
        return not self._is_busy and not self._calls and not self._has_work.is_set()

    async def close(self) -> None:
        """End without waiting for the group under way."""
        await self._kept.halt()
        await self._connection.disconnect(nowait=True)

    async def _run(self) -> None:
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            if not self.is_up:
                await self._come_back()
            calls, self._calls = self._calls, []
            calls.extend(self._collect())
            if calls:
                self._is_busy = True
                self.is_talking = True
                await self._exchange(calls)
                self.is_talking = False
                # The loop first runs what the answers began: short tasks end in this turn, and all their outcomes leave
                # with the next group. It would otherwise leave with almost nothing, and they would wait for its answer.
                await asyncio.sleep(0)
                self._is_busy = False

    async def _exchange(self, calls: list[Call[Any]]) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        replies: list[Reply]
        sent = False

        async def talk() -> list[Reply]:
            nonlocal sent
            await self._connection.connect()
            sent = True
            return await self._ask(calls, began_s + self._timeout_s)

        try:
            async with Deadline(self._timeout_s):
                replies = await talk()
        except Exception as error:
            if not isinstance(error, UNANSWERED):  # a call that cannot be encoded must not end the lane for the others
                log.exception("group_not_sent", scripts=sorted({call.script for call in calls}))
            await self._connection.disconnect(nowait=True)
            self._failed(error)
            # What drops a connection says so at once. Where Redis was silent for a whole deadline, it may stay so.
            self.back_by_s = 0.0 if isinstance(error, TimeoutError) else loop.time() + BACK_WITHIN_S
            self._set_up(False)
            reply = refused(error) if is_answer(error) and not sent else unanswered(self.trouble, sent)
            replies = [reply] * len(calls)
        else:
            denied = None
            for reply in replies:
                if isinstance(reply, ReadOnlyError):
                    await self._connection.disconnect(nowait=True)  # a demoted master: its address may lead to another
                elif isinstance(reply, ResponseError) and lacks_rights(why := refusal_in(reply)):
                    denied = why
            self.refusal = denied
            self.groups += 1
            self.last_answer_s = loop.time()
            self.latency_s = self.last_answer_s - began_s
            if self._on_latency is not None:
                self._on_latency(self.latency_s)
            self._set_up(True)
        for call, reply in zip(calls, replies, strict=True):
            _answer(call, reply)

    async def _ask(self, calls: list[Call[Any]], until_s: float) -> list[Reply]:
        """The replies to a group, which are waited for until then (loop time).

        Two kinds of calls are sent again, since Redis has certainly not carried them out: those whose script it has
        forgotten, and those that it holds late although nobody has given them up: our estimate of its clock was wrong.
        """
        replies = await self._talk_dated(calls, until_s)
        for _ in range(AGAIN_MAX):
            again = [n for n, reply in enumerate(replies) if isinstance(reply, ResponseError) and _is_undone(reply)]
            if not again:
                return replies
            forgotten = {calls[n].script for n in again if isinstance(replies[n], NoScriptError)}
            answers = await self._talk_dated([calls[n] for n in again], until_s, forgotten)
            for n, reply in zip(again, answers, strict=True):
                replies[n] = reply
        return [too_late() if _is_late(reply) else reply for reply in replies]

    async def _talk_dated(self, calls: list[Call[Any]], until_s: float, forgotten: Collection[str] = ()) -> list[Reply]:
        """Send calls, each dated; the text of each `forgotten` script once, since EVAL loads it."""
        now_s = asyncio.get_running_loop().time()
        not_after_ms = self._clock.not_after_ms(until_s)
        first = {call.script: call for call in reversed(calls)} if forgotten else {}
        commands = [
            call.command(not_after_ms, by_text=call.script in forgotten and first[call.script] is call)
            for call in calls
        ]
        if self._clock.is_old(now_s):
            time, *replies = await self._talk([TIME, *commands])
            self._note_time(time, now_s)
        else:
            replies = await self._talk(commands)
        for reply in replies:
            if _is_late(reply):
                self._clock.heard(int(str(reply).split()[1]), now_s)
        return replies

    def _note_time(self, reply: Reply, asked_s: float) -> None:
        if not isinstance(reply, Exception):
            self._clock.heard(int(reply[0]) * 1000 + int(reply[1]) // 1000, asked_s)

    async def _talk(self, commands: list[tuple[Arg, ...]]) -> list[Reply]:
        packed = b"".join(pack_command(command) for command in commands)  # type: ignore[arg-type]
        await self._connection.send_packed_command(packed, check_health=False)
        replies: list[Reply] = []
        for _ in commands:
            try:
                replies.append(await self._connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return replies

    async def _come_back(self) -> None:
        """Ask Redis for its time until it answers. Meanwhile calls fail at once instead of piling up."""
        calls, self._calls = self._calls, []  # calls that came while the failed group was under way
        for call in calls:
            _answer(call, away(why=self.refusal))
        while not self.is_up:
            try:
                async with Deadline(self._timeout_s):
                    await self._connection.connect()
                    asked_s = asyncio.get_running_loop().time()
                    (reply,) = await self._talk([TIME])
                self._note_time(reply, asked_s)
                # A Redis that refuses all writes can be read: the lane is up.
                if isinstance(reply, ResponseError) and not refusal_in(reply).is_of_all:
                    raise reply
                self.refusal = None
                self._set_up(True)
            except UNANSWERED as error:
                self._failed(error)
                await self._connection.disconnect(nowait=True)
                await asyncio.sleep(PROBE_INTERVAL_S)

    def _failed(self, error: Exception) -> None:
        self.trouble = str(error).rstrip(".") or f"no answer within {self._timeout_s} s"
        self.refusal = refusal_in(error) if is_answer(error) else None

    def _set_up(self, is_up: bool) -> None:
        if is_up != self.is_up:
            self.is_up = is_up
            if not is_up:
                self._has_work.set()  # wakes the lane to look for Redis, although nobody calls
            self._on_state(is_up)


def _is_late(reply: Reply) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith(LATE)


def _is_undone(error: ResponseError) -> bool:
    """Whether the call may be sent again at once: Redis has not carried it out, and would the next time."""
    return isinstance(error, NoScriptError) or _is_late(error)


def _answer(call: Call[Any], reply: Reply) -> None:
    """Hand the answer to the caller. If the caller raises, the lane goes on with the answers to the others."""
    if not isinstance(reply, Exception):
        try:
            reply = call.decode(reply)
        except TaskUnreadable as error:
            reply = error
        except Exception as error:  # no script of ours replies so, but the caller must not wait for ever
            log.exception("answer_not_read", script=call.script)
            reply = error
    try:
        call.on_reply(reply)
    except Exception:
        log.exception("answer_not_taken", script=call.script)
