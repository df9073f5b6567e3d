"""The commands that run something on this machine: a node, a member, a cluster, a cut; keys and settings for them.

Does not know: the HTTP interface of nodes.
"""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import click

from cluster import config as settings
from cluster import output
from cluster.errors import ConfigError, RumorError
from node.cli import config_options
from node.cli.config_options import given, with_settings
from node.lab import commands as launcher
from node.lab import partition as partitions
from node.lab.ownership import write_new

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


@click.command()
@with_settings
def node(**flags: Any) -> int:
    """Run one node. Each setting is also a variable: --lease-s is RUMOR_LEASE_S."""
    config = settings.from_env(os.environ, given(flags))
    from node.main import main_node

    return main_node(config)


@click.command()
@click.option("--name", required=True, help="Stable name of this member.")
@click.option("--port", required=True, metavar="N", help="UDP port for gossip and TCP port for evidence; one number.")
@click.option(
    "--seed", "seed", multiple=True, metavar="HOST:PORT", help="A member through which to join; may be repeated."
)
@partial(with_settings, only=AGENT_SETTINGS)
def agent(name: str, port: str, seed: tuple[str, ...], **flags: Any) -> int:
    """Run membership alone: no Redis, no tasks, no worker.

    It prints one JSON object a line: {"t": monotonic seconds, "event": "start", "ready", "join", "suspect", "alive",
    "dead" or "left", "subject": name}. A dead or left member that returns is a "join" too; "alive" is a refuted
    suspicion. SIGUSR1 prints counters as {"event": "stats", …}. It leaves when its standard input closes.
    """
    from cluster.gossip.agent import main_agent
    from node.observe import logs

    # The token is a placeholder: an agent has no interface that a token could guard.
    values = {"node_id": name, "port": port, "api_token": "-", **given(flags)}
    if seed:
        values["seeds"] = ",".join(seed)
    config = settings.from_env(os.environ, values)
    output.shield()
    logs.configure(config)
    return main_agent(config)


@click.command(help=LAUNCH_HELP)
@click.argument("words", nargs=-1, metavar="[N | COMMAND [K…]]")
@click.option("--detach", is_flag=True, help="Return once the cluster is ready.")
@click.option("--json", "as_json", is_flag=True, help="With status: print JSON.")
@click.option("--netns", is_flag=True, help="Run each node and Redis in a network namespace. Needs root, on Linux.")
@click.option("--base-port", metavar="PORT", help="Port of node 1. [env: RUMOR_BASE_PORT; default: 5000]")
@click.option(
    "--data-dir", metavar="DIR", help="Directory of data, logs and record. [env: RUMOR_DATA_DIR; default: .rumor]"
)
@with_settings
def launch(
    words: tuple[str, ...],
    detach: bool,
    as_json: bool,
    base_port: str | None,
    data_dir: str | None,
    netns: bool,
    **flags: Any,
) -> int:
    output.shield()  # `rumor launch 3 | head -1` must not leave a cluster without its launcher
    return launcher.launch(
        words, given(flags), detach=detach, as_json=as_json, base_port=base_port, data_dir=data_dir, netns=netns
    )


@click.command(help=PARTITION_HELP)
@click.argument("words", nargs=-1, metavar="CUT | COMMAND")
@click.option("--once", is_flag=True, help="With watch: print once and exit.")
@click.option(
    "--every-s",
    type=float,
    default=partitions.EVERY_S,
    show_default=True,
    help="With watch: seconds between two looks.",
)
@click.option("--netns", "kind", flag_value="netns", help="Only a cluster launched with --netns.")
@click.option("--compose", "kind", flag_value="compose", help="Only the services of docker-compose.yml.")
@click.option("--data-dir", metavar="DIR", help="Directory of a launched cluster's record. [env: RUMOR_DATA_DIR]")
def partition(words: tuple[str, ...], once: bool, every_s: float, kind: str | None, data_dir: str | None) -> int:
    return partitions.partition(words, kind=kind or "", data_dir=data_dir, once=once, every_s=every_s)


@click.command()
@click.option(
    "--file", "path", metavar="PATH", help="Write it to this file, readable by its owner only. Never overwrites."
)
def keygen(path: str | None) -> int:
    """Make a gossip key: 32 random bytes, base64."""
    import base64
    import secrets

    key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
    if path is None:
        click.echo(key)
        return 0
    try:
        write_new(Path(path), key + "\n")
    except FileExistsError:
        raise ConfigError(
            f"{path} exists.", "Choose another name. To rotate keys, add a line to the file by hand."
        ) from None
    except OSError as error:
        raise RumorError(f"{path} cannot be written: {error.strerror}.") from None
    return 0


@click.command("config")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the documentation page, with the defaults.")
@with_settings
def show_config(as_markdown: bool, **flags: Any) -> int:
    """Show the settings of a node that would start here and now."""
    if as_markdown:
        click.echo(config_options.markdown(), nl=False)
        return 0
    config = settings.from_env(os.environ, given(flags))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        shown = "(set)" if field.metadata["secret"] and value != field.default else settings.as_text(value)
        click.echo(f"{field.name:<22} {shown}")
    return 0
