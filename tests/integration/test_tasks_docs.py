"""docs/tasks.md: its module is loaded by a cluster, its examples do what they say, and so do its tests of handlers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doctested import check_examples
from tests.processes import ROOT, LaunchedCluster, clean_environ

PAGE = ROOT / "docs" / "tasks.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks() -> list[str]:
    return BLOCK.findall(PAGE.read_text("utf-8"))


def of_file(name: str) -> str:
    """The blocks that say they are of that file, put together."""
    head = f"# {name}\n"
    return "\n\n".join(block.removeprefix(head) for block in blocks() if block.startswith(head))


def test_every_block_is_run_by_one_of_these_tests() -> None:
    assert [block for block in blocks() if not block.startswith(("# shop.py\n", "# test_shop.py\n", ">>> "))] == []


def test_every_example_does_what_it_says(
    cluster: Callable[..., LaunchedCluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(of_file("shop.py"), "utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    one = cluster(3, tasks="shop", queues="default:100,sync:2,mail:20")
    text = "\n".join(block for block in blocks() if block.startswith(">>> "))
    text = text.replace("http://127.0.0.1:5000", one.url(1))
    check_examples(text, PAGE, more_than=10)


def test_its_tests_of_handlers_pass_without_a_cluster(tmp_path: Path) -> None:
    for name in ("shop.py", "test_shop.py"):
        (tmp_path / name).write_text(of_file(name), "utf-8")
    environ = clean_environ() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    done = subprocess.run(
        [*command, "test_shop.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
