"""Handlers: how a function becomes a task type, and what a handler may ask and report while it runs.

`@task` only records a declaration; `load` imports the modules and turns all declarations into a `Registry`, so that
annotations may name types defined further down in their module. The function itself stays as it was: callable,
testable.

Does not know: the event loop, child processes, Redis. It decides nothing about attempts.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints, overload

import msgspec

from cluster.config import QUEUE_NAME, Config
from cluster.errors import ConfigError
from cluster.shards.task import LEVEL_MAX, LEVELS, NO_DATA, Backoff
from node import import_path
from node.context import Context

TYPE_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,199}\Z")
ATTEMPTS_MAX = 1000
TIMEOUT_MAX_S = 604_800.0
NUMBERS = (int, float)  # types that are numbers; bool, which is an int by its class, is none
BACKOFF_BOUNDS = {"base_s": (0.0, 86_400.0), "factor": (0.0, 100.0), "max_s": (0.0, 604_800.0)}
RETRY_MAX_S = 31_536_000.0
CONTEXT_NAME = re.compile(r"^_*(ctx|context)_*\Z")  # of a context that is not annotated
SECOND_CONTEXT_NAME = re.compile(r"^_*c?_*\Z|ctx|context")  # the same, where the data stands before it
BUILTIN = "node.builtin"
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))

Function = TypeVar("Function", bound=Callable[..., Any])


class Executor(StrEnum):
    """Where a handler runs."""

    LOOP = "loop"  # on the node's event loop: must not block
    PROCESS = "process"  # in a child process: may compute, block and crash; can be killed
    THREAD = "thread"  # in a thread of the node: may block; can only be asked to stop (`Context.cancelled`)


class Retry(Exception):
    """Raised by a handler: run this task again after `after_s` seconds, or after its usual backoff.

    The attempt counts: a task that keeps asking ends in `dead` when its attempts are used up.
    """

    def __init__(self, after_s: float | None = None, reason: str = "the handler asked for another attempt") -> None:
        if after_s is not None and not isinstance(after_s, (int, float)):
            raise TypeError(f"Retry: after_s is {after_s!r}: not seconds; name the reason: Retry(reason=…)")
        if after_s is not None and not 0 <= after_s <= RETRY_MAX_S:
            raise ValueError(f"Retry: after_s is {after_s!r}: not 0 to {RETRY_MAX_S:.0f} seconds")
        super().__init__(reason)
        self.after_s = after_s
        self.reason = reason


class Reject(Exception):
    """Raised by a handler: trying again cannot help; the task is `dead` at once, with this reason."""

    def __init__(self, reason: str = "the handler rejected the task") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Declaration:
    """`@task(...)` as written, before anything looks at the function's annotations."""

    function: Callable[..., Any]
    name: str
    queue: str
    executor: Executor
    level: int | None
    max_attempts: int | None
    timeout_s: float | None
    backoff: Backoff | None

    @property
    def origin(self) -> str:
        """`module.function`, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


@dataclass(frozen=True, slots=True)
class Handler:
    """A task type that this process can run. None stands for the configuration's default."""

    name: str
    queue: str
    executor: Executor
    priority: int | None
    max_attempts: int | None
    timeout_s: float | None
    backoff: Backoff | None
    schema: dict[str, Any] | None  # JSON schema of `data`; None: any JSON
    call: Callable[[Any, Context | None], Any]  # a coroutine if `is_async`, else runs the function
    is_async: bool
    wants_context: bool
    decode: Callable[[bytes], Any]  # JSON to the function's argument; raises msgspec.DecodeError with the path
    origin: str


NONE_REPLACED: Mapping[str, str] = MappingProxyType({})


class Registry:
    """The handlers of this process by name. A child process that imports `modules` has the same ones.

    `replaced`: name of a built-in handler that gave way to one of those modules -> the place of that one.
    `empty`: those of the modules that declare no task.
    """

    def __init__(
        self, handlers: Iterable[Handler] = (), modules: Sequence[str] = (), replaced: Mapping[str, str] = NONE_REPLACED
    ) -> None:
        self._handlers = {handler.name: handler for handler in handlers}
        self.modules = tuple(modules)
        self.replaced = replaced
        self.empty: Sequence[str] = ()
        self.get: Callable[[str], Handler | None] = self._handlers.get

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._handlers.values())

    def __len__(self) -> int:
        return len(self._handlers)


