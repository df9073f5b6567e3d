"""Server-sent events: bytes into events, and from where to go on after a break.

The id of a server-sent event is a place in one node's stream; another node answers it with all that it keeps. An
event's own id (`data["id"]`) is the same on every node, so that what was seen already is passed over here.

Pure. Does not know: HTTP libraries, what the events mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LINE_MAX_BYTES = 1_048_576
SILENCE_S = 15.0  # a stream that says nothing for so long is left; a node gives a sign of life every 5 s
RECONNECT_S = (0.05, 0.25)
SEEN_MAX = 4_096  # a node keeps 500


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the cluster: `name` is member, leader, shards, fence or task, `data` what it says.

    `id` is the place to go on from; sums of tasks, which are kept nowhere, have that of the event before.
    """

    name: str
    data: Mapping[str, Any]
    id: str = ""


class Follower:
    """One caller's way through the streams of several nodes."""

    def __init__(self, names: Iterable[str] = (), last_id: str = "") -> None:
        self.last_id = last_id
        self._names = frozenset(names)
        self._seen: dict[str, None] = {}

    def is_news(self, event: Event) -> bool:
        """Whether the caller wants it and has not had it."""
        self.last_id = event.id
        own = event.data.get("id")
        if isinstance(own, str):
            if own in self._seen:
                return False
            self._seen[own] = None
            if len(self._seen) > SEEN_MAX:
                del self._seen[next(iter(self._seen))]
        return not self._names or event.name in self._names


class Parser:
    """One connection's bytes (HTML standard, §9.2). What is no JSON object is left out."""

    def __init__(self, last_id: str = "") -> None:
        self._rest = b""
        self._fields: dict[str, str] = {}
        self._data: list[str] = []
        self._last_id = last_id

    def feed(self, part: bytes) -> Iterator[Event]:
        """The events that are complete with these bytes. Raises ValueError for a line that does not end."""
        *lines, self._rest = (self._rest + part).split(b"\n")
        if len(self._rest) > LINE_MAX_BYTES:
            raise ValueError(f"a line of the stream is over {LINE_MAX_BYTES} bytes")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            if line:
                self._take(line)
            elif (event := self._end()) is not None:
                yield event

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")  # a comment (a sign of life) has an empty name
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._last_id = value
        elif name:
            self._fields[name] = value

    def _end(self) -> Event | None:
        name, text = self._fields.get("event", "message"), "\n".join(self._data)
        self._fields, self._data = {}, []
        if not text:
            return None
        try:
            data = json.loads(text)
        except ValueError:
            return None
        return Event(name, data, self._last_id) if isinstance(data, dict) else None
