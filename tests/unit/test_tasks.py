"""How functions become handlers: declarations, loading, and data converted to what the handler takes."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest

import node.builtin  # noqa: F401 - declared once, outside of any test's own declarations
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.shards.task import NO_DATA, Backoff, Claimed, Failure, Kind, Spec
from node import tasks
from node.tasks import Context, Executor, Reject, Retry, load, of, task
from node.work.ending import MESSAGE_MAX, RESULT_MAX_BYTES, TRACEBACK_MAX, raised, returned, run


@pytest.fixture(autouse=True)
def _own_declarations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test declares or imports is forgotten after it."""
    before = dict(tasks.declared)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    tasks.declared.clear()
    tasks.declared.update(before)
    for name in [name for name in sys.modules if name.startswith(("shop_", "broken"))]:
        del sys.modules[name]


class Mail(msgspec.Struct):
    to: str
    size: int = 0


@dataclasses.dataclass
class Point:
    x: float
    y: float


class Row(TypedDict):
    name: str


class FakeLink:
    is_stopped = False

    def __init__(self) -> None:
        self.reported: list[bytes] = []

    def report(self, value: bytes) -> None:
        self.reported.append(value)


def context(link: FakeLink | None = None) -> Context:
    spec = Spec("t", "default", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0), trace="00-ab-cd-01")
    return Context(Claimed("ID-1f", 31, 7, 3, spec, b"null"), "n1", link or FakeLink())


# Declaring


def test_a_bare_decorator_leaves_the_function_as_it_was_and_names_the_type_after_it() -> None:
    async def greet(data: str) -> str:
        return data

    assert task(greet) is greet
    (handler,) = of(greet)
    assert (handler.name, handler.queue, handler.executor) == ("greet", "default", Executor.LOOP)
    assert (handler.priority, handler.max_attempts, handler.timeout_s, handler.backoff) == (None, None, None, None)


def test_a_def_runs_in_a_child_process_and_in_the_sync_queue_unless_told_otherwise() -> None:
    @task
    def plain(data: Any) -> None: ...

    @task(executor="thread", queue="gpu")
    def threaded(data: Any) -> None: ...

    first, second = of(plain, threaded)
    assert (first.executor, first.queue) == (Executor.PROCESS, "sync")
    assert (second.executor, second.queue) == (Executor.THREAD, "gpu")


def test_options_reach_the_handler_with_words_as_levels() -> None:
    @task(name="mail.send", priority="high", max_attempts=3, timeout_s=2.5, backoff={"base_s": 4})
    async def send(data: Any) -> None: ...

    (handler,) = of(send)
    assert (handler.name, handler.priority, handler.max_attempts, handler.timeout_s) == ("mail.send", 8, 3, 2.5)
    assert handler.backoff == Backoff(4.0, Config().backoff_factor, Config().backoff_max_s)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "no spaces"}, ["no spaces"]),
        ({"queue": "a/b"}, ["'a/b'"]),
        ({"priority": 10}, ["10", "0 to 9"]),
        ({"priority": "urgent"}, ["'urgent'", "low, normal, high"]),
        ({"max_attempts": 0}, ["max_attempts is 0"]),
        ({"timeout_s": -1}, ["timeout_s is -1"]),
        ({"timeout_s": float("nan")}, ["timeout_s is nan"]),
        ({"executor": "gpu"}, ["'gpu'", "loop, process or thread"]),
        ({"backoff": {"base": 1}}, ["backoff has base", "base_s, factor, max_s"]),
        ({"backoff": {"max_s": float("inf")}}, ["inf", "0 to 604800"]),
        ({"backoff": {"base_s": float("nan")}}, ["base_s nan", "0 to 86400"]),
        ({"backoff": {"max_s": 1e300}}, ["max_s 1e+300"]),
        ({"backoff": {"base_s": "1"}}, ["base_s '1'"]),
        ({"backoff": {"factor": -1}}, ["factor -1"]),
        ({"backoff": Backoff(float("nan"), 2.0, 60.0)}, ["base_s nan"]),
        ({"timeout_s": float("inf")}, ["timeout_s is inf"]),
        ({"timeout_s": "5"}, ["timeout_s is '5'"]),
        ({"timeout_s": True}, ["timeout_s is True"]),
        ({"max_attempts": 1.5}, ["max_attempts is 1.5"]),
        ({"max_attempts": True}, ["max_attempts is True"]),
        ({"priority": 5.5}, ["priority is 5.5"]),
        ({"priority": True}, ["priority is True"]),
        ({"priority": 10**400}, ["priority is 1"]),
    ],
)
def test_an_option_that_cannot_work_is_refused_with_its_value_and_the_function(
    options: dict[str, Any], words: list[str]
) -> None:
    async def handler(data: Any) -> None: ...

    with pytest.raises(ConfigError) as caught:
        task(**options)(handler)
    for word in [*words, "handler"]:
        assert word in str(caught.value)


