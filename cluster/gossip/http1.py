"""HTTP/1.1 as gossip speaks it, on both sides, as bytes: a POST with its answer, and a GET whose answer never ends.

Nodes answer gossip at their HTTP port, so a peer's request must be one that any server takes; an agent is the smallest
server that takes these two. Strangers' bytes come in here: none of them make a parser raise, and every length has a
bound.

Pure: bytes in, bytes out. Does not know: sockets, which paths there are, what bodies hold.
"""

from __future__ import annotations

from cluster.hosts import hostport
from cluster.swim.events import Address

HEAD_MAX_BYTES = 8_192
LENGTH_DIGITS_MAX = 9  # of a Content-Length: int() takes longer the more digits it is given
HEAD_END = b"\r\n\r\n"
OCTETS = b"Content-Type: application/octet-stream\r\n"

# ---- the client's half


def post(target: Address, path: str, body: bytes) -> bytes:
    """A whole POST, after whose answer the server closes the connection."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {_host(target)}\r\nConnection: close\r\n{OCTETS.decode()}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def get(target: Address, path: str, header: str, value: str) -> bytes:
    """A GET with one header of ours."""
    return f"GET {path} HTTP/1.1\r\nHost: {_host(target)}\r\n{header}: {value}\r\n\r\n".encode()


def parse_response(head: bytes) -> tuple[int, int | None]:
    """Status and Content-Length of a response's head (None: not given, or no number); status 0 where it is none."""
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        return 0, None
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and (length := parse_length(value.strip())) is not None:
            return int(words[1]), length
    return int(words[1]), None


# ---- the server's half


def parse_request(head: bytes) -> tuple[bytes, bytes, dict[bytes, bytes]]:
    """Method, path and headers (names in lower case) of a request's head; empty where it is none."""
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return b"", b"", {}
    pairs = (line.partition(b":") for line in lines)
    return words[0], words[1], {name.strip().lower(): value.strip() for name, _, value in pairs}


def answer(status: bytes, body: bytes = b"") -> bytes:
    """A whole answer, after which the server closes the connection."""
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, OCTETS, len(body), body)


def endless_answer() -> bytes:
    """The head of an answer whose body goes on, empty, for as long as the connection lasts."""
    return b"HTTP/1.1 200 OK\r\n" + OCTETS + b"\r\n"


# ---- both


def parse_length(value: bytes) -> int | None:
    """A Content-Length. None: no number, or one of more digits than anybody would send."""
    return int(value) if value.isdigit() and len(value) <= LENGTH_DIGITS_MAX else None


def _host(target: Address) -> str:
    return hostport(*target)
