"""The one reading of a Redis URL: every place that takes one comes here, and all refuse the same in the same words.

A URL may hold a password, and a reserved character in a password moves the borders between the URL's parts: behind a
raw `/`, the rest of a password looks like a database. So an error quotes a part only where no password can reach it.

Pure. Does not know: how a connection is made (see `redis_client`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from cluster.errors import ConfigError

EXAMPLE = "redis://127.0.0.1:6379/0"
TLS_OF = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}  # scheme of a TCP address -> whether by TLS
UNIX = "unix"
PORT, PORT_MAX = 6379, 65_535
DB_MAX = 2_147_483_647  # a server has 16 unless its configuration says otherwise; it tells by itself
QUOTES = "'\"`"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,19})://")
_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([^\s\[\]:%]+))(?::([0-9]{1,20}))?")
_PLAIN_NAME = re.compile(r"[\w.-]+", re.ASCII)
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is and how a node signs in there. `path`: of a Unix socket, "" for TCP."""

    host: str
    port: int
    path: str
    db: int
    username: str
    password: str = field(repr=False)
    is_tls: bool
    options: Mapping[str, Any] = field(repr=False)  # further arguments of a connection, checked

    def arguments(self) -> dict[str, Any]:
        """The arguments of a redis-py connection to this address."""
        place: dict[str, Any] = {"path": self.path} if self.path else {"host": self.host, "port": self.port}
        secrets = {"username": self.username or None, "password": self.password or None}
        return {**place, "db": self.db, **secrets, **self.options}

    def shown(self) -> str:
        """The address for people: without a password, or anything that may be one."""
        name = f"{self.username}@" if self.password and _PLAIN_NAME.fullmatch(self.username) else ""
        if self.path:
            return f"unix://{name}{self.path}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.is_tls else 'redis'}://{name}{host}:{self.port}/{self.db}"


def parse(url: str) -> RedisAddress:
    """The address in a URL. Raises ConfigError, which never quotes a piece of a password."""
    text = url.strip()
    scheme = _scheme(text)
    authority, path, query = _parts(text.partition("://")[2])
    userinfo, _, place = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    host, port = ("", 0) if scheme == UNIX else _host_and_port(place)  # before anything that quotes what follows it
    options = _options(query, scheme)
    username = options.pop("username", "") or unquote(username)
    password = options.pop("password", "") or unquote(password)
    if scheme == UNIX:
        if place or not path.strip("/"):
            hint = "Write it like unix:///run/redis/redis.sock?db=0, with three slashes."
            raise _wrong("names no absolute path", hint)
        return RedisAddress("", 0, unquote(path), _db("", options), username, password, False, options)
    return RedisAddress(host, port, "", _db(path, options), username, password, TLS_OF[scheme], options)


def shown(url: str) -> str:
    """The URL for people, without a password; "" if it is none."""
    try:
        return parse(url).shown()
    except ConfigError:
        return ""


def _wrong(what: str, hint: str = f"Write it like {EXAMPLE}") -> ConfigError:
    return ConfigError(f"redis_url {what}.", hint)


def _scheme(text: str) -> str:
    if not text:
        raise _wrong("is empty")
    if text[0] in QUOTES or text[-1] in QUOTES:
        raise _wrong("has quotes around it", "Remove them: in a file of variables, quotes are part of the value.")
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise _wrong("has white space in it", "Remove it; in a password, write a blank as %20.")
    match = _SCHEME.match(text)
    if match is None:
        raise _wrong("does not begin with redis://, rediss:// (TLS) or unix://")
    scheme = match[1].lower()
    if scheme != UNIX and scheme not in TLS_OF:
        raise _wrong(
            f"begins with {match[0]!r}, which is none of redis://, rediss:// (TLS) and unix://",
            f"Write it like {EXAMPLE}. A node knows one server: let the address follow the primary.",
        )
    return scheme


def _parts(rest: str) -> tuple[str, str, str]:
    """User and host, path, query."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail:
        raise _wrong(
            "has an '@' behind a '/', '?' or '#'",
            "In the user's name and the password, write '/' as %2F, '?' as %3F, '#' as %23; elsewhere, '@' as %40.",
        )
    if "#" in tail:
        raise _wrong("has a '#' in it", "Remove it; in a password, write it as %23.")
    path, _, query = tail.partition("?")
    return authority, path, query


def _host_and_port(place: str) -> tuple[str, int]:
    if not place or (place.startswith(":") and "::" not in place):
        raise _wrong("names no host", f"Write it like {EXAMPLE}; a variable in it may be empty.")
    match = _HOST_AND_PORT.fullmatch(place)
    if match is None:
        raise _wrong(
            "is not HOST or HOST:PORT where its host should be",
            f"Write it like {EXAMPLE}, and an IPv6 address in brackets: redis://[::1]:6379/0",
        )
    port = int(match[3]) if match[3] else PORT
    if not 1 <= port <= PORT_MAX:
        named = f"{port}" if port < 1_000_000 else "too large"  # a longer one may be a password whose '@' is missing
        raise _wrong(f"has a port that is {named}: a port is 1 to {PORT_MAX}")
    return match[1] or match[2], port


def _db(path: str, options: dict[str, Any]) -> int:
    """The number of the database, from the path or from `?db=`."""
    named: str | None = path.removeprefix("/").removesuffix("/") or None
    asked: str | None = options.pop("db", None)
    if named is not None and asked is not None and named != asked:
        raise _wrong(f"names two databases, {named!r} and {asked!r}", "Name one.")
    text = named if named is not None else asked
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= DB_MAX):
        raise _wrong(f"names the database {text!r}: a database is a number", f"Write it like {EXAMPLE}")
    return int(text)


def _options(query: str, scheme: str) -> dict[str, Any]:
    """The parameters behind `?`."""
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise _wrong(f"has the parameter {name!r} twice", "Give it once.")
        reading = PARAMETERS.get(name)
        if reading is None:
            hint = f"Known are {', '.join(PARAMETERS)}. Time limits are settings of the node."
            raise _wrong(f"has an unknown parameter {name!r}", hint)
        if name.startswith("ssl_") and not TLS_OF.get(scheme):
            raise _wrong(f"has the parameter {name!r} without TLS", "Begin it with rediss://")
        try:
            options[name] = reading(text)
        except ValueError as error:
            raise _wrong(f"has the parameter {name!r}, which is not {error}", "Correct it or leave it out.") from None
    return options


def _text(text: str) -> str:
    if not text:
        raise ValueError("to be empty")
    return text


def _bool(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError("true or false")
    return text.lower() in _YES


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return read


def _tls_version(text: str) -> int:
    versions = {"1.2": 771, "771": 771, "1.3": 772, "772": 772}
    if text not in versions:
        raise ValueError("1.2 or 1.3")
    return versions[text]


PARAMETERS: dict[str, Callable[[str], Any]] = {
    "db": str,
    "username": _text,
    "password": _text,
    "client_name": _text,
    "ssl_ca_certs": _text,
    "ssl_ca_path": _text,
    "ssl_ca_data": _text,
    "ssl_certfile": _text,
    "ssl_keyfile": _text,
    "ssl_password": _text,
    "ssl_cert_reqs": _one_of("required", "optional", "none"),
    "ssl_check_hostname": _bool,
    "ssl_min_version": _tls_version,
    "ssl_ciphers": _text,
}
FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")  # parameters that name a file or folder
