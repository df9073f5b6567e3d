"""Both clients against the real gateway on a fake engine: the same calls, the same answers, the same errors."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec import Raw

from cluster.config import Config
from cluster.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    Invalid,
    NotFound,
    RumorError,
    StoreUnavailable,
    Unauthorized,
    UnknownType,
)
from node import Client, NotFinished, SyncClient, TaskCancelled, TaskFailed, Unreachable
from node.client import calls
from node.client.connection import reason_of
from node.client.errors import BadResult
from node.client.one_node import Remote
from node.client.task import Task
from node.gateway import app
from node.schema import LIST_MAX, ListQuery, TaskList
from tests.fake_engine import FakeEngine
from tests.waiting import wait_until_async

DEAD_PORT = "http://127.0.0.1:1"
FAILURE = b'{"type": "ZeroDivisionError", "message": "by zero", "traceback": "Traceback: here"}'


class Point(msgspec.Struct):
    x: int
    y: int


@dataclass
class Mail:
    to: str
    at: datetime


class Used:
    """One of the two clients, called the same way. SyncClient blocks, so that it runs in a thread of its own."""

    def __init__(self, kind: type[Client] | type[SyncClient], *urls: str, **settings: Any) -> None:
        self.client = kind(urls, **settings)

    async def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self.client, name)
        if isinstance(self.client, Client):
            found = method(*args, **kwargs)
            return [one async for one in found] if inspect.isasyncgen(found) else await found
        return await asyncio.to_thread(
            lambda: list(method(*args, **kwargs)) if name == "list" else method(*args, **kwargs)
        )

    async def close(self) -> None:
        if isinstance(self.client, Client):
            await self.client.close()
        else:
            self.client.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[TestServer]:
    async with TestServer(app.build(engine)) as server:
        yield server


@pytest.fixture
def url(server: TestServer) -> str:
    return str(server.make_url("")).rstrip("/")


@pytest.fixture(params=[Client, SyncClient], ids=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def use(kind: Any) -> AsyncIterator[Callable[..., Used]]:
    """A factory of clients; a short deadline, so that a test that hangs says why."""
    made: list[Used] = []

    def make(*urls: str, **settings: Any) -> Used:
        made.append(Used(kind, *urls, **{"within_s": 5.0, **settings}))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def ended(engine: FakeEngine, task_id: str, state: str, **more: bytes) -> None:
    task = engine.tasks[task_id]
    task.state = state
    for name, value in more.items():
        setattr(task, name, Raw(value))
    engine.finished.set()


async def test_submit_wait_and_result(use: Callable[..., Used], url: str, engine: FakeEngine) -> None:
    call = use(url)
    task = await call("submit", "noop", {"n": 1}, priority="high", queue="mail")
    assert isinstance(task, Task)
    assert (task.type, task.state, task.priority, task.queue, task.data) == ("noop", "queued", 8, "mail", {"n": 1})
    assert not task.is_finished
    ended(engine, task.id, "succeeded", result=b'{"x": 1, "y": 2}')
    assert (await call("wait", task.id)).result == {"x": 1, "y": 2}
    assert (await call("wait", task.id, type=Point)).result == Point(1, 2)
    assert await call("result", task.id, type=Point) == Point(1, 2)
    assert await call("result", task.id) == {"x": 1, "y": 2}
    with pytest.raises(BadResult, match=r"Expected `str`, got `int` - at `\$\[\.\.\.\]`"):
        await call("result", task.id, type=dict[str, str])


async def test_a_task_that_failed_raises_what_the_handler_raised(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    call = use(url)
    task = await call("submit", "noop")
    ended(engine, task.id, "dead", error=FAILURE)
    assert (await call("wait", task.id)).state == "dead"
    with pytest.raises(TaskFailed, match="is dead: ZeroDivisionError: by zero") as told:
        await call("result", task.id)
    assert (told.value.type, told.value.message, told.value.traceback) == (
        "ZeroDivisionError",
        "by zero",
        "Traceback: here",
    )
    assert told.value.task.state == "dead"
    ended(engine, task.id, "cancelled", error=b"null")
    with pytest.raises(TaskCancelled, match=r"^task_cancelled: task \S+ is cancelled\n"):
        await call("result", task.id, type=Point)


async def test_a_task_that_does_not_end_in_time_goes_on(use: Callable[..., Used], url: str) -> None:
    call = use(url)
    task = await call("submit", "noop")
    with pytest.raises(NotFinished) as told:
        await call("result", task.id, within_s=0.4)
    assert told.value.task.state == "queued"


async def when_it_waits(engine: FakeEngine, state: str, **more: bytes) -> None:
    """End the task of a call as soon as it waits for it."""
    await wait_until_async(lambda: engine.waiting == 1, 5, "the call waits")
    (task_id,) = engine.tasks
    ended(engine, task_id, state, **more)


async def test_run_is_a_submission_and_its_result_in_one_request(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    call = use(url)
    running = asyncio.create_task(call("run", "noop", {"n": 1}, queue="mail", result_type=Point))
    await when_it_waits(engine, "succeeded", result=b'{"x": 1, "y": 2}')
    assert await running == Point(1, 2)
    (task,) = engine.tasks.values()
    assert (task.queue, bytes(task.data)) == ("mail", b'{"n":1}')
    assert [name for name in engine.calls if name in ("submit", "wait")] == ["submit", "wait"]


@pytest.mark.parametrize(("state", "raised"), [("dead", TaskFailed), ("cancelled", TaskCancelled)])
async def test_run_raises_what_the_handler_raised(
    use: Callable[..., Used], url: str, engine: FakeEngine, state: str, raised: type[TaskFailed]
) -> None:
    running = asyncio.create_task(use(url)("run", "noop"))
    await when_it_waits(engine, state, error=FAILURE)
    with pytest.raises(raised) as told:
        await running
    assert (told.value.type, told.value.task.state) == ("ZeroDivisionError", state)


async def test_run_and_submit_raise_or_tell_when_the_time_is_up(use: Callable[..., Used], url: str) -> None:
    call = use(url)
    with pytest.raises(NotFinished) as told:
        await call("run", "noop", within_s=0.4)
    assert told.value.task.state == "queued"
    assert (await call("submit", "noop", wait_s=0.05)).state == "queued"
    with pytest.raises(BadRequest, match="wait_s"):
        await call("submit", "noop", wait_s=61, within_s=90)
    with pytest.raises(UnknownType):
        await call("run", "no such type")


@pytest.mark.parametrize("within_s", [0, -1, float("nan")])
async def test_a_time_in_which_nothing_can_end_is_refused_before_anything_is_sent(
    use: Callable[..., Used], url: str, engine: FakeEngine, within_s: float
) -> None:
    call = use(url)
    for name, argument in (("run", "noop"), ("submit", "noop"), ("submit_many", [("noop", 1)]), ("result", "x")):
        with pytest.raises(BadRequest, match=f"within_s is {within_s:g}"):
            await call(name, argument, within_s=within_s)
    with pytest.raises(BadRequest, match=f"within_s is {within_s:g}"):
        await use(url, within_s=within_s)("run", "noop")
    with pytest.raises(BadRequest, match="wait_s"):
        await call("submit", "noop", wait_s=within_s or -1)
    assert engine.calls == []


async def test_no_call_waits_for_the_connection_of_another(url: str, engine: FakeEngine) -> None:
    """Each call that waits for a task's end holds a connection; however many they are, all reach the node."""
    async with Client(url, within_s=30.0) as client:
        calls = [asyncio.create_task(client.run("noop")) for _ in range(150)]
        await wait_until_async(lambda: engine.waiting == 150, 10, "all calls wait at the node")
        for task_id in list(engine.tasks):
            ended(engine, task_id, "succeeded", result=b"1")
        assert await asyncio.gather(*calls) == [1] * 150