# All declarations of this process, by name and origin. A module that is imported again replaces its own.
declared: dict[tuple[str, str], Declaration] = {}


@overload
def task(function: Function, /) -> Function: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str | None = None,
    priority: str | int | None = None,
    max_attempts: int | None = None,
    timeout_s: float | None = None,
    backoff: Backoff | Mapping[str, float] | None = None,
    executor: str | None = None,
) -> Callable[[Function], Function]: ...
def task(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    queue: str | None = None,
    priority: str | int | None = None,
    max_attempts: int | None = None,
    timeout_s: float | None = None,
    backoff: Backoff | Mapping[str, float] | None = None,
    executor: str | None = None,
) -> Function | Callable[[Function], Function]:
    """Declare a function as the handler of a task type: bare, or with options where the defaults do not fit.

    `name` defaults to the function's own. An `async def` runs on the loop, a `def` in a child process, unless
    `executor` says "loop", "process" or "thread". `queue` defaults to "default" on the loop and "sync" elsewhere.
    `priority` is low, normal, high or 0 to 9. Raises ConfigError for a value that cannot work.
    """

    def declare(function: Function) -> Function:
        declaration = _declaration(function, name, queue, priority, max_attempts, timeout_s, backoff, executor)
        declared[declaration.name, declaration.origin] = declaration
        return function

    return declare if function is None else declare(function)


def _declaration(
    function: Callable[..., Any],
    name: str | None,
    queue: str | None,
    priority: str | int | None,
    max_attempts: int | None,
    timeout_s: float | None,
    backoff: Backoff | Mapping[str, float] | None,
    executor: str | None,
) -> Declaration:
    if not inspect.isroutine(function):
        raise ConfigError(f"@task got {function!r}: not a function.", "Options are keywords: @task(name=…).")
    where = f"@task on {function.__module__}.{function.__qualname__}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where}: a generator, which has no single result.", "Return the result instead.")
    name = function.__name__ if name is None else name
    if not TYPE_NAME.match(name):
        raise ConfigError(f"{where}: name is {name!r}.", "Use 1 to 200 letters, digits and _ . : / -")
    if executor is None:
        chosen = Executor.LOOP if inspect.iscoroutinefunction(function) else Executor.PROCESS
    elif executor in tuple(Executor):
        chosen = Executor(executor)
    else:
        raise ConfigError(f"{where}: executor is {executor!r}.", "Use loop, process or thread.")
    if queue is None:
        queue = "default" if chosen is Executor.LOOP else "sync"
    if not QUEUE_NAME.match(queue):
        raise ConfigError(f"{where}: queue is {queue!r}.", "Use 1 to 48 letters, digits and _ . -")
    if max_attempts is not None and not (type(max_attempts) is int and 1 <= max_attempts <= ATTEMPTS_MAX):
        raise ConfigError(f"{where}: max_attempts is {max_attempts!r}.", f"Use 1 to {ATTEMPTS_MAX}.")
    if timeout_s is not None and not (type(timeout_s) in NUMBERS and 0 < timeout_s <= TIMEOUT_MAX_S):
        raise ConfigError(
            f"{where}: timeout_s is {timeout_s!r}.", f"Use more than 0 and at most {TIMEOUT_MAX_S:.0f} seconds."
        )
    level = _level(where, priority)
    return Declaration(function, name, queue, chosen, level, max_attempts, timeout_s, _backoff(where, backoff))


def _level(where: str, priority: str | int | None) -> int | None:
    if priority is None:
        return None
    level = LEVELS.get(priority, -1) if isinstance(priority, str) else priority
    if not (type(level) is int and 0 <= level <= LEVEL_MAX):
        raise ConfigError(f"{where}: priority is {priority!r}.", f"Use low, normal, high or 0 to {LEVEL_MAX}.")
    return level


