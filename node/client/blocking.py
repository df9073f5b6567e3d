"""`SyncClient`: the calls of `calls.py` carried out with the standard library, one blocking step after the other.

It has no thread and no loop of its own, and imports no HTTP library, so that a command line that uses it starts fast.
Threads may share one client: each call has a connection to itself.

Does not know: what to send, which node to ask, when to try again.
"""

from __future__ import annotations

import builtins
import http.client
import os
import ssl
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload
from urllib.parse import urlsplit

from cluster.errors import RumorError
from cluster.header_text import as_bytes
from node.client import batches, calls
from node.client.asking import CONNECT_S, Answer, Ask, NoAnswer, Pause, Steps, decoded
from node.client.batches import Item
from node.client.calls import Asker, Options, Result
from node.client.connection import READ_BYTES, Connection, connect, exchange, reason_of, tls_context
from node.client.errors import error_of
from node.client.nodes import WITHIN_S, bearer, nodes_from
from node.client.stream import SILENCE_S, Event, Follower, Parser
from node.client.task import Page, Task, result_of

IDLE_MAX = 16  # connections kept open to one node

T = TypeVar("T")
Results = list[Result]


class SyncClient:
    """A cluster, from a program without a loop. The same calls as Client's, each blocking until it is done.

    `urls`: one node or several (RUMOR_URL otherwise); the others are learned from them. `token`: the API token
    (RUMOR_API_TOKEN otherwise). `ca_file`: the certificate to trust for https (RUMOR_CA_FILE otherwise). No
    deadline ends the lookup of a name in DNS.
    """

    def __init__(
        self,
        urls: str | Sequence[str] = (),
        *,
        token: str | None = None,
        ca_file: str | None = None,
        within_s: float = WITHIN_S,
        learn: bool = True,
        insist: bool = True,
        spread: bool = True,
    ) -> None:
        self._rng = Random()
        self._spreads = spread
        self.nodes = nodes_from(urls, self._rng if spread else None, learn)
        self.within_s = within_s
        self._insists = insist
        self._headers = bearer(token)
        self._ca_file = os.environ.get("RUMOR_CA_FILE", "") if ca_file is None else ca_file
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[str, deque[Connection]] = {}
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for idle in list(self._idle.values()):
            while idle:
                idle.pop().close()

    def _be_one_process(self) -> None:
        """Let go of what a fork has copied: processes must not share a connection, nor draw the same chance.

        To close a connection here closes it for this process alone.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._rng.seed()
            if self._spreads:
                self.nodes.first = self._rng.choice(self.nodes.given)
            self.close()

    # ---- tasks

    def submit(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        wait_s: float = 0.0,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> Task[Any]:
        """Submit a task. Under the same `idempotency_key` it is the same task; without one, a new one each time.

        `wait_s`: the node answers once the task has ended, or with the task as it is after so long; 60 at most.
        """
        return self._do(calls.submit(self._asker(within_s), type, data, idempotency_key, options, wait_s))

    @overload
    def run(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> Any: ...
    @overload
    def run(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        result_type: builtins.type[T],
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> T: ...
    def run(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        result_type: builtins.type[T] | None = None,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> Any:
        """Submit a task and wait for its result, which takes one request if the task ends soon.

        Raises what `submit` and `result` raise. A repeat of its own, after an answer that was lost, is the same task.
        """
        steps = calls.run(self._asker(within_s), type, data, idempotency_key, options, result_type)
        return result_of(self._do(steps))

    def submit_many(
        self, items: Iterable[Item], *, idempotency_key: str | None = None, within_s: float | None = None
    ) -> Results:
        """Submit many, `(type, data)` or the JSON of a submission each. One Task or error for each, in order.

        What ends it in the middle (Ctrl-C …) carries the `results` so far, and the `idempotency_key` under which the
        same items are the same tasks.
        """
        known = list(items)  # before the time begins, and before anything is stored: it may take long, or raise
        return self._do(batches.submit_many(self._asker(within_s), known, idempotency_key))

    def get(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """One task with its history, as it is now."""
        return self._do(calls.get(self._asker(within_s), task_id))

    @overload
    def wait(self, task_id: str, *, within_s: float | None = None) -> Task[Any]: ...
    @overload
    def wait(self, task_id: str, *, type: type[T], within_s: float | None = None) -> Task[T]: ...
    def wait(self, task_id: str, *, type: type[T] | None = None, within_s: float | None = None) -> Task[Any]:
        """The task once it has ended, well or not; its result as `type`. Raises NotFinished when the time is up."""
        return self._do(calls.wait(self._asker(within_s), task_id, type))

    @overload
    def result(self, task_id: str, *, within_s: float | None = None) -> Any: ...
    @overload
    def result(self, task_id: str, *, type: type[T], within_s: float | None = None) -> T: ...
    def result(self, task_id: str, *, type: type[T] | None = None, within_s: float | None = None) -> Any:
        """Wait for its result. Raises TaskFailed, with the error's type, message and traceback, or TaskCancelled."""
        return result_of(self._do(calls.wait(self._asker(within_s), task_id, type)))

    def cancel(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """Cancel it, running or not. Raises Conflict if it has ended otherwise."""
        return self._do(calls.cancel(self._asker(within_s), task_id))

    def retry(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """Queue a dead or cancelled task again, with a fresh budget of attempts."""
        return self._do(calls.retry(self._asker(within_s), task_id))

    def replay(self, *, type: str | None = None, limit: int | None = None, within_s: float | None = None) -> int:
        """Queue dead tasks again: all, those of one type, or at most `limit`. Returns how many."""
        return self._do(calls.replay(self._asker(within_s), type, limit))

    def purge_dead(self, *, within_s: float | None = None) -> int:
        """Remove all dead tasks. Returns how many."""
        return self._do(calls.purge_dead(self._asker(within_s)))

    def list(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        key: str | None = None,
        queue: str | None = None,
        fields: Collection[str] = (),
        limit: int | None = None,
        within_s: float | None = None,
    ) -> Iterator[Task[Any]]:
        """Tasks in short, newest first, at most `limit`; page after page, each within `within_s`.

        `fields`: what to show beside the summary, of data, result, error. `queue` goes with state="queued".
        """
        pages = calls.Pages(calls.which(state, type, key, queue, fields), limit)
        while (query := pages.next()) is not None:
            yield from pages.take(self._do(calls.page(self._asker(within_s), query)))

    def page(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        key: str | None = None,
        queue: str | None = None,
        fields: Collection[str] = (),
        limit: int = calls.PAGE_TASKS,
        cursor: str | None = None,
        within_s: float | None = None,
    ) -> Page:
        """One page of that list, the cursor of the next, and how far the node looked."""
        query = {**calls.which(state, type, key, queue, fields), "limit": limit, "cursor": cursor}
        return self._do(calls.page(self._asker(within_s), query))

    # ---- the cluster

    def workers(self, *, within_s: float | None = None) -> Sequence[dict[str, Any]]:
        """The live nodes and what they run."""
        answer = self._do(calls.read(self._asker(within_s), "/workers"))
        workers: Sequence[dict[str, Any]] = answer["workers"]
        return workers

    def cluster(self, *, events: int | None = None, within_s: float | None = None) -> dict[str, Any]:
        """The cluster as the answering node sees it, with at most `events` of the events that it saw itself."""
        return self._do(calls.read(self._asker(within_s), "/cluster", {"events": events}))

    def sums(self, *, within_s: float | None = None) -> Sequence[dict[str, Any]]:
        """Tasks accepted and ended in the last minutes, in steps of some seconds, oldest first; for charts."""
        answer = self._do(calls.read(self._asker(within_s), "/sums"))
        sums: Sequence[dict[str, Any]] = answer["sums"]
        return sums

    def health(self, *, within_s: float | None = None) -> dict[str, Any]:
        """The state of the answering node and what is wrong; an answer too if the node says that it is unusable."""
        return self._do(calls.read(self._asker(within_s), "/health", accepts=(503,)))

    def events(self, *, names: Iterable[str] = (), last_id: str = "", within_s: float | None = None) -> Iterator[Event]:
        """The cluster's events: those that are kept, then each as it happens; from another node if this one ends.

        `names`: only events of these names. `last_id`: go on after this event. It ends only if no node serves events
        for `within_s`: then it raises Unreachable.
        """
        limit_s = self.within_s if within_s is None else within_s
        calls.check_within(limit_s)
        follower = Follower(self.nodes, self._rng, time.monotonic(), limit_s, names, last_id)
        reason: str | RumorError
        while True:
            url = follower.next_node(time.monotonic())
            try:
                with closing(self._stream(url, follower.last_id)) as stream:
                    for event in stream:
                        if follower.is_news(event, time.monotonic()):
                            yield event
                reason = "the stream ended"
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = reason_of(error)
            except RumorError as error:
                reason = error
            time.sleep(follower.ended(url, reason, time.monotonic()))

    # ---- carrying out

    def _asker(self, within_s: float | None) -> Asker:
        limit_s = self.within_s if within_s is None else within_s
        return Asker(self.nodes, self._rng, time.monotonic(), limit_s, self._insists)

    def _do(self, steps: Steps[T]) -> T:
        outcome: Answer | NoAnswer | None
        try:
            step = next(steps)
            while True:
                try:
                    match step:
                        case Ask():
                            outcome = self._ask(step)
                        case Pause(for_s):
                            outcome = None
                            time.sleep(for_s)
                except BaseException as error:  # Ctrl-C: the call may have something to add
                    steps.throw(error)
                step = steps.send((outcome, time.monotonic()))
        except StopIteration as end:
            value: T = end.value
            return value

    def _ask(self, ask: Ask) -> Answer | NoAnswer:
        deadline_s = time.monotonic() + ask.within_s
        self._be_one_process()
        idle = self._idle.setdefault(ask.url, deque(maxlen=IDLE_MAX))
        # A kept connection may have ended unnoticed; then nobody can tell whether the node got the request. So one that
        # must not be repeated gets a new connection, and any other is sent once more over the next one.
        was_sent = False
        if ask.request.is_repeatable:
            while True:
                try:
                    connection = idle.pop()
                except IndexError:
                    break
                try:
                    return self._send(ask, connection, idle, deadline_s)
                except TimeoutError:
                    return NoAnswer("timed out", was_sent=True)
                except (OSError, http.client.HTTPException):
                    was_sent = True
                    continue
        try:
            connection = self._connected(ask.url, min(CONNECT_S, ask.within_s))
        except (OSError, ValueError) as error:
            return NoAnswer(reason_of(error), was_sent)
        try:
            return self._send(ask, connection, idle, deadline_s)
        except (OSError, http.client.HTTPException) as error:
            return NoAnswer(reason_of(error), was_sent=True)

    def _send(self, ask: Ask, connection: Connection, idle: deque[Connection], deadline_s: float) -> Answer:
        """Send over this connection; keep it if the answer is complete and another may follow."""
        answer = exchange(connection, ask.url, ask.request, self._headers, deadline_s)
        if connection.sock is not None:
            idle.append(connection)
        return answer

    def _stream(self, url: str, last_id: str) -> Generator[Event | None]:
        """One node's events; None for each sign of life. Raises the error of a node that refuses."""
        headers = {**self._headers, "Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        with closing(self._connected(url, CONNECT_S)) as connection:
            connection.sock.settimeout(SILENCE_S)
            connection.request("GET", urlsplit(url).path + "/events", None, as_bytes(headers))
            response = connection.getresponse()
            if response.status != 200:
                raise error_of(response.status, decoded(response.read()), url)
            self.nodes.answered(url)
            parser = Parser(last_id)
            pid = os.getpid()
            while part := response.read1(READ_BYTES):
                if pid != os.getpid():
                    raise ConnectionError("this process was forked while it read them")
                yield None
                yield from parser.feed(part)

    def _connected(self, url: str, within_s: float) -> Connection:
        if self._tls is None and url.startswith("https:"):
            self._tls = tls_context(self._ca_file)
        return connect(url, self._tls, within_s)
