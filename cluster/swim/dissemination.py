"""Dissemination: which news rides in the next datagram, and when it has been told often enough.

News rides in datagrams that leave anyway: the least told first, each piece at most `retransmit_limit` times (SWIM
§4.1). A newer claim about a member replaces the older news of it. Suspicions by different accusers stand side by side,
because each is a confirmation. News grows old: a member that has not heard it by then sees that the tables differ, and
asks.

Does not know: who receives a datagram, what a row means beyond its state.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from cluster.session import node_of
from cluster.swim.events import Evidence, MemberState
from cluster.swim.suspicion import CONFIRMATIONS
from cluster.swim.wire import Row, encode_row

RETRANSMIT_MULT = 6  # memberlist uses 4; its price was refutations that lost the race against a suspicion
NEWS_S = 10.0  # age at which news is no longer told
DEATH_NEWS_S = 1.0  # age for a death that can be refuted: told after a cut healed, it would pass for a fresh one
LOAD_RELAYS = 3  # times that a node passes on one load of another member


def retransmit_limit(live: int) -> int:
    """How often one node sends one piece of news in a cluster of `live` members."""
    return RETRANSMIT_MULT * math.ceil(math.log10(live + 1))


@dataclass(slots=True)
class Item:
    """One piece of news and how often this node has sent it."""

    data: bytes
    old_s: float = math.inf  # the time from which it is no longer news
    sent: int = 0


class News:
    """The news that is still to be told: at most a few rows for each member."""

    def __init__(self) -> None:
        self._items: dict[str, dict[str, Item]] = {}  # node_id -> accuser ("" unless a suspicion) -> row

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, row: Row, now_s: float) -> None:
        """Tell this row from now on, in place of the news that it supersedes."""
        node_id = node_of(row.session)
        is_final = row.state is not MemberState.DEAD or row.evidence in (Evidence.FENCED, Evidence.SUPERSEDED)
        item = Item(encode_row(row), now_s + (NEWS_S if is_final else DEATH_NEWS_S))
        if row.state is not MemberState.SUSPECT:
            self._items.pop(node_id, None)
            self._items[node_id] = {"": item}
            return
        about = self._items.setdefault(node_id, {})
        about.pop("", None)
        if len(about) <= CONFIRMATIONS or row.by in about:
            about[row.by] = item

    def clear(self) -> None:
        """Tell nothing any more."""
        self._items.clear()

    def drop_old(self, now_s: float) -> None:
        """Drop what is no longer news."""
        for node_id, about in list(self._items.items()):
            kept = {by: item for by, item in about.items() if item.old_s > now_s}
            if not kept:
                del self._items[node_id]
            elif len(kept) < len(about):
                self._items[node_id] = kept

    def take(self, room_bytes: int, limit: int, besides: Collection[bytes] = ()) -> list[bytes]:
        """Rows for one datagram that already carries `besides`: the least sent first. Counts both as sent."""
        if not self._items:
            return []
        taken: list[bytes] = []
        queue = [(item.sent, node_id, by) for node_id, about in self._items.items() for by, item in about.items()]
        queue.sort(key=lambda entry: entry[0])  # stable: the oldest first among equals
        for _, node_id, by in queue:
            item = self._items[node_id][by]
            if item.data not in besides:
                if len(item.data) > room_bytes:
                    continue
                room_bytes -= len(item.data)
                taken.append(item.data)
            item.sent += 1
            if item.sent >= limit:
                del self._items[node_id][by]
                if not self._items[node_id]:
                    del self._items[node_id]
        return taken


class Loads:
    """Loads of other members to pass on: the freshest first, each a few times."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}  # by session, in order of arrival

    def add(self, session: str, data: bytes) -> None:
        """Pass on this newer load of that session; `data` is its encoded row."""
        self._items.pop(session, None)
        self._items[session] = Item(data)

    def drop(self, session: str) -> None:
        """Pass on no load of that session: it ended."""
        self._items.pop(session, None)

    def take(self, room_bytes: int) -> list[bytes]:
        """Loads for the room that a datagram has left."""
        taken: list[bytes] = []
        for session in reversed(list(self._items)):
            item = self._items[session]
            if len(item.data) > room_bytes:
                break
            room_bytes -= len(item.data)
            taken.append(item.data)
            item.sent += 1
            if item.sent >= LOAD_RELAYS:
                del self._items[session]
        return taken
