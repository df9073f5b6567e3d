"""The names for programs: `from node import task, Context, Retry, Reject` to write tasks, `Client` or `SyncClient` to
use a cluster.

Each name is imported when it is first used, so that importing `node` for one of its modules costs nothing more.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.client.asynchronous import Client
    from node.client.blocking import SyncClient
    from node.client.errors import NotFinished, TaskCancelled, TaskFailed, Unreachable
    from node.context import Context
    from node.tasks import Reject, Retry, task

__all__ = [
    "Client",
    "Context",
    "NotFinished",
    "Reject",
    "Retry",
    "SyncClient",
    "TaskCancelled",
    "TaskFailed",
    "Unreachable",
    "task",
]

_WHERE = {
    "Client": "node.client.asynchronous",
    "SyncClient": "node.client.blocking",
    **dict.fromkeys(("NotFinished", "TaskCancelled", "TaskFailed", "Unreachable"), "node.client.errors"),
    "Context": "node.context",
    **dict.fromkeys(("Reject", "Retry", "task"), "node.tasks"),
}


if not TYPE_CHECKING:  # a type checker takes the names above, and no others for granted

    def __getattr__(name: str) -> object:
        if name in _WHERE:
            import importlib

            return getattr(importlib.import_module(_WHERE[name]), name)
        raise AttributeError(f"module 'node' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
