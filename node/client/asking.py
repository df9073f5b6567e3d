"""One request carried out by some node of the cluster: which node to ask, what an answer means, when to give up.

Pure: a generator yields what to do, and is sent the outcome and the time.

A failure is *definite* when nothing can have happened: no connection came about, or the node says so. Then any request
is tried on the next node. After an *indefinite* failure (the connection broke when the request had left, or the node
says `may_have_happened`) it is tried again only if repeating it is harmless. Every node is asked once before there is a
pause; everything ends at one deadline.

Does not know: HTTP libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, TypeVar

from cluster.errors import QueueFull, RumorError
from node.client.errors import GATEWAY_DOWN, Unreachable, error_of
from node.client.nodes import Nodes

ATTEMPT_S = 5.0  # the time one node has for an ordinary request before another is asked
CONNECT_S = 2.0
LEARN_S = 1.0
WAIT_SPARE_S = 0.2  # the time kept for the last answer of a wait to arrive
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0
RETRY_AFTER_MAX_S = 30.0
PASSING = (429, 503, *GATEWAY_DOWN)


@dataclass(frozen=True, slots=True)
class Request:
    """A request to any node."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)  # None: left out
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attempt_s: float = ATTEMPT_S
    is_repeatable: bool = True  # whether doing it twice does no more than doing it once
    accepts: tuple[int, ...] = ()  # statuses over 399 that count as answers
    wait_s: float | None = None  # how long the node may wait for the task's end; less where the deadline is nearer
    meanwhile: Callable[[], None] | None = None  # the caller's work for the time in which the node is at this request
    is_raw: bool = False  # whether the caller wants a good answer's bytes, to decode them when there is time


@dataclass(frozen=True, slots=True)
class Ask:
    """Send the request to this node; report an Answer or NoAnswer within this time.

    Once it is sent, call its `meanwhile`, if it has one, before waiting for the answer.
    """

    url: str
    request: Request
    within_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait this long; report None."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response of any status."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """No response, and why; `was_sent`: the node may have received the request."""

    why: str
    was_sent: bool


T = TypeVar("T")
Step = Ask | Pause
Reply = tuple[Answer | NoAnswer | None, float]  # the step's outcome, and the time now (monotonic)
Steps = Generator[Step, Reply, T]


def carry_out(
    request: Request, nodes: Nodes, rng: Random, now_s: float, within_s: float, insists: bool = True
) -> Steps[tuple[Any, float]]:
    """(the JSON answer, the time). Raises the node's error, or Unreachable when none answered in time.

    Without `insists` every node is asked once, and there are no pauses.
    """
    attempts = _Attempts(request, nodes, rng, now_s + within_s, within_s, insists)
    if nodes.should_learn(now_s):
        now_s = yield from learn(nodes, now_s, within_s / 2)
    while True:
        match step := attempts.next(now_s):
            case Pause():
                _, now_s = yield step
            case Ask(url):
                outcome, now_s = yield step
                assert outcome is not None
                answer = attempts.take(url, outcome, now_s)
                if answer is not None:
                    return answer, now_s


