"""Placement: where a new task goes: power of two choices over gossiped load, then a shard of the chosen node. Pure.

- This node is one of the two choices and wins a tie: a task that starts where it arrived needs no wake-up.
- A batch compares many nodes: it is one decision, where single submissions would be a herd of them.
- Tasks placed since a node last spoke are added to its load, so that a burst does not all follow one stale figure. The
  addition fades, since a node that keeps up with its work says the same load again and again.
- A batch goes out in chunks, each to one shard, so that few scripts store it.

Also the other way: the member from which a node with free slots steals.

Does not know: Redis, tasks. Only nodes that serve the queue are candidates; if none serves it, any shard will do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from cluster.view import Peer, View

CHUNK_MAX = 128  # tasks of a batch that go to one shard
LOOK_AT_MAX = 32  # other nodes that are compared for one chunk of a batch


@dataclass(frozen=True, slots=True)
class Victim:
    """A member to steal from: how many tasks wait there for a slot, and in which of its shards (bit n: shard n)."""

    node_id: str
    waiting: int
    bitmap: int


def victim(members: Iterable[Peer], me: str, queue: str) -> Victim | None:
    """The other member with the most tasks of this queue waiting beyond its own free slots; None if none waits.

    A member that is not able claims nothing, so its free slots do not count.
    """
    best: Victim | None = None
    for peer in members:
        if peer.node_id == me or not peer.is_vouched or peer.load is None or queue not in peer.load.queues:
            continue
        load = peer.load.queues[queue]
        waiting = load.queued - (load.free if peer.is_able else 0)
        if waiting > (best.waiting if best else 0):
            best = Victim(peer.node_id, waiting, load.shards)
    return best


def shard_of_key(key: str, shards: int) -> int:
    """The shard of a key: the same on every node, whoever is alive."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % shards


class Placement:
    """One node's account of the members' loads, and its choices of where to send tasks."""

    def __init__(self, node_id: str, shards: int, rng: Random) -> None:
        self.me = node_id
        self.mine: frozenset[int] = frozenset()  # shards this node owns
        self._shards = shards
        self._rng = rng
        self._owners: Sequence[str] = ("",) * shards
        self._owned: dict[str, list[int]] = {}
        self._slots: dict[str, dict[str, int]] = {}  # queue -> node -> slots
        self._load: dict[str, dict[str, int]] = {}  # queue -> node -> queued - free, as gossiped
        self._since: dict[tuple[str, str], tuple[int, int]] = {}  # (queue, node) -> (gossiped load then, placed since)
        self._nodes: dict[str, tuple[list[str], bool]] = {}  # queue -> (candidates without me, whether I am one)

    def see(self, view: View, owners: Sequence[str]) -> None:
        """Take over a new view and the owners computed from it."""
        self._owners = owners
        self._owned = {}
        for shard, node in enumerate(owners):
            self._owned.setdefault(node, []).append(shard)
        self.mine = frozenset(self._owned.get(self.me, ()))
        slots: dict[str, dict[str, int]] = {}
        load: dict[str, dict[str, int]] = {}
        for peer in view.members:
            if peer.node_id not in self._owned or peer.meta is None or peer.load is None:
                continue
            for queue, count in peer.meta.queues.items():
                if count > 0:
                    slots.setdefault(queue, {})[peer.node_id] = count
                    gossiped = peer.load.queues.get(queue)
                    load.setdefault(queue, {})[peer.node_id] = gossiped.queued - gossiped.free if gossiped else -count
        self._slots, self._load = slots, load
        self._nodes = {
            queue: ([node for node in nodes if node != self.me], self.me in nodes) for queue, nodes in slots.items()
        }

    def chunk_size(self, tasks: int, queue: str) -> int:
        """How many tasks of a batch go to one shard: large batches in large chunks, small ones spread over nodes."""
        return max(1, min(CHUNK_MAX, tasks // (4 * max(1, len(self._slots.get(queue, ()))))))

    def choose(self, queue: str, own: Mapping[str, int], is_batch: bool = False) -> tuple[str, int]:
        """(node, shard) for the next task or chunk; `own` is this node's load by queue, fresher than gossip has it."""
        others, i_serve = self._nodes.get(queue, ([], False))
        if not others:
            node = self.me if i_serve else ""
        elif is_batch:
            sample = self._rng.sample(others, min(len(others), LOOK_AT_MAX))
            node = min([self.me, *sample] if i_serve else sample, key=lambda name: self._weight(queue, name, own))
        else:
            node = others[int(self._rng.random() * len(others))]
            second = self.me if i_serve else others[int(self._rng.random() * len(others))]
            if second != node and self._weight(queue, second, own) <= self._weight(queue, node, own):
                node = second
        owned = self._owned.get(node)
        if not owned:
            return "", int(self._rng.random() * self._shards)
        return node, owned[int(self._rng.random() * len(owned))]

    def placed(self, queue: str, shard: int, count: int) -> None:
        """So many tasks went to a shard: count them on top of the load that its owner has gossiped."""
        self.placed_on(queue, self._owners[shard], count)

    def idlest(self, queue: str, among: Container[str] | None = None) -> tuple[str, int]:
        """The other node that seems to have the most free slots for this queue, and how many; ("", 0) if none has.

        `among`: only these nodes count.
        """
        others, _ = self._nodes.get(queue, ([], False))
        chosen = [node for node in others if among is None or node in among]
        free = {node: -self._weight(queue, node, {}) * self._slots[queue][node] for node in chosen}
        best = max(free, key=lambda node: free[node], default="")
        return (best, round(free[best])) if best and free[best] >= 1 else ("", 0)

    def placed_on(self, queue: str, node: str, count: int) -> None:
        """So many tasks went to a node: count them on top of the load that it has gossiped."""
        now = self._load.get(queue, {}).get(node)
        if now is not None and node != self.me:
            base, placed = self._since.get((queue, node), (now, 0))
            self._since[queue, node] = (now, count) if base != now else (base, placed + count)

    def fade(self) -> None:
        """Halve what was added to unchanged loads: by now they count half of it themselves. Call it each second."""
        self._since = {key: (base, placed // 2) for key, (base, placed) in self._since.items() if placed > 1}

    def _weight(self, queue: str, node: str, own: Mapping[str, int]) -> float:
        """How busy a node is, as a share of its slots: -1 idle, 0 full, above 0 tasks wait."""
        slots = self._slots[queue][node]
        if node == self.me:
            return own.get(queue, -slots) / slots
        load = self._load[queue][node]
        base, placed = self._since.get((queue, node), (load, 0))
        return (load + (placed if base == load else 0)) / slots
