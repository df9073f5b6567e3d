"""Who may call: the bearer token, and, where there is none, no web page of another origin.

A node on localhost without a token trusts the programs of its machine. A browser is one of them and carries out what
any web page says, so what a browser says about a page's origin is believed, and a name that is not this node's (a page
that had its own name point at 127.0.0.1) is refused. Does not know: routes, the engine.
"""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from typing import NoReturn
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from cluster.config import Config
from cluster.errors import ConfigError, Forbidden, Unauthorized
from cluster.view import View

Check = Callable[[web.Request], None]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FETCHED_BY_ITSELF = frozenset({"same-origin", "none"})  # Sec-Fetch-Site: its own page, or typed by a person
LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"http": 80, "https": 443}
NOBODY: Mapping[str, str] = {}
HOSTS_MAX = 256  # accepted Host headers remembered


def guard(config: Config) -> Check:
    """The check for every call but the open ones; it raises Unauthorized or Forbidden."""
    return bearer(config.api_token) if config.api_token else local(config)


def bearer(token: str) -> Check:
    """Every call carries the token."""
    expected = f"Bearer {token}".encode()

    def check(request: web.Request) -> None:
        given = request.headers.get(hdrs.AUTHORIZATION, "")
        scheme, space, credentials = given.partition(" ")
        # Bytes, as compare_digest refuses str that is not ASCII; the scheme's case does not matter (RFC 9110 §11.1).
        if not hmac.compare_digest(f"{scheme.title()}{space}{credentials}".encode("utf-8", "replace"), expected):
            raise Unauthorized(
                "the API token is wrong." if given else "this call needs the API token.",
                "Send the header Authorization: Bearer TOKEN with the node's api_token.",
            )

    return check


def local(config: Config) -> Check:
    """No token: the caller is trusted, unless it is a browser acting for somebody else's page."""
    checks_names = config.is_loopback and not config.insecure
    own_names = {config.host.lower(), config.reachable_host.lower(), urlsplit(config.public_url).hostname or ""}
    accepted: set[str] = set()

    def check(request: web.Request) -> None:
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if checks_names and host not in accepted:
            if not is_own_host(host, own_names):
                _refuse(f"the request is for the host {host!r}, which is not this node.")
            if len(accepted) < HOSTS_MAX:
                accepted.add(host)
        if request.method not in SAFE_METHODS and is_cross_site(headers, host):
            origin = headers.get(hdrs.ORIGIN) or headers.get("Sec-Fetch-Site")
            _refuse(f"a web page of another origin ({origin}) may not change anything here.")

    return check


def is_cross_site(headers: Mapping[str, str], host: str) -> bool:
    """Whether a browser says that a page of another origin made this request. Programs send neither header."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in FETCHED_BY_ITSELF:
        return True
    origin = headers.get(hdrs.ORIGIN)
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def neighbourly(origin: str | None, view: View, config: Config) -> Mapping[str, str]:
    """The headers that let a page of this origin read what this node answers: none unless it is the page of a member.

    A page whose node has died goes on with another one, which for a browser is another origin. So members that are dead
    count as long as they are remembered. Such a page may read and nothing more: `local` refuses its changes as those of
    any other page. Without a token only members on this node's own host count, as a row proves no more than an address.
    """
    asked = _split_origin(origin) if origin is not None else None
    if origin is None or asked is None:
        return NOBODY
    own_hosts = (_plain(config.reachable_host), _plain(urlsplit(config.public_url).hostname or ""))
    if not config.api_token and asked[1] not in own_hosts:
        return NOBODY
    for peer in view.members:
        if asked in (_split_origin(peer.url), _split_origin(peer.public_url)):
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, hdrs.VARY: hdrs.ORIGIN}
    return NOBODY


def preflight(leave: Mapping[str, str]) -> Mapping[str, str]:
    """The answer to a browser that asks whether its page may read; empty when it may not."""
    if not leave:
        return NOBODY
    return {
        **leave,
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Last-Event-ID",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }


def origins(view: View) -> list[str]:
    """Where a page may look for the other nodes, as sources of a Content-Security-Policy: their hosts, any port.

    Any port, as a node that joins later is not known yet. IPv6 has no place in a policy.
    """
    places = [urlsplit(peer.public_url) for peer in view.members]
    hosts = {f"{place.scheme}://{place.hostname}:*": None for place in places if ":" not in (place.hostname or "")}
    return list(hosts)[:HOSTS_MAX]


def _split_origin(origin: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an Origin header; None when it cannot be a node's."""
    scheme, colon, rest = origin.partition("://")
    host, _, port = rest.rpartition(":") if ":" in rest and not rest.endswith("]") else (rest, "", "")
    if not colon or scheme not in DEFAULT_PORTS or (port and not (port.isascii() and port.isdigit() and len(port) < 6)):
        return None
    return scheme, _plain(host.strip("[]")), int(port) if port else DEFAULT_PORTS[scheme]


def _plain(host: str) -> str:
    """A host by one name: all names of this machine's loopback are this machine."""
    host = host.lower()
    try:
        return LOOPBACK if host == "localhost" or ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return host


def is_own_host(host: str, own_names: set[str]) -> bool:
    """Whether a Host header can be this node's: an address, a local or single-label name, or a configured one."""
    name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    name = name.lower()
    if not name or "." not in name or name in own_names or name.endswith(".localhost"):
        return True
    return is_address(name)


def is_address(text: str) -> bool:
    """Whether this is an IP address, not a name that somebody's DNS answers for."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(request: web.Request) -> bool:
    """Whether the caller is on this machine."""
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def server_tls(config: Config) -> ssl.SSLContext | None:
    """What HTTPS is served with, or None for HTTP. Raises ConfigError when the files cannot be used."""
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls_cert {config.tls_cert} with tls_key {config.tls_key} cannot be used: {error}.",
            "Give a PEM certificate chain and its unencrypted key, readable by this user.",
        ) from None
    return context


def _refuse(message: str) -> NoReturn:
    raise Forbidden(message, "Use the node's own page, curl or a program; or set api_token (RUMOR_API_TOKEN).")