class _Attempts:
    """The attempts at one request: what to do next, and what an outcome means for the rest of them."""

    def __init__(
        self, request: Request, nodes: Nodes, rng: Random, deadline_s: float, within_s: float, insists: bool
    ) -> None:
        self._request = request
        self._nodes = nodes
        self._rng = rng
        self._deadline_s = deadline_s
        self._within_s = within_s
        self._insists = insists
        self._asked: list[str] = []  # nodes, since the last pause
        self._silent: dict[str, str] = {}  # node -> why it did not answer
        self._refusal: RumorError | None = None  # the last outcome, if it was one
        self._is_doubtful = False  # whether any attempt may have been carried out
        self._pause_s = PAUSE_MIN_S
        self._retry_after_s = 0.0

    def next(self, now_s: float) -> Step:
        """Ask a node, or pause once each was asked. Raises when the request is given up."""
        left_s = self._deadline_s - now_s
        if left_s <= 0:
            raise self._given_up()
        url = self._nodes.pick(now_s, self._asked)
        if url is None:
            return self._pause(left_s)
        self._asked.append(url)
        has_others = self._request.is_repeatable and len(self._asked) < len(self._nodes.known())
        request = _in_time(self._request, left_s)
        return Ask(url, request, _attempt_s(request, left_s, has_others))

    def take(self, url: str, outcome: Answer | NoAnswer, now_s: float) -> Any:
        """The answer; None if another attempt may follow. Raises what no further attempt can mend."""
        if isinstance(outcome, NoAnswer):
            self._nodes.failed(url, now_s)
            self._silent[url] = outcome.why
            self._refusal = None
            self._doubt(outcome.was_sent)
            return None
        if self._request.is_raw and outcome.status < 400:
            self._nodes.answered(url)
            return outcome.body
        answer = decoded(outcome.body)
        if outcome.status >= 400 and outcome.status not in self._request.accepts:
            self._refused(url, error_of(outcome.status, answer, url), outcome.retry_after)
            return None
        if answer is None:
            raise error_of(outcome.status, None, url)
        self._nodes.answered(url)
        return answer

    def _refused(self, url: str, error: RumorError, retry_after: str | None) -> None:
        if not _is_passing(error):
            self._nodes.answered(url)
            raise error
        self._refusal = error
        if isinstance(error, QueueFull):
            self._asked = list(self._nodes.known())  # the limit is the cluster's: every node would say the same
        self._retry_after_s = max(self._retry_after_s, _seconds(retry_after))
        self._doubt(error.may_have_happened)

    def _doubt(self, is_indefinite: bool) -> None:
        """Keep in mind that the request may have been carried out; raises where it must not be repeated then."""
        self._is_doubtful = self._is_doubtful or is_indefinite
        if is_indefinite and not self._request.is_repeatable:
            raise self._given_up()

    def _pause(self, left_s: float) -> Pause:
        """Begin a new round over all nodes, after a pause if there is time for one."""
        self._asked.clear()
        wait_s = max(self._rng.uniform(self._pause_s / 2, self._pause_s), self._retry_after_s)
        if not self._insists or wait_s >= left_s:
            raise self._given_up()
        self._pause_s, self._retry_after_s = min(PAUSE_MAX_S, 2 * self._pause_s), 0.0
        return Pause(wait_s)

    def _given_up(self) -> RumorError:
        """The last refusal; where the last node did not even answer, which nodes did not and why."""
        if self._refusal is not None:
            self._refusal.may_have_happened = self._is_doubtful
            return self._refusal
        if len(self._silent) == 1:
            ((url, why),) = self._silent.items()
            message = f"{url} does not answer: {why}."
        else:
            reasons = "; ".join(f"{url}: {why}" for url, why in self._silent.items()) or "no time was left to ask"
            message = f"none of {len(self._nodes.known())} nodes answered within {self._within_s:g} s: {reasons}."
        hint = "Is a node running there? Give the URL of another one, by RUMOR_URL for example."
        if self._is_doubtful:
            hint = "It may have been carried out: look before you repeat it."
        return Unreachable(message, hint, self._is_doubtful)


def _in_time(request: Request, left_s: float) -> Request:
    """The request with a wait that this attempt has time for; ATTEMPT_S later the client leaves a node that hangs."""
    if request.wait_s is None:
        return request
    wait_s = min(request.wait_s, max(0.0, left_s - WAIT_SPARE_S))
    return replace(request, query={**request.query, "wait_s": f"{wait_s:.3f}"}, attempt_s=wait_s + ATTEMPT_S)


def _attempt_s(request: Request, left_s: float, has_others: bool) -> float:
    """The time one node has: a node that hangs must not use up the time in which another would answer."""
    if has_others and request.attempt_s <= ATTEMPT_S:
        return min(left_s / 2, request.attempt_s)
    return min(left_s, request.attempt_s)


def learn(nodes: Nodes, now_s: float, within_s: float) -> Steps[float]:
    """Ask one node which others there are, by GET /cluster: nodes answer it from memory, even while Redis is away."""
    url = nodes.pick(now_s)
    assert url is not None
    outcome, now_s = yield Ask(url, Request("GET", "/cluster", {"events": 0}), min(LEARN_S, within_s))
    if isinstance(outcome, Answer):
        view = decoded(outcome.body)
        if outcome.status == 200 and isinstance(view, dict) and isinstance(view.get("members"), list):
            nodes.learned(view["members"], url)
    else:
        nodes.failed(url, now_s)
    return now_s


def _is_passing(error: RumorError) -> bool:
    """Whether the same request may succeed soon, or on another node."""
    return error.status in PASSING and error.code != "store_unsafe"


def _seconds(retry_after: str | None) -> float:
    try:
        return min(RETRY_AFTER_MAX_S, max(0.0, float(retry_after or 0)))
    except ValueError:
        return 0.0  # a date: no node of ours sends one


def decoded(body: bytes) -> Any:
    """The JSON of a body; None for one that is none."""
    try:
        return json.loads(body) if body else None
    except ValueError:
        return None