def _backoff(where: str, backoff: Backoff | Mapping[str, float] | None) -> Backoff | None:
    """Values that a mapping leaves out come from the configuration's defaults."""
    if backoff is None:
        return None
    given = msgspec.structs.asdict(backoff) if isinstance(backoff, Backoff) else backoff
    unknown = sorted(set(given) - set(BACKOFF_BOUNDS))
    if unknown:
        raise ConfigError(f"{where}: backoff has {', '.join(unknown)}.", f"Its fields are {', '.join(BACKOFF_BOUNDS)}.")
    for name, value in given.items():
        low, high = BACKOFF_BOUNDS[name]
        if not (type(value) in NUMBERS and low <= value <= high):  # not-a-number is neither more nor less
            raise ConfigError(f"{where}: backoff has {name} {value!r}.", f"Use {low:.0f} to {high:.0f}.")
    return Backoff(*(float(given.get(name, getattr(Config, f"backoff_{name}"))) for name in BACKOFF_BOUNDS))


def load(modules: Sequence[str]) -> Registry:
    """Import the modules (from the working directory or PYTHONPATH) and return all handlers declared by then.

    A handler may take the name of a built-in one, which then gives way. Raises ConfigError naming the module and the
    cause when an import fails, two handlers share a name, or a handler's parameters cannot be understood.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(import_path.behind_the_library(sys.path), here)
    _import(BUILTIN)
    empty = []
    for module in modules:
        before = len(declared)
        _import(module)
        homes = (f"{declaration.function.__module__}." for declaration in declared.values())
        if len(declared) == before and not any(home.startswith(f"{module}.") for home in homes):
            empty.append(module)
    chosen: dict[str, Declaration] = {}
    for declaration in declared.values():
        other = chosen.get(declaration.name)
        if other is None or other.function.__module__ == BUILTIN:
            chosen[declaration.name] = declaration
        elif declaration.function.__module__ != BUILTIN:
            raise ConfigError(
                f"two handlers are called {declaration.name!r}: {other.origin} and {declaration.origin}.",
                "Give one of them another name: @task(name=…).",
            )
    replaced = {
        builtin.name: chosen[builtin.name].origin
        for builtin in declared.values()
        if builtin.function.__module__ == BUILTIN and chosen[builtin.name] is not builtin
    }
    registry = Registry((bind(declaration) for declaration in chosen.values()), modules, replaced)
    registry.empty = tuple(empty)
    return registry


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        cause = traceback.format_exception_only(error)[-1].strip()
        place = _place(error)
        hint = "Python looks for it in the working directory and on PYTHONPATH."
        if module.endswith(".py") or "/" in module:
            hint = "Name a module (app.tasks), not a file."
        elif place and isinstance(error, ModuleNotFoundError):
            hint = f"The module was found; the node's Python, {sys.executable}, lacks what it imports."
        elif place:
            hint = "The module was found: mend that line."
        message = f"tasks names {module!r}, and importing it failed: {cause}{place and f' ({place})'}"
        raise ConfigError(message, hint) from error


def _place(error: BaseException) -> str:
    """FILE:LINE where an import failed, in the user's own code if it got that far; "" if no file was found."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if "importlib" not in f.filename]
    own = [f for f in frames if not f.filename.startswith(LIBRARIES)]
    return next((f"{f.filename}:{f.lineno}" for f in reversed(own or frames)), "")


def of(*functions: Callable[..., Any]) -> Registry:
    """A registry of just these functions, each declared by `@task` before. For tests and embedding."""
    by_function = {declaration.function: declaration for declaration in declared.values()}
    return Registry(bind(by_function[function]) for function in functions)


