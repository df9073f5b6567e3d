"""The commands that talk to a cluster through any of its nodes, as other clients do.

They are calls of SyncClient, and tables. A command asks every named node once; one that waits insists instead, and
learns the other nodes, so that it outlives the node it began with. Output is for people on a terminal, plain lines
elsewhere, JSON with --json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from cluster import header_text
from cluster.errors import BadRequest, ConfigError, RumorError
from node.cli import hints, output
from node.cli.each import parse_data, submit_each
from node.client import calls
from node.client.asking import WAIT_SPARE_S
from node.client.blocking import SyncClient
from node.client.errors import NotFinished
from node.client.nodes import DEFAULT_URL, addresses
from node.client.stream import NAMES
from node.client.task import Page, Task
from node.escapes import one_line
from node.plural import counted

WITHIN_S = 10.0
REPLAY_WITHIN_S = 600.0
WAIT_STEP_S = 2.0  # the time between two looks at the progress of a task
FIRST_WAIT_S = 0.5  # the time in which a short task ends before anything is shown about it
SILENCE_MAX_S = 30.0  # the time for which a wait goes on while no node answers
ENDED_BADLY = ("dead", "cancelled")
TIME_IS_UP = 3
STATES = ("scheduled", "waiting", "queued", "running", "retrying", "succeeded", "dead", "cancelled")
COUNTED_MAX = 500  # dead tasks that are counted before the question; of more it says at least so many
COMPLETE_WITHIN_S = 1.0
COMPLETE_TASKS = 50
SHELLS = ("bash", "zsh", "fish")


def to_priority(ctx: click.Context, param: click.Parameter, value: str | None) -> str | int | None:
    """A priority by its name or its number."""
    if value is None:
        return None
    from cluster.shards.task import LEVEL_MAX, LEVELS  # a tenth of the start-up, paid only with --priority

    if value in LEVELS:
        return value
    if value.isascii() and value.isdigit() and int(value) <= LEVEL_MAX:
        return int(value)
    raise click.BadParameter(f"{value!r} is not one of {', '.join(LEVELS)}, or 0 to {LEVEL_MAX}.")


def filled(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A text that is not empty, as from a variable that is not set."""
    if value == "":
        raise click.BadParameter("it is empty. Give it a value or leave it out.")
    return value


def to_wait(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """A time to wait; refused before anything is submitted."""
    if value is not None and not value >= 0:  # in this form, because not-a-number is neither more nor less
        raise click.BadParameter(f"{value:g} is no time to wait: give it seconds, 0 or more.")
    return value


def to_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An Idempotency-Key that a header can carry."""
    try:
        return None if value is None else header_text.idempotency_key(value)
    except BadRequest as error:
        raise click.BadParameter(f"{error.message} {error.hint}") from None


def complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the latest tasks, for the shell; none if no node answers at once."""
    try:
        with connect(ctx.params.get("url") or "", within_s=COMPLETE_WITHIN_S) as client:
            ids = [one_line(task.id) for task in client.list(limit=COMPLETE_TASKS)]
            return [task_id for task_id in ids if task_id.startswith(incomplete)]
    except RumorError:
        return []


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of each command that talks to a node."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")(command)
    return node_options(command)


