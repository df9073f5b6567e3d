"""Spans by OpenTelemetry, after its messaging conventions: send, wait, process, and recover after the loss of a node.

A task carries the context of the span that sent it; every other span of the task is that span's child. The id of an
attempt's span is computed from the task's id and the delivery, so nothing needs to be stored for those who must name
it: a child process, whose handler's spans belong below it; the next attempt and the recovery, which link to it; and the
node that reports it in place of a node that was killed.

This is the only module that imports OpenTelemetry's SDK. A thread of the SDK sends the spans; a bounded number waits.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context as Variables
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace import set_span_in_context as with_span

from cluster import __version__
from cluster.errors import RumorError
from cluster.session import node_of
from cluster.shards.task import Claimed, Failure, Kind, Lost, Outcome
from node import trace_context
from node.observe.tracing import Forwarding, Store, Stored
from node.schema import IdempotencyKeys, Submission, Submitted

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

# Defaults where the environment sets none.
SEND_EVERY_MS = 1_000  # less than the SDK's 5 s, which lose more spans with a process that is killed
WAITING_MAX = 16_384  # spans of some 3.5 KB each: room for a burst

ALL = 1 << 64  # bound of a sampler that takes every trace: it takes one if the lower half of the id is below its bound
TEXT_MAX = 300  # characters of an error's message
REPORTED_BY_REAPER = ("fenced", "gone", "lease")  # reasons for which the node that reaps the task reports this span
FAILED = (Kind.FAILED, Kind.RETRY, Kind.REJECTED)

_log = logging.getLogger("opentelemetry.rumor")  # `logs` keeps this name from repeating itself

# The parent of spans that belong to no trace: no sampler takes it.
_NOBODY = with_span(NonRecordingSpan(SpanContext((1 << 128) - 1, (1 << 64) - 1, False, TraceFlags(0))), Context())


def is_set_up() -> bool:
    """Whether a handler's module, or `opentelemetry-instrument`, has set up a provider."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


