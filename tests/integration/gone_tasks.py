"""A handler that some nodes of `test_handlers` have: `--tasks tests.integration.gone_tasks`."""

from __future__ import annotations

from node import task


@task(name="gone.now")
async def gone(data: int) -> int:
    return data + 1
