"""Which nodes a client knows, and which it asks next.

Pure: the time is handed in.

A client asks the same node for as long as it answers, so that connections are used again. A node that did not answer
rests, longer each time; meanwhile it is asked only when no other is left. The addresses that the caller gave stay
forever. Those learned from the cluster come after them, and go when the cluster no longer names them.

Does not know: HTTP, why a node did not answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ConfigError
from cluster.header_text import unfit

DEFAULT_URL = "http://127.0.0.1:5000"
WITHIN_S = 30.0  # the deadline of a call that is given none of its own
REST_MIN_S = 1.0
REST_MAX_S = 30.0
LEARN_INTERVAL_S = 60.0
MEMBERS_MAX = 1000
THERE = ("alive", "suspect")  # states of members that may answer


class Nodes:
    """The nodes of one cluster. `start`: the place of the one to ask first among those given."""

    def __init__(self, given: Sequence[str], start: int = 0, learns: bool = True) -> None:
        if not given:
            raise ConfigError("no node is named.", "Give one URL or several, like http://127.0.0.1:5000")
        self.given = tuple(dict.fromkeys(address(url) for url in given))
        self.learned_urls: tuple[str, ...] = ()
        self.first = self.given[start % len(self.given)]
        self._learns = learns
        self._learn_at_s: float | None = None
        self._rests: dict[str, tuple[float, float]] = {}  # url -> (until when, how long)

    def known(self) -> tuple[str, ...]:
        """All of them, in the order in which the client asks."""
        return tuple(dict.fromkeys((self.first, *self.given, *self.learned_urls)))

    def pick(self, now_s: float, asked: Iterable[str] = ()) -> str | None:
        """The next node to ask, other than those `asked` already; None when no other is left."""
        others = [url for url in self.known() if url not in asked]
        # min() keeps the first of equals, so rested nodes stay in order.
        return min(others, key=lambda url: max(now_s, self._rests.get(url, (0.0, 0.0))[0]), default=None)

    def answered(self, url: str) -> None:
        """This node answered: ask it first from now on."""
        self.first = url
        self._rests.pop(url, None)

    def failed(self, url: str, now_s: float) -> None:
        """This node did not answer: let it rest."""
        rest_s = min(REST_MAX_S, 2 * self._rests.get(url, (0.0, REST_MIN_S / 2))[1])
        self._rests[url] = (now_s + rest_s, rest_s)

    def should_learn(self, now_s: float) -> bool:
        """Whether it is time to ask which other nodes there are. True once for each time."""
        if not self._learns or (self._learn_at_s is not None and now_s < self._learn_at_s):
            return False
        self._learn_at_s = now_s + LEARN_INTERVAL_S
        return True

    def learned(self, members: Iterable[Mapping[str, Any]], source: str) -> None:
        """Take over the members that `source` names. Only those of its scheme: the token stays as safe as there."""
        scheme = urlsplit(source).scheme
        urls = (str(member.get("url", "")) for member in members if member.get("state") in THERE)
        self.learned_urls = tuple(url for url in urls if urlsplit(url).scheme == scheme)[:MEMBERS_MAX]
        known = set(self.known())
        self._rests = {url: rest for url, rest in list(self._rests.items()) if url in known}


def address(text: str) -> str:
    """A node's address in one form. Raises ConfigError for a text that is no HTTP address."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_fine = False
    if not is_fine or parts.username is not None:
        raise ConfigError(
            f"url is {text!r}: not an HTTP address.", "Write it like http://127.0.0.1:5000 or http://[::1]:5000"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def addresses(text: str) -> list[str]:
    """Several addresses, separated by commas or spaces."""
    return text.replace(",", " ").split()


def nodes_from(urls: str | Sequence[str], rng: Random | None, learns: bool) -> Nodes:
    """The nodes of a client's argument, else of RUMOR_URL. With `rng`, many clients begin on different ones."""
    given = addresses(urls) if isinstance(urls, str) else list(urls)
    given = given or addresses(os.environ.get("RUMOR_URL", "")) or [DEFAULT_URL]
    return Nodes(given, rng.randrange(len(given)) if rng else 0, learns)


def bearer(token: str | None) -> dict[str, str]:
    """The header that carries the API token; without one, the token of RUMOR_API_TOKEN. Raises ConfigError."""
    token = os.environ.get("RUMOR_API_TOKEN", "") if token is None else token
    if token and (obstacle := unfit(token)) is not None:
        raise ConfigError(f"the API token cannot be sent: {obstacle}.", "Give it as it stands in the node's api_token.")
    return {"Authorization": f"Bearer {token}"} if token else {}
