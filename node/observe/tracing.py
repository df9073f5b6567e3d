"""Tracing as the rest of the node sees it: where spans begin and end, and whether there are spans at all.

`otel` makes spans if the environment names an OTLP collector (OTEL_EXPORTER_OTLP_ENDPOINT), or if the handlers' own
modules have set up OpenTelemetry. Otherwise `Off` does nothing, and nothing imports OpenTelemetry's SDK.

Nothing here may fail or hold up a task: spans can be lost, tasks cannot.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from cluster.errors import RumorError
from cluster.shards.task import Claimed, Lost, Outcome
from node.schema import Submitted

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
INSTALL = "In a checkout: .venv/bin/pip install -e '.[otel]'; in an application: pip install '/path/to/rumor[otel]'."

Stored = Sequence[Submitted | RumorError]
# Stores submissions under their keys, with a trace context, of a call that came then; `hold_s` if it waits.
Store = Callable[..., Awaitable[Stored]]
Forwarding = Callable[..., Awaitable[list[Submitted | RumorError]]]

log = structlog.get_logger("rumor.tracing")


class Tracing(Protocol):
    """Where spans begin and end. `Any` is a span, or None for an attempt that has none."""

    @property
    def is_on(self) -> bool: ...
    def sending(self, store: Store) -> Store:
        """`store` with a span around it; the tasks that it stores carry that span as their context."""
        ...

    def forwarding(self, submit: Forwarding) -> Forwarding:
        """`submit` with a span around it."""
        ...

    def receiving(self, headers: CIMultiDictProxy[str]) -> AbstractContextManager[Any]:
        """A span around a submission that a peer forwarded."""
        ...

    def shield(self, context: Context) -> None:
        """From now on code in this context belongs to no trace, until `begin` says otherwise."""
        ...

    def waited(self, claimed: Claimed, wait_s: float) -> None: ...
    def begin(self, claimed: Claimed, context: Context) -> Any:
        """Begin the span of an attempt and make it the current one in `context`."""
        ...

    def end(self, span: Any, outcome: Outcome, why: str) -> None:
        """End it; `why` is the reason for which the attempt was stopped, "" if it was not."""
        ...

    def recovered(self, session: str, lost: Sequence[Lost], since_s: float) -> None:
        """Attempts of a session are queued again; `since_s` ago this node noticed the session's end."""
        ...

    def inside(self, claimed: Claimed) -> AbstractContextManager[Any]:
        """In a child process: code in here belongs to the attempt, whose span the node makes."""
        ...

    def close(self, within_s: float) -> None:
        """Send the remaining spans, for `within_s` at most."""
        ...


class Off:
    """No spans. A task keeps the trace context that it comes with all the same."""

    is_on = False

    def sending(self, store: Store) -> Store:
        return store

    def forwarding(self, submit: Forwarding) -> Forwarding:
        return submit

    def receiving(self, headers: CIMultiDictProxy[str]) -> AbstractContextManager[Any]:
        return nullcontext()

    def shield(self, context: Context) -> None: ...

    def waited(self, claimed: Claimed, wait_s: float) -> None: ...

    def begin(self, claimed: Claimed, context: Context) -> Any: ...

    def end(self, span: Any, outcome: Outcome, why: str) -> None: ...

    def recovered(self, session: str, lost: Sequence[Lost], since_s: float) -> None: ...

    def inside(self, claimed: Claimed) -> AbstractContextManager[Any]:
        return nullcontext()

    def close(self, within_s: float) -> None: ...


OFF = Off()


def start(node_id: str, environ: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing as the environment asks for it. Call this after the import of the handlers' modules."""
    if not is_wanted(environ):
        return OFF
    try:
        from node.observe import otel
    except ImportError as error:
        log.warning("tracing_off", reason=str(error), hint=INSTALL)
        return OFF
    try:
        # A provider that a module has set up sends spans its own way, whatever protocol the variables name.
        if otel.is_set_up() or (has_endpoint(environ) and has_known_protocol(environ)):
            return otel.Otel(node_id, environ)
    except Exception as error:  # OpenTelemetry cannot read the environment, which is no reason to run no tasks
        log.warning("tracing_off", reason=f"{type(error).__name__}: {error}", hint="Check the OTEL_… variables.")
    return OFF


def has_known_protocol(environ: Mapping[str, str]) -> bool:
    """Whether spans can be sent by the protocol that the environment asks for. Logs a warning if not."""
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), PROTOCOL)
    if protocol != PROTOCOL:
        log.warning("tracing_off", reason=f"protocol is {protocol}", hint=f"Only {PROTOCOL}: usually on port 4318.")
    return protocol == PROTOCOL


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether there is a collector to send to, or a provider that a handler's module has set up."""

    def says(name: str, word: str) -> bool:
        return environ.get(name, "").strip().lower() == word

    if says("OTEL_SDK_DISABLED", "true") or says("OTEL_TRACES_EXPORTER", "none"):
        return False
    return has_endpoint(environ) or "opentelemetry.sdk.trace" in sys.modules


def has_endpoint(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "").strip() for name in ENDPOINTS)
