"""Housekeeping: queue tasks that are due, reap dead sessions, drop tasks past their retention, look for lost claims.

Each owner keeps house in its own shards: at every sweep, and at the moment when a task is due. As a net below that,
every node also sweeps a random shard now and then, whoever owns it. None of it needs a leader.

Does not decide that a session is dead: it reaps sessions that have a tombstone, and tells vitals of sessions that hold
work and that gossip does not hold alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

import structlog

from cluster import keys
from cluster.config import Config
from cluster.shards.answers import QueueHead, Reaped, Swept
from cluster.shards.calls import BATCH_MAX
from cluster.shards.shards import Shards
from cluster.shards.task import Lost
from node.observe.metrics import Metrics
from node.queue.dispatch import Dispatcher

STRAY_EVERY = 3  # sweeps between two looks at a random shard, whoever owns it
READABLE_S = 60.0  # shortest stay of a finished task, however short memory is: clients ask and repeat for less long
COMPARE_EVERY = 10  # sweeps between two comparisons of every shard; shards in use are compared at each sweep

log = structlog.get_logger("rumor.house")


class Housekeeping:
    """Keeps house for one node."""

    def __init__(
        self,
        config: Config,
        shards: Shards,
        dispatch: Dispatcher,
        metrics: Metrics,
        on_heads: Callable[[int, Sequence[QueueHead]], None],
        on_strangers: Callable[[Iterable[str]], None],
        on_reaped: Callable[[str, int], None],
        on_lost: Callable[[str, Sequence[Lost]], None],
    ) -> None:
        self._config = config
        self._shards = shards
        self._dispatch = dispatch
        self._metrics = metrics
        self._on_heads = on_heads
        self._on_strangers = on_strangers
        self._on_reaped = on_reaped
        self._on_lost = on_lost
        self._rng = Random()
        self._look = asyncio.Event()
        self._due: dict[int, float] = {}  # shard -> loop time at which something there is due
        self._looking: dict[int, bool] = {}  # shard whose answer is awaited -> whether to look again after it
        self._holders: dict[str, set[int]] = {}  # session that is not alive here -> shards in which it holds work
        self._reaping: dict[str, tuple[int, int]] = {}  # session -> (answers to wait for, tasks moved so far)
        self.owned: tuple[int, ...] = ()
        self.alive: frozenset[str] = frozenset()  # sessions that gossip holds alive
        self.sweeps = 0
        self.is_memory_short = False

    def own(self, shards: Iterable[int], alive: Iterable[str]) -> None:
        """Take over the shards that this node owns from now on, and look into the new ones at once."""
        before = set(self.owned)
        self.owned = tuple(shards)
        self.alive = frozenset(alive)
        for shard in self.owned:
            if shard not in before:
                self.look(shard)

    def due(self, shard: int, in_s: float) -> None:
        """Look into a shard when something there is due: in that many seconds, or now if that is 0."""
        if in_s <= 0:
            self.look(shard)
        else:
            self._note_due(shard, asyncio.get_running_loop().time() + in_s)

    def look(self, shard: int) -> None:
        """Keep house in one shard now. While its answer is awaited, any number of calls make one more look after it."""
        if shard in self._looking:
            self._looking[shard] = True
            return
        self._looking[shard] = False
        self._shards.send(self._shards.calls.sweep(shard, self._age_ms(), partial(self._swept, shard)))

    def is_looking(self, shard: int) -> bool:
        """Whether an answer about the shard is awaited."""
        return shard in self._looking

    def _age_ms(self) -> int:
        """The age at which a sweep drops finished tasks before their time, as memory is short; -1 while it is not."""
        return int(READABLE_S * 1000) if self.is_memory_short else -1

    def reap(self, session: str, shards: Iterable[int]) -> None:
        """Queue again the tasks that a fenced session holds in these shards. Its tombstone says since when."""
        on_reply = partial(self._found_tombstone, session, tuple(shards))
        self._shards.send(self._shards.calls.fenced_ms(session, on_reply))

    def _found_tombstone(self, session: str, shards: Sequence[int], fenced_ms: int | Exception | None) -> None:
        if isinstance(fenced_ms, Exception):
            return  # the sweeps find what it holds
        for shard in shards:
            self._reap(session, shard, keys.UNDATED_MS if fenced_ms is None else fenced_ms)

    def _reap(self, session: str, shard: int, fenced_ms: int) -> None:
        left, tasks = self._reaping.get(session, (0, 0))
        self._reaping[session] = (left + 1, tasks)
        on_reply = partial(self._reaped, shard, session, fenced_ms)
        self._shards.send(self._shards.calls.reap(shard, session, self._rng.random(), on_reply, fenced_ms))

    async def run(self) -> None:
        """Sweep until cancelled."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            now_s = loop.time()
            if now_s >= next_s:
                self._sweep()
                next_s = now_s + self._config.sweep_interval_s
            for shard in [shard for shard, at_s in self._due.items() if at_s <= now_s]:
                del self._due[shard]
                self.look(shard)
            self._look.clear()
            until_s = min([next_s, *self._due.values()])
            try:
                async with asyncio.timeout(max(0.0, until_s - loop.time())):
                    await self._look.wait()
            except TimeoutError:
                pass

    def _sweep(self) -> None:
        self.sweeps += 1
        for shard in self.owned:
            self.look(shard)
        if self.sweeps % STRAY_EVERY == 0:
            self.look(self._rng.randrange(self._config.shards))
        is_time_for_all = self.sweeps % COMPARE_EVERY == 0
        for shard, held in enumerate(self._dispatch.held):
            if held or is_time_for_all or shard in self._dispatch.uncertain:
                self._dispatch.compare(shard)
        for shard in self._shards.idle():  # on a lane of which this node owns no shard, no other call asks Redis
            self._dispatch.compare(shard)
        self._ask_after_strangers()

    def _note_due(self, shard: int, at_s: float) -> None:
        if at_s < self._due.get(shard, float("inf")):
            self._due[shard] = at_s
            self._look.set()

    def _swept(self, shard: int, answer: Swept | Exception) -> None:
        if self._looking.pop(shard):
            self.look(shard)
        if isinstance(answer, Exception):
            return
        if BATCH_MAX in (answer.promoted, answer.dropped):
            self.look(shard)
        elif answer.next_due_ms and shard in self.owned:
            in_s = max(0.0, (answer.next_due_ms - answer.now_ms) / 1000)
            self._note_due(shard, asyncio.get_running_loop().time() + in_s)
        for session in answer.sessions:
            if session not in self.alive and session != self._dispatch.session:
                self._holders.setdefault(session, set()).add(shard)
        if answer.has_all_heads:
            self._dispatch.backlog.keep_queues(shard, {head.queue for head in answer.heads})
        self._on_heads(shard, answer.heads)

    def _ask_after_strangers(self) -> None:
        """Sessions hold work and are not alive here: reap those with a tombstone, and tell vitals of the others."""
        holders, self._holders = self._holders, {}
        for session, shards in holders.items():
            if session not in self.alive:
                self._shards.send(self._shards.calls.fenced_ms(session, partial(self._stranger, session, shards)))

    def _stranger(self, session: str, shards: set[int], fenced_ms: int | Exception | None) -> None:
        if fenced_ms is None:
            self._on_strangers([session])
        else:
            self._found_tombstone(session, sorted(shards), fenced_ms)

    def _reaped(self, shard: int, session: str, fenced_ms: int, answer: Reaped | Exception) -> None:
        left, tasks = self._reaping.pop(session)
        if not isinstance(answer, Exception):
            moved = answer.queued + answer.scheduled + len(answer.dead)
            for kind in answer.dead:
                self._metrics.commits.add("dead")
                self._metrics.commits_by_type.add((kind, "dead"))
            tasks += moved
            if moved:
                self._metrics.reaped.add(moved)
            if answer.left:
                self._reaping[session] = (left, tasks)
                self._reap(session, shard, fenced_ms)
                left, tasks = self._reaping.pop(session)
            if answer.scheduled:
                self.look(shard)
            if answer.heads:
                self._on_heads(shard, answer.heads)
            if answer.lost:
                self._on_lost(session, answer.lost)
        if left > 1:
            self._reaping[session] = (left - 1, tasks)
        elif tasks:
            log.info("session_reaped", session=session, tasks=tasks)
            self._on_reaped(session, tasks)