def test_a_generator_is_no_handler() -> None:
    async def rows(data: Any) -> Any:
        yield 1

    with pytest.raises(ConfigError, match="generator"):
        task(rows)


# Parameters


async def _nothing() -> str:
    return "nothing"


async def _data(data: Any) -> Any:
    return data


async def _data_context(data: Any, ctx: Any) -> Any:
    return data, ctx.task_id


async def _context_only(ctx: Context) -> Any:
    return ctx.task_id


async def _context_first(ctx: Context, data: Any) -> Any:
    return data, ctx.task_id


async def _context_by_keyword(data: Any, *, ctx: Context) -> Any:
    return data, ctx.task_id


async def _positional_only(data: Any, ctx: Context, /) -> Any:
    return data, ctx.task_id


async def _optional_extra(data: Any, ctx: Context | None = None, *, extra: int = 4) -> Any:
    return data, ctx.task_id if ctx else None


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_nothing, "nothing"),
        (_data, [1]),
        (_data_context, ([1], "ID-1f")),
        (_context_only, "ID-1f"),
        (_context_first, ([1], "ID-1f")),
        (_context_by_keyword, ([1], "ID-1f")),
        (_positional_only, ([1], "ID-1f")),
        (_optional_extra, ([1], "ID-1f")),
    ],
)
async def test_a_handler_gets_the_data_and_the_context_in_whatever_order_it_names_them(
    function: Callable[..., Awaitable[Any]], expected: Any
) -> None:
    (handler,) = of(task(function))
    value = handler.decode(b"[1]")
    assert await handler.call(value, context() if handler.wants_context else None) == expected


def test_a_handler_that_takes_more_than_data_and_context_is_refused() -> None:
    @task
    async def greedy(data: Any, ctx: Context, database: Any) -> None: ...

    with pytest.raises(ConfigError, match="database"):
        of(greedy)

    @task
    async def hopeful(a: int, b: int = 2) -> None: ...

    with pytest.raises(ConfigError, match="takes 'a' and 'b', and a handler gets its data, as one value") as caught:
        of(hopeful)
    assert "(data, *, b=…)" in caught.value.hint


def _add(x, y): ...  # type: ignore[no-untyped-def]
def _add_defaults(x=1, y=2): ...  # type: ignore[no-untyped-def]
def _key_only(*, x): ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize(
    ("function", "words"), [(_add, "'x' and 'y'"), (_add_defaults, "'x' and 'y'"), (_key_only, "takes 'x', and")]
)
def test_a_second_parameter_is_no_context_unless_it_looks_like_one(function: Callable[..., Any], words: str) -> None:
    """It would get the context where its author means the second of two arguments."""
    with pytest.raises(ConfigError, match=words) as caught:
        of(task(function))
    assert "called ctx, or annotated with Context" in caught.value.hint


def _plain(data, ctx):
    return locals()  # type: ignore[no-untyped-def]


def _unused(data, _):
    return locals()  # type: ignore[no-untyped-def]


def _other_name(data, job_context):
    return locals()  # type: ignore[no-untyped-def]


def _first(ctx, data):
    return locals()  # type: ignore[no-untyped-def]


def _alone(context):
    return locals()  # type: ignore[no-untyped-def]


def _optional(data, ctx=None):
    return locals()  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("function", [_plain, _unused, _other_name, _first, _alone, _optional])
def test_a_context_without_annotation_is_known_by_its_name(function: Callable[..., Any]) -> None:
    (handler,) = of(task(function))
    ctx = context()
    got = handler.call([1], ctx)
    assert got.pop("data", [1]) == [1]
    assert list(got.values()) == [ctx]


@dataclasses.dataclass
class _Page:
    number: int = 1


def _number(n: int = 5) -> Any:
    return n


def _maybe(n: int | None = 5) -> Any:
    return n


def _any(data: Any = "all") -> Any:
    return data


def _page(page: _Page = _Page(7)) -> Any:  # noqa: B008 - as a user would write it
    return page


