"""Who may call: whoever has the bearer token; without a token, anybody but a web page of another origin.

A node on localhost without a token trusts the programs of its machine. A browser is one of them, and it carries out
what any web page says. The node therefore believes what a browser says about a page's origin. It also refuses a request
for a host name that is not its own, because the author of a page can let a name of his own point at 127.0.0.1. The
calls of peers, which need no token, are closed to browsers in the same way.

Does not know: handlers, the engine.
"""

from __future__ import annotations

import hmac
import ipaddress
import ssl
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from cluster.config import Config
from cluster.errors import ConfigError, Forbidden, Unauthorized
from cluster.gossip.site import BROWSER_HEADERS, is_own_host, split_host
from cluster.hosts import is_loopback as is_own_machine
from cluster.view import View
from node.gateway.routes import CALLERS, PEERS

Check = Callable[[web.Request], None]
Origin = tuple[str, str, int]  # scheme, host, port

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OWN_SITE = frozenset(
    {"same-origin", "none"}
)  # values of Sec-Fetch-Site: from the node's own page, or typed by a person
LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"http": 80, "https": 443}
NO_HEADERS: Mapping[str, str] = {}
ORIGINS_MAX = 1024  # origins that are kept parsed
SHOWN_MAX = 80  # characters of a header that an error repeats
HOSTS_MAX = 256  # Host headers that are remembered as accepted, and sources in a policy


def check_for(route_is_for: str, config: Config) -> Check | None:
    """The check of a caller before any handler; it raises Unauthorized or Forbidden. None: all may call.

    Where there is a token, it alone opens what needs it, whichever page or proxy brings it.
    """
    if route_is_for == PEERS:
        return peer_check(config)
    if config.api_token:
        return token_check(config.api_token) if route_is_for == CALLERS else None
    return local_check(config)


def token_check(token: str) -> Check:
    """With a token: every call must carry it."""
    expected = f"Bearer {token}".encode()

    def check(request: web.Request) -> None:
        header = request.headers.get(hdrs.AUTHORIZATION, "")
        scheme, space, credentials = header.partition(" ")
        # Bytes, because compare_digest takes str only in ASCII; the scheme's case does not matter (RFC 9110 §11.1).
        if not hmac.compare_digest(f"{scheme.title()}{space}{credentials}".encode("utf-8", "replace"), expected):
            raise Unauthorized(
                "the API token is wrong." if header else "this call needs the API token.",
                "Send the header Authorization: Bearer TOKEN with the node's api_token.",
            )

    return check


def local_check(config: Config) -> Check:
    """Without a token: every caller is trusted except a browser that acts for somebody else's page."""
    checks_names = config.is_loopback and not config.insecure
    names = own_names(config)
    public = _split_origin(config.public_url) if config.public_url else None
    accepted: set[str] = set()

    def check(request: web.Request) -> None:
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if checks_names:
            if host not in accepted:
                _require_own_host(host, names)
                if len(accepted) < HOSTS_MAX:
                    accepted.add(host)
            if request.raw_path[:1] != "/":  # a whole URL, which counts instead of the header (RFC 9112 §3.2.2)
                _require_own_host(_authority(request.raw_path), names)
        if request.method not in SAFE_METHODS and is_cross_site(headers, request.scheme, public):
            origin = headers.get(hdrs.ORIGIN) or headers.get("Sec-Fetch-Site")
            raise Forbidden(
                f"a web page of another origin ({origin}) may not change anything here.",
                "Use the node's own page, curl or a program; behind a proxy set public_url to the origin that the "
                "browser shows; or set api_token (RUMOR_API_TOKEN).",
            )

    return check


def peer_check(config: Config) -> Check:
    """For calls of peers: no browser makes them, and peers ask for an address.

    Without a gossip key nothing is sealed; then only this machine may gossip, unless the node is told otherwise
    (`insecure`).
    """
    names = own_names(config)
    is_open = bool(config.gossip_keys or config.gossip_key_file or config.insecure)

    def check(request: web.Request) -> None:
        headers = request.headers
        if any(name in headers for name in BROWSER_HEADERS):
            raise Forbidden("a web page may not gossip.", "Only nodes call this.")
        _require_own_host(headers.get(hdrs.HOST, ""), names)
        if not is_open and not is_loopback(request):
            raise Forbidden(
                "this node has no gossip key and takes gossip from its own machine only.", "Set gossip_keys."
            )

    return check


