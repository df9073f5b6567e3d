"""The command line: `rumor`, and `python -m node`.

The table of commands, and how a command ends. Nobody uses a command line that takes a second to start: so a command's
module is imported when somebody runs it (or asks for the list), and a command imports by itself what no other needs.

An error is two lines on stderr: what happened, and what to do. Exit status: 0 done; 1 it failed, or the task in
question is dead or cancelled; 2 the command line or the configuration is wrong and nothing was done; 3 the time is up
and the task goes on.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from cluster import __version__
from cluster.errors import ConfigError, RumorError
from node.cli import hints

LOCAL, REMOTE = "node.cli.local", "node.cli.remote"
COMMANDS = {  # name -> (module, name there), in the order of the help
    "node": (LOCAL, "node"),
    "launch": (LOCAL, "launch"),
    "partition": (LOCAL, "partition"),
    "agent": (LOCAL, "agent"),
    "status": (REMOTE, "status"),
    "top": (REMOTE, "top"),
    "submit": (REMOTE, "submit"),
    "tasks": (REMOTE, "tasks"),
    "task": (REMOTE, "task"),
    "cancel": (REMOTE, "cancel"),
    "replay": (REMOTE, "replay"),
    "purge": (REMOTE, "purge"),
    "workers": (REMOTE, "workers"),
    "events": (REMOTE, "events"),
    "config": (LOCAL, "show_config"),
    "keygen": (LOCAL, "keygen"),
    "completion": (REMOTE, "completion"),
}
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a full disk or a lost terminal answers


class NobodyReads(Exception):
    """Whoever read our output has enough of it, as in `rumor tasks | head`."""


def main(argv: Sequence[str] | None = None, default: str | None = None) -> None:
    """Run a command line and exit. `default`: the subcommand of a command line that names none."""
    open_standard_streams()
    write_what_they_can_show()
    words = list(sys.argv[1:] if argv is None else argv)
    if default is not None and (not words or words[0].startswith("-")) and words[:1] not in (["--help"], ["--version"]):
        words.insert(0, default)
    try:
        status = rumor.main(words, prog_name="rumor", standalone_mode=False)
        sys.stdout.flush()
    except RumorError as error:
        click.echo(hints.in_lines(error), err=True)
        status = 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "node", "cluster"):
            raise
        click.echo(
            f"missing_package: this command needs the package {package}, which is not installed here.\n"
            "  Install Rumor with all that it needs, without --no-deps.",
            err=True,
        )
        status = 2
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except (NobodyReads, BrokenPipeError):
        drop_output()
        status = 0
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        drop_output()
        click.echo(
            f"cannot_write: {error.strerror}.\n  Make room where the output goes, or send it elsewhere.", err=True
        )
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def open_standard_streams() -> None:
    """Open the standard streams that our parent closed: sockets would get their numbers, and be used as streams."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        mode = "r" if number == 0 else "w"
        setattr(sys, ("stdin", "stdout", "stderr")[number], os.fdopen(number, mode, encoding="utf-8"))
    os.close(number)


def write_what_they_can_show() -> None:
    """Let the standard streams show `?` for a character that their encoding lacks: a terminal may be in Latin-1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def drop_output() -> None:
    """Let what is still to be written go nowhere: Python would try once more at its end, and fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Commands(click.Group):
    """The commands of the table, each imported when it is needed."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise NobodyReads from None  # Click would end the process by itself, with 1.

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def rumor() -> None:
    """Rumor: a distributed task queue with no central coordinator."""
