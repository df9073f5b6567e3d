"""Balance: this node's word on its load, and how work moves to nodes with free slots.

Besides the placing of new tasks there are three ways: a node with free slots steals from the most loaded one; a full
node offers the tasks that wait in its shards to nodes with free slots; and a node that lacks a task's type leaves the
task to another.

Does not know: Redis, HTTP. Its figures of other nodes are as old as the gossip that brought them; a claim based on a
stale one takes fewer tasks, or none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random

from cluster.config import Config
from cluster.load import Load, QueueLoad
from cluster.shards.answers import QueueHead
from cluster.view import Peer, View
from node.queue.dispatch import Dispatcher
from node.queue.housekeeping import Housekeeping
from node.queue.placement import Placement, victim
from node.queue.wakes import Wakes

STEAL_INTERVAL_S = 0.02  # shortest time between two steals, or two offers, of one queue


class Balance:
    """One node's part in spreading the work."""

    def __init__(
        self,
        config: Config,
        dispatch: Dispatcher,
        housekeeping: Housekeeping,
        placement: Placement,
        wakes: Wakes,
        rng: Random,
        on_load: Callable[[Load], None],
    ) -> None:
        self._config = config
        self._dispatch = dispatch
        self._housekeeping = housekeeping
        self._placement = placement
        self._wakes = wakes
        self._rng = rng
        self._on_load = on_load  # this node's load has changed
        self._members: Sequence[Peer] = ()
        self._load: Load | None = None
        self._stole_s: dict[str, float] = {}  # queue -> time of the last steal for it
        self._offered_s: dict[str, float] = {}  # queue -> time of its last offer
        # (shard, queue) -> time at which a task is due there again whose type this node lacks
        self._unknown_s: dict[tuple[int, str], float] = {}

    def see(self, view: View) -> None:
        """Take over the members of a new view."""
        self._members = view.members

    # ---- saying

    def own_load(self) -> dict[str, int]:
        """By queue: tasks queued in this node's shards, less its free slots, now."""
        load: dict[str, int] = {}
        for queue in self._config.queue_slots:
            queued, _, _ = self._dispatch.backlog.queued(queue, self._housekeeping.owned)
            load[queue] = queued - self._dispatch.free(queue)
        return load

    def publish(self, is_redis_up: bool, is_draining: bool, running: int) -> None:
        """Tell the other nodes this node's load, if it changed."""
        queues: dict[str, QueueLoad] = {}
        for queue in dict.fromkeys([*self._config.queue_slots, *self._dispatch.backlog.queues()]):
            queued, bitmap, head = self._dispatch.backlog.queued(queue, self._housekeeping.owned)
            queues[queue] = QueueLoad(max(0, self._dispatch.free(queue)), queued, bitmap, head)
        load = Load(is_redis_up, False, is_draining, queues, running)
        if load != self._load:
            self._load = load
            self._on_load(load)

    # ---- moving

    def steal(self) -> None:
        """For each queue with free slots and nothing queued here, claim from the shards of the most loaded member."""
        now_s = time.monotonic()
        for queue in self._config.queue_slots:
            free = self._dispatch.free(queue)
            if free <= 0 or not self._dispatch.backlog.is_empty(queue):
                continue
            if now_s - self._stole_s.get(queue, 0.0) < STEAL_INTERVAL_S:
                continue
            loaded = victim(self._members, self._config.name, queue)
            if loaded is None:
                continue
            self._stole_s[queue] = now_s
            shards = [shard for shard in range(self._config.shards) if loaded.bitmap >> shard & 1]
            self._rng.shuffle(shards)
            # Half of what waits there: the victim goes on claiming too.
            limit = max(1, min(free, -(-loaded.waiting // 2)))
            shards = shards[:limit]
            self._dispatch.steal(shards, queue, -(-limit // max(1, len(shards))))

    def offer_all(self, session_of: Mapping[str, str]) -> None:
        """Offer the waiting tasks of every queue that has no free slot here; forget queues of which none was lately."""
        old_s = time.monotonic() - STEAL_INTERVAL_S
        self._offered_s = {queue: at_s for queue, at_s in self._offered_s.items() if at_s > old_s}
        for queue in self._dispatch.backlog.queues():
            self.offer(queue, session_of)

    def offer(self, queue: str, session_of: Mapping[str, str]) -> None:
        """With no slot free here, tell nodes with free slots what waits here, before gossip would.

        `session_of`: node_id -> session, of the members that are not gone.
        """
        now_s = time.monotonic()
        if self._dispatch.free(queue) > 0 or now_s - self._offered_s.get(queue, 0.0) < STEAL_INTERVAL_S:
            return
        self._offered_s[queue] = now_s
        for score, shard, count in self._dispatch.backlog.heads(queue, self._housekeeping.owned):
            while count > 0:
                node, free = self._placement.idlest(queue)
                session = session_of.get(node)
                if session is None:
                    return
                self._wakes.work(session, shard, [QueueHead(queue, min(count, free), score)])
                self._placement.placed_on(queue, node, min(count, free))
                count -= free

    def claim_what_was_missed(self) -> None:
        """Steal for free slots, and claim waiting tasks of which no message told."""
        hungry = [queue for queue in self._config.queue_slots if self._dispatch.free(queue) > 0]
        if hungry:
            self.steal()
        # A thread that ran on after it was stopped frees its slot late, and tells nobody.
        if self._dispatch.is_held_back or not all(self._dispatch.backlog.is_empty(queue) for queue in hungry):
            self._dispatch.kick()

    def lacks_type(self, shard: int, queue: str, in_s: float) -> None:
        """This node handed back a task whose type it lacks: once it is due again, another node may claim it first.

        Else the shard's owner would claim it and hand it back until the shard has another owner, and a node that has
        the type would never see it.
        """
        self._unknown_s[shard, queue] = time.monotonic() + in_s

    def leave(self, shard: int, head: QueueHead) -> bool:
        """Leave a queue of a shard to another node if a task there is due whose type this node lacks; whether it does.

        The next sweep finds what that node does not claim.
        """
        due_s = self._unknown_s.get((shard, head.queue))
        if due_s is None or time.monotonic() < due_s:
            return False
        del self._unknown_s[shard, head.queue]
        others = [
            peer.session
            for peer in self._members
            if peer.node_id != self._config.name and peer.is_able and peer.meta and peer.meta.queues.get(head.queue)
        ]
        if not others:
            return False
        self._wakes.work(self._rng.choice(others), shard, [head])
        self._dispatch.backlog.heard(shard, [QueueHead(head.queue, 0, 0)])
        return True