def own_names(config: Config) -> frozenset[str]:
    """The names with dots by which the settings call this node."""
    public_host = urlsplit(config.public_url).hostname or ""
    return frozenset(name.lower().removesuffix(".") for name in (config.host, config.reachable_host, public_host))


def is_cross_site(headers: Mapping[str, str], scheme: str, public: Origin | None) -> bool:
    """Whether a browser says that a page of another origin made this request. Programs send neither header.

    `scheme` is the one that this node serves; `public` is the origin under which a proxy in front of it does.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in OWN_SITE:
        return True
    origin = headers.get(hdrs.ORIGIN)
    if origin is None:
        return False
    page = _parse_origin(origin)
    return page is None or page not in (_parse_origin(f"{scheme}://{headers.get(hdrs.HOST, '')}"), public)


def cors_headers(origin: str | None, view: View, config: Config) -> Mapping[str, str]:
    """The headers that let a page of this origin read this node's answers; none unless it is a member's page.

    A page whose node has died goes on with another node, which for a browser is another origin. Dead members therefore
    count as long as they are remembered. Such a page may only read: `local_check` refuses its changes like those of any
    other page. Without a token only members on this node's own host count, since a row proves no more than an address.
    """
    page = _split_origin(origin) if origin is not None else None
    if origin is None or page is None:
        return NO_HEADERS
    own_hosts = (_plain(config.reachable_host), _plain(urlsplit(config.public_url).hostname or ""))
    if not config.api_token and page[1] not in own_hosts:
        return NO_HEADERS
    for peer in filter(lambda peer: peer.is_vouched, view.members):
        if page in (_split_origin(peer.url), _split_origin(peer.public_url)):
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin, hdrs.VARY: hdrs.ORIGIN}
    return NO_HEADERS


def preflight_headers(cors: Mapping[str, str]) -> Mapping[str, str]:
    """The answer to a browser that asks whether its page may read; empty when it may not. `cors` is for that page."""
    if not cors:
        return NO_HEADERS
    return {
        **cors,
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Last-Event-ID",
        hdrs.ACCESS_CONTROL_MAX_AGE: "600",
    }


def policy_sources(view: View) -> list[str]:
    """Where a page may look for the other nodes, as sources of a Content-Security-Policy: their hosts, at any port.

    Any port, because a node on the same host may join after the page was loaded. A policy cannot name IPv6 addresses.
    """
    urls = [urlsplit(peer.public_url) for peer in view.members if peer.is_vouched]
    sources = {f"{url.scheme}://{url.hostname}:*": None for url in urls if ":" not in (url.hostname or "")}
    return list(sources)[:HOSTS_MAX]


@lru_cache(ORIGINS_MAX)
def _parse_origin(text: str) -> Origin | None:
    """(scheme, host, port) of an Origin header or a URL without a path; None when no node can have that origin."""
    scheme, colon, rest = text.lower().partition("://")
    parts = split_host(rest)
    if not colon or scheme not in DEFAULT_PORTS or parts is None:
        return None
    return scheme, parts[0], int(parts[1]) if parts[1] else DEFAULT_PORTS[scheme]


def _split_origin(text: str) -> Origin | None:
    """The same, with one name for all loopback addresses."""
    origin = _parse_origin(text)
    return None if origin is None else (origin[0], _plain(origin[1]), origin[2])


def _plain(host: str) -> str:
    """A host by one name: every loopback address, and localhost, is 127.0.0.1."""
    host = host.lower()
    try:
        return LOOPBACK if host == "localhost" or ipaddress.ip_address(host).is_loopback else host
    except ValueError:
        return host


def is_loopback(request: web.Request) -> bool:
    """Whether the caller is on this machine."""
    return is_own_machine(request.remote or "")


def server_tls(config: Config) -> ssl.SSLContext | None:
    """The TLS context for HTTPS, or None for HTTP. Raises ConfigError when the files cannot be used."""
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


def _authority(url: str) -> str:
    """HOST:PORT of a URL, "" if it has none."""
    return url.partition("://")[2].partition("/")[0]


def _require_own_host(host: str, names: Collection[str]) -> None:
    if not is_own_host(host, names):
        raise Forbidden(
            f"the request is for the host {host[:SHOWN_MAX]!r}, which is not this node.",
            "Ask by the node's address. For a proxy in front of it, set public_url to its origin (RUMOR_PUBLIC_URL); "
            "or set api_token.",
        )
