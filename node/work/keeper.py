"""The keeper of one child process: it stands between the node and the child, and ends whatever they leave behind.

A child that is killed cannot take along what its handler started, and neither can a node. So the node starts a keeper,
and the keeper forks the child before either has imported anything: the keeper stays as small as a bare interpreter. It
waits for one of two ends, that of the child or that of the node, then kills everything that descends from it, and ends
as the child did, so that the node reads the child's exit code as its own.

On Linux the kernel hands every process below the keeper that loses its parent to the keeper (PR_SET_CHILD_SUBREAPER):
a daemon that forked twice and opened a session of its own is still found. Elsewhere the keeper kills the child's
process group, and what left that group stays.

It runs as a script, by its path, and imports nothing of Rumor.
"""

from __future__ import annotations

import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
END_LIMIT_S = 5.0  # time for what was killed to be gone: a process that waits for a disk dies only afterwards
LOOK_AGAIN_S = 0.002
LENGTH_BYTES = 4


def main() -> None:
    """Fork the child, which serves the node at the socket that the command line names; then keep it."""
    # What PYTHONPATH names stands before the standard library. The keeper wants the library alone, and the child gets
    # the node's own path.
    library = os.path.dirname(os.__file__)
    sys.path.sort(key=lambda folder: not folder.startswith(library))

    import select
    import signal
    import socket

    ended, end = socket.socketpair()
    end.setblocking(False)
    signal.set_wakeup_fd(end.fileno(), warn_on_full_buffer=False)
    # SIGUSR1 is the node's word, and the kernel's where the node is dead: end everything. Supervisors send the others
    # to whole groups, and a drain must let the task finish.
    for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    node = int(sys.argv[1])
    me = os.getpid()
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        ended.close()
        end.close()
        _be_the_child(node, me)
    os.close(node)
    status = None
    while status is None:
        readable, _, _ = select.select([0, ended.fileno()], [], [])
        news = os.read(ended.fileno(), 4096) if ended.fileno() in readable else b""
        status = _reaped(child)
        if 0 in readable or signal.SIGUSR1 in news:  # standard input is the node's end of a pipe: it ends with the node
            break
    status = _end_all(child, status)
    _end_as(os.waitstatus_to_exitcode(status))


def prctl(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    if sys.platform == "linux":
        try:
            import ctypes

            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
        except (ImportError, OSError, AttributeError):
            pass


def _be_the_child(node: int, keeper: int) -> None:
    """Become what the node asked for: a process of its own session that looks for modules where the node does."""
    import signal

    os.setsid()  # so that a Ctrl-C is the node's alone, and the group is the child's
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    length = int.from_bytes(_exactly(node, LENGTH_BYTES), "big")
    sys.path[:] = os.fsdecode(_exactly(node, length)).split("\0")

    from node.work import child

    child.main(node)
    sys.exit()


def _exactly(number: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = os.read(number, length - len(data))
        if not part:
            os._exit(1)  # the node is gone
        data += part
    return data


def _reaped(child: int) -> int | None:
    """Reap whatever has ended; the child's status if it is among it."""
    status = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = ended[1]
    except ChildProcessError:
        pass  # nothing is left to wait for
    return status


def _end_all(child: int, status: int | None) -> int:
    """Kill the child, if it lives, and all that descends from this process, until nothing of it is left."""
    import signal
    import time

    deadline_s = time.monotonic() + END_LIMIT_S
    _kill(-child, signal.SIGKILL)
    while (pids := _descendants(os.getpid())) and time.monotonic() < deadline_s:
        for pid in pids:
            _kill(pid, signal.SIGKILL)
        found = _reaped(child)
        status = found if status is None else status
        time.sleep(LOOK_AGAIN_S)
    while status is None:
        status = _reaped(child)
        time.sleep(LOOK_AGAIN_S)
        if time.monotonic() >= deadline_s:
            return int(signal.SIGKILL)
    return status


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _descendants(root: int) -> list[int]:
    """All processes below this one, ended ones too until they are reaped. Empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    below: list[int] = []
    todo = [root]
    while todo:
        found = children.get(todo.pop(), [])
        below += found
        todo += found
    return below


def _end_as(code: int) -> None:
    """End with this exit code; where it is negative, of that signal, as the child did."""
    if code < 0:
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the child has left one, where that is wished
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
