"""Which nodes a client knows, and which it asks next.

One node is asked for as long as it answers, so that connections are used again. One that did not answer rests, longer
each time, and is asked meanwhile only when no other is left. The addresses given by the caller stay for ever; those
that the cluster told come after them, and are forgotten when it no longer tells them.

Pure: the time is handed in. Does not know: HTTP, why a node did not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:5000"
WITHIN_S = 30.0  # a call's deadline, unless told otherwise
REST_MIN_S = 1.0
REST_MAX_S = 30.0
LEARN_INTERVAL_S = 60.0
MEMBERS_MAX = 1000
THERE = ("alive", "suspect")


class Nodes:
    """The nodes of one cluster. `start`: which of those given is asked first."""

    def __init__(self, given: Sequence[str], start: int = 0, learns: bool = True) -> None:
        if not given:
            raise ConfigError("no node is named.", "Give one URL or several, like http://127.0.0.1:5000")
        self.given = tuple(dict.fromkeys(address(url) for url in given))
        self.told: tuple[str, ...] = ()
        self.first = self.given[start % len(self.given)]
        self._learns = learns
        self._learn_at_s: float | None = None
        self._rests: dict[str, tuple[float, float]] = {}  # url -> (until when, how long)

    def known(self) -> tuple[str, ...]:
        """All of them, in the order in which they are asked."""
        return tuple(dict.fromkeys((self.first, *self.given, *self.told)))

    def pick(self, now_s: float, asked: Iterable[str] = ()) -> str | None:
        """The next to ask, other than those `asked` already; None: each was."""
        left = [url for url in self.known() if url not in asked]
        # min() keeps the first of equals, so rested nodes stay in order.
        return min(left, key=lambda url: max(now_s, self._rests.get(url, (0.0, 0.0))[0]), default=None)

    def answered(self, url: str) -> None:
        """It answered: it is the one to ask from now on."""
        self.first = url
        self._rests.pop(url, None)

    def failed(self, url: str, now_s: float) -> None:
        """It did not answer."""
        rest_s = min(REST_MAX_S, 2 * self._rests.get(url, (0.0, REST_MIN_S / 2))[1])
        self._rests[url] = (now_s + rest_s, rest_s)

    def should_learn(self, now_s: float) -> bool:
        """Whether it is time to ask who else is there. Says so once."""
        if not self._learns or (self._learn_at_s is not None and now_s < self._learn_at_s):
            return False
        self._learn_at_s = now_s + LEARN_INTERVAL_S
        return True

    def learned(self, members: Iterable[Mapping[str, Any]], teller: str) -> None:
        """Take over the members that `teller` told. The token is sent only where it is as safe as there."""
        scheme = urlsplit(teller).scheme
        urls = (str(row.get("url", "")) for row in members if row.get("state") in THERE)
        self.told = tuple(url for url in urls if urlsplit(url).scheme == scheme)[:MEMBERS_MAX]
        known = set(self.known())
        self._rests = {url: rest for url, rest in self._rests.items() if url in known}


def address(text: str) -> str:
    """A node's address in one form. Raises ConfigError for what is none."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_fine = False
    if not is_fine or parts.username is not None:
        raise ConfigError(f"url is {text!r}: not an HTTP address.", "Write it like http://127.0.0.1:5000")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def addresses(text: str) -> list[str]:
    """Several, separated by commas or spaces."""
    return text.replace(",", " ").split()


def given_nodes(urls: str | Sequence[str], rng: Random | None, learns: bool) -> Nodes:
    """The nodes of a client's arguments, else of RUMOR_URL. With `rng`, many clients begin on different ones."""
    given = addresses(urls) if isinstance(urls, str) else list(urls)
    given = given or addresses(os.environ.get("RUMOR_URL", "")) or [DEFAULT_URL]
    return Nodes(given, rng.randrange(len(given)) if rng else 0, learns)


def bearer(token: str | None) -> dict[str, str]:
    """The header that carries the API token; None: that of RUMOR_API_TOKEN."""
    token = os.environ.get("RUMOR_API_TOKEN", "") if token is None else token
    return {"Authorization": f"Bearer {token}"} if token else {}