def _bounded(n: Annotated[int, msgspec.Meta(ge=1)] = 0, *, ctx: Context) -> Any:
    return n


def _after_the_context(ctx: Context, n: int = 5) -> Any:
    return n


def _keyword(data: int, *, n: int = 5) -> Any:
    return n


def _without(n: int | None) -> Any:
    return n


@pytest.mark.parametrize(
    ("function", "data", "expected"),
    [
        (_number, NO_DATA, 5),
        (_number, b"6", 6),
        (_maybe, NO_DATA, 5),
        (_maybe, b"null", None),
        (_any, NO_DATA, "all"),
        (_any, b"null", None),
        (_page, NO_DATA, _Page(7)),
        (_page, b"{}", _Page(1)),
        (_bounded, NO_DATA, 0),
        (_after_the_context, NO_DATA, 5),
        (_keyword, b"6", 5),
        (_without, NO_DATA, None),
    ],
)
def test_without_data_the_default_counts_and_for_null_it_does_not(
    function: Callable[..., Any], data: bytes, expected: Any
) -> None:
    (handler,) = of(task(function))
    value = handler.decode(data)
    assert handler.call(value, context() if handler.wants_context else None) == expected


@pytest.mark.parametrize(("function", "data"), [(_number, b"null"), (_page, b"null"), (_keyword, NO_DATA)])
def test_a_null_that_does_not_fit_is_wrong_data_whatever_the_default(function: Callable[..., Any], data: bytes) -> None:
    (handler,) = of(task(function))
    with pytest.raises(msgspec.ValidationError, match="got `null`"):
        handler.decode(data)


async def test_an_async_function_behind_a_decorator_that_hides_it_runs_on_the_loop_when_asked_for() -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    async def work(data: int) -> int:
        return data + 1

    (handler,) = of(task(executor="loop")(traced(work)))
    assert handler.is_async
    assert await handler.call(1, None) == 2


# Data


def _takes_struct(data: Mail) -> Any:
    return data.to


def _takes_dataclass(data: Point) -> Any:
    return data.x + data.y


def _takes_typed_dict(data: Row) -> Any:
    return data["name"]


def _takes_bounds(data: Annotated[int, msgspec.Meta(ge=1)]) -> Any:
    return data


@pytest.mark.parametrize(
    ("function", "data", "result"),
    [
        (_takes_struct, b'{"to": "a@b"}', b'"a@b"'),
        (_takes_dataclass, b'{"x": 1, "y": 2}', b"3.0"),
        (_takes_typed_dict, b'{"name": "n"}', b'"n"'),
        (_takes_bounds, b"3", b"3"),
    ],
)
def test_data_becomes_what_the_annotation_says(function: Callable[..., Any], data: bytes, result: bytes) -> None:
    (handler,) = of(task(function))
    ending = run(handler, data, None)
    assert (ending.kind, ending.result) == (Kind.SUCCEEDED, result)
    assert handler.schema is not None


@pytest.mark.parametrize(
    ("function", "data", "words"),
    [
        (_takes_struct, b'{"to": "a", "size": "big"}', ["Expected `int`", "$.size"]),
        (_takes_struct, b"{}", ["missing required field `to`"]),
        (_takes_dataclass, b'{"x": 1, "y": null}', ["$.y"]),
        (_takes_typed_dict, b'{"name": 3}', ["name"]),
        (_takes_bounds, b"0", [">= 1"]),
    ],
)
def test_data_that_does_not_fit_is_rejected_with_the_path_of_the_wrong_field(
    function: Callable[..., Any], data: bytes, words: list[str]
) -> None:
    (handler,) = of(task(function))
    ending = run(handler, data, None)
    assert ending.kind is Kind.REJECTED
    assert ending.failure is not None
    assert ending.failure.type == "InvalidData"
    for word in words:
        assert word in ending.failure.message


def test_the_schema_names_fields_and_bounds_and_is_absent_where_any_json_will_do() -> None:
    struct, bounds, anything = of(task(_takes_struct), task(_takes_bounds), task(_data))
    assert struct.schema is not None
    assert struct.schema["$defs"]["Mail"]["required"] == ["to"]
    assert bounds.schema == {"type": "integer", "minimum": 1}
    assert anything.schema is None


def test_an_annotation_that_json_cannot_become_is_refused_when_loaded() -> None:
    @task
    async def odd(data: complex) -> None: ...

    with pytest.raises(ConfigError, match=r"odd: data cannot become .*complex"):
        of(odd)


