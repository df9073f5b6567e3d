"""Where the command line writes to: a reader that has enough, a full disk, a terminal that cannot show everything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes import ROOT, clean_environ

LONG = ("config",)
HELP = ("--help",)


def rumor(words: Sequence[str], out: int, **more: str) -> tuple[int, str]:
    """Its status, and what it said on standard error."""
    command = [sys.executable, "-m", "node", *words]
    environ = {**clean_environ(), **more}
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


def test_a_reader_that_has_enough_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert rumor(LONG, writer) == (0, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
@pytest.mark.parametrize("words", [LONG, HELP], ids=["a command", "the help"])
def test_a_full_disk_is_told_in_two_lines(words: Sequence[str]) -> None:
    with open("/dev/full", "w") as full:
        status, told = rumor(words, full.fileno())
    assert status == 1
    assert told.splitlines() == [
        "cannot_write: No space left on device.",
        "  Make room where the output goes, or send it elsewhere.",
    ]


def test_a_character_that_the_terminal_lacks_is_a_question_mark(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        status, told = rumor(LONG, file.fileno(), PYTHONIOENCODING="latin-1", RUMOR_TRACE_URL="http://t/→/{trace_id}")
    assert (status, told) == (0, "")
    assert "http://t/?/{trace_id}" in shown.read_text("latin-1")
