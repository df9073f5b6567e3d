"""Ownership: which node owns each shard by this node's view, and where news of a shard goes: to its owner, or to here.

Ownership steers work and guards nothing: two nodes may safely both believe that they own a shard, since every claim and
every commit is one atomic script.

Does not know: Redis, what a claim is. It hands news to the backlog, to housekeeping, or to the owner's session.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from cluster import ring
from cluster.config import Config
from cluster.session import node_of
from cluster.shards.answers import QueueHead
from cluster.swim.events import MemberState
from cluster.view import View
from node.queue.balance import Balance
from node.queue.dispatch import Dispatcher
from node.queue.housekeeping import Housekeeping
from node.queue.wakes import Wakes

ENDED = (MemberState.DEAD, MemberState.LEFT)


class Ownership:
    """One node's account of the shards' owners."""

    def __init__(
        self,
        config: Config,
        dispatch: Dispatcher,
        housekeeping: Housekeeping,
        balance: Balance,
        wakes: Wakes,
        on_moved: Callable[[int, dict[str, int]], None],
    ) -> None:
        self._config = config
        self._dispatch = dispatch
        self._housekeeping = housekeeping
        self._balance = balance
        self._wakes = wakes
        self._on_moved = on_moved  # (number of shards with a new owner, number that each node gained)
        self.owners: tuple[str, ...] = ("",) * config.shards  # by shard: a node_id, "" while no node is able
        self.session_of: dict[str, str] = {}  # node_id -> session, of the members that are not gone
        self._weights: dict[str, int] = {}

    def see(self, view: View) -> None:
        """Take over a new view: each able member owns shards in proportion to its slots."""
        weights = {p.node_id: sum(p.meta.queues.values()) for p in view.members if p.is_able and p.meta is not None}
        if weights != self._weights or not self.owners[0]:
            self._weights = weights
            before, self.owners = self.owners, ring.owners(weights, self._config.shards)
            moved = sum(old != new for old, new in zip(before, self.owners, strict=True))
            if moved:
                self._dispatch.backlog.keep_only(self._owned())
                self._dispatch.kick()  # what was left to a head that is gone may be claimed
                self._on_moved(moved, _gained(before, self.owners))
        self.session_of = {peer.node_id: peer.session for peer in view.members if peer.state not in ENDED}
        self._housekeeping.own(self._owned(), self.session_of.values())

    def session_ended(self, session: str) -> None:
        """Forget a session whose tombstone is written; the view that says so may still be under way."""
        if self.session_of.get(node_of(session)) == session:
            del self.session_of[node_of(session)]

    def on_heads(self, shard: int, heads: Sequence[QueueHead]) -> None:
        """Pass on what is queued in a shard now: if the shard is ours, claim from it; else wake its owner."""
        owner = self.owners[shard]
        self._dispatch.backlog.heard(shard, heads)
        if owner == self._config.name or not owner:
            for head in heads:
                if head.count and not self._balance.leave(shard, head):
                    self._balance.offer(head.queue, self.session_of)
            self._dispatch.kick()
            return
        session = self.session_of.get(owner)
        if session is None:  # The owner is dead, and the view with its heirs is not here yet: take the work here.
            self._dispatch.kick()
            return
        self._wakes.work(session, shard, heads)
        # The owner claims the work. The work that it cannot take soon shows in its gossiped load, and others steal it.
        self._dispatch.backlog.heard(shard, [QueueHead(head.queue, 0, 0) for head in heads])

    def on_due(self, shard: int, in_s: float) -> None:
        """Something in a shard is due in that many seconds: if we own the shard, note it; else tell its owner."""
        owner = self.owners[shard]
        session = self.session_of.get(owner)
        if in_s <= 0 or owner == self._config.name or session is None:
            self._housekeeping.due(shard, in_s)
        else:
            self._wakes.due(session, shard, in_s)

    def _owned(self) -> list[int]:
        return [shard for shard, node_id in enumerate(self.owners) if node_id == self._config.name]


def _gained(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
    """How many shards each node owns that it did not own before."""
    return dict(Counter(new for old, new in zip(before, after, strict=True) if new != old and new))
