"""Handlers of `test_waits` and `test_keeper`: `--tasks tests.integration.waits_tasks`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from node import task

ANSWER_LIMIT_S = 5.0


@task
async def held_by_client(path: str) -> bool:
    """Block the loop until the client, at the other end of this socket, says that it has the answer; whether it did."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(ANSWER_LIMIT_S)
        try:
            end.connect(path)
            return end.recv(1) == b"!"
        except TimeoutError:
            return False


@task(queue="far")
async def far(data: int) -> int:
    """A task that only a node with the queue `far` runs."""
    return 2 * data


@task(max_attempts=1)
async def end_node() -> None:
    """End the node in the handler's first step."""
    os._exit(9)


@task(max_attempts=1, executor="thread", queue="default")
def end_node_in_a_thread() -> None:
    os._exit(9)


@task(max_attempts=1)
def with_a_program(path: str) -> None:
    """Start a program in a session of its own, leave its pid in this file, and hang."""
    program = subprocess.Popen(["sleep", "300"], start_new_session=True)
    with open(path + ".part", "w") as file:
        file.write(str(program.pid))
    os.rename(path + ".part", path)
    time.sleep(300)


@task(queue="default")
async def files_of_a_program() -> list[str]:
    """What a program has open that a handler on the node's own loop starts."""
    listing = (
        "import os; print(*(f'{n} {os.path.realpath(f\"/proc/self/fd/{n}\")}' for n in range(3, 4096)), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, close_fds=False)  # noqa: ASYNC221
    return [line for line in done.stdout.splitlines() if not line.endswith(f"/fd/{line.split()[0]}")]
