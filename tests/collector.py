"""An OTLP collector of the tests' own: takes what exporters send over HTTP, and shows it as a tree."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Proto


@dataclass(frozen=True)
class Seen:
    """One span as it arrived."""

    name: str
    kind: str  # INTERNAL, PRODUCER, …
    trace_id: str
    id: str
    parent: str
    links: tuple[str, ...]
    is_error: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]
    resource: dict[str, Any]
    began_ns: int
    ended_ns: int


class Collector:
    """`status`: what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.seen: list[Seen] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.seen += list(spans_of(body))
                self.send_response(outer.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace_id: str) -> list[Seen]:
        """The spans of one trace so far, oldest first."""
        return sorted((span for span in list(self.seen) if span.trace_id == trace_id), key=lambda span: span.began_ns)

    def tree(self, trace_id: str) -> str:
        """One trace as indented names: `*` failed, `->` links to an attempt. Spans without a known parent are roots."""
        spans = self.of(trace_id)
        ids = {span.id for span in spans}
        deliveries = {span.id: span.attributes.get("rumor.task.delivery") for span in spans}

        def lines(parent: str | None, depth: int) -> Iterator[str]:
            for span in spans:
                if span.parent == parent or (parent is None and span.parent not in ids):
                    links = "".join(f" -> {deliveries.get(link, '?')}" for link in span.links)
                    yield f"{'  ' * depth}{span.name}{' *' if span.is_error else ''}{links}"
                    yield from lines(span.id, depth + 1)

        return "\n".join(lines(None, 0))


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def spans_of(body: bytes) -> Iterator[Seen]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _plain(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Seen(
                    name=span.name,
                    kind=Proto.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    trace_id=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    links=tuple(link.span_id.hex() for link in span.links),
                    is_error=span.status.code == 2,
                    attributes=_plain(span.attributes),
                    events=tuple(event.name for event in span.events),
                    resource=resource,
                    began_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                )


def _plain(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}
