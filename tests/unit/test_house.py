"""The floor plan of ARCHITECTURE: which room may know which, how large a room and a function may be, one name for one
thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_imports import ROOT, imports, name, sources

MODULES = sources("cluster", "node")
PACKAGES = {str(path.parent.relative_to(ROOT)) for path in MODULES if path.parent.parent != ROOT}

# The rooms that a room may import, besides itself and the vocabulary at the top of `cluster` ("cluster"). A row is a
# decision: add to it with a reason, or turn the dependency round.
MAY_IMPORT: dict[str, set[str]] = {
    "cluster": {"cluster/swim"},  # `view` shows what membership believes
    "cluster/swim": set(),
    "cluster/sim": {"cluster/swim"},
    "cluster/gossip": {"cluster/swim"},
    "cluster/shards": set(),
    "cluster/vitals": {"cluster/swim", "cluster/gossip"},
    "node/plural": set(),
    "node/escapes": set(),
    "node/trace_context": set(),
    "node/leaving": set(),
    "node/schema": {"cluster/shards"},
    "node/import_path": set(),
    "node/exact_json": set(),
    "node/context": {"cluster/shards", "node/exact_json", "node/trace_context", "node/observe"},  # a handler's own log
    "node/tasks": {"cluster/shards", "node/context", "node/import_path"},
    "node/builtin": {"node/context", "node/tasks"},
    "node/observe": {"cluster/shards", "cluster/swim", "node/schema", "node/trace_context"},
    "node/work": {"cluster/shards", "node/context", "node/exact_json", "node/tasks", "node/observe"},
    "node/gateway": {"cluster/gossip", "cluster/swim", "node/schema", "node/trace_context", "node/observe"},
    "node/queue": {
        *("cluster/shards", "cluster/swim", "cluster/gossip", "cluster/vitals"),
        *("node/schema", "node/trace_context", "node/tasks", "node/observe", "node/work"),
    },
    "node/client": {"node/exact_json", "node/trace_context"},
    "node/lab": {"node/client", "node/escapes", "node/plural"},
    "node/cli": {
        *("cluster/gossip", "cluster/shards"),
        *("node/client", "node/escapes", "node/lab", "node/observe", "node/plural", "node/main"),
    },
    "node/main": {
        *("cluster/gossip", "cluster/vitals"),
        *("node/gateway", "node/queue", "node/work", "node/observe", "node/tasks", "node/leaving"),
    },
    "node/__main__": {"node/cli", "node/import_path"},
    "node": set(),  # what programs import, each name when it is asked for
}

SAME_NAME = {  # class names that stand in two modules, and why that is right
    "Failure": "why an attempt failed: as it is stored, and as the client shows it",
    "Crash": "a fault of the simulator; the data of the built-in type `crash`, whose name is in its schema",
    "Pause": "a fault of the simulator; what a client does before it asks again",
    "Cut": "a fault of the simulator; a cut that `rumor partition` makes",
}

LATE = {  # imports inside a function that would be a circle at the top, and why they are none
    (
        "node/observe/tracing.py",
        "node/observe/otel.py",
    ): "imported where tracing is on, and nowhere else",
}

LINES_MAX = 500
LONG_MODULES = {  # and why they are whole
    "cluster/swim/core.py": "membership's one dispatcher: its branches are read together",
    "cluster/sim/network.py": "the simulator: one world, whose faults all touch its one queue of events",
}

BODY_MAX = 60
LONG_FUNCTIONS: dict[str, str] = {}  # "path:function" -> why it is whole


def room(path: Path) -> str:
    """The package a module stands in, or the module itself where it stands at the top of `node`."""
    place = path.relative_to(ROOT)
    if str(place.parent) in PACKAGES:
        return str(place.parent)
    return "cluster" if place.parent.name == "cluster" else str(place.with_suffix("")).removesuffix("/__init__")


def modules_imported(path: Path) -> Iterator[Path]:
    """The modules of ours that a module imports, anywhere in it but for types alone."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [
        item for item in tree.body if not (isinstance(item, ast.If) and "TYPE_CHECKING" in ast.dump(item.test))
    ]
    for full in imports(tree):
        parts = full.split(".")
        if parts[0] not in ("cluster", "node"):
            continue
        for length in (len(parts), len(parts) - 1):
            base = ROOT.joinpath(*parts[:length])
            found = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
            if found.exists():
                yield found
                break


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_room_knows_only_the_rooms_that_the_plan_gives_it(path: Path) -> None:
    here = room(path)
    assert {room(there) for there in modules_imported(path)} <= {here, "cluster", *MAY_IMPORT[here]}


def test_the_plan_names_no_door_that_nobody_uses() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        used[room(path)] |= {room(there) for there in modules_imported(path)}
    assert {here: there - used[here] for here, there in MAY_IMPORT.items() if there - used[here]} == {}


def test_no_module_is_imported_in_a_circle() -> None:
    """Also not by an import inside a function, which would only hide it."""
    left = {
        path: {there for there in modules_imported(path) if there != path and (name(path), name(there)) not in LATE}
        for path in MODULES
    }
    while free := [path for path, there in left.items() if not there & left.keys()]:
        for path in free:
            del left[path]
    assert sorted(map(name, left)) == []


def test_no_two_classes_have_the_same_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for item in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(item, ast.ClassDef):
                places[item.name].append(name(path))
    twice = {word: where for word, where in places.items() if len(where) > 1}
    assert twice.keys() == SAME_NAME.keys(), twice


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_no_longer_than_one_keeps_in_mind(path: Path) -> None:
    lines = path.read_text("utf-8").count("\n")
    assert (lines > LINES_MAX) == (name(path) in LONG_MODULES), f"{lines} lines: look for a seam"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_function_fits_on_one_page(path: Path) -> None:
    for item in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (item.end_lineno or 0) - item.body[0].lineno + 1
            assert (lines > BODY_MAX) == (f"{name(path)}:{item.name}" in LONG_FUNCTIONS), f"{item.name}: {lines} lines"
