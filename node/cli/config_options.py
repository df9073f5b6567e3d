"""The settings as command-line options and as a page of the documentation, both from cluster/config.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, get_type_hints

import click

from cluster.config import Config, as_text, flag, variable

METAVAR = {int: "N", float: "X", str: "TEXT", bool: ""}
TYPES = get_type_hints(Config)


def with_settings(command: Callable[..., Any], only: Collection[str] | None = None) -> Callable[..., Any]:
    """Give a command a flag for each setting; `only`: for these fields.

    Values arrive as text (or None), so that `config.from_env` parses flags and variables alike, and refuses both in the
    same words.
    """
    for field in reversed([field for field in dataclasses.fields(Config) if only is None or field.name in only]):
        default = show_default(field)
        help_text = field.metadata["help"] + (f"  [default: {default}]" if default else "")
        if TYPES[field.name] is bool:
            command = click.option(
                f"{flag(field.name)}/--no-{field.name.replace('_', '-')}", field.name, default=None, help=help_text
            )(command)
        else:
            metavar = METAVAR.get(TYPES[field.name], "A,B,…")
            command = click.option(flag(field.name), field.name, metavar=metavar, default=None, help=help_text)(command)
    return command


def given(values: dict[str, Any]) -> dict[str, str]:
    """The flags that were given, as field name -> text."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in values.items()
        if name in names and value is not None
    }


def show_default(field: dataclasses.Field[Any]) -> str:
    """A default as a user would write it on the command line; empty if there is none."""
    return as_text(field.default)


def markdown() -> str:
    """The whole of docs/configuration.md."""
    rows = []
    for field in dataclasses.fields(Config):
        default = show_default(field)
        text = field.metadata["help"].replace("|", "\\|") + (" *Secret.*" if field.metadata["secret"] else "")
        shown = f"`{default}`" if default else "–"
        rows.append(f"| `{flag(field.name)}` | `{variable(field.name)}` | {shown} | {text} |")
    return "\n".join([*HEAD.splitlines(), *rows, ""])


HEAD = """\
# Configuration

Every setting of a node is a flag of `rumor node`, an environment variable, and a row here. A flag wins over a
variable, a variable over the default. The node checks all settings before it opens any socket; it names a
wrong one and exits with status 2. Keep secrets in variables or files: flags show in the process list.

This page is made by `rumor config --markdown`, from `cluster/config.py`; a test fails when it is out of date.

| flag | variable | default | what it is |
| --- | --- | --- | --- |"""
