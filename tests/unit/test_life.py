"""In which order a life does what must not overlap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cluster.config import Config
from cluster.swim.events import Conflict, Identity
from cluster.vitals.life import Life

OURS, EARLIER = "n1/018bcfe5680-00000001", "n1/018bcfe5999-00000002"


async def test_a_node_that_renames_itself_stops_its_tasks_before_anybody_can_run_them_again() -> None:
    """After a clock step back: its name was used by a later session, which has ended."""
    done: list[str] = []

    async def read(names: list[str]) -> list[bytes]:
        return [b"fenced refused 1 n2" for _ in names]

    async def fence(*_: Any) -> None:
        done.append("fenced")

    life: Any = Life.__new__(Life)
    life.session, life.config = OURS, Config(node_id="n1")
    life.pulse = SimpleNamespace(read=read, fence=fence)
    life._tell = lambda told: done.append(f"disowned {told.session}")
    life._go_on_as_another = lambda *_, **__: done.append("renamed")
    await life._contest(Conflict(Identity("n1", EARLIER, "127.0.0.1", 5000, b"")))
    assert done == [f"disowned {OURS}", "fenced", "renamed"]
