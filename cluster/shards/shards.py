"""The shards' traffic: every call of this node to a shard goes through here, on the lane that the call's key chooses.

There are two lanes, so that Redis works at one group while Python works at the answers to the other. Everything about
one shard uses one lane, which keeps its calls in order. Lists and counts take no lane: they wait aside (`look`), on a
connection of their own. Only this module knows how many lanes there are: the dispatcher gathers work for the next group
by the lane number that `collect` is handed. With Redis Cluster, each master would have lanes of its own.

Does not know: what a call says, who owns a shard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from cluster import keys
from cluster.errors import StoreUnavailable, away, refused, unanswered
from cluster.kept_tasks import OnEnd, unheard
from cluster.refusal import Refusal
from cluster.shards.aside import Aside
from cluster.shards.calls import Calls
from cluster.shards.lane import BACK_WITHIN_S, Call, Lane, OnReply, T

LANES = 2
LOOK_WITHIN_S = 3.0  # time after which a read that still waits for its turn fails


class Shards:
    """This node's traffic with Redis: the lanes, and which of them carries a call."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        calls: Calls,
        shards: int,
        timeout_s: float,
        on_latency: Callable[[float], None] | None = None,
    ) -> None:
        self.calls = calls  # makes a call; its answer arrives as a small frozen value
        self.lanes = range(min(LANES, shards))
        self._collect: Callable[[int], list[Call[Any]]] = lambda lane: []
        self._on_state: Callable[[bool], None] = lambda is_up: None
        self.lane_of = tuple(shard % len(self.lanes) for shard in range(shards))  # by shard: the lane of all its calls
        self._of_lane = [frozenset(range(lane, shards, len(self.lanes))) for lane in self.lanes]
        self._lanes = [
            Lane(client, timeout_s, partial(self._collect_for, lane), self._lane_changed, on_latency)
            for lane in self.lanes
        ]
        self._changed = asyncio.Event()  # set when a lane has gone up or down
        self._kicks = [lane.kick for lane in self._lanes]
        self._aside = Aside(client, timeout_s)
        self.elsewhere: Refusal | None = None  # why Redis refuses this node's heartbeat: a lane may not know it yet

    def collect_with(self, collect: Callable[[int], list[Call[Any]]], on_state: Callable[[bool], None]) -> None:
        """Ask `collect` for its part of each group that a lane sends.

        A lane calls `on_state` with False when it gets no answer any more, and with True when it gets answers again.
        """
        self._collect, self._on_state = collect, on_state

    def start(self, on_end: OnEnd = unheard) -> None:
        """Begin to exchange; needs the running loop. `on_end` hears when a lane has ended for good."""
        for lane in self._lanes:
            lane.start(on_end)
        self._aside.start(on_end)

    async def close(self) -> None:
        """End without waiting for the groups under way."""
        for lane in self._lanes:
            await lane.close()
        await self._aside.close()

    # ---- calls

    def send(self, call: Call[Any]) -> None:
        """Send a call with the next group of its lane. The lane calls `on_reply` exactly once, and later than this."""
        self._lanes[self.lane_of_key(call.key)].add(call)

    async def ask(self, make: Callable[[OnReply[T]], Call[T]], may_repeat: bool = False) -> T:
        """Send a call and wait for its answer. Raises StoreUnavailable if Redis is away or refuses.

        `may_repeat`: whether the call does no harm twice, and answers the second time as it did the first. It is then
        sent again if its connection drops.
        """
        try:
            return await self._ask_once(make)
        except StoreUnavailable as error:
            if not may_repeat or error.refusal is not None or not await self.comes_back():
                raise
        return await self._ask_once(make)

    async def comes_back(self) -> bool:
        """Whether Redis answers on every lane, now or within the short time in which a dropped connection is back."""
        loop = asyncio.get_running_loop()
        while not self.is_up:
            until_s = min(lane.back_by_s for lane in self._lanes if not lane.is_up)
            if loop.time() >= until_s:
                return False
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until_s):
                    await self._changed.wait()
        return True

    async def _ask_once(self, make: Callable[[OnReply[T]], Call[T]]) -> T:
        if not self.is_up:
            raise self.away()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.send(make(partial(_resolve, future)))
        return await future

    async def look(self, make: Callable[[OnReply[T]], Call[T]], us: int) -> T:
        """Send a read aside and wait for its answer. Raises StoreUnavailable if Redis is away, refuses or is too busy.

        For lists and counts, which nobody's work waits for. `us`: microseconds for which the call may hold Redis.
        """
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                try:
                    return await self._look_once(make, us)
                except StoreUnavailable as error:
                    # A connection that nobody used for long may have ended unnoticed, and a read may be asked twice.
                    if error.refusal is not None or not self.is_up or not await self._aside.comes_back(BACK_WITHIN_S):
                        raise
                return await self._look_once(make, us)
        except TimeoutError:
            raise unanswered(f"this read waited {LOOK_WITHIN_S:g} s for its turn", is_sent=False) from None

    async def _look_once(self, make: Callable[[OnReply[T]], Call[T]], us: int) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._aside.add(make(partial(_resolve, future)), us)
        return await future

    def kick(self, lane: int) -> None:
        """Ask `collect` for that lane although there is no call to send."""
        self._kicks[lane]()

    def kick_all(self) -> None:
        """Ask `collect` for every lane although there is no call to send."""
        for kick in self._kicks:
            kick()

    def kick_others(self, lane: int) -> None:
        """Ask `collect` for every lane but this one."""
        for other in self.lanes:
            if other != lane:
                self._kicks[other]()

    # ---- state

    @property
    def is_up(self) -> bool:
        """Whether every lane is up: Redis answered its last group."""
        return all(lane.is_up for lane in self._lanes)

    @property
    def refusal(self) -> Refusal | None:
        """Why Redis, which answers, lets this node do nothing; None if it does not answer, or serves us."""
        return next((lane.refusal for lane in self._lanes if lane.refusal is not None), None)

    @property
    def trouble(self) -> str:
        """Why a lane is down, in the words of the error; "" if none is."""
        return next((lane.trouble for lane in self._lanes if not lane.is_up), "")

    def away(self, storing: bool = False) -> StoreUnavailable:
        """The error for a call that is not sent, because a lane is down."""
        return away(storing, self.refusal or self.elsewhere)

    def is_lane_up(self, lane: int) -> bool:
        """Whether that lane is up: Redis answered its last group."""
        return self._lanes[lane].is_up

    def can_leave(self, lane: int) -> bool:
        """Whether that lane's next group can leave at once: none is under way, and Redis answers."""
        return self._lanes[lane].is_up and not self._lanes[lane].is_talking

    @property
    def is_idle(self) -> bool:
        """Whether no group is under way and none waits."""
        return all(lane.is_idle for lane in self._lanes)

    def idle(self) -> Iterator[int]:
        """One shard of each lane that has nothing to do: a lane that asks nothing never learns that Redis is away."""
        return (lane for lane in self.lanes if self._lanes[lane].is_idle)  # lane n carries shard n

    def silent_s(self) -> float:
        """Seconds since the last answer of the lane that has been without one the longest."""
        return asyncio.get_running_loop().time() - min(lane.last_answer_s for lane in self._lanes)

    # ---- which lane

    def of_lane(self, lane: int) -> frozenset[int]:
        """The shards of a lane."""
        return self._of_lane[lane]

    def of_others(self, lane: int) -> frozenset[int]:
        """The shards of the other lanes, but for lanes that are down."""
        none: frozenset[int] = frozenset()
        return none.union(*(self._of_lane[n] for n in self.lanes if n != lane and self._lanes[n].is_up))

    def lane_of_key(self, key: str) -> int:
        """The lane of a key; keys of no shard go by the first lane."""
        return self.lane_of[keys.shard_of(key) or 0]

    def _collect_for(self, lane: int) -> list[Call[Any]]:
        return self._collect(lane)

    def _lane_changed(self, is_up: bool) -> None:
        self._changed.set()
        if not is_up:
            self._aside.doubt()
        self._on_state(is_up)


def _resolve(future: asyncio.Future[T], answer: T | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, StoreUnavailable):
        future.set_exception(answer)
    elif isinstance(answer, Exception):
        future.set_exception(refused(answer) if isinstance(answer, RedisError) else answer)
    else:
        future.set_result(answer)
