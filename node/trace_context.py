"""Trace context as it travels with a task: W3C headers in, one line of text that is stored, headers out.

The line is a traceparent and, if there is one, a space and the tracestate. What is malformed is as good as none (W3C
Trace Context 3.2.2.3), never an error. Does not know: spans; who makes them is `tracing`'s business.
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
STATE_MAX = 512  # characters that are passed on at least, and here at most
MEMBERS_MAX = 32
MEMBER_KEPT = 128  # longer ones go first when the state is too long

_PARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(-.*)?\Z", re.DOTALL
)
_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_\-*/]{0,255}(@[a-z][a-z0-9_\-*/]{0,13})?"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]\Z"
)


def received(headers: CIMultiDictProxy[str]) -> str | None:
    """The context that a request came with, in the form of version 00."""
    if TRACEPARENT not in headers:
        return None
    parents = headers.getall(TRACEPARENT)
    found = _PARENT.match(parents[0].strip(" \t")) if len(parents) == 1 else None
    if found is None or (found[1] == "00" and found[3]):
        return None
    state = _state(headers.getall(TRACESTATE, []))
    return f"00-{found[2]} {state}" if state else f"00-{found[2]}"


def _state(values: list[str]) -> str:
    """All of the tracestate headers as one; empty when any of it is malformed."""
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
    """Empty if there is none."""
    return context[56:]


def trace_id(context: str) -> str:
    """32 hexadecimal digits."""
    return context[3:35]


def headers_of(context: str) -> dict[str, str]:
    """The headers that carry it."""
    state = tracestate(context)
    return {TRACEPARENT: traceparent(context)} | ({TRACESTATE: state} if state else {})


def current() -> Mapping[str, str]:
    """Headers of the span that is current in this program; none where nobody imported OpenTelemetry's API."""
    if "opentelemetry.trace" not in sys.modules:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers
