"""The command line: `rumor`, and `python -m node`.

Commands that talk to a node do it over its HTTP interface and know nothing that any other client could not know.
An error is two lines on stderr, what happened and what to do. Exit status 2: the command line or the configuration
makes no sense and nothing was done; 1: it failed. What only one command needs is imported by that command: a
command line that takes a second to start is not used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from cluster import __version__
from cluster import config as settings
from cluster.errors import ConfigError, RumorError
from node import launch as launcher
from node import options
from node import partition as partitions
from node.options import config_options, given
from node.remote import Remote

DEFAULT_URL = "http://127.0.0.1:5000"
WAIT_SLACK_S = 10.0  # beyond what the node was asked to wait
ENDED_BADLY = ("dead", "cancelled")
AGENT_SETTINGS = (
    *("cluster", "host", "advertise_host", "gossip_keys", "gossip_key_file", "insecure", "log_level", "log_format"),
    *("probe_interval_s", "probe_timeout_s", "gossip_interval_s", "indirect_probes", "suspicion_min_s"),
    *("suspicion_max_s", "stalled_s", "push_pull_interval_s", "forget_s", "watch_peers"),
)
LAUNCH_HELP = "Run a cluster on this machine: N nodes and their Redis.\n\n\b\n" + launcher.USAGE.replace(
    "\n\n", "\n\n\b\n"
)
PARTITION_HELP = "Cut the network of a running cluster, and see what its nodes make of it.\n\n\b\n"
PARTITION_HELP += partitions.USAGE.replace("\n\n", "\n\n\b\n")


def main(argv: Sequence[str] | None = None, default: str | None = None) -> None:
    """Run a command line and exit. Without a subcommand it is `default`, if there is one."""
    words = list(sys.argv[1:] if argv is None else argv)
    if default is not None and (not words or words[0].startswith("-")) and words[:1] not in (["--help"], ["--version"]):
        words.insert(0, default)
    try:
        status = rumor.main(words, prog_name="rumor", standalone_mode=False)
    except RumorError as error:
        click.echo(f"{error.code}: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), err=True)
        status = 2 if isinstance(error, ConfigError) else 1
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:  # `rumor tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status if isinstance(status, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def rumor() -> None:
    """Rumor: a distributed task queue with no central coordinator."""


@rumor.command()
@config_options
def node(**flags: Any) -> int:
    """Run one node. Each setting is also a variable: --lease-s is RUMOR_LEASE_S."""
    config = settings.from_env(os.environ, given(flags))
    from node.main import main_node

    return main_node(config)


@rumor.command()
@click.option("--name", required=True, help="Stable name of this member.")
@click.option("--port", required=True, metavar="N", help="UDP port for gossip and TCP port for evidence; one number.")
@click.option("--seed", "seed", multiple=True, metavar="HOST:PORT", help="A member to join by; may be given again.")
@partial(config_options, only=AGENT_SETTINGS)
def agent(name: str, port: str, seed: tuple[str, ...], **flags: Any) -> int:
    """Run membership alone: no Redis, no tasks, no worker.

    Prints one JSON object a line: {"t": monotonic seconds, "event": "start", "ready", "join", "suspect", "alive",
    "dead" or "left", "subject": name}. "join" is also the return of a member that was dead or left, "alive" a suspicion
    refuted. SIGUSR1 prints counters as {"event": "stats", …}. It leaves when its standard input closes.
    """
    from cluster.agent import main_agent
    from node import logs

    # It has no interface that a token could guard.
    told = {"node_id": name, "port": port, "api_token": "-", **given(flags)}
    told |= {"seeds": ",".join(seed)} if seed else {}
    config = settings.from_env(os.environ, told)
    logs.configure(config)
    return main_agent(config)


@rumor.command(help=LAUNCH_HELP)
@click.argument("words", nargs=-1, metavar="[N | COMMAND [K…]]")
@click.option("--detach", is_flag=True, help="Return when the cluster is ready.")
@click.option("--json", "as_json", is_flag=True, help="With status: JSON.")
@click.option("--netns", is_flag=True, help="A network namespace for each node and for Redis. Needs root, on Linux.")
@click.option("--base-port", metavar="PORT", help="Port of node 1. [env: RUMOR_BASE_PORT; default: 5000]")
@click.option(
    "--data-dir", metavar="DIR", help="Where data, logs and the record are. [env: RUMOR_DATA_DIR; default: .rumor]"
)
@config_options
def launch(
    words: tuple[str, ...],
    detach: bool,
    as_json: bool,
    base_port: str | None,
    data_dir: str | None,
    netns: bool,
    **flags: Any,
) -> int:
    return launcher.launch(
        words, given(flags), detach=detach, as_json=as_json, base_port=base_port, data_dir=data_dir, netns=netns
    )


@rumor.command(help=PARTITION_HELP)
@click.argument("words", nargs=-1, metavar="CUT | COMMAND")
@click.option("--once", is_flag=True, help="With watch: print it and end.")
@click.option("--every-s", type=float, default=partitions.EVERY_S, show_default=True, help="With watch: how often.")
@click.option("--netns", "kind", flag_value="netns", help="Only a cluster that was launched with --netns.")
@click.option("--compose", "kind", flag_value="compose", help="Only the services of docker-compose.yml.")
@click.option("--data-dir", metavar="DIR", help="Where a launched cluster's record is. [env: RUMOR_DATA_DIR]")
def partition(words: tuple[str, ...], once: bool, every_s: float, kind: str | None, data_dir: str | None) -> int:
    return partitions.partition(words, kind=kind or "", data_dir=data_dir, once=once, every_s=every_s)


@rumor.command()
@click.option("--file", "path", metavar="PATH", help="Write it there, readable by its owner only; never overwrites.")
def keygen(path: str | None) -> int:
    """Make a gossip key: 32 random bytes, base64."""
    import base64
    import secrets

    key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
    if path is None:
        click.echo(key)
        return 0
    try:
        launcher.write_private(Path(path), key + "\n")
    except FileExistsError:
        raise ConfigError(
            f"{path} exists.", "Choose another name, or add a line to it by hand to rotate keys."
        ) from None
    except OSError as error:
        raise RumorError(f"{path} cannot be written: {error.strerror}.") from None
    return 0


@rumor.command("config")
@click.option("--markdown", "as_markdown", is_flag=True, help="The page of the documentation, with the defaults.")
@config_options
def show_config(as_markdown: bool, **flags: Any) -> int:
    """Show the settings that a node started here and now would have."""
    if as_markdown:
        click.echo(options.markdown(), nl=False)
        return 0
    config = settings.from_env(os.environ, given(flags))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = "(set)" if field.metadata["secret"] and value != field.default else options.as_text(value)
        click.echo(f"{field.name:<22} {shown}")
    return 0


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What each command that talks to a node takes."""
    command = click.option("--json", "as_json", is_flag=True, help="Print the node's answer as JSON.")(command)
    command = click.option(
        "--ca-file", envvar="RUMOR_CA_FILE", default="", metavar="PEM", help="Certificate to trust for https."
    )(command)
    return click.option(
        "--url", envvar="RUMOR_URL", default=DEFAULT_URL, show_default=True, help="Any node. [env: RUMOR_URL]"
    )(command)


