"""`rumor launch` and its script: what each command does and prints.

A command line is a number of nodes, or a command with the numbers of nodes. Progress goes to stderr, answers to stdout.

Does not know: how a cluster is started or ended (`cluster`), where it is written down (`record`).
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cluster import config as settings
from cluster import redis_address
from cluster.config import variable
from node.lab import network, private_redis
from node.lab import record as records
from node.lab.cluster import (
    BASE_PORT,
    NODES_MAX,
    STOP_GRACE_S,
    Cluster,
    Interrupted,
    Signals,
    indent,
    partition_program,
    program,
    say,
)
from node.lab.process import wait_for
from node.lab.record import PER_NODE, LaunchFailed, Record, RedisRecord, Usage, load, locked
from node.plural import counted

NODES_DEFAULT = 5
NETNS_SETS = ("host", "advertise_host", "redis_url")  # settings that --netns decides
WATCH_S = 0.5
COMMANDS = ("status", "kill", "pause", "resume", "restart", "add", "stop")
SIGNALS = {  # command -> its signal, the state that the signal leads to, the word that reports it
    "kill": (signal.SIGKILL, "exited", "killed"),
    "pause": (signal.SIGSTOP, "paused", "paused"),
    "resume": (signal.SIGCONT, "running", "resumed"),
}

USAGE = """\
[N]                    start N nodes (by default 5) and a Redis, and stay until Ctrl-C
[N] --detach           the same, but return when the cluster is ready
[N] --netns            the same, with each node and Redis in a network namespace of its own (root, Linux), and
                       with a key and a token: for the cuts of `rumor partition`
status [--json]        show what runs
kill K                 end node K at once (kill -9)
pause K, resume K      stop node K as a debugger would (SIGSTOP); let it continue
restart K              start node K again; if it runs, it drains first
add                    start one more node. Here and with restart, RUMOR_… and OTEL_… variables are those of the
                       cluster's start unless your shell sets them; all others are your shell's
stop                   drain and end everything

K is a node's number, from 1, or `redis` for the Redis that was started with the nodes."""


def launch(
    words: Sequence[str],
    flags: Mapping[str, str],
    *,
    detach: bool = False,
    as_json: bool = False,
    base_port: str | None = None,
    data_dir: str | None = None,
    netns: bool = False,
) -> int:
    """Carry out one command line. Returns the exit status; raises RumorError (Usage: nothing was done)."""
    folder = records.folder_of(data_dir)
    word, rest = (words[0], list(words[1:])) if words else (str(NODES_DEFAULT), [])
    for name in PER_NODE:
        if name in flags:
            raise Usage(
                f"{settings.flag(name)} is for one node.", "Ports are counted from RUMOR_BASE_PORT (--base-port)."
            )
    if word.lstrip("+-").isdigit():
        expect_words(rest, 0, word)
        return start(folder, int(word), flags, detach, parse_base_port(base_port), netns)
    if word not in COMMANDS:
        raise Usage(f"{word!r} is neither a number of nodes nor a command.", f"The commands are:\n{indent(USAGE)}")
    if netns:
        raise Usage(f"{word} does not take --netns.", "Choose the network when you start the cluster.")
    if flags and word not in ("add", "restart"):
        raise Usage(
            f"{word} takes no settings ({settings.flag(next(iter(flags)))}).",
            "Give them when you start, add or restart nodes.",
        )
    if word in ("status", "add", "stop"):
        expect_words(rest, 0, word)
    elif not rest:
        raise Usage(f"{word} needs the number of a node.", f"For example: {program()} {word} 2")
    if word == "status":
        return status(folder, as_json)
    if word == "stop":
        return stop(folder)
    with locked(folder):
        cluster = Cluster(folder, running(folder))
        return act(cluster, word, rest, flags)


def act(cluster: Cluster, word: str, rest: Sequence[str], flags: Mapping[str, str]) -> int:
    """Carry out a command that changes a running cluster."""
    if word == "add":
        cluster.add(flags)
        return 0
    targets = [cluster.find(name) for name in rest]
    for target in targets:
        if word == "restart":
            cluster.restart(target, flags)
            continue
        number, state, done = SIGNALS[word]
        if not target.process.signal(number):
            raise LaunchFailed(
                f"{target.label} is not running.",
                f"{program(cluster.folder)} restart {target.number or 'redis'} starts it.",
            )
        wait_for(lambda target=target, state=state: target.process.state == state, STOP_GRACE_S)  # type: ignore[misc]
        say(f"{target.label} {done} (pid {target.pid})")
    return 0