def node_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name a cluster. The token comes from the environment: a flag would show in the process list."""
    command = click.option(
        "--ca-file", envvar="RUMOR_CA_FILE", default="", metavar="PEM", help="Certificate to trust for https."
    )(command)
    return click.option(
        "--url",
        envvar="RUMOR_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="Any node, or several separated by commas. [env: RUMOR_URL]",
    )(command)


def connect(url: str, ca_file: str | None = None, within_s: float = WITHIN_S, waits: bool = False) -> SyncClient:
    """A client of the cluster."""
    return SyncClient(addresses(url), ca_file=ca_file, within_s=within_s, learn=waits, insist=waits, spread=False)


@click.command()
@remote_options
def status(url: str, ca_file: str, as_json: bool) -> int:
    """Show the cluster as one node sees it. Exit status 1 if that node is unusable."""
    with connect(url, ca_file) as client:
        view = client.cluster()
        if as_json:
            output.as_json(view)
            return 0
        health = client.health()
    output.problems(health.get("problems", ()))
    leader = view.get("leader")
    epoch = f", epoch {leader['epoch']}" if leader and "epoch" in leader else ""
    click.echo(one_line(f"seen by {view['node_id']}, leader {leader['node_id'] if leader else 'none'}{epoch}"))
    output.table(output.MEMBER_HEAD, output.member_rows(view), output.MEMBER_STYLES)
    return 1 if health.get("status") == "unavailable" else 0


@click.command()
@click.argument("task_type", metavar="TYPE")
@click.argument("data", required=False, metavar="[DATA]")
@click.option("--queue", help="Another queue than the type's own.")
@click.option("--priority", callback=to_priority, metavar="LEVEL", help="low, normal, high, or 0 to 9.")
@click.option("--key", help="Tasks of one key go to one shard.")
@click.option("--delay-s", type=float, help="Run it no sooner than this many seconds from now.")
@click.option("--run-at", metavar="TIME", help="Run it no sooner than this: 2030-01-31T08:00:00+01:00 (RFC 3339).")
@click.option("--max-attempts", type=int, help="Attempts before it is dead.")
@click.option("--timeout-s", type=float, help="Seconds that one attempt may run.")
@click.option("--backoff-base-s", type=float, help="Seconds before the second attempt, at most.")
@click.option("--backoff-factor", type=float, help="Factor by which that grows with each further attempt.")
@click.option("--backoff-max-s", type=float, help="Seconds that it never exceeds.")
@click.option("--retention-s", type=float, help="Seconds it stays readable once finished.")
@click.option("--unique-for-s", type=float, help="Seconds within which the same type and data mean the same task.")
@click.option("--unique-key", help="With --unique-for-s: compare this key instead of the data.")
@click.option("--idempotency-key", callback=to_key, help="The same key means the same task, at whichever node.")
@click.option("--each", is_flag=True, help="Submit a task for each line of standard input; the line is its data.")
@click.option("--wait", is_flag=True, help="Wait for the outcome; exit status 1 if it is dead or cancelled.")
@click.option(
    "--wait-s", type=float, callback=to_wait, help="Wait at most this many seconds; exit status 3 if it goes on then."
)
@remote_options
def submit(
    task_type: str,
    data: str | None,
    backoff_base_s: float | None,
    backoff_factor: float | None,
    backoff_max_s: float | None,
    idempotency_key: str | None,
    each: bool,
    wait: bool,
    wait_s: float | None,
    url: str,
    ca_file: str,
    as_json: bool,
    **fields: Any,
) -> int:
    """Submit a task. DATA is JSON, or text if it is not valid JSON; - reads it from standard input."""
    options = {name: value for name, value in fields.items() if value is not None}
    backoff = {"base_s": backoff_base_s, "factor": backoff_factor, "max_s": backoff_max_s}
    if backoff := {name: value for name, value in backoff.items() if value is not None}:
        options["backoff"] = backoff
    waits = wait or wait_s is not None
    if each and waits:
        raise click.UsageError("--each does not wait; `rumor tasks --state dead` lists the tasks that failed.")
    with connect(url, ca_file, waits=waits or each) as client:
        if each:
            return submit_each(client, task_type, options, idempotency_key, as_json)
        began_s = time.monotonic()
        task = client.submit(
            task_type,
            calls.ABSENT if data is None else parse_data(sys.stdin.read() if data == "-" else data),
            idempotency_key=idempotency_key,
            wait_s=max(0.0, FIRST_WAIT_S if wait_s is None else min(FIRST_WAIT_S, wait_s)) if waits else 0.0,
            **options,
        )
        if waits:
            return wait_for(client, task, wait_s, as_json, began_s)
    output.as_json(task.told) if as_json else click.echo(one_line(task.id))
    return 0


@click.command()
@click.option("--state", type=click.Choice(STATES), help="Only tasks in this state; no task is in `waiting` yet.")
@click.option("--type", "task_type", callback=filled, help="Only tasks of this type.")
@click.option("--key", callback=filled, help="Only tasks with this key.")
@click.option("--queue", callback=filled, help="With --state queued: only tasks of this queue.")
@click.option("--fields", default="", help="With --json: what to show beside a summary: data,result,error.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@click.option("--cursor", help="Go on after the page that printed this cursor.")
@click.option("--all", "goes_on", is_flag=True, help="Go on to the last page; --limit is then the length of a page.")
@remote_options
def tasks(
    task_type: str | None, fields: str, goes_on: bool, url: str, ca_file: str, as_json: bool, **query: Any
) -> int:
    """List tasks, newest first.

    A search by type or key looks at a part of the tasks at a time; it says how far it looked, and how to go on. With
    --json, each page is an object in a line of its own.
    """
    query = {**query, "type": task_type, "fields": [name for name in fields.split(",") if name]}
    found = searched = 0
    with connect(url, ca_file) as client:
        while True:
            with output.waiting(f"searched {searched:,} tasks", quiet=as_json):
                page = client.page(**query)
            found += len(page.tasks)
            searched += page.searched or 0
            show_page(page, as_json)
            if not (goes_on and page.cursor):
                break
            query["cursor"] = page.cursor
    if not as_json:
        output.how_far(page, found, searched)
    return 0


def show_page(page: Page, as_json: bool) -> None:
    """The tasks of a page, as JSON with its cursor and how far the node looked, or as a table."""
    if as_json:
        rows = [task.told for task in page.tasks]
        told = {"tasks": rows, "cursor": page.cursor, "searched": page.searched, "complete": page.is_complete}
        output.as_json(told | ({"unreadable": page.unreadable} if page.unreadable else {}))
        return
    output.unreadable(page.unreadable)
    if page.tasks:
        output.table(output.TASK_HEAD, [output.task_row(task) for task in page.tasks], output.TASK_STYLES)


@click.command()
@click.argument("task_id", metavar="ID", shell_complete=complete_id)
@click.option("--wait", is_flag=True, help="Wait for the outcome.")
@click.option(
    "--wait-s", type=float, callback=to_wait, help="Wait at most this many seconds; exit status 3 if it goes on then."
)
@remote_options
def task(task_id: str, wait: bool, wait_s: float | None, url: str, ca_file: str, as_json: bool) -> int:
    """Show one task, with its attempts. Exit status 1 if it is dead or cancelled."""
    waits = wait or wait_s is not None
    with connect(url, ca_file, waits=waits) as client:
        task = client.get(task_id)
        return wait_for(client, task, wait_s, as_json, time.monotonic()) if waits else show_task(task, as_json)


@click.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID…", shell_complete=complete_id)
@remote_options
def cancel(task_ids: tuple[str, ...], url: str, ca_file: str, as_json: bool) -> int:
    """Cancel tasks, running or not."""
    with connect(url, ca_file) as client:
        return for_each(client.cancel, task_ids, as_json)


@click.command()
@click.argument("task_ids", nargs=-1, metavar="[ID…]", shell_complete=complete_id)
@click.option("--type", "task_type", callback=filled, help="Only tasks of this type.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@remote_options
def replay(
    task_ids: tuple[str, ...],
    task_type: str | None,
    limit: int | None,
    is_sure: bool,
    url: str,
    ca_file: str,
    as_json: bool,
) -> int:
    """Run dead tasks again: those named, else all in the dead letter queue.

    Asks first unless the tasks are named; without a terminal it needs --yes.
    """
    with connect(url, ca_file) as client:
        if task_ids:
            return for_each(client.retry, task_ids, as_json)
        replayed = 0
        if is_sure or ask(client, "Run {tasks} again?", task_type, limit):
            with output.waiting("replaying the dead letter queue", quiet=as_json):
                replayed = client.replay(type=task_type, limit=limit, within_s=REPLAY_WITHIN_S)
    output.as_json({"replayed": replayed}) if as_json else click.echo(f"replayed {replayed}")
    return 0


@click.command()
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@remote_options
def purge(is_sure: bool, url: str, ca_file: str, as_json: bool) -> int:
    """Remove all dead tasks, with their data and errors. Asks first; without a terminal it needs --yes."""
    with connect(url, ca_file) as client:
        removed = 0
        if is_sure or ask(client, "Remove {tasks}, their data and errors?"):
            removed = client.purge_dead()
    output.as_json({"removed": removed}) if as_json else click.echo(f"removed {removed}")
    return 0


def ask(client: SyncClient, question: str, task_type: str | None = None, limit: int | None = None) -> bool:
    """Ask before dead tasks are changed that the command line does not name; False if there are none.

    Raises Abort for a no, and UsageError without a terminal.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("This concerns all dead tasks, and nobody is there to confirm it: add --yes.")
    page = client.page(state="dead", type=task_type, limit=min(limit or COUNTED_MAX, COUNTED_MAX))
    known = len(page.tasks)
    is_all = page.cursor is None or known == limit
    if not known and is_all:
        return False
    tasks = counted(known, "dead task") if is_all else f"at least {counted(known, 'dead task')}"
    if task_type is not None:
        tasks += f" of type {one_line(task_type)}"
    return click.confirm(question.format(tasks=tasks), abort=True, err=True)


