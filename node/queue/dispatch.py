"""The dispatcher: moves tasks between Redis and the worker. Claims, settles, stores, compares.

It owns the lanes and everything that rides in them. The rules it keeps:

- No prefetch: it claims for a queue only what the worker has free slots for, less what is already being claimed.
- An outcome is sent until Redis has answered it, under the session that claimed the task.
- What Redis holds in flight for this session and what runs here are compared; the answer to that comparison is looked
  at in the order of the lane, so a claim that is under way can never look like a loss.

Does not know: HTTP, gossip, when to keep house.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

import msgspec
import redis.asyncio
import structlog

from cluster.config import Config
from cluster.errors import StoreUnavailable, away
from cluster.scripts import Arg
from cluster.shards.calls import BATCH_MAX, RETENTION_MIN_S, Calls, Head, NewTask, heads_of
from cluster.shards.lane import Call, Lane, Reply
from cluster.shards.task import Backoff, Claimed, Failure, Kind, Outcome, Spec, backoff_s
from node.observe import logs
from node.observe.metrics import Metrics
from node.observe.tracing import OFF, Tracing
from node.queue.backlog import Backlog
from node.work.worker import Worker

LANES = 2  # one group per lane is under way at a time; two let Redis and Python work at once
GROUP_TASKS_MAX = 2_048  # new tasks in one group: some 20 ms of Redis's time, far from the deadline of a call
GROUP_BYTES_MAX = 4_194_304  # of their data, and of the results in one group
SETTLE_AGAIN_S = 0.25  # after Redis refused a group of outcomes for a reason of its own (full, loading)

log = structlog.get_logger("rumor.dispatch")

_decode_spec = msgspec.msgpack.Decoder(Spec).decode
_encode_failure = msgspec.json.Encoder().encode
_Item = tuple[Claimed, str, bytes, int]  # (claimed, settle kind, payload, ms)


class Dispatcher:
    """One node's traffic with the shards."""

    def __init__(
        self,
        config: Config,
        client: redis.asyncio.Redis,
        calls: Calls,
        metrics: Metrics,
        on_heads: Callable[[int, Sequence[Head]], None],
        on_finished: Callable[[Sequence[str]], None],
        on_redis: Callable[[bool], None],
        on_due: Callable[[int, float], None],
        on_unknown: Callable[[int, str, float], None],
        tracing: Tracing = OFF,
    ) -> None:
        self._config = config
        self.calls = calls
        self._metrics = metrics
        self._on_heads = on_heads
        self._on_finished = on_finished
        self._on_redis = on_redis
        self.on_due = on_due  # something in a shard is due in that many seconds
        self._on_unknown = on_unknown  # of a queue: no handler here knows what was given back there until then
        self._tracing = tracing
        self._rng = Random()
        self.worker: Worker
        self.session = ""
        self.is_claiming = False
        self.is_sure: Callable[[], bool] = _always  # whether this session is certainly not fenced
        self.is_held_back = False  # a claim was not made because of that
        self.backlog = Backlog()
        self.lanes = [
            Lane(client, config.redis_timeout_s, partial(self._collect, n), self._lane_changed, metrics.redis_s.add)
            for n in range(LANES)
        ]
        self.held: list[dict[str, int]] = [{} for _ in range(config.shards)]  # by shard: id -> delivery
        self.uncertain: set[int] = set()  # shards in which a call of ours got no answer
        self._reserved: dict[str, int] = {}  # by queue: slots promised to claims under way
        self._claiming: set[tuple[str, int]] = set()
        self._stores: list[dict[int, list[NewTask]]] = [{} for _ in range(LANES)]
        self._settles: list[dict[tuple[int, str], list[_Item]]] = [{} for _ in range(LANES)]
        self._refused: dict[tuple[int, str], list[_Item]] = {}  # outcomes that Redis refused, to be sent again
        self._one_by_one: set[tuple[int, str]] = set()  # (shard, session) of which a group of outcomes was refused
        self._steals: list[dict[tuple[int, str], int]] = [{} for _ in range(LANES)]  # (shard, queue) -> limit
        self.settling = 0  # outcomes that Redis has not answered yet

    # ---- asked for by the others

    def start(self, worker: Worker) -> None:
        """Begin to exchange; needs the running loop."""
        self.worker = worker
        for lane in self.lanes:
            lane.start()

    async def close(self) -> None:
        """End the lanes."""
        for lane in self.lanes:
            await lane.close()

    @property
    def is_up(self) -> bool:
        """Whether Redis answered the last group of every lane."""
        return all(lane.is_up for lane in self.lanes)

    def lane(self, shard: int) -> Lane:
        """The lane that carries everything about this shard."""
        return self.lanes[shard % LANES]

    def kick(self) -> None:
        """There may be something to claim."""
        for lane in self.lanes:
            lane.kick()

    def free(self, queue: str) -> int:
        """Slots that are neither taken nor promised."""
        return self.worker.free(queue) - self._reserved.get(queue, 0) if self.is_claiming else 0

    def reserve(self, queue: str) -> bool:
        """Promise a slot to a task that is about to be stored and claimed in one; False when there is none."""
        if self.free(queue) <= 0 or not self.backlog.is_empty(queue) or not self.is_sure():
            return False
        self._reserved[queue] = self._reserved.get(queue, 0) + 1
        return True

    def release(self, queue: str) -> None:
        """Take a promise back."""
        self._reserved[queue] -= 1

    def store(self, new: NewTask) -> None:
        """Send a new task with the next group; refused at once while Redis is known to be away."""
        lane = new.shard % LANES
        if not self.lanes[lane].is_up:
            new.on_code(new, away(storing=True), 0)
            return
        shard = self._stores[lane].get(new.shard)
        if shard is None:
            self._stores[lane][new.shard] = [new]
        else:
            shard.append(new)
        self.lanes[lane].kick()

    def is_asking(self, shard: int, queue: str) -> bool:
        """Whether a claim from there is under way."""
        return (queue, shard) in self._claiming

    def steal(self, shards: Iterable[int], queue: str, limit: int) -> None:
        """Try to claim from shards that another node owns."""
        for shard in shards:
            self._steals[shard % LANES][shard, queue] = limit
        self.kick()

    def begin(self, tasks: Sequence[Claimed]) -> None:
        """Tasks that are this session's now: remember and run them."""
        for one in tasks:
            self.held[one.shard][one.id] = one.delivery
        self.worker.start(tasks)

    def compare(self, shard: int) -> None:
        """Ask Redis what it holds in flight for this session there, and settle the differences."""
        self.lane(shard).add(self.calls.held(shard, self.session, partial(self._compared, shard, self.session)))

    def renew(self, session: str) -> None:
        """Go on as another session: nothing that was claimed under the old one may commit."""
        self.session = session
        for shard in self.held:
            shard.clear()
        self.worker.stop_all("fenced")
        self.kick()

    # ---- outcomes

    def on_outcome(self, outcome: Outcome) -> None:
        """The worker is done with a delivery; its slot may be free again."""
        claimed = outcome.claimed
        kind = outcome.kind
        self._metrics.run_s.add(outcome.run_s)
        if kind is Kind.SUCCEEDED:
            retention_s = claimed.spec.retention_s
            if retention_s is None:
                retention_s = self._config.retention_s
            item = (claimed, "s", outcome.result or b"null", int(max(retention_s, RETENTION_MIN_S) * 1000))
        elif kind is Kind.STOPPED:
            held = self.held[claimed.shard]
            if held.get(claimed.id) == claimed.delivery:
                del held[claimed.id]
            self.kick()
            return
        elif kind is Kind.RELEASED:
            item = (claimed, "g", b"", int((outcome.retry_after_s or 0.0) * 1000))
        else:
            failure = _encode_failure(outcome.failure or Failure("Error", "no reason given"))
            if kind is Kind.REJECTED or claimed.attempt >= claimed.spec.max_attempts:
                item = (claimed, "d", failure, int(self._config.dead_retention_s * 1000))
            else:
                wait_s = outcome.retry_after_s if kind is Kind.RETRY else None
                if wait_s is None:
                    wait_s = backoff_s(claimed.spec.backoff, claimed.attempt, self._rng)
                item = (claimed, "r", failure, int(wait_s * 1000))
        self._settle(item)

    def _settle(self, item: _Item) -> None:
        claimed = item[0]
        lane = claimed.shard % LANES
        key = (claimed.shard, claimed.session)
        items = self._settles[lane].get(key)
        if items is None:
            self._settles[lane][key] = [item]
        else:
            items.append(item)
        self.settling += 1
        self.kick()  # a slot is free: whichever lane has the best head may claim for it

    # ---- one group

    def _collect(self, lane: int) -> list[Call]:
        """What goes with the group that leaves now: outcomes, new tasks, then claims for the slots that are free."""
        calls: list[Call] = []
        if self._settles[lane] and self.lanes[lane].is_up:
            self._collect_settles(lane, calls)
        if self._stores[lane]:
            self._collect_stores(lane, calls)
        if self.is_claiming and self.lanes[lane].is_up:
            # What a fenced session claims is reaped, but costs the task an attempt.
            self.is_held_back = not self.is_sure()
            if not self.is_held_back:
                self._collect_claims(lane, calls)
        return calls

    def _collect_settles(self, lane: int, calls: list[Call]) -> None:
        """Outcomes, as many bytes of them as one group may carry within its deadline; the rest goes with the next."""
        settles = self._settles[lane]
        left_bytes = GROUP_BYTES_MAX
        while settles and left_bytes > 0:
            key = shard, session = next(iter(settles))
            items = settles[key]
            part = items[: 1 if key in self._one_by_one else BATCH_MAX]
            size = sum(len(item[2]) for item in part)
            while size > left_bytes and len(part) > 1:
                size -= len(part.pop()[2])
            if len(part) < len(items):
                settles[key] = items[len(part) :]
            else:
                del settles[key]
            left_bytes -= size
            rows: list[tuple[Arg, ...]] = [(c.id, c.delivery, kind, pay, ms) for c, kind, pay, ms in part]
            self._metrics.batch_tasks.of["settle"].add(len(rows))
            calls.append(self.calls.settle(shard, session, rows, partial(self._settled, shard, part)))
        if settles:
            self.lanes[lane].kick()

    def _collect_stores(self, lane: int, calls: list[Call]) -> None:
        """New tasks, as many as one group may carry within its deadline; the rest goes with the next."""
        stores = self._stores[lane]
        left, left_bytes = GROUP_TASKS_MAX, GROUP_BYTES_MAX
        while stores and left > 0 and left_bytes > 0:
            shard, tasks = next(iter(stores.items()))
            part = tasks[:BATCH_MAX]
            if len(tasks) > BATCH_MAX:
                stores[shard] = tasks[BATCH_MAX:]
            else:
                del stores[shard]
            left -= len(part)
            left_bytes -= sum(len(new.data) for new in part)
            self._metrics.batch_tasks.of["store"].add(len(part))
            calls.append(self.calls.store(shard, self.session, part, partial(self._stored, shard, part, self.session)))
        if stores:
            self.lanes[lane].kick()

    def _collect_claims(self, lane: int, calls: list[Call]) -> None:
        steals, self._steals[lane] = self._steals[lane], {}
        for (shard, queue), limit in steals.items():
            limit = min(limit, self.free(queue), BATCH_MAX)
            if limit > 0 and (queue, shard) not in self._claiming:
                self._claim(calls, shard, queue, limit, None, "stolen")
        for queue in self.backlog.queues():
            free = self.free(queue)
            if free > 0:
                for pick in self.backlog.plan(queue, free, lane, LANES):
                    if (queue, pick.shard) not in self._claiming:
                        self._claim(calls, pick.shard, queue, pick.limit, pick.highest, "owned")

    def _claim(self, calls: list[Call], shard: int, queue: str, limit: int, highest: int | None, source: str) -> None:
        self._reserved[queue] = self._reserved.get(queue, 0) + limit
        self._claiming.add((queue, shard))
        on_reply = partial(self._claimed, shard, queue, limit, self.session, source)
        calls.append(self.calls.claim(shard, queue, self.session, limit, highest, on_reply))

    # ---- answers

    def _claimed(self, shard: int, queue: str, limit: int, session: str, source: str, reply: Reply) -> None:
        self._claiming.discard((queue, shard))
        self._reserved[queue] -= limit
        if isinstance(reply, Exception):
            self._metrics.claim_calls.add("failed")
            self._lost(shard, "claim", reply)
            return
        now_ms, count, head, flat = reply
        self._metrics.claim_calls.add("tasks" if flat else "empty")
        self.backlog.set(queue, shard, count, int(float(head)))
        # Claimed as a session that was fenced meanwhile: whoever fenced it reaps them, again if need be.
        if flat and session == self.session:
            tasks = []
            for n in range(0, len(flat), 7):
                task_id = flat[n].decode()
                try:
                    spec = _decode_spec(flat[n + 3])
                except msgspec.DecodeError as error:
                    log.error("task_unreadable", task=task_id, error=str(error))
                    continue
                tasks.append(
                    Claimed(task_id, shard, flat[n + 1], flat[n + 2], spec, flat[n + 4], session, int(flat[n + 6]))
                )
                if flat[n + 5]:
                    wait_s = max(0.0, (now_ms - float(flat[n + 5])) / 1000)
                    self._metrics.wait_s.add(wait_s)
                    if spec.trace is not None:
                        self._tracing.waited(tasks[-1], wait_s)
            self._metrics.batch_tasks.of["claim"].add(len(tasks))
            self._metrics.claims.add(source, len(tasks))
            self.begin(tasks)
        if not self.backlog.is_empty(queue) and self.free(queue) > 0:
            self.kick()

    def _stored(self, shard: int, tasks: Sequence[NewTask], session: str, reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._lost(shard, "store", reply)
            for new in tasks:
                new.on_code(new, reply, 0)
            return
        now_ms, codes, heads = reply
        for new, raw in zip(tasks, codes, strict=True):
            code = raw.decode()
            if code == "c" and session != self.session:
                code = "q"  # claimed as a session that was fenced meanwhile: whoever fenced it queues it again
            new.on_code(new, code, now_ms)
        if heads:
            self._on_heads(shard, heads_of(heads))

    def _settled(self, shard: int, items: list[_Item], reply: Reply) -> None:
        if isinstance(reply, Exception):
            self._not_settled(shard, items, reply)
            return
        self.settling -= len(items)
        if self._one_by_one:
            key = (shard, items[0][0].session)
            if key not in self._refused and key not in self._settles[shard % LANES]:
                self._one_by_one.discard(key)
        held = self.held[shard]
        finished: list[str] = []
        commits: dict[tuple[str, str], int] = {}
        for (claimed, kind, _, ms), raw in zip(items, reply, strict=True):
            code = raw.decode()
            if held.get(claimed.id) == claimed.delivery:
                del held[claimed.id]
            if code == "1":
                what = (claimed.spec.type, kind)
                commits[what] = commits.get(what, 0) + 1
                if kind in "sd":
                    finished.append(claimed.id)
                elif ms > 0:
                    self.on_due(shard, ms / 1000)
                    if kind == "g":
                        self._on_unknown(shard, claimed.spec.queue, ms / 1000)
                else:
                    self.on_due(shard, 0.0)
            elif code != "y":
                reason = "cancelled" if code == "cancelled" else "gone" if code == "gone" else "fenced"
                self._metrics.refused.add(reason)
                log.warning(
                    "outcome_refused",
                    **logs.ids_of(claimed),
                    delivery=claimed.delivery,
                    session=claimed.session,
                    state=code,
                    reason=reason,
                )
        for (type_, kind), count in commits.items():
            self._metrics.commits.add(_OUTCOMES[kind], count)
            self._metrics.commits_by_type.add((type_, _OUTCOMES[kind]), count)
        if finished:
            self._on_finished(finished)

    def _not_settled(self, shard: int, items: list[_Item], reply: Exception) -> None:
        """Keep outcomes for later: for the next group when none was answered, for a while when Redis refused them."""
        self.uncertain.add(shard)
        key = (shard, items[0][0].session)
        if isinstance(reply, StoreUnavailable):
            log.warning("settle_unanswered", shard=shard, tasks=len(items), error=str(reply))
            self._settles[shard % LANES].setdefault(key, []).extend(items)
            return
        if key not in self._one_by_one:
            log.warning("settle_refused", shard=shard, tasks=len(items), error=str(reply))
        self._one_by_one.add(key)  # the fault may be one task's: it must not hold up those beside it
        if key not in self._refused:
            self._refused[key] = []
            asyncio.get_running_loop().call_later(SETTLE_AGAIN_S, self._settle_again, key)
        self._refused[key].extend(items)

    def _settle_again(self, key: tuple[int, str]) -> None:
        lane = key[0] % LANES
        self._settles[lane].setdefault(key, []).extend(self._refused.pop(key))
        self.lanes[lane].kick()

    def _compared(self, shard: int, session: str, reply: Reply) -> None:
        if isinstance(reply, Exception) or session != self.session:
            return
        self.uncertain.discard(shard)
        in_redis = {reply[n].decode(): int(reply[n + 1]) for n in range(0, len(reply), 2)}
        held = self.held[shard]
        for task_id, delivery in in_redis.items():
            if held.get(task_id) != delivery:  # its claim's answer was lost: never started here
                log.warning("claim_recovered", task=task_id, delivery=delivery)
                stub = Claimed(task_id, shard, delivery, 0, _NO_SPEC, b"null", session)
                self._settle((stub, "g", b"", 0))
        unsettled = {item[0].id for items in self._settles[shard % LANES].values() for item in items}
        unsettled.update(item[0].id for items in self._refused.values() for item in items)
        for task_id, delivery in list(held.items()):
            if in_redis.get(task_id) != delivery and task_id not in unsettled:
                del held[task_id]
                running = self.worker.running.get(task_id)
                if running is not None and self.worker.stop(task_id, delivery, "gone"):
                    log.warning("task_gone", **logs.ids_of(running.claimed), delivery=delivery)

    def _lost(self, shard: int, what: str, error: Exception) -> None:
        self.uncertain.add(shard)
        log.warning("call_unanswered", call=what, shard=shard, error=str(error))

    def _lane_changed(self, is_up: bool) -> None:
        if is_up:
            self.kick()
        for lane, stores in enumerate(self._stores):
            if not self.lanes[lane].is_up:
                self._stores[lane] = {}
                for tasks in stores.values():
                    for new in tasks:
                        new.on_code(new, away(storing=True), 0)
        self._on_redis(self.is_up)


def _always() -> bool:
    return True


_OUTCOMES = {"s": "succeeded", "d": "dead", "r": "retrying", "g": "released"}
_NO_SPEC = Spec("", "", 0, 1, 1.0, Backoff(0, 1, 0))  # of a delivery that only Redis knew of
