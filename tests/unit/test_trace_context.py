"""Trace context in headers and in one line: what is malformed is as good as none, what is well-formed comes back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from node import trace_context

TRACE, SPAN = "0123456789abcdef0123456789abcdef", "0123456789abcdef"
GOOD = f"00-{TRACE}-{SPAN}-01"


def received(*pairs: tuple[str, str]) -> str | None:
    return trace_context.received(CIMultiDictProxy(CIMultiDict(pairs)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-",
        GOOD + "-00",
        GOOD.upper(),
        GOOD.replace("-", "_"),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-01, {GOOD}",
        f"01-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-٠١",
        "\udcff",
        "x" * 5000,
    ],
)
def test_a_malformed_traceparent_is_none(text: str) -> None:
    assert received(("traceparent", text)) is None


def test_two_of_them_are_none() -> None:
    assert received(("traceparent", GOOD), ("Traceparent", GOOD)) is None


@pytest.mark.parametrize("text", [f"cc-{TRACE}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01-what-will-be", f"  {GOOD} "])
def test_a_later_version_is_read_as_far_as_it_is_known(text: str) -> None:
    assert received(("TraceParent", text)) == GOOD


def test_a_tracestate_goes_with_it() -> None:
    line = received(("traceparent", GOOD), ("tracestate", "rojo=1 2, t61@b=x ,"), ("tracestate", "\t congo=y"))
    assert line == f"{GOOD} rojo=1 2,t61@b=x,congo=y"
    assert trace_context.traceparent(line) == GOOD
    assert trace_context.trace_id(line) == TRACE
    assert trace_context.headers_of(line) == {"traceparent": GOOD, "tracestate": "rojo=1 2,t61@b=x,congo=y"}
    assert trace_context.headers_of(GOOD) == {"traceparent": GOOD}


@pytest.mark.parametrize(
    "state", ["a", "a=", "A=1", "a=1,a=2", "=1", "a=é", "a=1,b", ",".join(f"k{n}=v" for n in range(33))]
)
def test_a_malformed_tracestate_is_left_out(state: str) -> None:
    assert received(("traceparent", GOOD), ("tracestate", state)) == GOOD


def test_a_tracestate_alone_is_nothing() -> None:
    assert received(("tracestate", "a=1")) is None


def test_a_long_tracestate_loses_its_longest_and_its_last() -> None:
    members = [f"k{n}={'v' * 90}" for n in range(7)]
    line = received(("traceparent", GOOD), ("tracestate", ",".join([f"big={'x' * 130}", *members])))
    assert line == f"{GOOD} {','.join(members[:5])}"
    assert len(trace_context.tracestate(line)) <= trace_context.STATE_MAX


@given(st.text(), st.text())
def test_no_headers_at_all_make_it_raise(parent: str, state: str) -> None:
    for first in (parent, GOOD):
        line = received(("traceparent", first), ("tracestate", state))
        assert line is None or trace_context.traceparent(line).startswith("00-")


def test_without_opentelemetry_a_client_sends_none_and_imports_none() -> None:
    code = (
        "import sys; from node import SyncClient, trace_context; "
        "print(trace_context.current(), [name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "{} []"
