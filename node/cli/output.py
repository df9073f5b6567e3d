"""What the command line prints: tables and colours on a terminal; elsewhere, plain lines for other programs.

rich is imported only when the output goes to a terminal. Does not know: HTTP, which command prints.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from node.client.task import Page, Task
from node.escapes import lines, one_line
from node.plural import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

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
UNREADABLE_SHOWN = 5  # ids of such tasks that a list names
TASK_HEAD = ("id", "type", "state", "attempt", "node", "queue", "age")
TASK_STYLES: Styles = {2: STATE_STYLES}
WORKER_HEAD = ("node", "gossip", "verdict", "running", "queues", "pid", "version")
WORKER_STYLES: Styles = {1: MEMBER_STYLES[1], 2: MEMBER_STYLES[3]}
NUMBERS = ("rtt ms", "shards", "running", "free", "attempt", "age", "pid")  # columns to the right
MAY_WRAP = ("type", "queue", "queues", "url")
LONG_FIELDS = ("error", "history", "data", "result")  # shown after the others, each under a head of its own
SEVERITY_STYLES = {"fatal": "bold red", "error": "red", "warning": "yellow"}


def as_json(value: Any) -> None:
    click.echo(json.dumps(value))


def member_rows(view: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of `GET /cluster`, under MEMBER_HEAD."""
    shards = Counter((view.get("shards") or {}).values())
    rows: list[tuple[str, ...]] = []
    for member in view["members"]:
        load = member.get("load") or {}
        free = sum(queue.get("free", 0) for queue in load.get("queues", {}).values())
        is_gone = member["state"] in ("dead", "left")  # then its last load is no news
        rtt = "" if member.get("rtt_ms") is None else f"{member['rtt_ms']:.1f}"
        rows.append(
            (
                member["node_id"],
                member["state"],
                member.get("redis", ""),
                member.get("verdict", ""),
                "-" if is_gone else rtt,
                str(shards[member["node_id"]]),
                "-" if is_gone else str(load.get("running", "")),
                "-" if is_gone else str(free) if load else "",
                member.get("url", ""),
            )
        )
    return rows


def worker_row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    """A row under WORKER_HEAD."""
    queues = ", ".join(f"{name} {queue['running']}/{queue['slots']}" for name, queue in worker["queues"].items())
    node, state, verdict, running = (str(worker.get(name, "")) for name in ("node_id", "state", "verdict", "running"))
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


def how_far(last: Page, found: int, searched: int) -> None:
    """On stderr: how far a listing looked that ended with this page, where that matters, and how to go on."""
    if found and last.is_complete:
        if last.cursor:
            click.echo(f"more: --cursor {one_line(last.cursor)}", err=True)
        return
    looked = "" if last.searched is None else f"searched {searched:,} task{'' if searched == 1 else 's'}"
    if not found:
        looked = f"no task found; {looked}" if looked else "no task found"
    click.echo(looked + (f"; to go on: --all, or --cursor {one_line(last.cursor)}" if last.cursor else ""), err=True)


def unreadable(ids: Sequence[str]) -> None:
    """On stderr: the tasks of a page that cannot be read, so that a list is not taken for the whole."""
    if ids:
        # Another program may have put there whatever it liked.
        shown = ", ".join(ascii(task_id)[1:-1] for task_id in ids[:UNREADABLE_SHOWN])
        more = ", …" if len(ids) > UNREADABLE_SHOWN else ""
        click.echo(f"{counted(len(ids), 'task')} cannot be read: {shown}{more}", err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], styles: Styles) -> None:
    """A table on a terminal; elsewhere one line a row, with tabs between its cells."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for name in head:
        grid.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=name not in MAY_WRAP)
    for row in rows:
        grid.add_row(*(Text(cell, styles.get(n, {}).get(cell, "")) for n, cell in enumerate(row)))
    Console().print(grid)


def problems(rows: Iterable[Mapping[str, Any]]) -> None:
    """The problems of `GET /health`, worst first as they come, on stderr."""
    for problem in rows:
        colour = {"fatal": "red", "error": "red"}.get(str(problem.get("severity")), "yellow")
        head = click.style(f"{one_line(problem.get('code'))}:", fg=colour, bold=True)
        click.echo(f"{head} {one_line(problem.get('message'))}\n  {one_line(problem.get('hint', ''))}", err=True)


def task(shown: Task[Any]) -> None:
    """All of one task."""
    fields = {name: value for name, value in shown.told.items() if value is not None and value != []}
    if not sys.stdout.isatty():
        for name, value in fields.items():
            click.echo(f"{one_line(name.removesuffix('_ms')):<13} {as_text(name, value)}")
        return
    from rich.console import Console, Group

    Console().print(Group(*_task_parts(shown, fields)))


def _task_parts(shown: Task[Any], fields: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The short fields side by side, then each long one under a head of its own."""
    from rich.highlighter import JSONHighlighter
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if name not in LONG_FIELDS:
            style = STATE_STYLES.get(shown.state, "") if name == "state" else ""
            grid.add_row(Text(one_line(name.removesuffix("_ms")), "dim"), Text(as_text(name, value), style))
    yield grid
    for name in ("data", "result"):
        if fields.get(name) is not None:
            yield Text(f"\n{name}", "bold")
            text = lines(json.dumps(fields[name], indent=2, ensure_ascii=False))
            yield Padding(JSONHighlighter()(text), (0, 0, 0, 2))
    if shown.error is not None:
        yield Text(f"\n{one_line(shown.error.type)}: {lines(shown.error.message)}", "bold red")
        if shown.error.traceback:
            yield Padding(Text(lines(shown.error.traceback.rstrip()), "dim"), (0, 0, 0, 2))
    if shown.history:
        yield Text("\nattempts that did not succeed", "bold")
        yield _attempts(shown.history)


def _attempts(history: Iterable[Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, header_style="bold", pad_edge=False)
    for head in ("when", "attempt", "outcome", "node", "error"):
        grid.add_column(head, no_wrap=head != "error")
    for attempt in history:
        error = attempt.get("error") or {}
        outcome = one_line(attempt.get("outcome"))
        grid.add_row(
            when(attempt["at_ms"]),
            Text(one_line(attempt.get("attempt") or "")),
            Text(outcome, STATE_STYLES.get(outcome, "yellow")),
            Text(one_line(attempt.get("node_id") or "")),
            Text(f"{one_line(error['type'])}: {lines(error['message'])}" if error else ""),
        )
    return grid


def as_text(name: str, value: Any) -> str:
    """A field of a task as text in a line."""
    if name.endswith("_at_ms"):
        return when(value)
    return one_line(value) if isinstance(value, str) else json.dumps(value)


def when(at_ms: int) -> str:
    """A time of Redis's clock, as people read it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def in_short(seconds: float) -> str:
    """A length of time, in the unit that suits it."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def in_words(task: Task[Any]) -> str:
    """A task's state, place and progress, in a line."""
    where = f" on {task.node_id}" if task.node_id and task.state == "running" else ""
    attempt = f", attempt {task.attempt} of {task.max_attempts}" if task.attempt else ""
    share = task.progress
    percent = f", {share:.0%}" if isinstance(share, int | float) and 0 <= share <= 1 else ""
    return one_line(f"{task.id} {task.state}{where}{attempt}{percent}")


@contextmanager
def waiting(text: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A line that moves on a terminal while something takes time. Call what it yields with the line's next text."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)) as line:
        yield lambda words: line.update(Text(words))


@contextmanager
def progress(text: str, total: int, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal. Call what it yields with the number that were done since."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task_id = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task_id, count)