async def test_what_msgspec_knows_can_be_data(use: Callable[..., Used], url: str) -> None:
    call = use(url)
    task = await call("submit", "noop", Mail("a@b", datetime(2030, 1, 31, tzinfo=UTC)))
    assert task.data == {"to": "a@b", "at": "2030-01-31T00:00:00Z"}
    for bad, where in (
        (float("nan"), r"\$\.data is nan"),
        ({"rows": [1, {"price": float("-inf")}]}, r"\$\.data\.rows\[1\]\.price is -inf"),
        (Mail("a@b", object()), r"\$\.data\.at is object"),
        ({1: object()}, r"\$\.data\.1 is object"),
    ):
        with pytest.raises(Invalid, match=f"this is not JSON: {where}"):
            await call("submit", "noop", bad)


async def test_a_batch_keeps_each_items_error(use: Callable[..., Used], url: str) -> None:
    results = await use(url)("submit_many", [("noop", 1), ("nope", 2), {"type": "process", "priority": 99}])
    assert isinstance(results[0], Task)
    assert isinstance(results[1], UnknownType)
    assert isinstance(results[2], Invalid)
    assert await use(url)("submit_many", []) == []


async def test_the_same_key_is_the_same_task(use: Callable[..., Used], url: str) -> None:
    call = use(url)
    first = await call("submit", "noop", idempotency_key="k")
    assert (await call("submit", "noop", idempotency_key="k")).id == first.id
    assert (await call("submit", "noop")).id != first.id