class Otel:
    """Makes the spans of one node or of one of its child processes. Call all but `inside` on the loop."""

    is_on = True

    def __init__(self, node_id: str, environ: Mapping[str, str]) -> None:
        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            self._provider = provider
        else:
            self._provider = _provider(node_id, environ)
            trace.set_tracer_provider(self._provider)
        tracer = self._provider.get_tracer("rumor", __version__)
        self._ids = _Ids(self._provider.id_generator)
        tracer.id_generator = self._ids  # type: ignore[attr-defined]
        self._tracer = tracer
        root = getattr(self._provider.sampler, "_root", self._provider.sampler)
        self._bound = root.bound if type(root) is TraceIdRatioBased else ALL

    def sending(self, store: Store) -> Store:
        async def traced(
            items: Sequence[Submission],
            keys: IdempotencyKeys,
            context: str | None,
            started_s: float,
            *hold_s: float,
        ) -> Stored:
            # Asking the SDK costs 5 us. The usual sampler's answer can be computed beforehand, and it is mostly no.
            if context is None and self._ids.draw() & ALL - 1 >= self._bound:
                return await store(items, keys, None, started_s, *hold_s)
            span = self._start(
                _name("send", items),
                Context() if context is None else _parent(context),
                SpanKind.PRODUCER,
                {**_operation("send"), "messaging.batch.message_count": len(items)},
            )
            if not span.is_recording():
                return await store(items, keys, context, started_s, *hold_s)
            with _around(span):  # without hold_s: the span is that of the submission, not of the task
                results = await store(items, keys, _context_of(span), started_s)
                _describe(span, results)
                return results

        return traced

    def forwarding(self, submit: Forwarding) -> Forwarding:
        async def traced(*args: Any) -> list[Submitted | RumorError]:
            if not trace.get_current_span().is_recording():
                return await submit(*args)
            with _around(self._start("forward", None, SpanKind.CLIENT, _operation("forward", "send"))):
                return await submit(*args)

        return traced

    def receiving(self, headers: CIMultiDictProxy[str]) -> AbstractContextManager[None]:
        context = trace_context.received(headers)
        if context is None:
            return nullcontext()
        return _around(self._start("take over", _parent(context), SpanKind.SERVER, _operation("take over", "send")))

    def shield(self, context: Variables) -> None:
        context.run(attach, _NOBODY)

    def waited(self, claimed: Claimed, wait_s: float) -> None:
        """From queued to now. None for a task that was lost or given back: it was queued before an earlier attempt."""
        context = claimed.spec.trace
        if context is None or wait_s == 0 or claimed.lost or claimed.delivery != claimed.attempt:
            return
        now_ns = time.time_ns()
        span = self._start(
            f"wait {claimed.spec.type}",
            _parent(context),
            attributes=_about(claimed, "wait"),
            start_time=now_ns - int(wait_s * 1e9),
        )
        _end(span, now_ns)

    def begin(self, claimed: Claimed, context: Variables) -> trace.Span | None:
        span = self._attempt(claimed, _about(claimed, "process"))
        context.run(attach, with_span(span, Context()))
        return span if span.is_recording() else None

    def end(self, span: trace.Span, outcome: Outcome, why: str) -> None:
        if why in REPORTED_BY_REAPER:
            return
        span.set_attribute("rumor.task.outcome", outcome.kind.value)
        if why:
            span.set_attribute("rumor.task.stopped_by", why)
        if outcome.kind in FAILED:
            _fail_attempt(span, outcome.failure or Failure("Error", "no reason given"))
        _end(span)

    def recovered(self, session: str, lost: Sequence[Lost], since_s: float) -> None:
        """For each attempt whose own node can report no span any more, that span, and one of the recovery."""
        now_ns = time.time_ns()
        noticed_ns = now_ns - int(since_s * 1e9)
        where = {"rumor.lost.node_id": node_of(session), "rumor.lost.session": session}
        for loss in lost:
            claimed = loss.claimed
            if claimed.spec.trace is None:
                continue
            began_ns = min(now_ns - int(loss.ran_s * 1e9), noticed_ns)
            attempt = self._attempt(claimed, {**_about(claimed, "process"), **where}, began_ns)
            attempt.set_attribute("rumor.task.outcome", "lost")
            _fail(attempt, "WorkerLost", f"its node {node_of(session)} was lost while it ran")
            _end(attempt, noticed_ns)
            span = self._start(
                f"recover {claimed.spec.type}",
                _parent(claimed.spec.trace),
                attributes={**_about(claimed, "recover"), **where, "rumor.task.outcome": loss.outcome},
                links=[Link(attempt.get_span_context())],
                start_time=noticed_ns,
            )
            _end(span, now_ns)

    def inside(self, claimed: Claimed) -> AbstractContextManager[None]:
        context = claimed.spec.trace
        if context is None:
            return _current(_NOBODY)
        return _current(with_span(NonRecordingSpan(_attempt_context(claimed, context)), Context()))

    def close(self, within_s: float) -> None:
        """In a thread, because the SDK may wait without limit for a collector that is away."""
        closing = threading.Thread(target=self._provider.shutdown, name="rumor-spans", daemon=True)
        closing.start()
        closing.join(within_s)

    def _start(
        self,
        name: str,
        parent: Context | None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] = (),
        start_time: int | None = None,
    ) -> trace.Span:
        try:
            return self._tracer.start_span(name, parent, kind, attributes, links, start_time)
        except Exception:  # raised by a sampler or a processor that somebody has put in
            _log.exception("a span could not begin")
            return trace.INVALID_SPAN

    def _attempt(self, claimed: Claimed, attributes: dict[str, Any], began_ns: int | None = None) -> trace.Span:
        context = claimed.spec.trace or ""
        links = []
        if claimed.delivery > 1:
            links.append(Link(_attempt_context(claimed, context, claimed.delivery - 1)))
        self._ids.next_span = attempt_id(claimed.id, claimed.delivery)
        try:
            return self._start(
                f"process {claimed.spec.type}", _parent(context), SpanKind.CONSUMER, attributes, links, began_ns
            )
        finally:
            self._ids.next_span = 0


class _Ids(IdGenerator):
    """The provider's ids, unless one is set beforehand. Only the tracer of one `Otel` uses it, on the loop."""

    def __init__(self, others: IdGenerator) -> None:
        self.next_span = 0
        self._next_trace = 0
        self._others = others

    def draw(self) -> int:
        """Draw the id that the next trace will have."""
        self._next_trace = self._others.generate_trace_id()
        return self._next_trace

    def generate_span_id(self) -> int:
        return self.next_span or self._others.generate_span_id()

    def generate_trace_id(self) -> int:
        drawn, self._next_trace = self._next_trace, 0
        return drawn or self._others.generate_trace_id()

    def is_trace_id_random(self) -> bool:
        return self._others.is_trace_id_random()


