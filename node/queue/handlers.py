"""Handlers: which live nodes can run a type, and what becomes of tasks that none of them can.

Each node says in Redis for which types it has handlers. A node that claims a task without a handler hands it back to
another one that has it; if no live node has one, the task is parked: it waits in a queue of its type, `@type`, which
nobody serves, and costs nothing more. Once a node with the type is there, the owners of the shards queue the parked
tasks again. While a live node does not say what it has (it is of an older version), nothing is parked: it may have all.

Does not know: how a claim or a settle is made, what /health says about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import msgspec
import redis.asyncio

from cluster import keys
from cluster.config import Config
from cluster.shards.answers import QueueHead, Unparked
from cluster.shards.shards import Shards
from cluster.swim.events import MemberState
from cluster.view import View
from node.queue.backlog import Backlog

KEPT_MS = 60_000  # the time for which a node's word stands; it renews it every few seconds
WORKING = (MemberState.ALIVE, MemberState.SUSPECT)  # states of members that may run tasks

_decode = msgspec.msgpack.Decoder(frozenset[str]).decode


class Handlers:
    """One node's knowledge of the types that the live nodes run."""

    def __init__(
        self,
        config: Config,
        own: Iterable[str],
        shards: Shards,
        backlog: Backlog,
        on_heads: Callable[[int, Sequence[QueueHead]], None],
        on_elsewhere: Callable[[str, int, Sequence[QueueHead]], None],
    ) -> None:
        self._config = config
        self._own = frozenset(own)
        self._shards = shards
        self._backlog = backlog
        self._on_heads = on_heads  # tasks that this node can run are queued in that shard
        self._on_elsewhere = on_elsewhere  # the same, and the session that can run them
        self._sessions: Mapping[str, str] = {}  # node_id -> session, of the other members that may run tasks
        self._types: dict[str, frozenset[str]] = {}  # node_id -> types, of those that said so
        self._rng = Random()

    def see(self, view: View) -> bool:
        """Take over the members of a view; returns whether one of them is new, so that its types are to be read."""
        before = self._sessions
        self._sessions = {
            peer.node_id: peer.session
            for peer in view.members
            if peer.state in WORKING and peer.node_id != self._config.name
        }
        return not set(self._sessions.values()) <= set(before.values())

    async def publish(self, client: redis.asyncio.Redis) -> None:
        """Say in Redis which types this node runs."""
        await client.set(keys.handlers(self._config.name), msgspec.msgpack.encode(sorted(self._own)), px=KEPT_MS)

    async def refresh(self, client: redis.asyncio.Redis) -> None:
        """Read which types the other nodes run."""
        names = list(self._sessions)
        rows: Any = await client.mget([keys.handlers(name) for name in names]) if names else []
        types: dict[str, frozenset[str]] = {}
        for name, row in zip(names, rows, strict=True):
            try:
                types[name] = _decode(row)
            except (msgspec.DecodeError, TypeError):
                continue  # it has not said yet, or in another form
        self._types = types

    def lacks(self, type_: str) -> bool:
        """Whether no live node has a handler for this type."""
        if type_ in self._own:
            return False
        said = [self._types.get(name) for name in self._sessions]
        return all(types is not None and type_ not in types for types in said)

    def unpark(self, owned: Iterable[int]) -> None:
        """Queue again what waits in these shards for a type that a live node has now."""
        for queue in self._backlog.queues():
            if not queue.startswith(keys.PARKED) or self.lacks(type_ := queue.removeprefix(keys.PARKED)):
                continue
            for _, shard, _ in self._backlog.heads(queue, owned):
                self._unpark(shard, type_)

    def parked(self, owned: Sequence[int]) -> dict[str, tuple[int, int]]:
        """By type: how many tasks wait parked in these shards, and since when the first does (ms)."""
        parked: dict[str, tuple[int, int]] = {}
        for queue in self._backlog.queues():
            count, _, since_ms = self._backlog.queued(queue, owned)
            if count and queue.startswith(keys.PARKED):
                parked[queue.removeprefix(keys.PARKED)] = count, since_ms
        return parked

    def _unpark(self, shard: int, type_: str) -> None:
        self._backlog.set(keys.parked(type_), shard, 0, 0)  # until a sweep finds more
        self._shards.send(self._shards.calls.unpark(shard, type_, partial(self._unparked, shard, type_)))

    def _unparked(self, shard: int, type_: str, answer: Unparked | Exception) -> None:
        if isinstance(answer, Exception):
            return  # the next sweep of the shard finds them again
        if answer.left:
            self._unpark(shard, type_)
        able = [session for name, session in self._sessions.items() if type_ in self._types.get(name, ())]
        if type_ in self._own or not able:
            self._on_heads(shard, answer.heads)
        else:
            self._on_elsewhere(self._rng.choice(able), shard, answer.heads)
