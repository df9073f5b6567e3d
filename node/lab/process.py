"""Processes of this machine: whether one is still the one we started, and signals that reach only that one.

A pid alone is no name: the kernel hands it out again. A `Process` is a pid and the moment it began; a signal goes
through a pidfd where there is one, so that the check and the signal are about the same process.

Does not know: what the processes are for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process, for as long as it lives. `began` is opaque, and differs for the next bearer of the pid."""

    pid: int
    began: str

    @property
    def state(self) -> str:
        """`running`, `paused` (by a signal), or `exited`; a zombie has exited."""
        letter, began = look_at(self.pid)
        if began != self.began or letter in ("", "Z", "X"):
            return "exited"
        return "paused" if letter in ("T", "t") else "running"

    @property
    def is_alive(self) -> bool:
        return self.state != "exited"

    def signal(self, number: signal.Signals) -> bool:
        """Send it to this process and to no later bearer of its pid. False if the process is gone."""
        with contextlib.ExitStack() as stack:
            handle = None
            if hasattr(os, "pidfd_open"):
                try:
                    handle = os.pidfd_open(self.pid)
                except ProcessLookupError:
                    return False
                except OSError:  # a kernel or sandbox without pidfds
                    handle = None
                else:
                    stack.callback(os.close, handle)
            if not self.is_alive:
                return False
            try:
                if handle is not None:
                    signal.pidfd_send_signal(handle, number)
                else:
                    os.kill(self.pid, number)
            except ProcessLookupError:
                return False
        return True

    def wait(self, limit_s: float) -> bool:
        """Wait until it has exited; False if it has not within the limit."""
        return wait_for(lambda: not self.is_alive, limit_s)


def of_pid(pid: int) -> Process:
    """The process that has this pid now."""
    return Process(pid, look_at(pid)[1])


def spawn(
    command: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path | str
) -> tuple[Process, subprocess.Popen[bytes]]:
    """Start a process in a session of its own, its output appended to `log`.

    In a session of its own a Ctrl-C at the terminal does not reach it: who started it decides in which order it ends.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
        )
    return of_pid(child.pid), child


def wait_for(condition: Callable[[], object], limit_s: float, every_s: float = 0.02) -> bool:
    """Whether `condition()` became true within the limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() >= end_s:
            return False
        time.sleep(every_s)
    return True


def look_at(pid: int) -> tuple[str, str]:
    """(state letter, when it began) of a pid; ("", "") if there is none."""
    if PROC.joinpath("self", "stat").exists():
        try:
            text = PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace")
        except OSError:
            return "", ""
        # The name stands in parentheses and may hold anything; what follows the last one is state, ppid, …; the
        # start time, in ticks since boot, is field 22 of the whole line.
        fields = text[text.rindex(")") + 2 :].split()
        return fields[0], f"{boot_id()}:{fields[19]}"
    answer = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    ).stdout.split(maxsplit=1)
    return (answer[0][0], answer[1].strip()) if len(answer) == 2 else ("", "")


@cache
def boot_id() -> str:
    """Ticks since boot name a process only together with the boot."""
    try:
        return PROC.joinpath("sys/kernel/random/boot_id").read_text("ascii").strip()[:8]
    except OSError:
        return "boot"


def with_variable(name: str, value: str) -> Iterator[Process]:
    """Processes whose environment began with `name` = `value` (Linux; elsewhere none are found)."""
    needle = f"{name}={value}".encode()
    for folder in PROC.glob("[0-9]*"):
        try:
            if needle in folder.joinpath("environ").read_bytes().split(b"\0"):
                yield of_pid(int(folder.name))
        except OSError:  # gone meanwhile, or another user's
            continue


def port_problem(host: str, port: int, with_udp: bool = True) -> str | None:
    """Why this port cannot be bound, in words, or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP"))[: 2 if with_udp else 1]:
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                return f"{name} port {port} on {host} cannot be bound: {error.strerror}{held_by(port, name)}"
    return None


def held_by(port: int, kind: str) -> str:
    """`, held by NAME (pid N)` if it can be found out, else an empty text."""
    pid = holder(port, kind)
    if pid is None:
        return ""
    try:
        name = PROC.joinpath(str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        name = ""
    return f", held by pid {pid}" + (f" ({name[:120]})" if name else "")


def holder(port: int, kind: str) -> int | None:
    """The pid that listens on a port, where the platform tells."""
    if not PROC.joinpath("net").exists():
        lsof = shutil.which("lsof")
        if lsof is None:
            return None
        filters = [f"-i{kind}:{port}"] + (["-sTCP:LISTEN"] if kind == "TCP" else [])
        pids = subprocess.run([lsof, "-nP", "-t", *filters], capture_output=True, text=True, check=False).stdout.split()
        return int(pids[0]) if pids else None
    sockets = {f"socket:[{inode}]" for inode in inodes(port, kind.lower())}
    if not sockets:
        return None
    for link in PROC.glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) in sockets:
                return int(link.parts[2])
    return None


def inodes(port: int, kind: str) -> Iterator[str]:
    """Inodes of the sockets that listen on a TCP port, or are bound to a UDP port."""
    for table in (kind, kind + "6"):
        try:
            lines = PROC.joinpath("net", table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            is_listening = kind == "udp" or fields[3] == "0A"
            if is_listening and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]
