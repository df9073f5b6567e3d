"""One call carried out on some node of the cluster: whom to ask, what an answer means, when to give up.

A failure is *definite* when nothing can have happened: no connection came about, or the node says so. Then any call is
tried on the next node. An *indefinite* one (the connection broke after the request had left, or the node says
`may_have_happened`) is tried again only if repeating the call is harmless. Every node is asked once before there is a
pause; everything ends at one deadline.

Pure: a generator yields what to do and is sent what came of it, with the time. Does not know: HTTP libraries.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from cluster.errors import QueueFull, RumorError
from node.client.errors import GATEWAY_DOWN, Unreachable, error_of
from node.client.nodes import Nodes

ATTEMPT_S = 5.0  # one node may take so long for an ordinary call, before another is asked
CONNECT_S = 2.0
LEARN_S = 1.0
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0
RETRY_AFTER_MAX_S = 30.0
PASSING = (429, 503, *GATEWAY_DOWN)


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)  # None: left out
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attempt_s: float = ATTEMPT_S
    is_repeatable: bool = True  # carried out twice it does what it does once
    accepts: tuple[int, ...] = ()  # statuses over 399 that are answers here


@dataclass(frozen=True, slots=True)
class Ask:
    """Send the call to this node and report an Answer or NoAnswer within this time."""

    url: str
    call: Call
    within_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so long and report None."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Some HTTP response."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There was none, and why; `was_sent`: the node may have received the request."""

    why: str
    was_sent: bool


T = TypeVar("T")
Step = Ask | Pause
Reply = tuple[Answer | NoAnswer | None, float]  # what came of the step, and the time now (monotonic)
Steps = Generator[Step, Reply, T]


def carry_out(
    call: Call, nodes: Nodes, rng: Random, now_s: float, within_s: float, insists: bool = True
) -> Steps[tuple[Any, float]]:
    """(the JSON answer, the time). Raises the node's error, or Unreachable when none answered in time.

    Without `insists` every node is asked once, and there are no pauses.
    """
    deadline_s = now_s + within_s
    if nodes.should_learn(now_s):
        now_s = yield from learn(nodes, now_s, within_s / 2)
    asked: list[str] = []
    silent: dict[str, str] = {}
    refused: RumorError | None = None
    is_doubtful = False
    pause_s, retry_after_s = PAUSE_MIN_S, 0.0
    while True:
        url = nodes.pick(now_s, asked)
        left_s = deadline_s - now_s
        if left_s <= 0:
            raise _given_up(refused, silent, nodes, within_s, is_doubtful)
        if url is None:
            asked.clear()
            wait_s = max(rng.uniform(pause_s / 2, pause_s), retry_after_s)
            if not insists or wait_s >= left_s:
                raise _given_up(refused, silent, nodes, within_s, is_doubtful)
            _, now_s = yield Pause(wait_s)
            pause_s, retry_after_s = min(PAUSE_MAX_S, 2 * pause_s), 0.0
            continue
        asked.append(url)
        has_others = call.is_repeatable and len(asked) < len(nodes.known())
        outcome, now_s = yield Ask(url, call, _attempt_s(call, left_s, has_others))
        if isinstance(outcome, Answer):
            answer = _decoded(outcome.body)
            if outcome.status < 400 or outcome.status in call.accepts:
                if answer is None:
                    raise error_of(outcome.status, None, url)
                nodes.answered(url)
                return answer, now_s
            refused = error_of(outcome.status, answer, url)
            if not _is_passing(refused):
                nodes.answered(url)
                raise refused
            if isinstance(refused, QueueFull):
                asked = list(nodes.known())  # a limit of the cluster: another node knows no other
            retry_after_s = max(retry_after_s, _seconds(outcome.retry_after))
            is_indefinite = refused.may_have_happened
        else:
            assert outcome is not None
            nodes.failed(url, now_s)
            silent[url] = outcome.why
            refused = None
            is_indefinite = outcome.was_sent
        is_doubtful = is_doubtful or is_indefinite
        if is_indefinite and not call.is_repeatable:
            raise _given_up(refused, silent, nodes, within_s, True)


def _attempt_s(call: Call, left_s: float, has_others: bool) -> float:
    """How long one node may take: a node that hangs must not use up the time in which another would answer."""
    if has_others and call.attempt_s <= ATTEMPT_S:
        return min(left_s / 2, call.attempt_s)
    return min(left_s, call.attempt_s)


def learn(nodes: Nodes, now_s: float, within_s: float) -> Steps[float]:
    """Ask one node who else is there. GET /cluster: it is answered from memory, also while Redis is away."""
    url = nodes.pick(now_s)
    assert url is not None
    outcome, now_s = yield Ask(url, Call("GET", "/cluster", {"events": 0}), min(LEARN_S, within_s))
    if isinstance(outcome, Answer):
        told = _decoded(outcome.body)
        if outcome.status == 200 and isinstance(told, dict) and isinstance(told.get("members"), list):
            nodes.learned(told["members"], url)
    else:
        nodes.failed(url, now_s)
    return now_s


def _is_passing(error: RumorError) -> bool:
    """Whether the same call may go well soon, or elsewhere."""
    return error.status in PASSING and error.code != "store_unsafe"


def _seconds(retry_after: str | None) -> float:
    try:
        return min(RETRY_AFTER_MAX_S, max(0.0, float(retry_after or 0)))
    except ValueError:
        return 0.0  # a date: no node of ours sends one


def _given_up(
    refused: RumorError | None, silent: Mapping[str, str], nodes: Nodes, within_s: float, is_doubtful: bool
) -> RumorError:
    if refused is not None:
        refused.may_have_happened = is_doubtful
        return refused
    if len(silent) == 1:
        ((url, why),) = silent.items()
        message = f"{url} does not answer: {why}."
    else:
        told = "; ".join(f"{url}: {why}" for url, why in silent.items()) or "no time was left to ask"
        message = f"none of {len(nodes.known())} nodes answered within {within_s:g} s: {told}."
    hint = "Is a node running there? Name another with --url or RUMOR_URL."
    if is_doubtful:
        hint = "It may have been carried out: look before you repeat it."
    return Unreachable(message, hint, is_doubtful)


def _decoded(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
