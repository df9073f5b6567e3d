"""Handlers of `test_waits`: `--tasks tests.integration.waits_tasks`."""

from __future__ import annotations

import socket

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