def remote(url: str, ca_file: str, timeout_s: float = 10.0) -> Remote:
    """The node to talk to. The token comes from the environment alone: a flag would show in the process list."""
    return Remote(url, os.environ.get("RUMOR_API_TOKEN", ""), ca_file, timeout_s)


@rumor.command()
@remote_options
def status(url: str, ca_file: str, as_json: bool) -> int:
    """Show the cluster as one node sees it."""
    one = remote(url, ca_file)
    _, view = one.call("GET", "/cluster")
    if as_json:
        click.echo(json.dumps(view))
        return 0
    leader = view.get("leader")
    click.echo(f"seen by {view['node_id']}, leader {leader['node_id'] if leader else 'none'}")
    shards: dict[str, int] = {}
    for owner in (view.get("shards") or {}).values():
        shards[owner] = shards.get(owner, 0) + 1
    rows = [
        (
            member["node_id"],
            member["state"],
            member.get("redis", ""),
            member.get("verdict", ""),
            "" if member.get("rtt_ms") is None else f"{member['rtt_ms']:.1f}",
            str(shards.get(member["node_id"], 0)),
            member.get("url", ""),
        )
        for member in view["members"]
    ]
    show_table(("node", "gossip", "redis", "verdict", "rtt ms", "shards", "url"), rows)
    code, raw = one.request("GET", "/health")
    health = json.loads(raw) if raw.startswith(b"{") else {}
    for problem in health.get("problems", ()):
        click.echo(f"{problem.get('code')}: {problem.get('message')}\n  {problem.get('hint', '')}", err=True)
    return 0 if code == 200 else 1


