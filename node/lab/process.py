"""Processes of this machine: whether a process is still the one we started, and signals that reach no other.

A pid alone identifies nothing: the kernel hands it out again. A `Process` is a pid and the moment it began. A signal
goes through a pidfd where the platform has them, so that the check and the signal concern the same process. Only the
functions that need psutil import it: a command that asks about no process starts without it.

Does not know: what the processes are for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from node.lab import ownership

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """One process, for as long as it lives. `began` is opaque; the next process with this pid has another one."""

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
        """Send the signal to this process, never to a later one with its pid. False if the process is gone."""
        try:
            handle = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        except ProcessLookupError:
            return False
        except OSError:  # this kernel or sandbox has no pidfds
            handle = None
        try:
            if not self.is_alive:
                return False
            if handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            if handle is not None:
                os.close(handle)

    def wait(self, limit_s: float) -> bool:
        """Wait until it has exited; False if it has not within the limit."""
        return wait_for(lambda: not self.is_alive, limit_s)


def of_pid(pid: int) -> Process:
    """The process that has this pid now."""
    return Process(pid, look_at(pid)[1])


def spawn(
    command: Sequence[str], environ: Mapping[str, str], log: Path, cwd: Path | str, umask: int = -1
) -> tuple[Process, subprocess.Popen[bytes]]:
    """Start a process in a session of its own, its output appended to `log`.

    A Ctrl-C at the terminal does not reach that session: the caller decides in which order its processes end. `umask`:
    that of the process, -1 for ours.
    """
    with open(log, "ab", opener=ownership.opener) as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
            umask=umask,
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
    """(state letter as in `ps`, when it began) of a pid; ("", "") if there is none."""
    if PROC.joinpath("self", "stat").exists():
        try:
            text = PROC.joinpath(str(pid), "stat").read_text("utf-8", "replace")
        except OSError:
            return "", ""
        # The name stands in parentheses and may hold anything. State, ppid, … follow the last parenthesis; field 22 of
        # the whole line is the start time in ticks since boot. psutil adds the boot time by the wall clock: that sum
        # changes when somebody sets the clock, and the launcher could then no longer end a cluster.
        fields = text[text.rindex(")") + 2 :].split()
        return fields[0], f"{boot_id()}:{fields[19]}"
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        letter = {psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_STOPPED: "T"}.get(process.status(), "R")
        return letter, str(process.create_time())
    return "", ""


@cache
def boot_id() -> str:
    """Names this boot: ticks since boot identify a process only together with it."""
    try:
        return PROC.joinpath("sys/kernel/random/boot_id").read_text("ascii").strip()[:8]
    except OSError:
        return "boot"


def with_variable(name: str, value: str) -> Iterator[Process]:
    """Processes that began with `name` = `value` in their environment, as far as this user may see environments."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            if process.environ().get(name) == value:
                yield of_pid(process.pid)


def port_problem(host: str, port: int, with_udp: bool = True) -> str | None:
    """Why this port cannot be bound, in words, or None if it can."""
    fault = bind_fault(host, port, with_udp)
    return None if fault is None else fault[0]


def bind_fault(host: str, port: int, with_udp: bool = True) -> tuple[str, OSError] | None:
    """Why this port cannot be bound, in words and as the system's error; or None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind, name in ((socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP"))[: 2 if with_udp else 1]:
        with socket.socket(family, kind) as probe:
            if kind == socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                return f"{name} port {port} on {host} cannot be bound: {error.strerror}{held_by(port, name)}", error
    return None


def held_by(port: int, kind: str) -> str:
    """`, held by pid N (COMMAND)`, as far as the platform tells; else an empty text."""
    import psutil

    pid = holder(port, kind)
    if pid is None:
        return ""
    command = ""
    with contextlib.suppress(psutil.Error):
        command = " ".join(psutil.Process(pid).cmdline()).strip()
    return f", held by pid {pid}" + (f" ({command[:120]})" if command else "")


def holder(port: int, kind: str) -> int | None:
    """The pid that listens on a TCP port or is bound to a UDP port, where the platform tells."""
    import psutil

    try:
        sockets = [(each.pid, each.laddr, each.status) for each in psutil.net_connections(kind.lower())]
    except psutil.AccessDenied:  # macOS lists all sockets for root only; this user may ask its own processes
        sockets = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                sockets += [(process.pid, each.laddr, each.status) for each in process.net_connections(kind.lower())]
    bound = psutil.CONN_LISTEN if kind == "TCP" else psutil.CONN_NONE
    return next((pid for pid, at, status in sockets if pid and status == bound and at and at.port == port), None)
