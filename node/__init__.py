"""What task modules import: `from node import task, Context, Retry, Reject`.

Lazy, so that importing `node` for one of its modules costs nothing more.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from node.tasks import Context, Reject, Retry, task

__all__ = ["Context", "Reject", "Retry", "task"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from node import tasks

        return getattr(tasks, name)
    raise AttributeError(f"module 'node' has no attribute {name!r}")