def _provider(node_id: str, environ: Mapping[str, str]) -> TracerProvider:
    """A provider of the SDK as OTEL_… variables configure it; by default for the service `rumor` and this node."""
    # Imported only here: if a handler's module has its own provider, this exporter need not be installed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    configured = OTELResourceDetector().detect().attributes
    ours = {"service.name": "rumor", "service.version": __version__, "service.instance.id": node_id}
    provider = TracerProvider(
        resource=Resource.create({name: value for name, value in ours.items() if name not in configured}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            OTLPSpanExporter(),
            max_queue_size=None if environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else WAITING_MAX,
            schedule_delay_millis=None if environ.get("OTEL_BSP_SCHEDULE_DELAY") else SEND_EVERY_MS,
        )
    )
    return provider


def attempt_id(task_id: str, delivery: int) -> int:
    """The span id of an attempt, the same on every node and in every process."""
    return int.from_bytes(hashlib.blake2b(f"{task_id}/{delivery}".encode(), digest_size=8).digest()) or 1


def _attempt_context(claimed: Claimed, context: str, delivery: int = 0) -> SpanContext:
    sent = _span_context(context)
    span_id = attempt_id(claimed.id, delivery or claimed.delivery)
    return SpanContext(sent.trace_id, span_id, True, sent.trace_flags, sent.trace_state)


def _span_context(context: str) -> SpanContext:
    """The context in a stored line; an invalid one, which counts as none, if the line cannot be read."""
    try:
        _, trace_id, span_id, flags = trace_context.traceparent(context).split("-")
        state = trace_context.tracestate(context)
        return SpanContext(
            int(trace_id, 16),
            int(span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(int(flags, 16)),
            trace_state=TraceState.from_header([state]) if state else None,
        )
    except ValueError:
        return trace.INVALID_SPAN_CONTEXT


def _parent(context: str) -> Context:
    return with_span(NonRecordingSpan(_span_context(context)), Context())


def _context_of(span: trace.Span) -> str:
    """The line to store for this span."""
    context = span.get_span_context()
    line = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state.to_header()
    return f"{line} {state}" if state else line


def _end(span: trace.Span, at_ns: int | None = None) -> None:
    try:
        span.end(at_ns)
    except Exception:  # raised by a processor that somebody has put in
        _log.exception("a span was lost")


@contextmanager
def _around(span: trace.Span) -> Iterator[None]:
    """The span is the current one inside the block and ends with it."""
    try:
        with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield
    except RumorError as error:
        _fail(span, error.code, error.message)
        raise
    finally:
        _end(span)


@contextmanager
def _current(context: Context) -> Iterator[None]:
    token = attach(context)
    try:
        yield
    finally:
        detach(token)


def _name(verb: str, items: Sequence[Submission]) -> str:
    """The verb with the type, if all items have the same. Types are few: a node refuses one that no node knows."""
    first = items[0].type if items else ""
    return f"{verb} {first}" if first and all(item.type == first for item in items) else verb


def _operation(name: str, kind: str | None = None) -> dict[str, Any]:
    return {
        "messaging.system": "rumor",
        "messaging.operation.name": name,
        "messaging.operation.type": kind or name,
    }


def _about(claimed: Claimed, operation: str) -> dict[str, Any]:
    spec = claimed.spec
    attributes = {
        "messaging.system": "rumor",
        "messaging.operation.name": operation,
        "messaging.destination.name": spec.queue,
        "messaging.destination.partition.id": str(claimed.shard),
        "messaging.message.id": claimed.id,
        "rumor.task.type": spec.type,
        "rumor.task.attempt": claimed.attempt,
        "rumor.task.delivery": claimed.delivery,
    }
    if operation == "process":
        attributes["messaging.operation.type"] = operation
    return attributes


def _describe(span: trace.Span, results: Stored) -> None:
    """Add to the span what became of the submissions; for a single task also its id, queue, shard and type."""
    first = results[0] if results else None
    if len(results) == 1 and isinstance(first, RumorError):
        _fail(span, first.code, first.message)
    elif len(results) == 1 and isinstance(first, Submitted):
        task = first.task
        span.set_attributes(
            {
                "messaging.message.id": task.id,
                "messaging.destination.name": task.queue,
                "messaging.destination.partition.id": str(int(task.id[-2:], 16)),
                "rumor.task.type": task.type,
                "rumor.task.is_new": first.is_new,
            }
        )
    elif rejected := sum(isinstance(result, RumorError) for result in results):
        span.set_attribute("rumor.rejected", rejected)


def _fail(span: trace.Span, kind: str, message: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, message[:TEXT_MAX])


def _fail_attempt(span: trace.Span, failure: Failure) -> None:
    _fail(span, failure.type, failure.message)
    attributes = {"exception.type": failure.type, "exception.message": failure.message[:TEXT_MAX]}
    if failure.traceback:
        attributes["exception.stacktrace"] = failure.traceback
    span.add_event("exception", attributes)
