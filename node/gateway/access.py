"""Who may call: whoever has the bearer token; without a token, anybody but a web page of another origin.

A node on localhost without a token trusts the programs of its machine. A browser is one of them, and it carries out
what any web page says. The node therefore believes what a browser says about a page's origin. It also refuses a request
for a host name that is not its own, because the author of a page can let a name of his own point at 127.0.0.1.

Does not know: routes, the engine.
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
OWN_SITE = frozenset(
    {"same-origin", "none"}
)  # values of Sec-Fetch-Site: from the node's own page, or typed by a person
LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"http": 80, "https": 443}
NO_HEADERS: Mapping[str, str] = {}
HOSTS_MAX = 256  # Host headers that are remembered as accepted, and sources in a policy


def caller_check(config: Config) -> Check:
    """The check for every call but the open ones; it raises Unauthorized or Forbidden."""
    return token_check(config.api_token) if config.api_token else local_check(config)


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
    if site is not None and site not in OWN_SITE:
        return True
    origin = headers.get(hdrs.ORIGIN)
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


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


def _split_origin(origin: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of an Origin header; None when no node can have that origin."""
    scheme, colon, rest = origin.partition("://")
    host, _, port = rest.rpartition(":") if ":" in rest and not rest.endswith("]") else (rest, "", "")
    if not colon or scheme not in DEFAULT_PORTS or (port and not (port.isascii() and port.isdigit() and len(port) < 6)):
        return None
    return scheme, _plain(host.strip("[]")), int(port) if port else DEFAULT_PORTS[scheme]


def _plain(host: str) -> str:
    """A host by one name: every loopback address, and localhost, is 127.0.0.1."""
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
    """Whether this is an IP address, and not a name, which anybody's DNS may answer."""
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


def _refuse(message: str) -> NoReturn:
    raise Forbidden(message, "Use the node's own page, curl or a program; or set api_token (RUMOR_API_TOKEN).")