def running(folder: Path) -> Record:
    """The folder's record. Raises LaunchFailed if there is none."""
    record = load(folder)
    if record is None:
        raise LaunchFailed(f"No cluster runs in {folder}.", f"Start one with `{program(folder)}`.")
    return record


# Starting, watching, stopping


def start(folder: Path, count: int, flags: Mapping[str, str], detach: bool, base_port: int, netns: bool = False) -> int:
    """Start a cluster of `count` nodes; return when it is ready (with `detach`) or has ended."""
    refuse_count(count, base_port, netns)
    if netns:
        network.refuse_if_unable()
    for name, hint in settings.strangers(os.environ).items():
        say(f"{name} is not read by anything. {hint}")
    signals = Signals()
    with locked(folder):
        old = load(folder)
        refuse_running(old, folder)
        chosen = {name: text for name, text in records.from_environment(os.environ).items() if name not in PER_NODE}
        chosen |= flags
        if netns:
            refuse_settings_of_netns(chosen)
        if old is not None and old.network is not None and old.network.close():
            say("Removed the network namespaces that an earlier cluster left behind.")
        record = Record(
            launch_id=secrets.token_hex(8),
            base_port=base_port,
            told=chosen,
            cwd=os.getcwd(),
            python_path=os.environ.get("PYTHONPATH", ""),
            otel=records.otel_variables(os.environ),
            redis=RedisRecord(chosen.get("redis_url", "")),
            network=network.choose() if netns else None,
        )
        cluster = Cluster(folder, record)
        try:
            began_s = time.monotonic()
            cluster.start(count, signals)
            took_s = time.monotonic() - began_s
        except Interrupted:
            say("\nInterrupted; ending the processes that were started.")
            cluster.end(signals)
            return 130
        except BaseException:
            cluster.end(signals)
            raise
    print(summary(cluster, took_s, detach), flush=True)
    return 0 if detach else stay(cluster, signals)


def stay(cluster: Cluster, signals: Signals) -> int:
    """Watch until the user asks to end, or until another command has ended the cluster."""
    seen = {member.label: member.process for member in cluster.all()}
    while not signals.count:
        wait_for(lambda: signals.count, WATCH_S)
        cluster.reap_children()
        record = load(cluster.folder)
        if record is None or record.launch_id != cluster.record.launch_id:
            say("The cluster was stopped.")
            return 0
        cluster.record = record
        for member in cluster.all():
            if member.process.is_alive and seen.get(member.label) != member.process:
                say(f"{member.label} runs (pid {member.pid})")
                seen[member.label] = member.process
            elif not member.process.is_alive and seen.pop(member.label, None) is not None:
                say(f"{member.label} has ended; its log: {cluster.log(member)}")
    say("\nStopping. Running tasks may finish; press Ctrl-C again to end them.")
    with locked(cluster.folder):
        record = load(cluster.folder)
        if record is not None and record.launch_id == cluster.record.launch_id:
            cluster.record = record
            cluster.end(signals)
    return 0


def stop(folder: Path) -> int:
    signals = Signals()
    with locked(folder):
        record = load(folder)
        if record is None:
            say(f"Nothing runs in {folder}.")
            return 0
        Cluster(folder, record).end(signals)
    say("Stopped.")
    return 0


# Refusing


def refuse_count(count: int, base_port: int, netns: bool) -> None:
    if not 1 <= count <= NODES_MAX:
        raise Usage(f"N is {count}: 1 to {NODES_MAX} nodes can be started.", f"For example: {program()} 5")
    if not netns and base_port + count - 1 > 65_535:
        raise Usage(
            f"RUMOR_BASE_PORT is {base_port}: {count} ports from there end beyond 65535.", "Choose a lower port."
        )


def refuse_running(old: Record | None, folder: Path) -> None:
    """A folder holds one cluster."""
    if old is not None and old.is_running:
        alive = [node.url for node in old.nodes if node.process.is_alive]
        raise LaunchFailed(
            f"A cluster is already running in {folder}: {', '.join(alive) or 'only its Redis'}.",
            f"Show it with `{program(folder)} status`, end it with `{program(folder)} stop`, "
            "or set RUMOR_DATA_DIR for another.",
        )


def refuse_settings_of_netns(chosen: Mapping[str, str]) -> None:
    """With --netns the launcher chooses the addresses and starts the Redis."""
    for name in NETNS_SETS:
        if chosen.get(name):
            raise Usage(
                f"{settings.flag(name)} (or {variable(name)}) is set, but with --netns the launcher decides it.",
                "Leave it out: each node has an address in its namespace, and so has the cluster's own Redis.",
            )