@click.command()
@remote_options
def workers(url: str, ca_file: str, as_json: bool) -> int:
    """List the live nodes and what they run: for each queue, taken slots of all slots."""
    with connect(url, ca_file) as client:
        rows = client.workers()
    if as_json:
        output.as_json({"workers": list(rows)})
        return 0
    output.table(output.WORKER_HEAD, [output.worker_row(row) for row in rows], output.WORKER_STYLES)
    return 0


@click.command()
@click.option(
    "--name", "names", multiple=True, type=click.Choice(NAMES), help="Only events of this name; may be repeated."
)
@click.option("--json", is_flag=True, expose_value=False, help="Changes nothing: events are JSON anyway.")
@node_options
def events(names: tuple[str, ...], url: str, ca_file: str) -> int:
    """Print the cluster's past events, then each as it happens: a JSON object a line, until Ctrl-C."""
    with connect(url, ca_file) as client:
        for event in client.events(names=names):
            click.echo(json.dumps({"event": event.name, **event.data}))
    return 0


@click.command()
@click.option(
    "--interval-s", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Print it once and exit.")
@node_options
def top(url: str, ca_file: str, interval_s: float, once: bool) -> int:
    """Watch the cluster: what is wrong, members, queues, events. q quits."""
    from node.cli.top import main_top

    return main_top(addresses(url), ca_file, interval_s, once)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> int:
    """Print a script that makes a shell complete commands, options and task ids.

    \b
    bash:  eval "$(rumor completion bash)"                                    in ~/.bashrc
    zsh:   eval "$(rumor completion zsh)"                                     in ~/.zshrc
    fish:  rumor completion fish > ~/.config/fish/completions/rumor.fish
    """
    from click.shell_completion import get_completion_class

    from node.cli import rumor

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(rumor, {}, "rumor", "_RUMOR_COMPLETE").source())
    return 0


