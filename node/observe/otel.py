"""Spans by OpenTelemetry, after its messaging conventions: send, wait, process, and recover where a node was lost.

A task carries the context of the span that sent it; everything else about the task is that span's child. The id of an
attempt's span is made of the task's id and the delivery, so that whoever must name it can, with nothing stored: a child
process whose handler's spans belong below it, the next attempt and the recovery that link to it, and the node that
tells of it in place of the one that was killed.

The only module that imports OpenTelemetry's SDK. Spans are sent by a thread of the SDK's; how many wait is bounded.
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
from node.schema import Submission, Submitted

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

# Where the environment does not say.
SEND_EVERY_MS = 1_000  # the SDK's 5 s lose more with a process that is killed
WAITING_MAX = 16_384  # spans of some 3.5 KB: room for a burst
ALL = 1 << 64  # a ratio sampler takes the traces whose id, in its lower half, is below its bound
TEXT_MAX = 300  # characters of an error's message
TOLD_BY_OTHERS = ("fenced", "gone", "lease")  # why an attempt was stopped whose span the node that reaps it makes
FAILED = (Kind.FAILED, Kind.RETRY, Kind.REJECTED)

_log = logging.getLogger("opentelemetry.rumor")  # one of those that `logs` keeps from repeating themselves

# The parent of what belongs to no trace: not sampled, by whichever sampler.
_NOBODY = with_span(NonRecordingSpan(SpanContext((1 << 128) - 1, (1 << 64) - 1, False, TraceFlags(0))), Context())


def is_set_up() -> bool:
    """Whether a handler's module, or `opentelemetry-instrument`, has set up a provider."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


class Otel:
    """Makes the spans of one node, or of one of its child processes. All but `inside` is called on the loop."""

    is_on = True

    def __init__(self, node_id: str, environ: Mapping[str, str]) -> None:
        found = trace.get_tracer_provider()
        if isinstance(found, TracerProvider):
            self._provider = found
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
            items: Sequence[Submission], keys: Sequence[str] | None, context: str | None, started_s: float
        ) -> Stored:
            # Asking the SDK costs 5 us. Of the usual sampler the answer is known beforehand, and mostly no.
            if context is None and self._ids.draw() & ALL - 1 >= self._bound:
                return await store(items, keys, None, started_s)
            span = self._start(
                _name("send", items),
                Context() if context is None else _parent(context),
                SpanKind.PRODUCER,
                {**_operation("send"), "messaging.batch.message_count": len(items)},
            )
            if not span.is_recording():
                return await store(items, keys, context, started_s)
            with _around(span):
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
        """From when it was queued. Not of what was lost or given back: that was queued before its earlier attempt."""
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
        if why in TOLD_BY_OTHERS:
            return
        span.set_attribute("rumor.task.outcome", outcome.kind.value)
        if why:
            span.set_attribute("rumor.task.stopped_by", why)
        if outcome.kind in FAILED:
            _fail_attempt(span, outcome.failure or Failure("Error", "no reason given"))
        _end(span)

    def recovered(self, session: str, lost: Sequence[Lost], since_s: float) -> None:
        """A span for each attempt that its own node cannot tell of any more, and one for what was done about it."""
        now_ns = time.time_ns()
        noticed_ns = now_ns - int(since_s * 1e9)
        where = {"rumor.lost.node_id": node_of(session), "rumor.lost.session": session}
        for one in lost:
            claimed = one.claimed
            if claimed.spec.trace is None:
                continue
            began_ns = min(now_ns - int(one.ran_s * 1e9), noticed_ns)
            attempt = self._attempt(claimed, {**_about(claimed, "process"), **where}, began_ns)
            attempt.set_attribute("rumor.task.outcome", "lost")
            _fail(attempt, "WorkerLost", f"its node {node_of(session)} was lost while it ran")
            _end(attempt, noticed_ns)
            span = self._start(
                f"recover {claimed.spec.type}",
                _parent(claimed.spec.trace),
                attributes={**_about(claimed, "recover"), **where, "rumor.task.outcome": one.outcome},
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
        """In a thread, since the SDK waits for as long as it likes for a collector that is away."""
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
        except Exception:  # of a sampler or a processor that somebody has put in
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
    """Those of the provider, unless one is given beforehand. Only the tracer of one `Otel` uses it, on the loop."""

    def __init__(self, others: IdGenerator) -> None:
        self.next_span = 0
        self._next_trace = 0
        self._others = others

    def draw(self) -> int:
        """The id that the next trace will have."""
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
    """The SDK's own, as OTEL_… variables want it; `rumor` and this node's name where they do not say."""
    # Only here: a provider of a handler's module may send in another way, and then this need not be installed.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    told = OTELResourceDetector().detect().attributes
    ours = {"service.name": "rumor", "service.version": __version__, "service.instance.id": node_id}
    provider = TracerProvider(
        resource=Resource.create({name: value for name, value in ours.items() if name not in told}),
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
    """The span id of an attempt, whoever asks."""
    return int.from_bytes(hashlib.blake2b(f"{task_id}/{delivery}".encode(), digest_size=8).digest()) or 1


def _attempt_context(claimed: Claimed, context: str, delivery: int = 0) -> SpanContext:
    sent = _span_context(context)
    span_id = attempt_id(claimed.id, delivery or claimed.delivery)
    return SpanContext(sent.trace_id, span_id, True, sent.trace_flags, sent.trace_state)


def _span_context(context: str) -> SpanContext:
    """Of a stored line; one that cannot be read gives an invalid context, which is none."""
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
    """The line to store."""
    of = span.get_span_context()
    line = f"00-{of.trace_id:032x}-{of.span_id:016x}-{of.trace_flags:02x}"
    state = of.trace_state.to_header()
    return f"{line} {state}" if state else line


def _end(span: trace.Span, at_ns: int | None = None) -> None:
    try:
        span.end(at_ns)
    except Exception:  # of a processor that somebody has put in
        _log.exception("a span was lost")


@contextmanager
def _around(span: trace.Span) -> Iterator[None]:
    """It is the current one in here, and ends with it."""
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
    """With the type, if there is one. Types are few: a node refuses those that no node knows."""
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
    told = {
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
        told["messaging.operation.type"] = operation
    return told


def _describe(span: trace.Span, results: Stored) -> None:
    """What became of what was sent; of one task also which it is."""
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
    told = {"exception.type": failure.type, "exception.message": failure.message[:TEXT_MAX]}
    if failure.traceback:
        told["exception.stacktrace"] = failure.traceback
    span.add_event("exception", told)
