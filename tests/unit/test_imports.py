"""The boundaries of ARCHITECTURE: what the pure parts may know, and which package may know which."""

from __future__ import annotations

import ast
import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DECIDES = (
    *(
        "cluster/swim/core.py",
        "cluster/ring.py",
        "cluster/session.py",
        "cluster/load.py",
        "cluster/refusal.py",
        "cluster/redis_address.py",
    ),
    *(
        "cluster/shards/task.py",
        "cluster/shards/answers.py",
        "cluster/gossip/watch_token.py",
        "cluster/gossip/http1.py",
        "cluster/gossip/site.py",
    ),
    *("cluster/vitals/witness.py", "cluster/vitals/lease.py", "cluster/vitals/main_loop.py"),
    *("cluster/vitals/words.py", "cluster/vitals/jury.py"),
    *("cluster/vitals/view_maker.py", "cluster/vitals/told.py"),
    *("node/queue/placement.py", "node/queue/backlog.py", "node/queue/own_lease.py", "node/observe/task_rates.py"),
    *("node/client/asking.py", "node/client/calls.py", "node/client/nodes.py", "node/client/stream.py"),
    *("node/client/task.py", "node/cli/top_picture.py", "node/lab/cuts.py", "node/lab/beliefs_table.py"),
)
NOT_FOR_PURE = {"asyncio", "socket", "time", "redis", "threading", "aiohttp", "logging", "structlog"}


def sources(*places: str) -> list[Path]:
    found: list[Path] = []
    for place in places:
        path = ROOT / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert found, places
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, anywhere in it: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "imports are absolute here"
            yield from (f"{item.module}.{alias.name}" for alias in item.names)


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def is_pure(path: Path) -> bool:
    """Whether its docstring says so: in it a sentence begins with the word Pure. All of `swim` is, by its package's."""
    return path.parent.name == "swim" or bool(PURE.search(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""))


PURE = re.compile(r"(^|[.:;]\s+)Pure\b", re.M)
PURE_MODULES = [path for path in sources("cluster", "node") if is_pure(path)]


def test_what_decides_without_io_says_so() -> None:
    """A module whose docstring lost the word would be tested no longer."""
    for place in DECIDES:
        assert ROOT / place in PURE_MODULES, place


@pytest.mark.parametrize("path", PURE_MODULES, ids=name)
def test_a_pure_module_knows_no_io_and_no_clock(path: Path) -> None:
    assert not roots(path) & NOT_FOR_PURE
    ours = {full for full in imports(ast.parse(path.read_text("utf-8"))) if full.startswith("cluster.clock.")}
    assert not ours, "the time is handed in"


@pytest.mark.parametrize("path", PURE_MODULES, ids=name)
def test_a_pure_module_draws_only_from_the_random_it_is_handed(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    assert not [one for one in imports(tree) if one.startswith("random.") and one != "random.Random"]
    drawn = [
        item.attr
        for item in ast.walk(tree)
        if isinstance(item, ast.Attribute)
        and isinstance(item.value, ast.Name)
        and item.value.id == "random"
        and item.attr != "Random"
    ]
    assert not drawn


@pytest.mark.parametrize("path", sources("cluster"), ids=name)
def test_cluster_imports_nothing_of_node(path: Path) -> None:
    assert "node" not in roots(path)


@pytest.mark.parametrize("path", sources("node/gateway", "node/observe"), ids=name)
def test_gateway_and_observe_import_nothing_of_the_queue(path: Path) -> None:
    """The gateway calls an engine by protocol: the tests hand in one that keeps its tasks in a dict."""
    assert not [full for full in imports(ast.parse(path.read_text("utf-8"))) if full.startswith("node.queue")]


@pytest.mark.parametrize("path", sources("cluster", "node"), ids=name)
def test_no_production_module_imports_the_tests(path: Path) -> None:
    assert "tests" not in roots(path)


@pytest.mark.parametrize("path", sources("cluster", "node"), ids=name)
def test_a_module_says_what_it_decides(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text or ast.get_docstring(ast.parse(text)), "a module begins with a docstring"


def test_the_package_shows_its_public_names_and_says_that_it_is_typed() -> None:
    import node

    assert [name for name in dir(node) if not name.startswith("__")] == sorted(node.__all__)
    assert all(getattr(node, name) is not None for name in node.__all__)
    with pytest.raises(AttributeError, match="module 'node' has no attribute 'Clint'"):
        node.Clint  # type: ignore[attr-defined]  # noqa: B018
    packaged = configparser.ConfigParser()
    packaged.read(ROOT / "setup.cfg")
    for package in ("node", "cluster"):
        assert (ROOT / package / "py.typed").exists()
        assert "py.typed" in packaged["options.package_data"][package]
