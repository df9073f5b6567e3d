"""Where a node and its child processes look for modules: as Python does, but the working directory stands behind the
standard library.

A user's `queue.py` or `random.py` beside `shop.py` must not stand in for the library's own, in no process: everything
that imports those would break. It stands before what is installed, so that no package that happens to be there hides
the user's module. A folder that PYTHONPATH names keeps Python's order, which is before the library.
"""

from __future__ import annotations

import os

LIBRARY = os.path.dirname(os.__file__)
PACKAGES = ("site-packages", "dist-packages")


def behind_the_library(path: list[str]) -> int:
    """The place in a module search path that comes right after the standard library."""
    places = [
        n for n, folder in enumerate(path) if folder.startswith(LIBRARY) and os.path.basename(folder) not in PACKAGES
    ]
    return places[-1] + 1 if places else 0


def move_behind_the_library(path: list[str], folder: str) -> None:
    """Move this folder there, if it stands before."""
    if folder in path[: behind_the_library(path)]:
        path.remove(folder)
        path.insert(behind_the_library(path), folder)
