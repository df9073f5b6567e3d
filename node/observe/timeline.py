"""The timeline: what happened in the cluster, as this node saw it or was told, and who listens to it.

Everything is bounded: the events that are kept, the listeners, and what waits for each of them. One that does not keep
up is dropped and told so; nobody waits for it. An event's `id` is the life of the node that saw it and a number, so one
that is heard again (on the channel, from the list in Redis) is kept once. Events are ordered by the clock of whoever
saw them; such clocks are shown to people side by side, and nothing is decided by them.

Does not know: HTTP, Redis.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from cluster.errors import TooManyListeners

Event = dict[str, Any]

EVENTS_MAX = 500
EVENT_MAX_BYTES = 2_048  # of one that another node tells
LISTENERS_MAX = 64
WAITING_MAX = 256  # frames that may wait for one listener
DROPPED = b": dropped: this client reads more slowly than things happen. Connect again with Last-Event-ID.\n\n"

NAMES = {  # kind -> the name that its event has on the wire
    **dict.fromkeys(
        (
            *(f"member_{state}" for state in ("joined", "alive", "leaving", "suspect", "dead", "left")),
            *("node_started", "node_draining", "main_stalled", "main_recovered"),
            *("connection_ended", "connection_refused"),
        ),
        "member",
    ),
    **dict.fromkeys(("leader_elected", "leader_lost"), "leader"),
    "shards_moved": "shards",
    **dict.fromkeys(("session_fenced", "session_renewed", "session_reaped"), "fence"),
}
OF_ONESELF = {"node_started", "node_draining", "main_stalled", "main_recovered", "leader_elected", "session_renewed"}

_encode = msgspec.json.Encoder().encode


def is_first_hand(event: Event, me: str) -> bool:
    """Whether this node is who did or saw it: it tells the cluster. What each node finds by itself is not told."""
    if event["kind"] == "shards_moved":
        return False
    return event.get("by") == me or (event["kind"] in OF_ONESELF and event["node_id"] == me)


def frame(name: str, data: Any, event_id: str = "") -> bytes:
    """One server-sent event. JSON has no line break, so its data is one line."""
    head = f"id: {event_id}\nevent: {name}\ndata: " if event_id else f"event: {name}\ndata: "
    return head.encode() + _encode(data) + b"\n\n"


class Listener:
    """What waits for one client."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self._frames: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self.is_dropped = False
        if first:
            self._ready.set()

    def put(self, one: bytes) -> None:
        """Hand on, or drop the listener."""
        if len(self._frames) >= WAITING_MAX:
            self._frames.clear()
            self.is_dropped = True
        if not self.is_dropped:
            self._frames.append(one)
        self._ready.set()

    async def next(self, limit_s: float) -> bytes:
        """All that waits, as soon as there is something; b"" when nothing came in time. After DROPPED there is none."""
        try:
            async with asyncio.timeout(limit_s):
                await self._ready.wait()
        except TimeoutError:
            return b""
        self._ready.clear()
        if self.is_dropped:
            return DROPPED
        found = self._first + b"".join(self._frames)
        self._first = b""
        self._frames.clear()
        return found


class Timeline:
    """One node's."""

    def __init__(self, me: str, life: str) -> None:
        self._me = me
        self._life = life
        self._seen = 0  # own events so far
        self._nr = 0  # places in the stream so far
        self._events: list[tuple[int, int, Event, bytes]] = []  # by time: (at_ms, place in the stream, event, frame)
        self._known: dict[str, None] = {}
        self._listeners: set[Listener] = set()

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    def own(self, limit: int = EVENTS_MAX) -> list[Event]:
        """The latest that this node saw itself, oldest first."""
        mine = f"{self._life}-"  # not those of an earlier life, which stand in the cluster's list
        found = [event for _, _, event, _ in self._events if event["id"].startswith(mine)]
        return found[max(0, len(found) - limit) :] if limit > 0 else []

    def add(self, event: Event) -> Event:
        """What this node saw; as it is kept, with its id."""
        self._seen += 1
        kept = {**event, "seen_by": self._me, "id": f"{self._life}-{self._seen}"}
        self._keep(kept)
        return kept

    def merge(self, events: Iterable[Any]) -> None:
        """What other nodes told. What is known already, or has another form, is passed over."""
        for event in events:
            if _is_event(event) and event["id"] not in self._known:
                self._keep(event)

    def say(self, name: str, data: Any) -> None:
        """To whoever listens now; not kept."""
        self._tell(frame(name, data))

    @contextmanager
    def listen(self, after: str | None) -> Iterator[Listener]:
        """Everything after the event of that id of this node's stream, or all that is kept, and then what comes."""
        if len(self._listeners) >= LISTENERS_MAX:
            raise TooManyListeners(
                f"{LISTENERS_MAX} clients listen to this node already.", "Listen to another node, or close one."
            )
        place = self._place(after or "")
        listener = Listener(b"".join(one for _, nr, _, one in self._events if nr > place))
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def _place(self, event_id: str) -> int:
        life, _, nr = event_id.rpartition(".")
        return int(nr) if life == self._life and nr.isascii() and nr.isdigit() and len(nr) < 20 else 0

    def _keep(self, event: Event) -> None:
        self._nr += 1
        one = frame(NAMES[event["kind"]], event, f"{self._life}.{self._nr}")
        insort(self._events, (event["at_ms"], self._nr, event, one), key=lambda row: row[:2])
        self._known[event["id"]] = None
        if len(self._events) > EVENTS_MAX:
            del self._events[0]
        while len(self._known) > 4 * EVENTS_MAX:  # longer than any list that could tell it again
            del self._known[next(iter(self._known))]
        self._tell(one)

    def _tell(self, one: bytes) -> None:
        for listener in self._listeners:
            listener.put(one)


def _is_event(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("at_ms"), int)
        and all(isinstance(event.get(name), str) for name in ("kind", "node_id", "id", "seen_by"))
        and event["kind"] in NAMES
        and len(_encode(event)) <= EVENT_MAX_BYTES
    )
