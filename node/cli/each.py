"""`rumor submit --each`: a task for each line of standard input.

However it ends, each line that was answered has its id on stdout or its error on stderr, and the key is named under
which the same input gives the same tasks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from typing import Any

import click

from cluster import header_text
from cluster.errors import Invalid, RumorError
from node.cli import output
from node.client import batches, calls
from node.client.blocking import SyncClient
from node.escapes import one_line

EACH_CHUNK = batches.BATCH_TASKS


def submit_each(
    client: SyncClient, task_type: str, options: dict[str, Any], idempotency_key: str | None, as_json: bool
) -> int:
    """Submit the lines of standard input; ids on stdout, errors on stderr. Status 1 if one was refused."""
    items: list[Any] = [item_of(line, task_type, options) for line in lines_of_input()]
    base = calls.new_key() if idempotency_key is None else idempotency_key
    header_text.idempotency_key(base, batches.key_max(EACH_CHUNK) - len(f"/{len(items)}"))
    go_on = f"The same input under --idempotency-key {base} gives the same tasks, and adds those that are missing."
    done = refused = 0
    is_doubtful = False

    def show(results: Sequence[calls.Result]) -> None:
        nonlocal done, refused, is_doubtful
        for item, result in zip(items[done:], results, strict=False):
            if isinstance(result, RumorError):
                result = item if isinstance(item, Invalid) else result
                refused += 1
                is_doubtful = is_doubtful or result.may_have_happened
                click.echo(one_line(f"{result.code}: {result.message}"), err=True)
            else:
                output.as_json(result.told) if as_json else click.echo(one_line(result.id))
        done += len(results)

    with output.progress("submitting", len(items), quiet=as_json) as advance:
        try:
            for first, chunk in chunks(items):
                # The chunk's place in the input is part of its key, so that the same input means the same tasks.
                show(client.submit_many(chunk, idempotency_key=f"{base}/{first}"))
                advance(len(chunk))
        except BaseException as error:  # Ctrl-C, a closed pipe: whatever it is, more may be stored than was shown
            if done or not isinstance(error, RumorError):
                show(getattr(error, "results", []))
                click.echo(f"cut off after {done:,} of {len(items):,} lines.\n  {go_on}", err=True)
            raise
    if is_doubtful:
        click.echo(f"some of them may be stored.\n  {go_on}", err=True)
    return 1 if refused else 0


def lines_of_input() -> list[str]:
    """The lines of standard input that are not blank. Only a line feed ends a line: JSON may hold all other breaks."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no UTF-8 is refused by itself
    return [line for line in sys.stdin.read().split("\n") if line.strip()]


def item_of(line: str, task_type: str, options: dict[str, Any]) -> dict[str, Any] | Invalid:
    """The submission of a line, or what is wrong with it: the client refuses it then, and keeps its place."""
    try:
        return {"type": task_type, "data": parse_data(line), **options}
    except Invalid as error:
        return error


def chunks(items: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    for first in range(0, len(items), EACH_CHUNK):
        yield first, items[first : first + EACH_CHUNK]


def parse_data(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:  # JSON all the same, so it is no text
        raise Invalid(f"this JSON is too much: {error}.", "Use shorter numbers, and nest less deeply.") from None
