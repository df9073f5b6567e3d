"""`python -m node`: the same as `rumor`, and without a subcommand the same as `rumor node`."""

from node.cli import main

main(default="node")
