"""The dispatcher: moves tasks between Redis and the worker. It claims, settles, stores and compares.

It hands each group that a lane sends the calls that go with it. The rules it keeps:

- No prefetch: for a queue it claims no more tasks than the worker has free slots, less those promised to claims already
  under way.
- It sends an outcome until Redis has answered, under the session that claimed the task.
- It compares the tasks that Redis holds in flight for this session with those that run here. Answers come in the order
  of the lane, so a claim that is under way can never look like a loss.

Does not know: HTTP, gossip, when to keep house.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

import msgspec
import structlog

from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.kept_tasks import OnEnd, unheard
from cluster.shards.answers import Claims, QueueHead, SettleCode, Settled, SettleKind, StoreCode, Stored, TaskFields
from cluster.shards.calls import BATCH_MAX, NewTask, Settlement
from cluster.shards.lane import Call
from cluster.shards.shards import Shards
from cluster.shards.task import NO_SPEC, Claimed, Failure, Kind, Outcome, backoff_s
from node.observe import logs
from node.observe.metrics import Metrics
from node.observe.tracing import OFF, Tracing
from node.queue.backlog import Backlog
from node.work.worker import New, Worker

GROUP_TASKS_MAX = 2_048  # new tasks in one group: some 20 ms of Redis's time, far below a group's deadline
GROUP_BYTES_MAX = 4_194_304  # bytes of their data in one group, and bytes of results
READ_BYTES_MAX = 262_144  # bytes of tasks that are read behind one settle
SETTLE_AGAIN_S = 0.25  # pause before outcomes are sent again that Redis refused for a reason of its own (full, loading)

log = structlog.get_logger("rumor.dispatch")

_encode_failure = msgspec.json.Encoder().encode

# Enum members that every task needs, bound once: `Enum.MEMBER` costs 0.1 us each time in Python 3.11.
_CLAIMED, _QUEUED = StoreCode.CLAIMED, StoreCode.QUEUED
_COMMITTED = SettleCode.COMMITTED
_SUCCEEDED, _DEAD, _RETRYING, _RELEASED, _PARKED = SettleKind
_WELL_ENDED = Kind.SUCCEEDED


class Dispatcher:
    """One node's traffic with the shards."""

    def __init__(
        self,
        config: Config,
        shards: Shards,
        metrics: Metrics,
        on_heads: Callable[[int, Sequence[QueueHead]], None],
        on_finished: Callable[[Sequence[str]], None],
        on_redis: Callable[[bool], None],
        on_due: Callable[[int, float], None],
        on_unknown: Callable[[int, str, float], None],
        tracing: Tracing = OFF,
        awaited: Container[str] = (),
        on_read: Callable[[str, TaskFields | Exception | None], None] = lambda task_id, fields: None,
    ) -> None:
        self._config = config
        self._shards = shards
        self._metrics = metrics
        self._on_heads = on_heads
        self._on_finished = on_finished
        self._awaited = awaited  # tasks that a caller of this node waits for
        self._on_read = on_read  # takes such a task, as it was read behind the settle of this node
        self._on_redis = on_redis
        self.on_due = on_due  # (shard, seconds): something there is due then
        self._on_unknown = on_unknown  # (shard, queue, seconds): a task without a handler here is due there again then
        self._tracing = tracing
        self._rng = Random()
        self.worker: Worker
        self.session = ""
        self.is_claiming = False
        self.parks_type: Callable[[str], bool] = lambda type_: (
            False
        )  # whether a task that this node cannot run waits apart
        self.is_sure: Callable[[], bool] = _always  # whether this session is certainly not fenced
        self.is_held_back = False  # the last group made no claims, since that was not sure
        self.backlog = Backlog()
        shards.collect_with(self._collect, self._lane_changed)
        self.held: list[dict[str, int]] = [{} for _ in range(config.shards)]  # by shard: id -> delivery
        self.uncertain: set[int] = set()  # shards of which a call of ours got no answer
        self._reserved: dict[str, int] = {}  # by queue: slots promised to claims under way
        # Parts of the next group, by lane:
        self._stores: list[dict[int, list[NewTask]]] = [{} for _ in shards.lanes]  # by shard
        self._settles: list[dict[tuple[int, str], list[Settlement]]] = [{} for _ in shards.lanes]  # by (shard, session)
        self._refused: dict[tuple[int, str], list[Settlement]] = {}  # outcomes that Redis refused, to send again
        self._one_by_one: set[tuple[int, str]] = set()  # (shard, session) whose outcomes, once refused, go singly
        self._steals: list[dict[tuple[int, str], int]] = [{} for _ in shards.lanes]  # (shard, queue) -> limit
        self.settling = 0  # outcomes that Redis has not answered yet
        self._is_kicked = False  # whether every lane is to ask for the outcomes that came since one last did
        self._is_first = [False for _ in shards.lanes]  # whether a lane was woken alone, before the others
        self._note_run = metrics.run_s.add
        self._kept_ms, self._kept_s, self._dead_s = shards.calls.kept_ms, config.retention_s, config.dead_retention_s

    # ---- what the other parts call

    def start(self, worker: Worker, on_end: OnEnd = unheard) -> None:
        """Begin to exchange; needs the running loop. `on_end` hears when a lane has ended for good."""
        self.worker = worker
        self._shards.start(on_end)

    def kick(self) -> None:
        """Look for something to claim."""
        self._shards.kick_all()

    def free(self, queue: str) -> int:
        """Slots that are neither taken nor promised; 0 while this node claims nothing."""
        return self.worker.free(queue) - self._reserved.get(queue, 0) if self.is_claiming else 0

    def reserve(self, queue: str) -> bool:
        """Promise a slot to a task that is to be stored and claimed in one step; False if it must queue instead."""
        if self.free(queue) <= 0 or not self.backlog.is_empty(queue) or not self.is_sure():
            return False
        self._reserved[queue] = self._reserved.get(queue, 0) + 1
        return True

    def release(self, queue: str) -> None:
        """Take a promise back."""
        self._reserved[queue] -= 1

    def store(self, new: NewTask) -> None:
        """Send a new task with the next group. While its lane is down, fail it at once."""
        lane = self._shards.lane_of[new.shard]
        if not self._shards.is_lane_up(lane):
            new.on_code(new, self._shards.away(storing=True), 0, "")
            return
        shard = self._stores[lane].get(new.shard)
        if shard is None:
            self._stores[lane][new.shard] = [new]
        else:
            shard.append(new)
        self._shards.kick(lane)

    def is_asking(self, shard: int, queue: str) -> bool:
        """Whether a claim from that queue of the shard is under way."""
        return self.backlog.is_asking(queue, shard)

    def steal(self, shards: Iterable[int], queue: str, limit: int) -> None:
        """Try to claim from shards that another node owns."""
        for shard in shards:
            self._steals[self._shards.lane_of[shard]][shard, queue] = limit
        self.kick()

    def begin(self, tasks: Sequence[Claimed], new: list[New] | None = None) -> None:
        """Remember and run tasks that this session has claimed. `new`: as for `Worker.start`."""
        for claimed in tasks:
            self.held[claimed.shard][claimed.id] = claimed.delivery
        self.worker.start(tasks, new)

    def compare(self, shard: int) -> None:
        """Ask Redis which tasks of a shard it holds in flight for this session, and mend the differences."""
        self._shards.send(self._shards.calls.held(shard, self.session, partial(self._compared, shard, self.session)))

    def renew(self, session: str) -> None:
        """Go on as another session: no task claimed under the old one may commit."""
        self.session = session
        for shard in self.held:
            shard.clear()
        self.worker.stop_all("fenced")
        self.kick()

    # ---- outcomes

    def on_outcome(self, outcome: Outcome) -> None:
        """Take the worker's report of a delivery; the delivery's slot may be free again."""
        claimed = outcome.claimed
        kind = outcome.kind
        self._note_run(outcome.run_s)
        if kind is _WELL_ENDED:
            ms = self._kept_ms(claimed.spec.retention_s, self._kept_s)
            result = outcome.result
            if result is None or result == b"null":
                result = b""  # as settle.lua writes null
            ended = Settlement(claimed, _SUCCEEDED, result, ms)
        elif kind is Kind.STOPPED:
            held = self.held[claimed.shard]
            if held.get(claimed.id) == claimed.delivery:
                del held[claimed.id]
            self.kick()
            return
        elif kind is Kind.RELEASED:
            if outcome.retry_after_s and self.parks_type(claimed.spec.type):
                ended = Settlement(claimed, _PARKED, b"", 0)
            else:
                ended = Settlement(claimed, _RELEASED, b"", int((outcome.retry_after_s or 0.0) * 1000))
        else:
            failure = _encode_failure(outcome.failure or Failure("Error", "no reason given"))
            if kind is Kind.REJECTED or claimed.attempt >= claimed.spec.max_attempts:
                ended = Settlement(claimed, _DEAD, failure, self._kept_ms(claimed.spec.retention_s, self._dead_s))
            else:
                wait_s = outcome.retry_after_s if kind is Kind.RETRY else None
                if wait_s is None:
                    wait_s = backoff_s(claimed.spec.backoff, claimed.attempt, self._rng)
                ended = Settlement(claimed, _RETRYING, failure, int(wait_s * 1000))
        self._settle(ended)

    def _settle(self, ended: Settlement) -> None:
        claimed = ended.claimed
        lane = self._shards.lane_of[claimed.shard]
        key = (claimed.shard, claimed.session)
        waiting = self._settles[lane].get(key)
        if waiting is None:
            self._settles[lane][key] = [ended]
        else:
            waiting.append(ended)
        self.settling += 1
        if self._is_kicked or self._is_first[lane]:
            return
        if self._shards.can_leave(lane):  # it claims for the free slot too: one group does both
            self._is_first[lane] = True
            self._shards.kick(lane)
        else:
            self._is_kicked = True
            self._shards.kick_all()

    # ---- one group

    def _collect(self, lane: int) -> list[Call[Any]]:
        """The calls that go with the group that leaves now: outcomes, new tasks, then claims for the free slots."""
        self._is_kicked = False
        is_first, self._is_first[lane] = self._is_first[lane], False
        calls: list[Call[Any]] = []
        is_up = self._shards.is_lane_up(lane)
        if is_up and self._settles[lane]:
            self._collect_settles(lane, calls)
        if self._stores[lane]:
            self._collect_stores(lane, calls)
        if is_up and self.is_claiming:
            # A task that a fenced session claims is reaped, but that costs it an attempt.
            self.is_held_back = not self.is_sure()
            if not self.is_held_back:
                self._collect_claims(lane, calls, is_first)
        return calls

    def _collect_settles(self, lane: int, calls: list[Call[Any]]) -> None:
        """Outcomes, up to as many bytes as one group may carry within its deadline; the rest goes with the next."""
        settles = self._settles[lane]
        left_bytes = GROUP_BYTES_MAX
        while settles and left_bytes > 0:
            key = shard, session = next(iter(settles))
            waiting = settles[key]
            part = waiting[: 1 if key in self._one_by_one else BATCH_MAX]
            size = sum(len(ended.payload) for ended in part)
            while size > left_bytes and len(part) > 1:
                size -= len(part.pop().payload)
            if len(part) < len(waiting):
                settles[key] = waiting[len(part) :]
            else:
                del settles[key]
            left_bytes -= size
            self._metrics.batch_tasks.of["settle"].add(len(part))
            calls.append(self._shards.calls.settle(shard, session, part, partial(self._settled, shard, part)))
            if self._awaited:
                left_bytes -= self._read_awaited(shard, part, calls)
        if settles:
            self._shards.kick(lane)

    def _read_awaited(self, shard: int, part: Sequence[Settlement], calls: list[Call[Any]]) -> int:
        """Read the tasks that somebody here waits for behind the settle that ends them. Returns the bytes to come.

        Those over READ_BYTES_MAX are left out: their waiters read them when the settle is answered.
        """
        size = 0
        for ended in part:
            claimed = ended.claimed
            if claimed.id in self._awaited and (ended.kind is _SUCCEEDED or ended.kind is _DEAD):
                size += len(claimed.data) + len(ended.payload)
                if size > READ_BYTES_MAX:
                    break
                on_reply = partial(self._on_read, claimed.id)
                calls.append(self._shards.calls.read(shard, claimed.id, on_reply))
        return size

    def _collect_stores(self, lane: int, calls: list[Call[Any]]) -> None:
        """New tasks, up to as many as one group may carry within its deadline; the rest goes with the next."""
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
            on_reply = partial(self._stored, shard, part, self.session)
            calls.append(self._shards.calls.store(shard, self.session, part, on_reply))
        if stores:
            self._shards.kick(lane)

    def _collect_claims(self, lane: int, calls: list[Call[Any]], is_first: bool) -> None:
        steals, self._steals[lane] = self._steals[lane], {}
        for (shard, queue), limit in steals.items():
            limit = min(limit, self.free(queue), BATCH_MAX)
            if limit > 0 and not self.backlog.is_asking(queue, shard):
                self._claim(calls, shard, queue, limit, None, "stolen")
        mine, theirs = self._shards.of_lane(lane), self._shards.of_others(lane)
        for queue in self.backlog.queues():
            picks = self.backlog.plan(queue, self.free(queue), mine, theirs)
            for pick in picks:
                self._claim(calls, pick.shard, queue, pick.limit, pick.highest, "owned")
            if (picks or is_first) and self.free(queue) > 0:
                self._shards.kick_others(lane)  # slots were left to them, or what they had to wait for is claimed

    def _claim(
        self, calls: list[Call[Any]], shard: int, queue: str, limit: int, highest: int | None, source: str
    ) -> None:
        self._reserved[queue] = self._reserved.get(queue, 0) + limit
        self.backlog.ask(queue, shard, limit)
        on_reply = partial(self._claimed, shard, queue, limit, self.session, source)
        calls.append(self._shards.calls.claim(shard, queue, self.session, limit, highest, on_reply))

    # ---- answers

    def _claimed(
        self, shard: int, queue: str, limit: int, session: str, source: str, answer: Claims | Exception
    ) -> None:
        self.backlog.answered(queue, shard)
        self._reserved[queue] -= limit
        if isinstance(answer, Exception):
            self._metrics.claim_calls.add("failed")
            self._unanswered(shard, "claim", answer)
            return
        self._metrics.claim_calls.add("tasks" if answer.tasks or answer.unreadable else "empty")
        self.backlog.set(queue, shard, answer.left, answer.head_score)
        if answer.tasks and self._may_begin(shard, session):
            self._note_waits(answer)
            self._metrics.batch_tasks.of["claim"].add(len(answer.tasks))
            self._metrics.claims.add(source, len(answer.tasks))
            self.begin(answer.tasks)
        for task_id, why in answer.unreadable:
            log.error("task_unreadable", task=task_id, error=why)
        if not self.backlog.is_empty(queue) and self.free(queue) > 0:
            self.kick()

    def _may_begin(self, shard: int, session: str) -> bool:
        """Whether what was just claimed may start. Where its session may be fenced, it is taken back."""
        if session == self.session and self.is_sure():
            return True
        self.compare(shard)
        return False

    def _note_waits(self, claims: Claims) -> None:
        first = 0
        for tasks, wait_s in claims.waits:
            self._metrics.wait_s.add(wait_s, tasks)
            if self._tracing.is_on:
                for claimed in claims.tasks[first : first + tasks]:
                    if claimed.spec.trace is not None:
                        self._tracing.waited(claimed, wait_s)
            first += tasks

    def _stored(self, shard: int, tasks: Sequence[NewTask], session: str, answer: Stored | Exception) -> None:
        if isinstance(answer, Exception):
            self._unanswered(shard, "store", answer)
            for new in tasks:
                new.on_code(new, answer, 0, "")
            return
        firsts = answer.firsts
        may_begin = _CLAIMED not in answer.codes or self._may_begin(shard, session)
        for n, (new, code) in enumerate(zip(tasks, answer.codes, strict=True)):
            if code is _CLAIMED and not may_begin:
                code = _QUEUED  # it will be
            new.on_code(new, code, answer.now_ms, firsts.get(n, ""))
        if answer.heads:
            self._on_heads(shard, answer.heads)

    def _settled(self, shard: int, part: list[Settlement], answer: Settled | Exception) -> None:
        if isinstance(answer, Exception):
            self._not_settled(shard, part, answer)
            return
        self.settling -= len(part)
        if self._one_by_one:
            key = (shard, part[0].claimed.session)
            if key not in self._refused and key not in self._settles[self._shards.lane_of[shard]]:
                self._one_by_one.discard(key)
        held = self.held[shard]
        finished: list[str] = []
        commits: dict[tuple[str, SettleKind], int] = {}
        for n, reason in answer.refused.items():
            self._outcome_refused(part[n].claimed, reason)
        for ended in part:
            claimed = ended.claimed
            if held.get(claimed.id) == claimed.delivery:
                del held[claimed.id]
        for ended, code in zip(part, answer.codes, strict=True):
            if code is not _COMMITTED:
                continue
            claimed, kind = ended.claimed, ended.kind
            counter = (claimed.spec.type, kind)
            commits[counter] = commits.get(counter, 0) + 1
            if kind is _SUCCEEDED or kind is _DEAD:
                finished.append(claimed.id)
            else:
                self._will_run_again(shard, ended)
        for (type_, kind), count in commits.items():
            self._metrics.commits.add(_OUTCOMES[kind], count)
            self._metrics.commits_by_type.add((type_, _OUTCOMES[kind]), count)
        if finished:
            self._on_finished(finished)

    def _will_run_again(self, shard: int, ended: Settlement) -> None:
        self.on_due(shard, ended.ms / 1000)
        if ended.kind is _RELEASED and ended.ms > 0:
            self._on_unknown(shard, ended.claimed.spec.queue, ended.ms / 1000)

    def _outcome_refused(self, claimed: Claimed, state: str) -> None:
        reason = state if state in ("cancelled", "gone") else "fenced"
        self._metrics.refused.add(reason)
        log.warning(
            "outcome_refused",
            **logs.ids_of(claimed),
            delivery=claimed.delivery,
            session=claimed.session,
            state=state,
            reason=reason,
        )

    def _not_settled(self, shard: int, part: list[Settlement], error: Exception) -> None:
        """Keep outcomes for later: if Redis did not answer, for the next group; if it refused them, for a while."""
        self.uncertain.add(shard)
        key = (shard, part[0].claimed.session)
        if isinstance(error, StoreUnavailable):
            log.warning("settle_unanswered", shard=shard, tasks=len(part), error=str(error))
            self._settles[self._shards.lane_of[shard]].setdefault(key, []).extend(part)
            return
        if key not in self._one_by_one:
            log.warning("settle_refused", shard=shard, tasks=len(part), error=str(error))
        self._one_by_one.add(key)  # one task may be at fault: it must not hold up the others
        if key not in self._refused:
            self._refused[key] = []
            asyncio.get_running_loop().call_later(SETTLE_AGAIN_S, self._settle_again, key)
        self._refused[key].extend(part)

    def _settle_again(self, key: tuple[int, str]) -> None:
        lane = self._shards.lane_of[key[0]]
        self._settles[lane].setdefault(key, []).extend(self._refused.pop(key))
        self._shards.kick(lane)

    def _compared(self, shard: int, session: str, in_redis: dict[str, int] | Exception) -> None:
        if isinstance(in_redis, Exception) or session != self.session:
            return
        self.uncertain.discard(shard)
        held = self.held[shard]
        for task_id, delivery in in_redis.items():
            if held.get(task_id) != delivery:  # the answer to its claim was lost: it never started here
                log.warning("claim_recovered", task=task_id, delivery=delivery)
                stub = Claimed(task_id, shard, delivery, 0, NO_SPEC, b"null", session)
                self._settle(Settlement(stub, _RELEASED, b"", 0))
        settles = self._settles[self._shards.lane_of[shard]]
        unsettled = {ended.claimed.id for waiting in settles.values() for ended in waiting}
        unsettled.update(ended.claimed.id for waiting in self._refused.values() for ended in waiting)
        for task_id, delivery in list(held.items()):
            if in_redis.get(task_id) != delivery and task_id not in unsettled:
                del held[task_id]
                running = self.worker.running.get(task_id)
                if running is not None and self.worker.stop(task_id, delivery, "gone"):
                    log.warning("task_gone", **logs.ids_of(running.claimed), delivery=delivery)

    def _unanswered(self, shard: int, call: str, error: Exception) -> None:
        self.uncertain.add(shard)
        log.warning("call_unanswered", call=call, shard=shard, error=str(error))

    def _lane_changed(self, is_up: bool) -> None:
        if is_up:
            for shard in self.uncertain:  # what was claimed, and not answered, is not to wait for a sweep
                self.compare(shard)
            self.kick()
        for lane, stores in enumerate(self._stores):
            if not self._shards.is_lane_up(lane):
                self._stores[lane] = {}
                for tasks in stores.values():
                    for new in tasks:
                        new.on_code(new, self._shards.away(storing=True), 0, "")
        self._on_redis(self._shards.is_up)


def _always() -> bool:
    return True


_OUTCOMES = {_SUCCEEDED: "succeeded", _DEAD: "dead", _RETRYING: "retrying", _RELEASED: "released", _PARKED: "released"}
