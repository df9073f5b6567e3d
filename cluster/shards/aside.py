"""The reads' way to Redis: a connection of its own, on which lists and counts wait so that work need not.

Redis works through what one client sent without a pause, and serves all other clients between two such turns. So a read
that looks at many tasks goes to Redis in small calls; few of them leave together, and between two groups this
connection rests. Claims, settles and heartbeats come in between, on connections of their own.

The caller estimates for how long a call holds Redis. An estimate that is wrong makes a turn longer, and nothing worse.

Does not know: what a call says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import redis.asyncio

from cluster.errors import away
from cluster.kept_tasks import OnEnd, unheard
from cluster.shards.lane import Call, Lane

TURN_US = 1_000  # time for which the calls of one group may hold Redis; a single call may take longer
REST = 3  # length of a pause, as a multiple of the time that the group before took: at most a quarter is ours
REST_MAX_S = 0.005  # longest pause: where Redis is busy, a group takes long without holding it


class Aside:
    """Sends calls in small groups, one group at a time, with a rest after each."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._lane = Lane(client, timeout_s, self._collect, self._on_state, self._rest)
        self._waiting: deque[tuple[int, Call[Any]]] = deque()
        self._has_turn = False  # a group is under way, or the rest after it
        self._is_up = asyncio.Event()  # as the lane is
        self._is_up.set()

    def start(self, on_end: OnEnd = unheard) -> None:
        """Begin to exchange; needs the running loop. `on_end` hears when it has ended for good."""
        self._lane.start(on_end)

    async def close(self) -> None:
        """End without waiting for the group under way."""
        await self._lane.close()

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last group."""
        return self._lane.is_up

    def doubt(self) -> None:
        """Look for Redis before the next group: another connection to it got no answer."""
        self._lane.doubt()

    async def comes_back(self, within_s: float) -> bool:
        """Whether Redis answers this connection, now or within that time."""
        try:
            async with asyncio.timeout(within_s):
                await self._is_up.wait()
        except TimeoutError:
            return False
        return True

    def add(self, call: Call[Any], us: int) -> None:
        """Send a call when its turn comes; `us`: microseconds for which it may hold Redis.

        `on_reply` is called exactly once, later than this. While Redis is away, every call fails.
        """
        if not self._lane.is_up:
            asyncio.get_running_loop().call_soon(call.on_reply, away(why=self._lane.refusal))
            return
        self._waiting.append((us, call))
        if not self._has_turn:
            self._lane.kick()

    def _collect(self) -> list[Call[Any]]:
        """The next group: at least one call, and no more than TURN_US allows."""
        group: list[Call[Any]] = []
        left_us = TURN_US
        while self._waiting and (not group or self._waiting[0][0] <= left_us):
            us, call = self._waiting.popleft()
            left_us -= us
            group.append(call)
        self._has_turn = bool(group)
        return group

    def _rest(self, took_s: float) -> None:
        """A group was answered in this time: send the next one after a pause."""
        asyncio.get_running_loop().call_later(min(REST * took_s, REST_MAX_S), self._go_on)

    def _go_on(self) -> None:
        self._has_turn = False
        if self._waiting:
            self._lane.kick()

    def _on_state(self, is_up: bool) -> None:
        if is_up:
            self._is_up.set()
        else:
            self._is_up.clear()
            self._has_turn = False
            waiting, self._waiting = self._waiting, deque()
            for _, call in waiting:
                asyncio.get_running_loop().call_soon(call.on_reply, away(why=self._lane.refusal))
