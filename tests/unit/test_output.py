"""Standard streams that harm nobody who writes to them, whoever reads them, or nobody."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cluster import output
from cluster.output import Outlet
from tests.waiting import wait_until

LIMIT_S = 10.0
LINE = b"x" * 999 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for number in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(number)


def read_all(reader: int) -> bytes:
    with os.fdopen(reader, "rb") as file:
        return file.read()


def test_what_is_written_arrives_in_order(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    for n in range(1000):
        outlet.write(b"%d\n" % n)
    outlet.settle(LIMIT_S)
    os.close(pipe[1])
    assert read_all(pipe[0]) == b"".join(b"%d\n" % n for n in range(1000))


def test_a_reader_that_has_stopped_holds_up_nobody_and_hears_what_it_missed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "WAITING_MAX_BYTES", 200_000)
    outlet = Outlet(pipe[1])
    for _ in range(1000):
        assert outlet.write(LINE) == len(LINE)
    lost = outlet.lost
    assert 1000 * len(LINE) - lost * len(LINE) < 200_000 + 2 * 65_536
    assert lost > 0
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(read_all(pipe[0])))
    reading.start()
    outlet.settle(LIMIT_S)
    os.close(pipe[1])
    reading.join(LIMIT_S)
    lines = got[0].split(b"\n")
    assert lines.count(LINE[:-1]) == 1000 - lost
    assert f"{lost} writes".encode() in got[0]
    assert outlet.lost == 0


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    os.close(pipe[0])
    outlet.write(LINE)
    outlet.settle(LIMIT_S)
    assert outlet.lost == 1
    outlet.write(LINE)


def test_a_full_disk_is_no_error_and_counted() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        for outlet in (Outlet(full.fileno()), Outlet(full.fileno(), LIMIT_S)):
            assert outlet.write(LINE) == len(LINE)
            outlet.settle(LIMIT_S)
            assert outlet.lost == 1


def test_a_closed_descriptor_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    outlet = Outlet(writer, LIMIT_S)
    assert outlet.write(LINE) == len(LINE)


def test_a_pipe_that_somebody_made_non_blocking_gets_everything(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    outlet = Outlet(pipe[1])
    for _ in range(500):
        outlet.write(LINE)
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(read_all(pipe[0])))
    reading.start()
    outlet.settle(LIMIT_S)
    os.close(pipe[1])
    reading.join(LIMIT_S)
    assert got[0] == 500 * LINE


def test_lines_of_threads_do_not_mix(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    stream = io.TextIOWrapper(io.BufferedWriter(outlet), line_buffering=True)  # type: ignore[type-var]

    def talk(letter: str) -> None:
        for _ in range(200):
            print(letter * 50, file=stream)

    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(read_all(pipe[0])))
    reading.start()
    threads = [threading.Thread(target=talk, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream.flush()
    outlet.settle(LIMIT_S)
    os.close(pipe[1])
    reading.join(LIMIT_S)
    lines = got[0].decode().split("\n")[:-1]
    assert len(lines) == 800
    assert all(len(set(line)) == 1 and len(line) == 50 for line in lines)


SCRIPT = """
import os, sys
from cluster import output
output.shield()
print("first", flush=True)
print("to stderr", file=sys.stderr)
print("lone surrogate", chr(0xd800))
assert sys.stdout.fileno() == 1
pid = os.fork()
if pid == 0:
    print("of the copy", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("last", end="")
"""


def test_a_process_prints_as_ever_and_so_does_its_copy() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted([b"first", b"lone surrogate \\ud800", b"of the copy", b"last"])
    assert done.stderr == b"to stderr\n"


def test_the_last_words_of_a_process_that_crashes_are_heard() -> None:
    script = "import os\nfrom cluster import output\noutput.shield(10.0)\nprint('last words')\nos._exit(3)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (3, b"last words\n")


def test_patience_ends_once_a_reader_has_stopped(pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1], patience_s=0.01)
    for _ in range(3000):
        outlet.write(LINE)  # with patience for each of these it would take half a minute
    assert outlet._is_slow
    os.close(pipe[0])


def test_a_flush_waits_no_longer_than_it_says(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    outlet = Outlet(pipe[1])
    monkeypatch.setattr(output, "_outlets", {"stderr": outlet})
    for _ in range(200):
        outlet.write(LINE)
    output.flush(0.05)
    os.close(pipe[0])
    wait_until(lambda: outlet.lost, LIMIT_S, "the writer gives up as the reader goes")
