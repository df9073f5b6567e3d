"""Runs claimed tasks and reports each delivery's outcome, exactly once.

An attempt is one asyncio task, one call of a child process, or one thread. Stopping it (time-out, cancel, fencing,
drain) ends its right to commit at once and asks it to end; its outcome is reported when it has ended, or STOP_GRACE_S
later if it has not. A slot is free only once its attempt has really ended: one that cannot be stopped keeps its slot.

A task that was running when two workers died is under suspicion: from then on it runs in a child process, where it can
harm nobody. So no task takes a cluster down node by node, and a task that merely ran beside a guilty one is not
punished for it.

One timer serves all attempts, set for the nearest deadline: time-outs cost the hot path one comparison.

Does not know: Redis, attempts left, backoff. It decides nothing about what happens to a failed task.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from cluster.config import Config
from cluster.shards.task import Claimed, Kind, Outcome
from node.context import Context
from node.observe import logs
from node.observe.tracing import OFF, Tracing
from node.tasks import Executor, Handler, Registry
from node.work import fork_guard
from node.work.ending import Ending, failed, raised, returned, run, unfit
from node.work.pool import Pool

STOP_GRACE_S = 1.0
ISOLATE_AFTER_LOST = 2  # lost workers (one may be chance), after which a task runs in a child, whatever its executor
UNKNOWN_RETRY_S = 1.0  # the delay before a task whose type has no handler here is claimed again
PROGRESS_INTERVAL_S = 0.25
SWEEP_GAP_S = 0.02  # the shortest time between two sweeps, with SWEEP_GAP_PER_TASK_S more for each attempt
SWEEP_GAP_PER_TASK_S = 2e-6

_STOPPED = Ending(Kind.STOPPED)
_RELEASED = Ending(Kind.RELEASED)
_LOOP = Executor.LOOP
_NEVER = math.inf


class Running(msgspec.Struct, eq=False):
    """An attempt that has a slot."""

    claimed: Claimed
    started_at_s: float  # loop.time(), which is monotonic
    deadline_s: float
    job: asyncio.Task[None] | None = None  # None for a thread
    span: Any = None  # None: the attempt is not traced
    stop_as: Ending | None = None  # the ending to report, once the right to commit has ended
    stopped_by: str = ""  # the reason that `stop` was given
    report_by_s: float = _NEVER  # the time to report a stopped attempt, ended or not
    progress_at_s: float = -_NEVER  # the earliest time to pass progress on again
    late_progress: bytes | None = None  # a value that came before that time
    is_reported: bool = False
    is_ended: bool = False


New = tuple[Running, Handler, contextvars.Context, Executor]  # an attempt that has a slot and has not begun


class Worker:
    """Slots, and the attempts in them. All methods are called on the loop; none of them blocks."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        node_id: str,
        on_outcome: Callable[[Outcome], None],
        on_progress: Callable[[Claimed, bytes], None],
        tracing: Tracing = OFF,
    ) -> None:
        self._node_id = node_id
        self._handler = registry.get
        self._on_outcome = on_outcome
        self._on_progress = on_progress
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # each attempt gets a copy: no handler sees what another sets
        self._tracing = tracing
        tracing.shield(self._context)
        self._slots = config.queue_slots
        self._free = dict(self._slots)
        self._running: dict[str, Running] = {}
        self._lingering: dict[Running, None] = {}
        self._new: list[New] = []  # begin in the next turn of the loop
        self._pool = Pool(config, registry.modules, node_id, sum(self._free.values()), tracing.is_on)
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at_s = _NEVER
        self._swept_at_s = -_NEVER
        self.running: Mapping[str, Running] = MappingProxyType(self._running)

    def taken(self) -> dict[str, int]:
        """Slots of each queue that are not free."""
        return {queue: slots - self._free[queue] for queue, slots in self._slots.items()}

    def free(self, queue: str) -> int:
        """Free slots of this queue."""
        return max(0, self._free.get(queue, 0))

    @property
    def lingering(self) -> Sequence[Claimed]:
        """Attempts that are reported and have not ended: threads and handlers that do not stop. They keep slots."""
        return [running.claimed for running in self._lingering]

    @property
    def children(self) -> dict[str, int]:
        """Child processes by what they do."""
        return self._pool.count()

    @property
    def replaced(self) -> dict[str, int]:
        """Child processes that ended in good order, by the reason."""
        return {str(reason): n for reason, n in self._pool.replaced.items()}

    def health(self) -> dict[str, Any]:
        """What `/health` shows of it."""
        return {
            "running": len(self._running),
            "lingering": len(self._lingering),
            "children": self.children,
            "children_replaced": self.replaced,
        }

    def start(self, tasks: Sequence[Claimed], new: list[New] | None = None) -> None:
        """Begin these deliveries. Outcomes are reported later, never from inside this call.

        `new`: their submissions are not answered yet. What runs in the node itself is put there, for `begin`.
        """
        loop, running_of, free = self._loop, self._running, self._free
        later: list[New] = [] if new is None else new
        now_s = loop.time()
        for claimed in tasks:
            spec = claimed.spec
            handler = self._handler(spec.type)
            if handler is None:
                loop.call_soon(self._on_outcome, Outcome(claimed, Kind.RELEASED, retry_after_s=UNKNOWN_RETRY_S))
                continue
            task_id = claimed.id
            if task_id in running_of:
                # It was claimed again before its earlier attempt ended: only the new delivery may commit.
                self._supersede(running_of[task_id])
            running = running_of[task_id] = Running(claimed, now_s, now_s + spec.timeout_s)
            free[spec.queue] = free.get(spec.queue, 0) - 1
            context = self._context.copy()
            if spec.trace is not None:
                running.span = self._tracing.begin(claimed, context)
            executor = handler.executor if claimed.lost < ISOLATE_AFTER_LOST else Executor.PROCESS
            if executor is Executor.PROCESS:
                running.deadline_s = _NEVER  # until a child process has begun it
                running.job = loop.create_task(self._in_child(running), name=task_id)
            else:
                later.append((running, handler, context, executor))
            if running.deadline_s < self._wake_at_s:
                self._wake_by(running.deadline_s)
        if new is None:
            self.begin(later)

    def begin(self, new: list[New]) -> None:
        """Begin attempts in the turn after the next: in the next, the answers to their submissions are written.

        uvloop hands what a turn has written to the kernel at the end of that turn. So a handler may compute, or end the
        node: it cannot hold up or lose the answer to its own submission. A claim may find what was stored just before
        it, in the same group, so this holds for all.
        """
        if new and not self._new:
            self._loop.call_soon(self._begin_new)
        self._new += new

    def stop(self, task_id: str, delivery: int | None, reason: str) -> bool:
        """End the right to commit of this delivery (None: of any): it is cancelled, fenced or gone. Outcome STOPPED.

        False if it is not running here. `reason` is the message of the handler's CancelledError.
        """
        running = self._running.get(task_id)
        if running is None or (delivery is not None and running.claimed.delivery != delivery):
            return False
        self._stop(running, _STOPPED, reason)
        return True

    def stop_all(self, reason: str) -> None:
        """`stop` for everything that runs."""
        for running in list(self._running.values()):
            self._stop(running, _STOPPED, reason)

    def release_all(self) -> None:
        """The drain's time is up: stop all attempts and give their tasks back; these attempts do not count."""
        for running in list(self._running.values()):
            self._stop(running, _RELEASED, "released")

    async def close(self) -> None:
        """Stop all attempts, wait STOP_GRACE_S, report those that have not ended, and end the child processes."""
        self.stop_all("closing")
        jobs = [r.job for r in (*self._running.values(), *self._lingering) if r.job is not None]
        if jobs:
            await asyncio.wait(jobs, timeout=STOP_GRACE_S)
        for running in list(self._running.values()):
            self._report(running, _STOPPED)
        if self._timer is not None:
            self._timer.cancel()
        await self._pool.close()

    # Attempts

    def _begin_new(self) -> None:
        """Begin the attempts of the turn before. In the present turn the answers to their submissions are written."""
        new, self._new = self._new, []
        for running, handler, context, executor in new:
            if running.stop_as is not None:  # stopped before it began
                self._end(running, running.stop_as)
            elif executor is _LOOP:
                running.job = asyncio.Task(
                    self._on_loop(running, handler), loop=self._loop, name=running.claimed.id, context=context
                )
            else:
                self._loop.call_soon(self._begin_thread, running, handler, context)

    def _begin_thread(self, running: Running, handler: Handler, context: contextvars.Context) -> None:
        if running.stop_as is None:
            self._in_thread(running, handler, context)
        else:
            self._end(running, running.stop_as)

    async def _on_loop(self, running: Running, handler: Handler) -> None:
        claimed = running.claimed
        logs.attempt.set(claimed)
        try:
            data = handler.decode(claimed.data)
        except msgspec.MsgspecError as error:
            self._end(running, unfit(error))
            return
        try:
            context = Context(claimed, self._node_id, _LoopLink(self, running)) if handler.wants_context else None
            ending = returned(await handler.call(data, context))
        except BaseException as error:
            # Catch SystemExit and KeyboardInterrupt too: raised out of a task, they would end the loop and the node.
            ending = raised(error) if running.stop_as is None else _STOPPED
        self._end(running, ending)

    async def _in_child(self, running: Running) -> None:
        def started() -> None:
            running.deadline_s = self._loop.time() + running.claimed.spec.timeout_s
            self._wake_by(running.deadline_s)

        try:
            ending = await self._pool.run(running.claimed, started, lambda value: self._progress(running, value))
        except BaseException as error:
            ending = raised(error)
        self._end(running, ending)

    def _in_thread(self, running: Running, handler: Handler, isolated: contextvars.Context) -> None:
        claimed = running.claimed
        context = Context(claimed, self._node_id, _ThreadLink(self, running)) if handler.wants_context else None

        def attempt() -> None:
            logs.attempt.set(claimed)
            ending = run(handler, claimed.data, context)
            try:
                self._loop.call_soon_threadsafe(self._end, running, ending)
            except RuntimeError:
                pass  # the loop is closed: nobody waits for this attempt

        # A daemon: a handler that never returns must not keep the node from exiting.
        thread = threading.Thread(target=isolated.run, args=(attempt,), name=claimed.id, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._loop.call_soon(self._end, running, failed("WorkerNotStarted", str(error)))

    def _end(self, running: Running, ending: Ending) -> None:
        """Free the slot of an attempt that has really ended, and report it unless that is done."""
        if fork_guard.is_copy:
            os._exit(0)  # the handler forked, and both processes came back: this copy is no node
        running.is_ended = True
        self._free[running.claimed.spec.queue] += 1
        if running.is_reported:
            self._lingering.pop(running, None)
        else:
            self._report(running, ending)

    def _report(self, running: Running, ending: Ending) -> None:
        claimed = running.claimed
        del self._running[claimed.id]
        running.is_reported = True
        if running.stop_as is not None:
            ending = running.stop_as
        elif running.late_progress is not None:
            self._on_progress(claimed, running.late_progress)
        if not running.is_ended:
            self._lingering[running] = None
        run_s = self._loop.time() - running.started_at_s
        outcome = Outcome(claimed, ending.kind, ending.result, ending.failure, ending.retry_after_s, run_s)
        if running.span is not None:
            self._tracing.end(running.span, outcome, running.stopped_by)
        self._on_outcome(outcome)

    # Stopping

    def _stop(self, running: Running, ending: Ending, reason: str) -> None:
        if running.stop_as is not None:
            if ending is _STOPPED:
                running.stop_as = ending  # overrides a time-out or a release: nothing may be committed any more
            return
        running.stop_as = ending
        running.stopped_by = reason
        running.report_by_s = self._loop.time() + STOP_GRACE_S
        self._wake_by(running.report_by_s)
        if running.job is not None:
            running.job.cancel(reason)
            # A job that is cancelled before its first step never enters its body, which would report the end.
            running.job.add_done_callback(lambda _: None if running.is_ended else self._end(running, ending))

    def _supersede(self, running: Running) -> None:
        """Stop an attempt whose task was claimed again. Report it now, without waiting for its end."""
        self._stop(running, _STOPPED, "claimed again")
        self._report(running, _STOPPED)

    # Time

    def _wake_by(self, at_s: float) -> None:
        """Have the sweep run by this time, or a little later if there are very many attempts."""
        if at_s >= self._wake_at_s:
            return
        self._wake_at_s = at_s
        if self._timer is not None:
            self._timer.cancel()
        gap_s = SWEEP_GAP_S + SWEEP_GAP_PER_TASK_S * len(self._running)
        self._timer = self._loop.call_at(max(at_s, self._swept_at_s + gap_s), self._sweep)

    def _sweep(self) -> None:
        self._swept_at_s = now_s = self._loop.time()
        self._wake_at_s = _NEVER
        nearest_s = _NEVER
        for running in list(self._running.values()):
            if running.stop_as is None and now_s >= running.deadline_s:
                limit_s = running.claimed.spec.timeout_s
                self._stop(
                    running, failed("Timeout", f"the attempt reached its time limit of {limit_s:g} s"), "timeout"
                )
            if running.stop_as is not None:
                if now_s >= running.report_by_s:
                    self._report(running, running.stop_as)
                else:
                    nearest_s = min(nearest_s, running.report_by_s)
                continue
            nearest_s = min(nearest_s, running.deadline_s)
            if running.late_progress is not None:
                self._progress(running, running.late_progress)
                nearest_s = min(nearest_s, running.progress_at_s)
        if nearest_s < _NEVER:
            self._wake_by(nearest_s)

    def _progress(self, running: Running, value: bytes) -> None:
        """Pass a value on, at most every PROGRESS_INTERVAL_S; the latest value is never lost."""
        if running.stop_as is not None or running.is_ended:
            return
        now_s = self._loop.time()
        if now_s < running.progress_at_s:
            running.late_progress = value
            self._wake_by(running.progress_at_s)
            return
        running.progress_at_s = now_s + PROGRESS_INTERVAL_S
        running.late_progress = None
        self._on_progress(running.claimed, value)


class _LoopLink:
    """The link of a handler on the loop."""

    __slots__ = ("_running", "_worker")

    def __init__(self, worker: Worker, running: Running) -> None:
        self._worker = worker
        self._running = running

    @property
    def is_stopped(self) -> bool:
        return self._running.stop_as is not None

    def report(self, value: bytes) -> None:
        self._worker._progress(self._running, value)


class _ThreadLink:
    """The link of a handler in a thread. However often it reports, at most one wake-up of the loop is under way."""

    def __init__(self, worker: Worker, running: Running) -> None:
        self._worker = worker
        self._running = running
        self._latest: bytes | None = None
        self._lock = threading.Lock()

    @property
    def is_stopped(self) -> bool:
        return self._running.stop_as is not None

    def report(self, value: bytes) -> None:
        with self._lock:
            is_under_way = self._latest is not None
            self._latest = value
        if not is_under_way:
            try:
                self._worker._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                pass  # the loop is closed

    def _deliver(self) -> None:
        with self._lock:
            value, self._latest = self._latest, None
        if value is not None:
            self._worker._progress(self._running, value)
