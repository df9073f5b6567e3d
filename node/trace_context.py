"""Trace context as it travels with a task: W3C headers in, one stored line of text, headers out.

The line is a traceparent and, if there is one, a space and the tracestate. A malformed context counts as none (W3C
Trace Context 3.2.2.3) and is never an error.

Does not know: spans, which `tracing` makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
STATE_MAX = 512  # characters: the standard's least that is passed on, and the most here
MEMBERS_MAX = 32
MEMBER_KEPT = 128  # characters; longer members go first when the state is too long

_PARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?\Z", re.DOTALL
)
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_\-*/]{0,255}(@[a-z][a-z0-9_\-*/]{0,13})?"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]\Z"
)


def received(headers: CIMultiDictProxy[str]) -> str | None:
    """The context of a request, in the form of version 00."""
    if TRACEPARENT not in headers:
        return None
    parents = headers.getall(TRACEPARENT)
    match = _PARENT.match(parents[0].strip(" \t")) if len(parents) == 1 else None
    if match is None or (match[1] == "00" and match[3]):
        return None
    state = _state(headers.getall(TRACESTATE, []))
    return f"00-{match[2]} {state}" if state else f"00-{match[2]}"


def _state(values: list[str]) -> str:
    """All tracestate headers as one; empty if any part is malformed."""
    members = [part for value in values for piece in value.split(",") if (part := piece.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > MEMBERS_MAX or len(keys) < len(members) or not all(map(_MEMBER.match, members)):
        return ""
    if len(",".join(members)) > STATE_MAX:
        members = [member for member in members if len(member) <= MEMBER_KEPT]
    while len(text := ",".join(members)) > STATE_MAX:
        members.pop()
    return text


def traceparent(context: str) -> str:
    return context[:55]


def tracestate(context: str) -> str:
    """The tracestate; empty if there is none."""
    return context[56:]


def trace_id(context: str) -> str:
    """32 hexadecimal digits."""
    return context[3:35]


def headers_of(context: str) -> dict[str, str]:
    """The headers that carry this context."""
    state = tracestate(context)
    return {TRACEPARENT: traceparent(context)} | ({TRACESTATE: state} if state else {})


def current() -> Mapping[str, str]:
    """The headers of this program's current span; none where nothing has imported OpenTelemetry's API."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