@pytest.mark.parametrize("key", ["é", "ключ", "e\u0301", "日本-😀", "a b", "%C3%A9", '"quoted"', "a,b;c=d", "k" * 255])
async def test_a_key_means_the_same_in_both_clients_over_http_and_at_the_command_line(url: str, key: str) -> None:
    async with Client(url) as client:
        ids = {(await client.submit("noop", idempotency_key=key)).id}
    with SyncClient(url) as blocking:
        ids.add((await asyncio.to_thread(blocking.submit, "noop", idempotency_key=key)).id)
    headers = {"Idempotency-Key": key}
    answer = await asyncio.to_thread(Remote(url).call, "POST", "/tasks", {"type": "noop"}, None, headers)
    ids.add(answer[1]["id"])
    command = (sys.executable, "-m", "node", "submit", "noop", "--idempotency-key", key, "--url", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    ids.add((await process.communicate())[0].decode().strip())
    assert len(ids) == 1
    async with Client(url) as client:
        assert (await client.submit("noop", idempotency_key=f"another {key}"[:255])).id not in ids


@pytest.mark.parametrize(
    "key", ["", " ", "a ", " a", "a\nb", "a\r\nX-Header: 1", "a\0b", "\x7f", "\ud800", "k" * 256, 7]
)
async def test_a_key_that_no_header_can_carry_is_an_error_before_anything_is_sent(
    use: Callable[..., Used], url: str, engine: FakeEngine, key: Any
) -> None:
    call = use(url)
    for name, argument in (("submit", "noop"), ("run", "noop"), ("submit_many", [("noop", 1)])):
        with pytest.raises(BadRequest, match="Idempotency-Key"):
            await call(name, argument, idempotency_key=key)
    assert engine.calls == []


@pytest.mark.parametrize("text", ["a\n", " a", "a\0", "\ud800"])
async def test_other_text_that_no_header_can_carry_is_an_error_too(
    kind: type[Client] | type[SyncClient], use: Callable[..., Used], url: str, text: str
) -> None:
    with pytest.raises(ConfigError, match="the API token cannot be sent") as told:
        kind(url, token=f"{text}s3cret")
    assert "s3cret" not in str(told.value)
    events = use(url).client.events(last_id=text)
    with pytest.raises(BadRequest, match="last_id"):
        await anext(events) if not isinstance(events, Iterator) else next(events)


async def test_text_that_is_no_text_is_an_error_of_ours_in_any_place(use: Callable[..., Used], url: str) -> None:
    call = use(url)
    for name, args, more in (
        ("get", ("\ud800",), {}),
        ("list", (), {"type": "\ud800"}),
        ("list", (), {"key": "a\udfff"}),
        ("replay", (), {"type": "\ud800"}),
        ("submit", ("\ud800",), {}),
        ("submit", ("noop",), {"key": "\ud800"}),
    ):
        with pytest.raises(RumorError):
            await call(name, *args, **more)


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("no certificate", "certificate")])
async def test_a_file_of_certificates_that_is_none_is_named_at_once(
    use: Callable[..., Used], tmp_path: Path, text: str | None, why: str
) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    call = use("https://127.0.0.1:1", ca_file=str(file))
    with pytest.raises(ConfigError, match=f"(?is)ca_file is .*ca.pem.*{why}"):
        await call("submit", "noop")


