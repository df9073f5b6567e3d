"""What the command line prints: tables and colours on a terminal, plain lines that other programs read elsewhere.

rich is imported only where somebody looks. Does not know: HTTP, which command it is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click

from node.client.task import Task

Styles = Mapping[int, Mapping[str, str]]  # column -> value -> style

MEMBER_HEAD = ("node", "gossip", "redis", "verdict", "rtt ms", "shards", "running", "free", "url")
MEMBER_STYLES: Styles = {
    1: {"alive": "green", "suspect": "yellow", "leaving": "yellow", "dead": "red", "left": "dim"},
    2: {"live": "green", "stale": "yellow", "gone": "red", "unknown": "dim"},
    3: {"healthy": "green", "cut_from_redis": "yellow", "cut_from_peers": "yellow", "dead": "red"},
}
STATE_STYLES = {
    **dict.fromkeys(("scheduled", "waiting", "queued"), "cyan"),
    **{"running": "bold cyan", "retrying": "yellow", "succeeded": "green", "dead": "bold red", "cancelled": "dim"},
}
TASK_HEAD = ("id", "type", "state", "attempt", "node", "queue", "age")
TASK_STYLES: Styles = {2: STATE_STYLES}
WORKER_HEAD = ("node", "gossip", "verdict", "running", "queues", "pid", "version")
WORKER_STYLES: Styles = {1: MEMBER_STYLES[1], 2: MEMBER_STYLES[3]}
NUMBERS = ("rtt ms", "shards", "running", "free", "attempt", "age", "pid")
MAY_WRAP = ("type", "queue", "queues", "url")
ENDED_FIELDS = ("error", "history", "data", "result")  # shown after the others, in parts of their own
SEVERITY_STYLES = {"fatal": "bold red", "error": "red", "warning": "yellow"}


def as_json(value: Any) -> None:
    click.echo(json.dumps(value))


def member_rows(view: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `GET /cluster`, under MEMBER_HEAD."""
    shards: dict[str, int] = {}
    for owner in (view.get("shards") or {}).values():
        shards[owner] = shards.get(owner, 0) + 1
    rows: list[tuple[str, ...]] = []
    for member in view["members"]:
        load = member.get("load") or {}
        free = sum(queue.get("free", 0) for queue in load.get("queues", {}).values())
        is_gone = member["state"] in ("dead", "left")  # what it last said is no news
        rtt = "" if member.get("rtt_ms") is None else f"{member['rtt_ms']:.1f}"
        rows.append(
            (
                member["node_id"],
                member["state"],
                member.get("redis", ""),
                member.get("verdict", ""),
                "-" if is_gone else rtt,
                str(shards.get(member["node_id"], 0)),
                "-" if is_gone else str(load.get("running", "")),
                "-" if is_gone else str(free) if load else "",
                member.get("url", ""),
            )
        )
    return rows


def worker_row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    """A row under WORKER_HEAD."""
    queues = ", ".join(f"{name} {queue['running']}/{queue['slots']}" for name, queue in worker["queues"].items())
    told = (worker.get(name, "") for name in ("node_id", "state", "verdict", "running"))
    node, state, verdict, running = map(str, told)
    return node, state, verdict, running, queues, str(worker.get("pid", "")), worker.get("version", "")


def task_row(task: Task[Any]) -> tuple[str, ...]:
    """A row under TASK_HEAD."""
    age = "" if task.queued_at_ms is None else in_short(time.time() - task.queued_at_ms / 1000)
    return (
        task.id,
        task.type,
        task.state,
        f"{task.attempt}/{task.max_attempts}",
        task.node_id or "",
        task.queue,
        age,
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], styles: Styles) -> None:
    """A table for people on a terminal; plain columns, one row a line, for everything else."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, header_style="bold", pad_edge=False)
    for name in head:
        made.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name not in MAY_WRAP)
    for row in rows:
        made.add_row(*(Text(cell, styles.get(n, {}).get(cell, "")) for n, cell in enumerate(row)))
    Console().print(made)


def problems(found: Iterable[Mapping[str, Any]]) -> None:
    """What is wrong, worst first, on stderr."""
    for one in found:
        colour = {"fatal": "red", "error": "red"}.get(str(one.get("severity")), "yellow")
        head = click.style(f"{one.get('code')}:", fg=colour, bold=True)
        click.echo(f"{head} {one.get('message')}\n  {one.get('hint', '')}", err=True)


def task(one: Task[Any]) -> None:
    """All of one task."""
    told = {name: value for name, value in one.told.items() if value is not None and value != []}
    if not sys.stdout.isatty():
        for name, value in told.items():
            click.echo(f"{name.removesuffix('_ms'):<13} {plainly(name, value)}")
        return
    from rich.console import Console, Group
    from rich.json import JSON
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in told.items():
        if name not in ENDED_FIELDS:
            style = STATE_STYLES.get(one.state, "") if name == "state" else ""
            grid.add_row(Text(name.removesuffix("_ms"), "dim"), Text(plainly(name, value), style))
    parts: list[Any] = [grid]
    for name in ("data", "result"):
        if told.get(name) is not None:
            parts += [Text(f"\n{name}", "bold"), Padding(JSON(json.dumps(told[name])), (0, 0, 0, 2))]
    if one.error is not None:
        parts += [Text(f"\n{one.error.type}: {one.error.message}", "bold red")]
        if one.error.traceback:
            parts.append(Padding(Text(one.error.traceback.rstrip(), "dim"), (0, 0, 0, 2)))
    if one.history:
        past = Table(box=None, header_style="bold", pad_edge=False)
        for head in ("when", "attempt", "outcome", "node", "error"):
            past.add_column(head, no_wrap=head != "error")
        for attempt in one.history:
            error = attempt.get("error") or {}
            outcome = str(attempt.get("outcome"))
            past.add_row(
                when(attempt["at_ms"]),
                str(attempt.get("attempt") or ""),
                Text(outcome, STATE_STYLES.get(outcome, "yellow")),
                attempt.get("node_id") or "",
                Text(f"{error['type']}: {error['message']}" if error else ""),
            )
        parts += [Text("\nattempts that did not succeed", "bold"), past]
    Console().print(Group(*parts))


def plainly(name: str, value: Any) -> str:
    """A field of a task as text."""
    if name.endswith("_at_ms"):
        return when(value)
    return value if isinstance(value, str) else json.dumps(value)


def when(at_ms: int) -> str:
    """A time of Redis's clock, for people."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def in_short(seconds: float) -> str:
    """A length of time in one unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def in_words(one: Task[Any]) -> str:
    """Where a task is, in a line."""
    where = f" on {one.node_id}" if one.node_id and one.state == "running" else ""
    attempt = f", attempt {one.attempt} of {one.max_attempts}" if one.attempt else ""
    share = one.progress
    done = f", {share:.0%}" if isinstance(share, int | float) and 0 <= share <= 1 else ""
    return f"{one.id} {one.state}{where}{attempt}{done}"


@contextmanager
def waiting(text: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A line that moves while something takes time, on a terminal; call it with news."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as line:
        yield line.update


@contextmanager
def progress(text: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; call it with how many more are done."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task_id = bar.add_task(text, total=total)
        yield lambda more: bar.advance(task_id, more)