# Endings


def test_a_result_that_json_cannot_hold_is_final() -> None:
    for value in (object(), "\ud800", {(1, 2): 3}, float("nan"), {"rows": [None, {"price": float("inf")}]}):
        ending = returned(value)
        assert (ending.kind, ending.failure and ending.failure.type) == (Kind.REJECTED, "ResultNotSerializable")
    assert ending.failure is not None
    assert "$.rows[1].price is inf" in ending.failure.message  # and not null, which the others would take it for


def test_a_result_over_the_bound_is_final_and_one_on_it_is_kept() -> None:
    assert returned("x" * (RESULT_MAX_BYTES - 2)).kind is Kind.SUCCEEDED
    ending = returned("x" * (RESULT_MAX_BYTES - 1))
    assert (ending.kind, ending.failure and ending.failure.type) == (Kind.REJECTED, "ResultTooLarge")


def _fails_deep(data: int) -> None:
    if data:
        _fails_deep(data - 1)
    raise LookupError("no such user: \ud800")


def test_a_failure_shows_the_handlers_frames_and_none_of_the_workers() -> None:
    (handler,) = of(task(_fails_deep))
    ending = run(handler, b"2", None)
    assert (ending.kind, ending.failure and ending.failure.type) == (Kind.FAILED, "LookupError")
    assert ending.failure is not None
    assert ending.failure.traceback is not None
    assert "_fails_deep" in ending.failure.traceback
    assert "node/" not in ending.failure.traceback
    msgspec.msgpack.encode(ending)  # whatever was in the message, it can be stored


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), RecursionError(), MemoryError(), ExceptionGroup("g", [OSError()])]
)
def test_anything_raised_is_a_failure_of_the_task(error: BaseException) -> None:
    ending = raised(error)
    assert (ending.kind, ending.failure and ending.failure.type) == (Kind.FAILED, type(error).__name__)


def test_an_error_that_cannot_be_shown_is_still_a_failure() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    ending = raised(Mute())
    assert ending.failure is not None
    assert ending.failure.type == "Mute"
    assert "ValueError" in ending.failure.message


def test_messages_and_tracebacks_have_bounds() -> None:
    def recurse(depth: int) -> None:
        if depth == 0:
            raise ValueError("y" * 100_000)
        recurse(depth - 1)

    try:
        recurse(200)
    except ValueError as error:
        failure = raised(error).failure
    assert isinstance(failure, Failure)
    assert len(failure.message) == MESSAGE_MAX
    assert failure.traceback is not None
    assert len(failure.traceback) <= TRACEBACK_MAX


def test_retry_and_reject_say_what_the_handler_asked_for() -> None:
    later, usual, never = raised(Retry(2.5, "busy")), raised(Retry()), raised(Reject("no such account"))
    assert (later.kind, later.retry_after_s, later.failure) == (Kind.RETRY, 2.5, Failure("Retry", "busy"))
    assert usual.kind is Kind.FAILED
    assert (never.kind, never.failure) == (Kind.REJECTED, Failure("Rejected", "no such account"))


class _Bare(Reject):
    def __init__(self) -> None: ...


class _NamelessKind(type):
    @property
    def __name__(cls) -> str:
        raise RuntimeError("no name")


class _Nameless(Exception, metaclass=_NamelessKind): ...


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (Reject(ValueError("card declined")), Kind.REJECTED, "card declined"),  # type: ignore[arg-type]
        (Reject(None), Kind.REJECTED, "None"),  # type: ignore[arg-type]
        (Retry(1.0, {"code": 7}), Kind.RETRY, "{'code': 7}"),  # type: ignore[arg-type]
        (_Bare(), Kind.REJECTED, ""),
        (_Nameless("lost"), Kind.FAILED, "lost"),
    ],
)
def test_whatever_a_handler_raises_its_attempt_has_an_ending(error: Exception, kind: Kind, message: str) -> None:
    """One that had none would hold its slot until its time limit, an hour by default."""
    ending = raised(error)
    assert ending.failure is not None
    assert (ending.kind, ending.failure.message) == (kind, message)


@pytest.mark.parametrize("after_s", [-1.0, float("nan"), float("inf"), 1e12])
def test_retry_refuses_a_time_that_cannot_be_waited_for(after_s: float) -> None:
    with pytest.raises(ValueError, match="after_s is"):
        Retry(after_s)


