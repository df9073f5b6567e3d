"""The timeline: the cluster's events, as this node saw them or heard of them, and the clients that listen.

Everything is bounded: the events that are kept, the listeners, and the frames that wait for each listener. A listener
that does not keep up is told so and dropped; nobody waits for it. An event's `id` is the life of the node that saw it
and a number, so an event that arrives twice (on the channel, from the list in Redis) is kept once. Each event has the
time of the node that saw it, and events are ordered by that time. People see the clocks of different nodes side by
side; no decision rests on them.

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

from cluster.bounded import Bounded
from cluster.errors import TooManyListeners

Event = dict[str, Any]

EVENTS_MAX = 500
EVENT_MAX_BYTES = 2_048  # size of an event from another node
LISTENERS_MAX = 64
WAITING_MAX = 256  # frames that may wait for one listener
DROPPED = b": dropped: this client reads too slowly. Connect again with Last-Event-ID.\n\n"

NAMES = {  # kind of an event -> its name in the stream of server-sent events
    **dict.fromkeys(
        (
            *(f"member_{state}" for state in ("joined", "alive", "leaving", "suspect", "dead", "left")),
            *("node_started", "node_draining", "main_stalled", "main_recovered"),
            *("redis_away", "redis_refuses", "redis_back"),
            *("connection_ended", "connection_refused"),
        ),
        "member",
    ),
    **dict.fromkeys(("leader_elected", "leader_lost"), "leader"),
    "shards_moved": "shards",
    **dict.fromkeys(("session_fenced", "session_renewed", "session_reaped", "fence_held_up"), "fence"),
}
OF_ONESELF = {"node_started", "node_draining", "main_stalled", "main_recovered", "leader_elected", "session_renewed"}

_encode = msgspec.json.Encoder().encode


def is_first_hand(event: Event, me: str) -> bool:
    """Whether this node did or saw it, and so tells the cluster. Shard moves are not told: each node finds them."""
    if event["kind"] == "shards_moved":
        return False
    return event.get("by") == me or (event["kind"] in OF_ONESELF and event["node_id"] == me)


def frame(name: str, data: Any, event_id: str = "") -> bytes:
    """One server-sent event. Its data is one line, because JSON needs no line break."""
    head = f"id: {event_id}\nevent: {name}\ndata: " if event_id else f"event: {name}\ndata: "
    return head.encode() + _encode(data) + b"\n\n"


class Listener:
    """The frames that wait for one client."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self._frames: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self.is_dropped = False
        if first:
            self._ready.set()

    def put(self, frame: bytes) -> None:
        """Add a frame; a listener for which too many wait is dropped instead."""
        if len(self._frames) >= WAITING_MAX:
            self._frames.clear()
            self.is_dropped = True
        if not self.is_dropped:
            self._frames.append(frame)
        self._ready.set()

    async def next(self, limit_s: float) -> bytes:
        """All frames that wait, as soon as there is one; b"" when none came in time. After DROPPED comes nothing."""
        try:
            async with asyncio.timeout(limit_s):
                await self._ready.wait()
        except TimeoutError:
            return b""
        self._ready.clear()
        if self.is_dropped:
            return DROPPED
        frames = self._first + b"".join(self._frames)
        self._first = b""
        self._frames.clear()
        return frames


class Timeline:
    """The timeline of one node."""

    def __init__(self, me: str, life: str) -> None:
        self._me = me
        self._life = life
        self._seen = 0  # own events so far
        self._nr = 0  # places in the stream so far
        self._events: list[tuple[int, int, Event, bytes]] = []  # by time: (at_ms, place in the stream, event, frame)
        self._known: Bounded[str, None] = Bounded(4 * EVENTS_MAX)  # ids; no list that brings one again holds so many
        self._listeners: set[Listener] = set()

    @property
    def listeners(self) -> int:
        """How many clients listen."""
        return len(self._listeners)

    def own(self, limit: int = EVENTS_MAX) -> list[Event]:
        """The latest events that this node saw itself, oldest first."""
        mine = f"{self._life}-"  # without those of an earlier life, which stand in the cluster's list
        events = [event for _, _, event, _ in self._events if event["id"].startswith(mine)]
        return events[max(0, len(events) - limit) :] if limit > 0 else []

    def add(self, event: Event) -> Event:
        """Keep an event that this node saw; returns it with its id."""
        self._seen += 1
        kept = {**event, "seen_by": self._me, "id": f"{self._life}-{self._seen}"}
        self._keep(kept)
        return kept

    def merge(self, events: Iterable[Any]) -> None:
        """Keep the events of other nodes, except those that are here already or have another form."""
        for event in events:
            if _is_event(event) and event["id"] not in self._known:
                self._keep(event)

    def say(self, name: str, data: Any) -> None:
        """Send to all that listen now, and keep nothing."""
        self._send(frame(name, data))

    @contextmanager
    def listen(self, after: str | None) -> Iterator[Listener]:
        """All events after this place in the node's stream, or all that are kept; then the new ones."""
        if len(self._listeners) >= LISTENERS_MAX:
            raise TooManyListeners(
                f"{LISTENERS_MAX} clients listen to this node already.", "Listen to another node, or close one."
            )
        place = self._place(after or "")
        listener = Listener(b"".join(event_frame for _, nr, _, event_frame in self._events if nr > place))
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
        event_frame = frame(NAMES[event["kind"]], event, f"{self._life}.{self._nr}")
        insort(self._events, (event["at_ms"], self._nr, event, event_frame), key=lambda row: row[:2])
        self._known[event["id"]] = None
        if len(self._events) > EVENTS_MAX:
            del self._events[0]
        self._send(event_frame)

    def _send(self, event_frame: bytes) -> None:
        for listener in self._listeners:
            listener.put(event_frame)


def _is_event(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("at_ms"), int)
        and all(isinstance(event.get(name), str) for name in ("kind", "node_id", "id", "seen_by"))
        and event["kind"] in NAMES
        and len(_encode(event)) <= EVENT_MAX_BYTES
    )
