"""A handler that tells a benchmark when it started: `--tasks witness_tasks`."""

from __future__ import annotations

import socket
import time

from node import Context, task

_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


@task(name="bench.tell")
async def tell(path: str, ctx: Context) -> None:
    """Send the monotonic time in ns (a machine's processes share that clock) and the task's id to a Unix socket."""
    now_ns = time.monotonic_ns()
    _socket.sendto(b"%d %s" % (now_ns, ctx.task_id.encode()), path)
