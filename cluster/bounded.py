"""A dict that forgets its oldest entry rather than grow beyond a bound. Pure."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """At most `most` entries, in the order in which they came in. Put them in by `bounded[key] = value` alone.

    A new value for a key keeps the key's place in that order; pop the key first if its use is to count.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self.most:
            del self[next(iter(self))]