def test_an_error_of_tls_says_what_to_do() -> None:
    """OpenSSL's own words name neither the URL's scheme nor the file of the certificate."""
    plain = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    plain.reason = "WRONG_VERSION_NUMBER"
    assert "begins with http://" in reason_of(plain)
    unknown = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    unknown.verify_message = "self-signed certificate"
    assert "not trusted (self-signed certificate): ca_file names" in reason_of(unknown)


async def test_a_node_without_tls_is_told_as_such(use: Callable[..., Used], url: str) -> None:
    with pytest.raises(Unreachable, match="begins with http://"):
        await use(url.replace("http:", "https:"), within_s=0.5)("submit", "noop")


async def test_a_token_may_be_any_printable_text(use: Callable[..., Used]) -> None:
    engine = FakeEngine(Config(node_id="n1", port=5001, api_token="пароль é"))
    async with TestServer(app.build(engine)) as server:
        url = str(server.make_url(""))
        assert (await use(url, token="пароль é")("submit", "noop")).state == "queued"
        with pytest.raises(Unauthorized):
            await use(url, token="пароль e")("submit", "noop")


async def test_a_call_that_is_cut_off_carries_the_results_so_far_and_the_key(
    use: Callable[..., Used], url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C for the one client, a cancellation for the other; the tasks are stored once, and found by the key."""
    call = use(url, learn=False)
    whole, asked = call.client._ask, 0
    stop: BaseException = asyncio.CancelledError() if isinstance(call.client, Client) else KeyboardInterrupt()

    def ask_twice(ask: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise stop
        return whole(ask)

    monkeypatch.setattr(call.client, "_ask", ask_twice)
    items = [("noop", n) for n in range(2_500)]
    told: Any = None
    try:
        await call("submit_many", items)
    except BaseException as error:
        told = error
    assert told is stop
    assert len(told.results) == len(engine.tasks) == 2_000
    results = await call("submit_many", items, idempotency_key=told.idempotency_key)
    assert [task.id for task in results[:2_000]] == [task.id for task in told.results]
    assert len(engine.tasks) == 2_500


async def test_items_that_fail_to_come_leave_nothing_behind(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    def items() -> Iterator[tuple[str, int]]:
        yield from (("noop", n) for n in range(1_200))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use(url)("submit_many", items())
    assert engine.tasks == {}


async def test_a_submission_that_may_be_stored_names_the_key_to_repeat_it_with(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    call = use(url)
    engine.redis_ok = False
    for name in ("submit", "run"):
        with pytest.raises(StoreUnavailable) as told:
            await call(name, "noop", within_s=0.3)
        assert told.value.idempotency_key
        assert repr(told.value.idempotency_key) in told.value.hint
    engine.maybe = False
    with pytest.raises(StoreUnavailable) as told:
        await call("submit", "noop", within_s=0.3)
    assert told.value.idempotency_key == ""


async def test_cancel_retry_replay_and_purge(use: Callable[..., Used], url: str, engine: FakeEngine) -> None:
    call = use(url)
    ids = [(await call("submit", "noop")).id for _ in range(3)]
    assert (await call("cancel", ids[0])).state == "cancelled"
    for task_id in ids:
        ended(engine, task_id, "dead")
    assert (await call("retry", ids[0])).state == "queued"
    with pytest.raises(Conflict, match="Only dead"):
        await call("retry", ids[0])
    assert await call("replay", limit=1) == 1
    assert await call("purge_dead") == 1
    with pytest.raises(NotFound):
        await call("get", "no such/task")


async def test_a_list_goes_over_all_pages_or_as_far_as_wanted(
    use: Callable[..., Used], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calls.PAGE_TASKS == LIST_MAX, "no node serves a longer page"
    monkeypatch.setattr(calls, "PAGE_TASKS", 100)
    call = use(url)
    newest = [(await call("submit", "noop")).id for _ in range(250)][::-1]
    assert [task.id for task in await call("list")] == newest
    assert [task.id for task in await call("list", limit=120)] == newest[:120]
    assert await call("list", limit=0) == []
    with pytest.raises(BadRequest, match="state is"):
        await call("list", state="odd")
    with pytest.raises(BadRequest, match='key is ""'):
        await call("page", key="")
    page = await call("page", limit=3)
    assert ([task.id for task in page.tasks], page.searched, page.is_complete) == (newest[:3], 3, True)


async def test_a_list_goes_on_where_a_node_stopped_its_search(
    use: Callable[..., Used], url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = use(url)
    pages = {None: TaskList([], "c1", 20_000, False), "c1": TaskList([], "c2", 20_000, False), "c2": TaskList([], None)}
    queries: list[ListQuery] = []

    async def list_tasks(query: ListQuery) -> TaskList:
        queries.append(query)
        return pages[query.cursor]

    monkeypatch.setattr(engine, "list_tasks", list_tasks)
    assert await call("list", type="rare", limit=5, fields=("data", "result")) == []
    assert [query.cursor for query in queries] == [None, "c1", "c2"]
    assert {(query.type, query.fields, query.limit) for query in queries} == {("rare", "data,result", 5)}
    assert await call("page", queue="mail", state="queued") == ([], "c1", 20_000, False)
    assert queries[-1].queue == "mail"


async def test_the_cluster_is_told(use: Callable[..., Used], url: str, engine: FakeEngine) -> None:
    call = use(url)
    assert await call("workers") == [{"node_id": "n1"}]
    assert (await call("cluster"))["node_id"] == "n1"
    assert await call("sums") == []
    engine.redis_ok = False
    assert (await call("health"))["status"] == "unavailable"


async def test_a_dead_node_is_passed_over_and_one_that_cannot_store_too(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    away = FakeEngine()
    away.redis_ok = False
    async with TestServer(app.build(away)) as other:
        call = use(DEAD_PORT, str(other.make_url("")), url)
        task = await call("submit", "noop", idempotency_key="k")
        assert task.id in engine.tasks
        assert not away.tasks


async def test_what_nobody_can_do_says_so_at_the_deadline(
    use: Callable[..., Used], url: str, engine: FakeEngine
) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 does not answer") as told:
        await use(DEAD_PORT)("submit", "noop", within_s=0.5)
    assert not told.value.may_have_happened
    engine.redis_ok = False
    with pytest.raises(StoreUnavailable) as away:
        await use(url)("submit", "noop", within_s=0.5)
    assert away.value.may_have_happened
    assert loop.time() - began_s < 3


async def test_a_node_that_hangs_is_left_and_a_call_that_must_not_be_repeated_is_not(
    use: Callable[..., Used], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as hung:
        hung.bind(("127.0.0.1", 0))
        hung.listen()
        call = use(f"http://127.0.0.1:{hung.getsockname()[1]}", learn=False)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(Unreachable, match="timed out") as told:
            await call("replay", within_s=0.3)
        assert told.value.may_have_happened
        assert "look before you repeat it" in told.value.hint
        assert asyncio.get_running_loop().time() - began_s < 2


async def test_a_kept_connection_that_broke_after_a_request_leaves_a_doubt(use: Callable[..., Used]) -> None:
    """The node may have carried the request out before it died; that nobody answers afterwards proves nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    body = b'{"id": "1-1f", "type": "noop", "state": "queued"}'

    def node() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            connection.recv(65_536)
            listener.close()

    thread = threading.Thread(target=node)
    thread.start()
    call = use(f"http://127.0.0.1:{listener.getsockname()[1]}", learn=False)
    assert (await call("submit", "noop")).id == "1-1f"
    with pytest.raises(Unreachable) as told:
        await call("submit", "noop", within_s=0.5)
    await asyncio.to_thread(thread.join)
    assert told.value.may_have_happened
    assert told.value.idempotency_key


async def test_the_token_is_sent_and_a_wrong_one_is_told(
    use: Callable[..., Used], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(Config(node_id="n1", port=5001, api_token="t0ken"))
    async with TestServer(app.build(engine)) as server:
        url = str(server.make_url(""))
        assert (await use(url, token="t0ken")("submit", "noop")).state == "queued"
        with pytest.raises(Unauthorized):
            await use(url, token="other")("submit", "noop")
        with pytest.raises(Unauthorized):
            await use(url)("submit_many", [("noop", 1)])
        monkeypatch.setenv("RUMOR_API_TOKEN", "t0ken")
        monkeypatch.setenv("RUMOR_URL", f"{DEAD_PORT},{url}")
        assert (await use()("submit", "noop")).state == "queued"


async def test_a_connection_that_ended_between_two_calls_is_made_anew(
    use: Callable[..., Used], engine: FakeEngine
) -> None:
    server = TestServer(app.build(engine))
    await server.start_server()
    port = server.port
    call = use(f"http://127.0.0.1:{port}", learn=False)
    await call("submit", "noop")
    await server.close()
    async with TestServer(app.build(engine), port=port):
        await call("submit", "noop")
        assert await call("replay") == 0


async def test_events_go_on_at_another_node_and_none_comes_twice(kind: Any, url: str) -> None:
    """The first node ends after one event; the second tells it again, and one more."""

    def events(*ids: str) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            asked.append(request.headers.get("Last-Event-ID", ""))
            text = "".join(f'id: L.{one}\nevent: member\ndata: {{"id": "{one}"}}\n\n' for one in ids)
            return web.Response(text=text, content_type="text/event-stream")

        return answer

    asked: list[str] = []
    apps = []
    for ids in (("1",), ("1", "2", "3")):
        app = web.Application()
        app.router.add_get("/events", events(*ids))
        apps.append(app)
    async with TestServer(apps[0]) as one, TestServer(apps[1]) as two:
        client = kind([str(one.make_url("")), str(two.make_url(""))], learn=False)
        client.nodes.first = client.nodes.given[0]
        found: list[str] = []
        if kind is Client:
            async with client:
                async for event in client.events(names=["member"]):
                    found.append(event.data["id"])
                    if len(found) == 3:
                        break
        else:

            def read() -> None:
                with client:
                    for event in client.events(names=["member"]):
                        found.append(event.data["id"])
                        if len(found) == 3:
                            break

            await asyncio.to_thread(read)
        assert found == ["1", "2", "3"]
        assert asked == ["", "L.1"]


async def test_events_end_when_nobody_serves_them(use: Callable[..., Used]) -> None:
    client = use(DEAD_PORT, learn=False).client
    with pytest.raises(Unreachable, match=r"no events for 0\.3 s"):
        await (
            anext(client.events(within_s=0.3))
            if isinstance(client, Client)
            else asyncio.to_thread(next, client.events(within_s=0.3), None)
        )


def test_a_client_can_be_made_where_no_loop_runs_and_threads_may_share_a_blocking_one() -> None:
    made = Client(DEAD_PORT)

    async def use_it() -> None:
        async with made:
            with pytest.raises(Unreachable):
                await made.get("x", within_s=0.2)

    asyncio.run(use_it())
    with SyncClient(DEAD_PORT) as shared:
        raised: list[RumorError] = []

        def ask() -> None:
            try:
                shared.get("x", within_s=0.2)
            except RumorError as error:
                raised.append(error)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [error.code for error in raised] == ["unreachable"] * 4


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(getattr(kind, name)).parameters)
            for name in dir(kind)
            if not name.startswith("_") and callable(getattr(kind, name))
        }

    assert calls(Client) == calls(SyncClient)
