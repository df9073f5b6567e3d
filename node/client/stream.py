"""The cluster's events as one caller gets them: bytes into events, and from stream to stream as nodes come and go.

Pure: the bytes and the time are handed in.

The id of a server-sent event is a place in one node's stream; another node answers it with all that it keeps. An
event's own id (`data["id"]`) is the same on every node: by it a `Follower` passes over what the caller has had.

Does not know: HTTP libraries, what the events mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, TypeGuard

from cluster.bounded import Bounded
from cluster.errors import BadRequest, RumorError
from cluster.header_text import unfit
from node.client.asking import PASSING
from node.client.errors import Unreachable
from node.client.nodes import Nodes

LINE_MAX_BYTES = 1_048_576
SILENCE_S = 15.0  # the silence after which a client leaves a stream; a node gives a sign of life every 5 s
RECONNECT_S = (0.05, 0.25)
NAMES = ("member", "leader", "shards", "fence", "task")  # of events
SEEN_MAX = 4_096  # ids of events; a node keeps 500


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the cluster: `name` is one of NAMES, `data` the event itself.

    `id` is the place to go on from; sums of tasks, which no node keeps, have that of the event before.
    """

    name: str
    data: Mapping[str, Any]
    id: str = ""


class Follower:
    """One caller's way through the streams of several nodes: which is next, what is news, when to give up.

    Raises BadRequest for a `last_id` that no request can carry, and for a name that no event has.
    """

    def __init__(
        self,
        nodes: Nodes,
        rng: Random,
        now_s: float,
        within_s: float,
        names: Iterable[str] = (),
        last_id: str = "",
    ) -> None:
        if last_id and (obstacle := unfit(last_id)) is not None:
            raise BadRequest(f"last_id is {last_id!r}: {obstacle}.", "Give the id of an event.")
        self.last_id = last_id  # the place to go on from
        self._nodes = nodes
        self._rng = rng
        self._within_s = within_s
        self._alive_s = now_s
        self._names = frozenset((names,) if isinstance(names, str) else names)
        if unknown := self._names.difference(NAMES):
            raise BadRequest(f"no event has the name {min(unknown)!r}.", f"Names are {', '.join(NAMES)}.")
        self._seen: Bounded[str, None] = Bounded(SEEN_MAX)

    def next_node(self, now_s: float) -> str:
        """The node whose stream to open."""
        url = self._nodes.pick(now_s)
        assert url is not None
        return url

    def is_news(self, event: Event | None, now_s: float) -> TypeGuard[Event]:
        """Whether the caller wants this event and has not had it. Takes note of it; None is a mere sign of life."""
        self._alive_s = now_s
        if event is None:
            return False
        self.last_id = event.id
        own_id = event.data.get("id")
        if isinstance(own_id, str):
            if own_id in self._seen:
                return False
            self._seen[own_id] = None
        return not self._names or event.name in self._names

    def ended(self, url: str, reason: str | RumorError, now_s: float) -> float:
        """This node's stream has ended, or the node refused it: the seconds to pause before the next one is opened.

        Raises a refusal that no other node would take back, and Unreachable after `within_s` without a sign of life.
        """
        if isinstance(reason, RumorError) and reason.status not in PASSING:
            raise reason
        self._nodes.failed(url, now_s)
        if now_s - self._alive_s > self._within_s:
            why = reason.message if isinstance(reason, RumorError) else reason
            raise Unreachable(
                f"no events for {self._within_s:g} s; {url}: {why}.",
                "Is a node running there?",
                may_have_happened=False,
            )
        return self._rng.uniform(*RECONNECT_S)


class Parser:
    """One connection's bytes as events (HTML standard, §9.2). Data that is no JSON object is left out."""

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
