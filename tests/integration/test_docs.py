"""The commands of the documents are run as they stand, and what they are said to show is looked for.

A page's `console` blocks go through one bash, in order, with this test's own ports in place of the documents'. After a
block may stand `<!-- see: REGEX -->`, to be found in what the block printed, or `<!-- not run: why -->`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import ROOT, clean_environ, free_base_port

BLOCK = re.compile(r"^```console\n(.*?)^```\n(?:<!-- (see|not run): (.*?) -->)?", re.DOTALL | re.MULTILINE)
TASK_ID = re.compile(r"\b01[0-9A-Z]{24}-[0-9a-f]{2}\b")  # in a command it is the one that was just submitted
PORTS = 8
MARK = "=====block"
PAGE_LIMIT_S = 110


@dataclass(frozen=True)
class Block:
    """The commands between two fences, and what they are to show."""

    commands: str
    see: str | None


def blocks(text: str) -> list[Block]:
    """Those that are run. A command is a line after `$ `, or what goes on after a backslash; the rest is output."""
    found = []
    for body, kind, words in BLOCK.findall(text):
        if kind == "not run":
            continue
        commands: list[str] = []
        goes_on = False
        for line in body.splitlines():
            if line.startswith("$ "):
                commands.append(line[2:])
            elif goes_on:
                commands.append(line)
            else:
                continue
            goes_on = line.endswith(("\\", "|"))
        if commands:  # not `# …`, which wants root
            found.append(Block("\n".join(commands), words if kind == "see" else None))
    return found


@dataclass
class Shell:
    """A place where `rumor` and scripts/launch_cluster.sh are this tree's, and the ports are free ones."""

    folder: Path
    base: int
    where: Path = ROOT
    limit_s: float = PAGE_LIMIT_S

    @property
    def environ(self) -> dict[str, str]:
        return clean_environ() | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "RUMOR_BASE_PORT": str(self.base),
            "RUMOR_DATA_DIR": str(self.folder / "data"),
            "RUMOR_URL": f"http://127.0.0.1:{self.base}",
        }

    def here(self, text: str) -> str:
        """The documents' words with this shell's ports and programs."""
        text = text.replace("source .venv/bin/activate", ":").replace(".venv/bin/python", sys.executable)
        text = text.replace("scripts/launch_cluster.sh", "rumor launch").replace("16379", str(self.base + 11_379))
        text = TASK_ID.sub("$(rumor tasks --limit 1 | cut -f1)", text)
        text = re.sub(r"\b50(0\d)\b", lambda match: str(self.base + int(match[1])), text)
        return text.replace("4999", str(self.base - 1))  # PORT - 4999 is the node's number

    def run(self, page: list[Block]) -> list[str]:
        """What each block printed, both streams. All blocks share one bash: variables and functions last."""
        script = "".join(f"{self.here(block.commands)}\nprintf '\\n%s %s\\n' '{MARK}' $?\n" for block in page)
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.where,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=self.limit_s,
            check=False,
        )
        parts = re.split(rf"^{MARK} (\d+)\n", done.stdout, flags=re.MULTILINE)
        shown = parts[0:-1:2]
        assert len(shown) == len(page), done.stdout
        for block, said, status in zip(page, shown, parts[1::2], strict=True):
            assert status == "0", f"status {status} of the last of\n{block.commands}\n{said}"
        return shown

    def check(self, path: Path) -> None:
        """Run a page, and look for what its blocks are to show."""
        page = blocks(path.read_text("utf-8"))
        assert page
        for block, said in zip(page, self.run(page), strict=True):
            if block.see is not None:
                assert re.search(self.here(block.see), said), f"no {self.here(block.see)!r} in\n{said}"


@pytest.fixture
def shell() -> Iterator[Shell]:
    if shutil.which("bash") is None or shutil.which("curl") is None:
        pytest.skip("there is no bash or no curl")
    folder = Path(tempfile.mkdtemp(prefix="rumor-docs-"))
    one = Shell(folder, free_base_port(PORTS))
    (folder / "bin").mkdir()
    program = folder / "bin" / "rumor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m node "$@"\n', "utf-8")
    program.chmod(0o755)
    try:
        yield one
    finally:
        subprocess.run([program, "launch", "stop"], cwd=ROOT, env=one.environ, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_the_quick_start_shows_what_it_says(shell: Shell) -> None:
    shell.check(ROOT / "README.md")


def test_the_exercises_show_what_they_say(shell: Shell) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("there is no redis-cli")
    shell.check(ROOT / "docs" / "exercises.md")