def test_retry_given_a_reason_first_says_how_to_give_it() -> None:
    with pytest.raises(TypeError, match=r"after_s is 'busy'.*Retry\(reason=…\)"):
        Retry("busy")  # type: ignore[arg-type]


# Context


def test_a_context_tells_the_attempt_and_passes_progress_on_as_json() -> None:
    link = FakeLink()
    ctx = context(link)
    assert (ctx.task_id, ctx.type, ctx.attempt, ctx.delivery, ctx.node_id) == ("ID-1f", "t", 3, 7, "n1")
    assert (ctx.trace, ctx.cancelled) == ("00-ab-cd-01", False)
    ctx.progress({"done": 3})
    assert link.reported == [b'{"done":3}']
    with pytest.raises(ValueError, match="at most 4096"):
        ctx.progress("x" * 5000)
    with pytest.raises(TypeError, match=r"\$\.done is nan"):
        ctx.progress({"done": float("nan")})
    with pytest.raises(TypeError):
        ctx.progress(object())


# Loading


def _module(folder: Path, name: str, text: str) -> None:
    path = folder.joinpath(*name.split("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".py").write_text(text)


def test_modules_are_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "shop_a.mail", "from node import task\n@task\nasync def send_a(data): ...\n")
    monkeypatch.chdir(tmp_path)
    registry = load(["shop_a.mail"])
    assert registry.get("send_a") is not None
    assert registry.get("noop") is not None
    assert registry.get("nowhere") is None
    assert registry.modules == ("shop_a.mail",)


def test_annotations_may_name_types_that_stand_further_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "from __future__ import annotations\nimport msgspec\nfrom node import task\n"
        "@task\nasync def later(data: Order): ...\nclass Order(msgspec.Struct):\n    id: int\n"
    )
    _module(tmp_path, "shop_b", text)
    monkeypatch.chdir(tmp_path)
    handler = load(["shop_b"]).get("later")
    assert handler is not None
    assert handler.schema is not None


def test_a_module_that_declares_no_task_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "shop_e.plain", "async def send_e(data): ...\n")
    _module(tmp_path, "shop_e.mail", "from node import task\n@task\nasync def send_e(data): ...\n")
    _module(tmp_path, "shop_f", "import shop_e.mail\n")
    monkeypatch.chdir(tmp_path)
    assert load(["shop_e.plain", "shop_f", "shop_e.mail", "shop_e"]).empty == ("shop_e.plain",)
    assert load([]).empty == ()


def test_a_users_handler_may_take_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "shop_c", "from node import task\n@task\nasync def process(data): ...\n")
    monkeypatch.chdir(tmp_path)
    registry = load(["shop_c"])
    assert registry.replaced == {"process": "shop_c.process"}, "the node says so at start"
    handler = registry.get("process")
    assert handler is not None
    assert handler.origin == "shop_c.process"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_library", ["No module named 'no_such_library'", "broken.py:1"]),
        ("\n1 / 0", ["ZeroDivisionError", "broken.py:2"]),
        ("\nimport json\njson.loads('{')", ["JSONDecodeError", "broken.py:3"]),
        ("\ndef f(:", ["SyntaxError", "broken.py:2"]),
        ("raise SystemExit(4)", ["SystemExit: 4"]),
    ],
)
def test_an_import_that_fails_names_the_module_and_the_cause(
    text: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _module(tmp_path, "broken", text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(["broken"])
    for word in ["'broken'", *words]:
        assert word in caught.value.message
    assert caught.value.hint.startswith("The module was found")


def test_a_missing_module_and_a_file_name_get_their_own_hints() -> None:
    with pytest.raises(ConfigError) as missing:
        load(["no_such_module_here"])
    assert "PYTHONPATH" in missing.value.hint
    with pytest.raises(ConfigError) as file:
        load(["app/tasks.py"])
    assert "not a file" in file.value.hint


def test_two_handlers_of_one_name_are_refused_with_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _module(tmp_path, "shop_d", "from node import task\n@task(name='same')\nasync def one(data): ...\n")
    _module(tmp_path, "shop_e", "from node import task\n@task(name='same')\nasync def two(data): ...\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(["shop_d", "shop_e"])
    for word in ("'same'", "shop_d.one", "shop_e.two"):
        assert word in str(caught.value)


def test_importing_the_decorator_starts_nothing_heavy() -> None:
    code = "import sys; from node import task; print([m for m in ('asyncio', 'redis', 'aiohttp') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
