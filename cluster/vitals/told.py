"""The news that the vitals thread tells the main loop: all that crosses from the one to the other.

The life hands each of these to one function, `tell`, which queues it for the main loop and never waits; the main loop
hears them one by one, in the order in which they were told. Everything here is immutable, or nobody changes it after it
was told. The main loop's way to the thread is `thread.Vitals`.

Pure: plain values. Does not know: threads, loops, what the main loop does with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.refusal import Refusal
from cluster.view import View


@dataclass(frozen=True, slots=True)
class NewView:
    """Membership, the leader, the reach of Redis or loads changed (loads: at most 10 times a second)."""

    view: View


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """This session's tombstone stands in Redis, whoever wrote it: reap all its shards now."""

    session: str
    cause: str


@dataclass(frozen=True, slots=True)
class Disowned:
    """OUR session has ended, or is about to: nothing of it may commit, so nothing of it should go on."""

    session: str


@dataclass(frozen=True, slots=True)
class NewSession:
    """OUR session was fenced; `session` is our new one, and Redis has taken its first heartbeat already."""

    session: str


@dataclass(frozen=True, slots=True)
class Woken:
    """Another node published this payload to our channel."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Happened:
    """A line of the timeline: `at_ms`, `kind`, `node_id` and what fits the kind."""

    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RedisReach:
    """Redis takes our heartbeats again, or no longer; then `error` says why, and `refusal` if Redis itself does."""

    is_ok: bool
    error: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class NameTaken:
    """Another process uses this node's name: the node must stop, for this reason."""

    message: str


@dataclass(frozen=True, slots=True)
class GivingUp:
    """The main loop hangs for stall_limit_s, so the process is about to end (nobody may be there to hear this)."""

    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The vitals thread has ended, or its loop hangs: the node must end, for this reason."""

    message: str


Told = NewView | SessionEnded | Disowned | NewSession | Woken | Happened | RedisReach | NameTaken | GivingUp | Broken
Tell = Callable[[Told], None]