@rumor.command()
@click.argument("task_type", metavar="TYPE")
@click.argument("data", default="null", metavar="[DATA]")
@click.option("--queue", help="Another queue than the type's own.")
@click.option("--priority", help="low, normal, high, or 0 to 9.")
@click.option("--key", help="Tasks of one key go to one shard.")
@click.option("--delay-s", type=float, help="Run it this much later.")
@click.option("--max-attempts", type=int)
@click.option("--timeout-s", type=float)
@click.option("--unique-for-s", type=float, help="The same type and data within this time is the same task.")
@click.option("--idempotency-key", help="The same key is the same task, whichever node it reaches.")
@click.option("--wait-s", type=float, help="Wait so long for the outcome; status 1 if it is dead or cancelled.")
@remote_options
def submit(
    task_type: str,
    data: str,
    priority: str | None,
    idempotency_key: str | None,
    wait_s: float | None,
    url: str,
    ca_file: str,
    as_json: bool,
    **fields: Any,
) -> int:
    """Submit a task. DATA is JSON, or a text if it is no JSON; - reads it from standard input."""
    body = {"type": task_type, "data": parse_data(sys.stdin.read() if data == "-" else data)}
    if priority is not None:
        body["priority"] = int(priority) if priority.isdigit() else priority
    body.update((name, value) for name, value in fields.items() if value is not None)
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    _, answer = remote(url, ca_file).call("POST", "/tasks", body, headers=headers)
    if wait_s is not None:
        return show_task(wait_for_task(url, ca_file, answer["id"], wait_s), as_json)
    click.echo(json.dumps(answer) if as_json else answer["id"])
    return 0


@rumor.command()
@click.option("--state", help="scheduled, waiting, queued, running, retrying, succeeded, dead or cancelled.")
@click.option("--type", "task_type")
@click.option("--key")
@click.option("--limit", type=int, default=20, show_default=True)
@click.option("--cursor", help="Go on where an earlier page ended.")
@remote_options
def tasks(task_type: str | None, url: str, ca_file: str, as_json: bool, **query: Any) -> int:
    """List tasks, newest first."""
    _, page = remote(url, ca_file).call("GET", "/tasks", query={"type": task_type, **query})
    if as_json:
        click.echo(json.dumps(page))
        return 0
    rows = [
        (one["id"], one["type"], one["state"], f"{one['attempt']}/{one['max_attempts']}", one.get("node_id") or "")
        for one in page["tasks"]
    ]
    show_table(("id", "type", "state", "attempt", "node"), rows)
    if page.get("cursor"):
        click.echo(f"more: --cursor {page['cursor']}", err=True)
    return 0


@rumor.command()
@click.argument("task_id", metavar="ID")
@click.option("--wait-s", type=float, help="Wait so long for the outcome.")
@remote_options
def task(task_id: str, wait_s: float | None, url: str, ca_file: str, as_json: bool) -> int:
    """Show one task. Status 1 if it is dead or cancelled."""
    if wait_s is None:
        _, answer = remote(url, ca_file).call("GET", f"/tasks/{task_id}")
    else:
        answer = wait_for_task(url, ca_file, task_id, wait_s)
    return show_task(answer, as_json)


@rumor.command()
@click.argument("task_ids", nargs=-1, required=True, metavar="ID…")
@remote_options
def cancel(task_ids: tuple[str, ...], url: str, ca_file: str, as_json: bool) -> int:
    """Cancel tasks, running or not."""
    for task_id in task_ids:
        _, answer = remote(url, ca_file).call("DELETE", f"/tasks/{task_id}")
        click.echo(json.dumps(answer) if as_json else f"{task_id} {answer['state']}")
    return 0


@rumor.command()
@click.argument("task_ids", nargs=-1, metavar="[ID…]")
@click.option("--type", "task_type", help="Only tasks of this type.")
@click.option("--limit", type=int, help="At most so many.")
@remote_options
def replay(
    task_ids: tuple[str, ...], task_type: str | None, limit: int | None, url: str, ca_file: str, as_json: bool
) -> int:
    """Run dead tasks again: those named, else all in the dead letter queue."""
    one = remote(url, ca_file, timeout_s=60.0)
    for task_id in task_ids:
        _, answer = one.call("POST", f"/tasks/{task_id}/retry")
        click.echo(json.dumps(answer) if as_json else f"{task_id} {answer['state']}")
    if not task_ids:
        wanted = {name: value for name, value in (("type", task_type), ("limit", limit)) if value is not None}
        _, answer = one.call("POST", "/dead/replay", wanted)
        click.echo(json.dumps(answer) if as_json else f"replayed {answer.get('replayed', 0)}")
    return 0


def wait_for_task(url: str, ca_file: str, task_id: str, wait_s: float) -> Any:
    """The task when it is terminal, or as it is when the time is up."""
    one = remote(url, ca_file, timeout_s=wait_s + WAIT_SLACK_S)
    return one.call("GET", f"/tasks/{task_id}", query={"wait_s": wait_s})[1]


def show_task(answer: dict[str, Any], as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for name, value in answer.items():
            if value is not None:
                shown = (
                    f"{when(value)}"
                    if name.endswith("_at_ms")
                    else value
                    if isinstance(value, str)
                    else json.dumps(value)
                )
                click.echo(f"{name.removesuffix('_ms'):<13} {shown}")
    return 1 if answer["state"] in ENDED_BADLY else 0


def when(at_ms: int) -> str:
    """A time of Redis's clock, for people."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def parse_data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people on a terminal; plain columns, one row a line, for everything else."""
    if not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
