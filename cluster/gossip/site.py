"""For which host a request is, and whether a browser made it: what keeps web pages off the nodes of this machine.

A browser carries out what any web page says, and the author of a page can let a name of his own point at 127.0.0.1. To
the browser the node is then that page's own site. The names in the request show it: a node is asked for by an address,
by a local name, or by a name that its settings contain.

Pure: header values in, answers out. Does not know: sockets, tokens, which calls there are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site")  # headers that a page cannot keep its browser from adding
AUTHORITY = re.compile(r"(?:\[([0-9A-Za-z:.%]+)\]|([0-9A-Za-z._-]+))(?::([0-9]{0,5}))?")


def split_host(text: str) -> tuple[str, str] | None:
    """Host in lower case and port ("" if none) of a Host header; None for a text that is none."""
    match = AUTHORITY.fullmatch(text)
    if match is None:
        return None
    return (match[1] or match[2]).lower().removesuffix("."), match[3] or ""


def is_own_host(text: str, own_names: Collection[str]) -> bool:
    """Whether a Host header can be this node's: an address, a local or single-label name, or one of its own names.

    Programs may leave the header out (HTTP/1.0); browsers never do.
    """
    if not text:
        return True
    parts = split_host(text)
    if parts is None:
        return False
    name = parts[0]
    return "." not in name or name in own_names or name.endswith(".localhost") or is_address(name)


def is_address(text: str) -> bool:
    """Whether this is an IP address, and not a name, which anybody's DNS may answer."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
