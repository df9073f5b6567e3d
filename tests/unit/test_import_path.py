"""The working directory stands behind the standard library, in a node as in its child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from node import tasks
from node.import_path import LIBRARY, behind_the_library, move_behind_the_library

ZIP, BINARY, INSTALLED = f"{LIBRARY}.zip", f"{LIBRARY}/lib-dynload", f"{LIBRARY}/site-packages"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["/app", ZIP, LIBRARY, BINARY, INSTALLED], [ZIP, LIBRARY, BINARY, "/app", INSTALLED]),
        (["/own", "/app", LIBRARY, "/venv/site-packages"], ["/own", LIBRARY, "/app", "/venv/site-packages"]),
        ([LIBRARY, BINARY, INSTALLED, "/app"], [LIBRARY, BINARY, INSTALLED, "/app"]),  # it stands behind already
        ([LIBRARY, BINARY], [LIBRARY, BINARY]),
        (["/app", "/frozen"], ["/app", "/frozen"]),  # no library to stand behind
    ],
)
def test_a_folder_moves_right_behind_the_library(before: list[str], after: list[str]) -> None:
    path = list(before)
    move_behind_the_library(path, "/app")
    assert path == after


def test_a_node_finds_a_users_module_behind_the_library_and_before_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_users_module.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(tasks, "declared", dict(tasks.declared))
    tasks.load(["a_users_module"])
    place = sys.path.index(str(tmp_path))
    assert place == behind_the_library(sys.path)
    assert all(folder not in sys.path[place:] for folder in (LIBRARY, BINARY))
    assert "site-packages" not in "".join(sys.path[:place])


@pytest.mark.parametrize("more", [(), ("PYTHONPATH",)])
def test_python_m_node_starts_beside_files_that_have_names_of_the_library(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("queue", "random", "secrets", "signal", "json", "logging", "calendar", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    root = str(Path(__file__).resolve().parents[2])
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= dict.fromkeys(more, root)  # as the launcher names it
    done = subprocess.run(
        [sys.executable, "-m", "node", "--version"], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
