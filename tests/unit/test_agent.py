"""The agent's pure leaves: what a change is called on stdout, and what an HTTP head asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gossip.agent import events, parse_request
from cluster.swim.events import MemberState

ALIVE, LEAVING, SUSPECT, DEAD, LEFT = MemberState


@pytest.mark.parametrize(
    ("was", "state", "told"),
    [
        (None, ALIVE, ["join"]),
        (None, LEAVING, ["join"]),
        (None, SUSPECT, ["join", "suspect"]),
        (None, DEAD, []),
        (None, LEFT, []),
        (ALIVE, ALIVE, []),
        (ALIVE, LEAVING, []),
        (ALIVE, SUSPECT, ["suspect"]),
        (ALIVE, DEAD, ["dead"]),
        (ALIVE, LEFT, ["left"]),
        (SUSPECT, SUSPECT, []),
        (SUSPECT, ALIVE, ["alive"]),
        (SUSPECT, LEAVING, ["alive"]),
        (SUSPECT, DEAD, ["dead"]),
        (SUSPECT, LEFT, ["left"]),
        (LEAVING, SUSPECT, ["suspect"]),
        (LEAVING, DEAD, ["dead"]),
        (LEAVING, LEFT, ["left"]),
        (DEAD, DEAD, []),
        (DEAD, ALIVE, ["join"]),
        (DEAD, SUSPECT, ["join", "suspect"]),
        (LEFT, ALIVE, ["join"]),
        (LEFT, LEFT, []),
    ],
)
def test_each_change_has_its_lines(was: MemberState | None, state: MemberState, told: list[str]) -> None:
    assert events(state, was) == told


def test_a_head_is_method_path_and_headers() -> None:
    head = b"POST /gossip HTTP/1.1\r\nHost: a:1\r\nContent-Length:  12 \r\nX"
    assert parse_request(head) == (b"POST", b"/gossip", {b"host": b"a:1", b"content-length": b"12", b"x": b""})


@given(st.binary())
def test_no_bytes_at_all_make_the_parser_raise(head: bytes) -> None:
    parse_request(head)


@pytest.mark.parametrize("head", [b"", b"\r\n", b"GET /", b"GET / SMTP/1", b"GET  / HTTP/1.1", b"\x16\x03\x01 \x00"])
def test_what_is_no_request_asks_for_nothing(head: bytes) -> None:
    assert parse_request(head) == (b"", b"", {})
