"""Handlers: which live nodes can run a type, and where tasks wait that this node claimed and cannot run.

Each node says in Redis for which types it has handlers. A task that came to a node without a handler is *parked*: it
waits in a queue `@queue@type`, from which nobody claims, so that it costs nothing more. When a node that serves the
queue and has the type has a free slot, the owner of the task's shard queues it again, and wakes that node. While a live
node has not said what it has (it is of an older version), nothing is parked: it may have all.

Does not know: how a claim or a settle is made, what /health says about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec
import redis.asyncio

from cluster import keys
from cluster.config import Config
from cluster.shards.answers import QueueHead, Unparked
from cluster.shards.calls import BATCH_MAX
from cluster.shards.shards import Shards
from cluster.swim.events import MemberState
from cluster.view import Peer, View
from node.queue.dispatch import Dispatcher
from node.queue.placement import Placement
from node.queue.wakes import Wakes

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
        dispatch: Dispatcher,
        placement: Placement,
        wakes: Wakes,
        on_heads: Callable[[int, Sequence[QueueHead]], None],
    ) -> None:
        self._config = config
        self._own = frozenset(own)
        self._shards = shards
        self._backlog = dispatch.backlog
        dispatch.parks_type = self.parks
        self._placement = placement
        self._wakes = wakes
        self._on_heads = on_heads  # something is queued in that shard, for this node as for others
        self._peers: dict[str, Peer] = {}  # node_id -> row, of the other members that may run tasks
        self._types: dict[str, frozenset[str]] = {}  # node_id -> types, of those that said so
        self._asked: set[tuple[int, str]] = set()  # (shard, parked queue) of calls under way

    def see(self, view: View) -> bool:
        """Take over the members of a view; returns whether one of them is new, so that its types are to be read."""
        before = {peer.session for peer in self._peers.values()}
        others = [peer for peer in view.members if peer.state in WORKING and peer.node_id != self._config.name]
        self._peers = {peer.node_id: peer for peer in others}
        return any(peer.session not in before for peer in others)

    async def publish(self, client: redis.asyncio.Redis) -> None:
        """Say in Redis which types this node runs."""
        await client.set(keys.handlers(self._config.name), msgspec.msgpack.encode(sorted(self._own)), px=KEPT_MS)

    async def refresh(self, client: redis.asyncio.Redis) -> None:
        """Read which types the other nodes run."""
        names = list(self._peers)
        rows: Any = await client.mget([keys.handlers(name) for name in names]) if names else []
        types: dict[str, frozenset[str]] = {}
        for name, row in zip(names, rows, strict=True):
            try:
                types[name] = _decode(row)
            except (msgspec.DecodeError, TypeError):
                continue  # it has not said yet, or in another form
        self._types = types

    def parks(self, type_: str) -> bool:
        """Whether tasks of this type wait for another node, instead of being handed round until they reach one."""
        return type_ not in self._own and all(name in self._types for name in self._peers)

    def lacks(self, queue: str, type_: str) -> bool:
        """Whether no live node that serves this queue has a handler for this type."""
        return not self._is_able(queue, type_) and self.parks(type_) and not self._able(queue, type_)

    def unpark(self, owned: Sequence[int]) -> None:
        """Queue again what waits in these shards for a node that can run it now."""
        for name in self._backlog.queues():
            if (parked := keys.parked_of(name)) is None:
                continue
            queue, type_ = parked
            if self._is_able(queue, type_) or not self.parks(type_):
                node, free = "", len(owned) * BATCH_MAX
            else:
                node, free = self._placement.idlest(queue, among=self._able(queue, type_))
            for _, shard, count in self._backlog.heads(name, owned):
                if free <= 0:
                    break
                if (shard, name) not in self._asked:
                    limit = min(count, free, BATCH_MAX)
                    free -= limit
                    self._unpark(shard, name, queue, node, limit)

    def _unpark(self, shard: int, name: str, queue: str, node: str, limit: int) -> None:
        self._asked.add((shard, name))
        if node:
            self._placement.placed_on(queue, node, limit)
        on_reply = partial(self._unparked, shard, name, node)
        self._shards.send(self._shards.calls.unpark(shard, name, limit, on_reply))

    def _unparked(self, shard: int, name: str, node: str, answer: Unparked | Exception) -> None:
        self._asked.discard((shard, name))
        if isinstance(answer, Exception):
            return  # the next round tries again
        _, _, since_ms = self._backlog.queued(name, [shard])
        self._backlog.set(name, shard, answer.left, since_ms)
        peer = self._peers.get(node)
        if peer is None:
            self._on_heads(shard, answer.heads)
        else:
            self._wakes.work(peer.session, shard, answer.heads)

    def parked(self, owned: Sequence[int]) -> dict[str, tuple[int, int]]:
        """By name of the queue: how many tasks wait parked in these shards, and since when the first does (ms)."""
        parked: dict[str, tuple[int, int]] = {}
        for name in self._backlog.queues():
            count, _, since_ms = self._backlog.queued(name, owned)
            if count and keys.parked_of(name) is not None:
                parked[name] = count, since_ms
        return parked

    def _is_able(self, queue: str, type_: str) -> bool:
        """Whether this node can run it."""
        return type_ in self._own and self._config.queue_slots.get(queue, 0) > 0

    def _able(self, queue: str, type_: str) -> set[str]:
        """The other nodes that can run it."""
        return {
            name
            for name, peer in self._peers.items()
            if type_ in self._types.get(name, ()) and peer.meta is not None and peer.meta.queues.get(queue, 0) > 0
        }
