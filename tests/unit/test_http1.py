"""The two halves of gossip's HTTP understand each other, and no bytes at all make either raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gossip import http1


@given(st.binary(max_size=200))
def test_a_server_reads_the_post_that_a_client_writes(body: bytes) -> None:
    head, _, rest = http1.post(("10.0.0.1", 5000), "/gossip", body).partition(http1.HEAD_END)
    method, path, headers = http1.parse_request(head)
    assert (method, path, rest) == (b"POST", b"/gossip", body)
    assert http1.parse_length(headers[b"content-length"]) == len(body)
    assert headers[b"host"] == b"10.0.0.1:5000"
    assert headers[b"connection"] == b"close"


def test_a_server_reads_the_get_that_a_client_writes() -> None:
    head, _, rest = http1.get(("::1", 5000), "/gossip/watch", "Rumor-Watch", "token").partition(http1.HEAD_END)
    assert http1.parse_request(head) == (
        b"GET",
        b"/gossip/watch",
        {b"host": b"[::1]:5000", b"rumor-watch": b"token"},
    )
    assert rest == b""


@pytest.mark.parametrize(
    ("answer", "understood", "rest"),
    [
        (http1.answer(b"200 OK", b"table"), (200, 5), b"table"),
        (http1.answer(b"403 Forbidden"), (403, 0), b""),
        (http1.endless_answer(), (200, None), b""),
    ],
)
def test_a_client_reads_what_a_server_answers(answer: bytes, understood: tuple[int, int | None], rest: bytes) -> None:
    head, _, body = answer.partition(http1.HEAD_END)
    assert http1.parse_response(head + http1.HEAD_END) == understood
    assert body == rest


def test_a_head_is_method_path_and_headers() -> None:
    head = b"POST /gossip HTTP/1.1\r\nHost: a:1\r\nContent-Length:  12 \r\nX"
    assert http1.parse_request(head) == (b"POST", b"/gossip", {b"host": b"a:1", b"content-length": b"12", b"x": b""})


@given(st.binary())
def test_no_bytes_at_all_make_a_parser_raise(head: bytes) -> None:
    http1.parse_request(head)
    http1.parse_response(head)
    http1.parse_length(head)


@pytest.mark.parametrize("head", [b"", b"\r\n", b"GET /", b"GET / SMTP/1", b"GET  / HTTP/1.1", b"\x16\x03\x01 \x00"])
def test_what_is_no_request_asks_for_nothing(head: bytes) -> None:
    assert http1.parse_request(head) == (b"", b"", {})


def test_numbers_of_any_length_do_not_make_a_head_raise() -> None:
    assert http1.parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 12") == (200, 12)
    assert http1.parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000) == (200, None)
    assert http1.parse_response(b"HTTP/1.1 " + b"9" * 5000) == (0, None)


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"1 ", b"0x1", b"1_0", b"1234567890", "\u0663".encode()])
def test_what_is_no_length_is_none(text: bytes) -> None:
    assert http1.parse_length(text) is None
