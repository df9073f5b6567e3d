"""`python -m node`: the same as `rumor`, and without a subcommand the same as `rumor node`."""

import os
import sys

from node import import_path

# `python -m` puts the working directory first; the launcher names the folder of this package in PYTHONPATH.
if not sys.flags.safe_path:
    import_path.move_behind_the_library(sys.path, sys.path[0])
import_path.move_behind_the_library(sys.path, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from node.cli import main  # noqa: E402 - only now nothing stands before the library

main(default="node")
