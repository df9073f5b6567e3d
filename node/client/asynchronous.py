"""`Client`: the calls of `calls.py` carried out with aiohttp.

The first call opens the session, so that a client can be made where no loop runs yet; from then on it belongs to that
call's loop, until that loop has ended. A forked process opens a session of its own.

Does not know: what to send, which node to ask, when to try again.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from random import Random
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import aiohttp

from cluster.errors import RumorError
from node.client import batches, calls
from node.client.asking import CONNECT_S, Answer, Ask, NoAnswer, Pause, Request, Steps, decoded
from node.client.batches import Item
from node.client.calls import Asker, Options, Result
from node.client.connection import reason_of, tls_context
from node.client.errors import error_of
from node.client.nodes import WITHIN_S, bearer, nodes_from
from node.client.stream import SILENCE_S, Event, Follower, Parser
from node.client.task import Page, Task, result_of

# No limit of connections: a call that waits for a task's end holds one for seconds. Under a limit, further calls would
# wait for a connection until their time is up, and their errors would blame nodes that were never asked.
CONNECTIONS_MAX = 0

# Sessions of the process that this one was forked off. They stay: to close them would take their connections out of the
# other process's event loop, with which this one shares the kernel's list of them.
_inherited: list[Any] = []

T = TypeVar("T")
Results = list[Result]


class Client:
    """A cluster, from a program with a running loop. Every call fails over, and ends within its `within_s`.

    `urls`: one node or several (RUMOR_URL otherwise); the others are learned from them. `token`: the API token
    (RUMOR_API_TOKEN otherwise). `ca_file`: the certificate to trust for https (RUMOR_CA_FILE otherwise).
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
    ) -> None:
        self._rng = Random()
        self.nodes = nodes_from(urls, self._rng, learn)
        self.within_s = within_s
        self._insists = insist
        self._headers = bearer(token)
        self._ca_file = os.environ.get("RUMOR_CA_FILE", "") if ca_file is None else ca_file
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the session's
        self._pid = os.getpid()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self._be_one_process()
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # ---- tasks

    async def submit(
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
        return await self._do(calls.submit(self._asker(within_s), type, data, idempotency_key, options, wait_s))

    @overload
    async def run(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> Any: ...
    @overload
    async def run(
        self,
        type: str,
        data: Any = calls.ABSENT,
        *,
        idempotency_key: str | None = None,
        result_type: builtins.type[T],
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> T: ...
    async def run(
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
        return result_of(await self._do(steps))

    async def submit_many(
        self, items: Iterable[Item], *, idempotency_key: str | None = None, within_s: float | None = None
    ) -> Results:
        """Submit many, `(type, data)` or the JSON of a submission each. One Task or error for each, in order.

        What ends it in the middle (Ctrl-C …) carries the `results` so far, and the `idempotency_key` under which the
        same items are the same tasks.
        """
        known = list(items)  # before the time begins, and before anything is stored: it may take long, or raise
        return await self._do(batches.submit_many(self._asker(within_s), known, idempotency_key))

    async def get(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """One task with its history, as it is now."""
        return await self._do(calls.get(self._asker(within_s), task_id))

    @overload
    async def wait(self, task_id: str, *, within_s: float | None = None) -> Task[Any]: ...
    @overload
    async def wait(self, task_id: str, *, type: type[T], within_s: float | None = None) -> Task[T]: ...
    async def wait(self, task_id: str, *, type: type[T] | None = None, within_s: float | None = None) -> Task[Any]:
        """The task once it has ended, well or not; its result as `type`. Raises NotFinished when the time is up."""
        return await self._do(calls.wait(self._asker(within_s), task_id, type))

    @overload
    async def result(self, task_id: str, *, within_s: float | None = None) -> Any: ...
    @overload
    async def result(self, task_id: str, *, type: type[T], within_s: float | None = None) -> T: ...
    async def result(self, task_id: str, *, type: type[T] | None = None, within_s: float | None = None) -> Any:
        """Wait for its result. Raises TaskFailed, with the error's type, message and traceback, or TaskCancelled."""
        return result_of(await self._do(calls.wait(self._asker(within_s), task_id, type)))

    async def cancel(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """Cancel it, running or not. Raises Conflict if it has ended otherwise."""
        return await self._do(calls.cancel(self._asker(within_s), task_id))

    async def retry(self, task_id: str, *, within_s: float | None = None) -> Task[Any]:
        """Queue a dead or cancelled task again, with a fresh budget of attempts."""
        return await self._do(calls.retry(self._asker(within_s), task_id))

    async def replay(self, *, type: str | None = None, limit: int | None = None, within_s: float | None = None) -> int:
        """Queue dead tasks again: all, those of one type, or at most `limit`. Returns how many."""
        return await self._do(calls.replay(self._asker(within_s), type, limit))

    async def purge_dead(self, *, within_s: float | None = None) -> int:
        """Remove all dead tasks. Returns how many."""
        return await self._do(calls.purge_dead(self._asker(within_s)))

    async def list(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        key: str | None = None,
        queue: str | None = None,
        fields: Collection[str] = (),
        limit: int | None = None,
        within_s: float | None = None,
    ) -> AsyncIterator[Task[Any]]:
        """Tasks in short, newest first, at most `limit`; page after page, each within `within_s`.

        `fields`: what to show beside the summary, of data, result, error. `queue` goes with state="queued".
        """
        pages = calls.Pages(calls.which(state, type, key, queue, fields), limit)
        while (query := pages.next()) is not None:
            for task in pages.take(await self._do(calls.page(self._asker(within_s), query))):
                yield task

    async def page(
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
        return await self._do(calls.page(self._asker(within_s), query))

    # ---- the cluster

    async def workers(self, *, within_s: float | None = None) -> Sequence[dict[str, Any]]:
        """The live nodes and what they run."""
        answer = await self._do(calls.read(self._asker(within_s), "/workers"))
        workers: Sequence[dict[str, Any]] = answer["workers"]
        return workers

    async def cluster(self, *, events: int | None = None, within_s: float | None = None) -> dict[str, Any]:
        """The cluster as the answering node sees it, with at most `events` of the events that it saw itself."""
        return await self._do(calls.read(self._asker(within_s), "/cluster", {"events": events}))

    async def sums(self, *, within_s: float | None = None) -> Sequence[dict[str, Any]]:
        """Tasks accepted and ended in the last minutes, in steps of some seconds, oldest first; for charts."""
        answer = await self._do(calls.read(self._asker(within_s), "/sums"))
        sums: Sequence[dict[str, Any]] = answer["sums"]
        return sums

    async def health(self, *, within_s: float | None = None) -> dict[str, Any]:
        """The state of the answering node and what is wrong; an answer too if the node says that it is unusable."""
        return await self._do(calls.read(self._asker(within_s), "/health", accepts=(503,)))

    async def events(
        self, *, names: Iterable[str] = (), last_id: str = "", within_s: float | None = None
    ) -> AsyncIterator[Event]:
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
                async with aclosing(self._stream(url, follower.last_id)) as stream:
                    async for event in stream:
                        if follower.is_news(event, time.monotonic()):
                            yield event
                reason = "the stream ended"
            except (aiohttp.ClientError, OSError, ValueError) as error:
                reason = reason_of(error)
            except RumorError as error:
                reason = error
            await asyncio.sleep(follower.ended(url, reason, time.monotonic()))

    # ---- carrying out

    def _asker(self, within_s: float | None) -> Asker:
        limit_s = self.within_s if within_s is None else within_s
        return Asker(self.nodes, self._rng, time.monotonic(), limit_s, self._insists)

    async def _do(self, steps: Steps[T]) -> T:
        outcome: Answer | NoAnswer | None = None
        try:
            step = next(steps)
            while True:
                try:
                    match step:
                        case Ask():
                            outcome = await self._ask(step)
                        case Pause(for_s):
                            outcome = None
                            await asyncio.sleep(for_s)
                except BaseException as error:  # Ctrl-C, a cancellation: the call may have something to add
                    steps.throw(error)
                step = steps.send((outcome, time.monotonic()))
        except StopIteration as end:
            value: T = end.value
            return value

    async def _ask(self, ask: Ask) -> Answer | NoAnswer:
        request = ask.request
        timeout = aiohttp.ClientTimeout(total=ask.within_s, sock_connect=min(CONNECT_S, ask.within_s))
        query = {name: str(value) for name, value in request.query.items() if value is not None}
        try:
            async with self._opened().request(
                request.method,
                ask.url + request.path,
                params=query,
                data=request.body if request.meanwhile is None else _sent(request.body, request.meanwhile),
                headers=_headers(request),
                timeout=timeout,
            ) as response:
                return Answer(response.status, await response.read(), response.headers.get("Retry-After"))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return NoAnswer(reason_of(error), was_sent=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return NoAnswer(reason_of(error), was_sent=True)

    async def _stream(self, url: str, last_id: str) -> AsyncGenerator[Event | None]:
        """One node's events; None for each sign of life. Raises the error of a node that refuses."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        async with self._opened().get(url + "/events", headers=headers, timeout=timeout) as response:
            if response.status != 200:
                raise error_of(response.status, decoded(await response.read()), url)
            self.nodes.answered(url)
            parser = Parser(last_id)
            async for part in response.content.iter_any():
                yield None
                for event in parser.feed(part):
                    yield event

    def _be_one_process(self) -> None:
        """Let go of what a fork has copied: processes must not share a connection, nor draw the same chance."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._rng.seed()
            self.nodes.first = self._rng.choice(self.nodes.given)
            _inherited.append(self._session)
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        self._be_one_process()
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is not None and self._loop is not loop:
            if not self._loop.is_closed():
                raise RuntimeError("this Client belongs to another event loop, which goes on: make one for each loop.")
            self._session = None  # its connections ended with their loop
        if self._session is None:
            self._loop = loop
            tls = tls_context(self._ca_file) if self._ca_file else True
            connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=tls)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self._session


def _headers(request: Request) -> dict[str, str]:
    headers = dict(request.headers)
    if request.body is not None:
        headers["Content-Type"] = "application/json"
        if request.meanwhile is not None:
            headers["Content-Length"] = str(len(request.body))  # aiohttp cannot know it of a body that it iterates over
    return headers


async def _sent(body: bytes | None, meanwhile: Callable[[], None]) -> AsyncIterator[bytes]:
    """The body; once it is sent, `meanwhile` is called."""
    yield body or b""
    meanwhile()