def bind(declaration: Declaration) -> Handler:
    """Read the function's parameters and make it callable as (data, context). Raises ConfigError."""
    function = declaration.function
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise ConfigError(
            f"{declaration.origin}: its annotations cannot be read: {type(error).__name__}: {error}",
            "Import or define the types it names at module level.",
        ) from error
    data, context, data_type, default = _parameters(declaration, hints)
    decode, schema = _decoder(declaration, data_type) if data else (_no_data, None)
    if data and default is not inspect.Parameter.empty:
        decode = _with_default(decode, default)
    call, is_async = _call(function, data, context, declaration.executor)
    return Handler(
        name=declaration.name,
        queue=declaration.queue,
        executor=declaration.executor,
        priority=declaration.level,
        max_attempts=declaration.max_attempts,
        timeout_s=declaration.timeout_s,
        backoff=declaration.backoff,
        schema=schema,
        call=call,
        is_async=is_async,
        wants_context=context is not None,
        decode=decode,
        origin=declaration.origin,
    )


def _parameters(declaration: Declaration, hints: Mapping[str, Any]) -> tuple[str | None, str | None, Any, Any]:
    """(name of the data parameter, of the context parameter, type of data, default of data).

    The context is the parameter that is annotated as one, or that has no annotation and the name of one. A further
    parameter by position is refused: whoever writes (x, y), or (a: int, b: int = 2), means to get both from the data.
    """
    data: str | None = None
    context: str | None = None
    data_type: Any = Any
    default: Any = inspect.Parameter.empty
    for name, parameter in inspect.signature(declaration.function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(name, Any)
        if context is None and _is_context(name, annotation, comes_second=data is not None):
            context = name
        elif data is None and parameter.kind is not parameter.KEYWORD_ONLY:
            data, data_type, default = name, annotation, parameter.default
        elif parameter.default is parameter.empty or parameter.kind is not parameter.KEYWORD_ONLY:
            names = repr(name) if data is None else f"{data!r} and {name!r}"
            raise ConfigError(
                f"{declaration.origin} takes {names}, and a handler gets its data, as one value, and a Context.",
                "Put what it needs into data: a dataclass or TypedDict has many fields. The Context is the parameter "
                "that is called ctx, or annotated with Context. A parameter that no task sets may stand after a *, "
                f"with a default: (data, *, {name}=…).",
            )
    return data, context, data_type, default


def _is_context(name: str, annotation: Any, comes_second: bool) -> bool:
    if annotation is Any:
        return (SECOND_CONTEXT_NAME if comes_second else CONTEXT_NAME).search(name) is not None
    return bool(annotation in (Context, Context | None))


def _positional(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _decoder(declaration: Declaration, data_type: Any) -> tuple[Callable[[bytes], Any], dict[str, Any] | None]:
    if data_type is Any or data_type is object:
        return msgspec.json.Decoder().decode, None
    try:
        return msgspec.json.Decoder(data_type).decode, msgspec.json.schema(data_type)
    except TypeError as error:
        raise ConfigError(
            f"{declaration.origin}: data cannot become {data_type!r}: {str(error).splitlines()[-1]}",
            "Annotate it with a dataclass, TypedDict, msgspec.Struct or plain JSON types, or not at all.",
        ) from error


def _no_data(_: bytes) -> None:
    return None


def _with_default(decode: Callable[[bytes], Any], default: Any) -> Callable[[bytes], Any]:
    """Of a task that was submitted without data, the parameter's default; its annotation does not count for it."""
    return lambda data: default if data == NO_DATA else decode(data)


def _call(
    function: Callable[..., Any], data: str | None, context: str | None, executor: Executor
) -> tuple[Callable[[Any, Context | None], Any], bool]:
    """The function as one of (data, context), and whether it returns a coroutine; on the loop it always does."""
    plain: Callable[[Any, Context | None], Any]
    if context is None:
        plain = (lambda d, c: function(d)) if data else (lambda d, c: function())
    elif data is None:
        plain = lambda d, c: function(**{context: c})  # noqa: E731
    elif _positional(function)[:2] == [data, context]:
        plain = function
    else:
        plain = lambda d, c: function(**{data: d, context: c})  # noqa: E731
    if inspect.iscoroutinefunction(function):
        return plain, True
    if executor is not Executor.LOOP:
        return plain, False

    async def awaited(d: Any, c: Context | None) -> Any:
        # A `def` that asks for the loop is usually an async function behind a decorator that hides it.
        result = plain(d, c)
        return await result if inspect.isawaitable(result) else result

    return awaited, True