def parse_base_port(text: str | None) -> int:
    text = text if text is not None else os.environ.get("RUMOR_BASE_PORT") or str(BASE_PORT)
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise Usage(f"RUMOR_BASE_PORT is {text!r}: a port is 1 to 65535.", "For example: RUMOR_BASE_PORT=5100")
    return int(text)


def expect_words(rest: Sequence[str], count: int, word: str) -> None:
    if len(rest) > count:
        raise Usage(f"{rest[count]!r} after {word!r} is not expected.", f"The commands are:\n{indent(USAGE)}")


# Showing


def status(folder: Path, as_json: bool) -> int:
    """Print what runs. Returns 1 if no cluster does."""
    record = load(folder)
    if as_json:
        print(json.dumps(status_json(record)))
    if record is None:
        say(f"No cluster runs in {folder}.\n  Start one with `{program(folder)}`.")
        return 1
    if not as_json:
        cluster = Cluster(folder, record)
        for node in record.nodes:
            state = node.process.state
            reason = (cluster.why_not_ready(node, ()) or "ready") if state == "running" else state
            print(f"{node.label:<8} {node.url:<28} pid {node.pid:<8} {reason}")
        own = (
            f"pid {record.redis.pid:<8} {record.redis.process.state}"
            if record.redis.is_own
            else "not started by the launcher"
        )
        print(f"{'redis':<8} {redis_address.shown(record.redis.url):<28} {own}")
        if record.redis.is_own:
            print(f"{'':<8} {redis_cli(folder, record)}")
    return 0


def redis_cli(folder: Path, record: Record) -> str:
    """The command that opens the cluster's own Redis."""
    password = private_redis.password_path(records.redis_folder(folder))
    host = urlsplit(record.redis.url).hostname
    where = "" if host == "127.0.0.1" else f"-h {host} "
    return f"REDISCLI_AUTH=$(cat {shlex.quote(str(password))}) redis-cli {where}-p {record.redis.port}"


def status_json(record: Record | None) -> dict[str, object]:
    nodes = [
        {
            "number": node.number,
            "node_id": node.node_id,
            "url": node.url,
            "pid": node.pid if node.process.is_alive else None,
            "state": node.process.state,
        }
        for node in (record.nodes if record else ())
    ]
    return {"redis": redis_address.shown(record.redis.url) if record else None, "nodes": nodes}


def summary(cluster: Cluster, took_s: float, detach: bool) -> str:
    """The text for the user when the cluster is ready."""
    record = cluster.record
    launcher, cuts = program(cluster.folder), partition_program(cluster.folder)
    first, second = record.nodes[0], record.nodes[min(1, len(record.nodes) - 1)]
    token = ' -H "Authorization: Bearer $RUMOR_API_TOKEN"' if record.told.get("api_token") else ""
    lines = [f"Rumor is ready: {counted(len(record.nodes), 'node')}, {took_s:.1f} s.", ""]
    lines += [f"  {node.label:<8} {node.url}  (pid {node.pid})" for node in record.nodes]
    owner = f"  (pid {record.redis.pid})" if record.redis.is_own else ""
    lines += [f"  redis    {redis_address.shown(record.redis.url)}{owner}", f"  data     {cluster.folder}", ""]
    if record.network is not None and not cluster.has_given_token:
        lines += [
            "Every call must carry the token:",
            f"  export RUMOR_API_TOKEN=$(cat {records.token_path(cluster.folder)}) RUMOR_URL={first.url}",
            "",
        ]
    lines += [
        "Try",
        f"  open {first.url}/ in a browser: the cluster, live",
        f"  curl -X POST {first.url}/tasks{token} -H 'Content-Type: application/json' \\",
        """       -d '{"type": "process", "data": "Hello World"}'""",
        f"  curl{token} {second.url}/cluster",
    ]
    if len(record.nodes) > 1:
        lines += [f"  {launcher} kill 2       # the others take over; then: {launcher} restart 2"]
    if record.network is not None:
        lines += [
            f"  {cuts} watch         # what each node believes; in a second terminal:",
            f"  {cuts} no-gossip 1   # or no-redis, isolate, split, …; then: heal",
        ]
    lines += ["", f"Stop with {'' if detach else 'Ctrl-C, or '}{launcher} stop"]
    return "\n".join(lines)