def for_each(call: Callable[[str], Task[Any]], task_ids: Sequence[str], as_json: bool) -> int:
    """Make the call for each id, also after it failed for another."""
    failed = 0
    for task_id in task_ids:
        try:
            task = call(task_id)
        except ConfigError:
            raise
        except RumorError as error:
            if len(task_ids) == 1:
                raise
            failed += 1
            click.echo(f"{task_id} {hints.in_lines(error)}", err=True)
        else:
            output.as_json(task.told) if as_json else click.echo(one_line(f"{task_id} {task.state}"))
    return 1 if failed else 0


def wait_for(client: SyncClient, task: Task[Any], wait_s: float | None, as_json: bool, began_s: float) -> int:
    """Show the task once it has ended, or as it is `wait_s` after `began_s`. Returns the exit status."""
    answered_s = time.monotonic()
    with output.waiting(output.in_words(task), quiet=as_json) as tell:
        while not task.is_finished:
            now_s = time.monotonic()
            left_s = WAIT_STEP_S if wait_s is None else began_s + wait_s - now_s
            if left_s <= 0:
                break
            try:
                task = client.wait(task.id, within_s=min(WAIT_STEP_S, left_s) + WAIT_SPARE_S)
                break
            except NotFinished as error:
                task, answered_s = error.task, now_s
            except RumorError as error:
                if error.status != 503 or now_s - answered_s > SILENCE_MAX_S:
                    raise
            tell(output.in_words(task))
    if not task.is_finished:
        click.echo(
            one_line(f"not_finished: task {task.id} is {task.state} after {wait_s:g} s.")
            + "\n"
            + one_line(f"  It goes on; wait again with `rumor task {task.id} --wait`, or cancel it."),
            err=True,
        )
        show_task(task, as_json)
        return TIME_IS_UP
    return show_task(task, as_json)


def show_task(task: Task[Any], as_json: bool) -> int:
    output.as_json(task.told) if as_json else output.task(task)
    return 1 if task.state in ENDED_BADLY else 0
