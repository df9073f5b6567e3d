"""The documentation builds as a site (docs/mkdocs.yml), in which every link and every anchor leads somewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.docs_site import menu
from tests.processes import ROOT


def test_the_menu_is_that_of_the_index_and_names_each_page_once() -> None:
    index = "- [no group](../README.md#see-it-work)\n**Begin**\n\n- [A](a.md): as [B](b.md#c) says\n- [A again](a.md)\n"
    index += "\n**Run**\n\n- [K](../deploy/kubernetes/README.md), [not a page](../x.json)\n"
    groups = menu(index)
    assert groups[2:-1] == [{"Begin": [{"A": "docs/a.md"}]}, {"Run": [{"K": "deploy/kubernetes/README.md"}]}]


def test_the_documentation_builds_without_a_broken_link(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -c constraints.txt -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "css").glob("*.css")), "the theme's own files are there"
    for page in (ROOT / "docs").glob("*.md"):
        name = "index" if page.stem == "README" else page.stem
        assert (tmp_path / "docs" / f"{name}.html").exists()
