"""A cluster on this machine: its Redis, its nodes, and what can be done to them. `rumor launch` and its script.

What runs is written in one file of the data directory, so that any later command finds it: each process by pid and
the moment it began, so that a pid the kernel has given to somebody else is never signalled. Only what is written
there is ended, and what descends from it. Nodes get their settings by environment: secrets never show in `ps`.

Does not know: how a node works. It asks `/readyz` and `/cluster`, as any user could.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import config as settings
from cluster.config import Config, as_text, variable
from cluster.errors import ConfigError, RumorError
from node.client.one_node import Remote, Unreachable, decode
from node.lab import network, private_redis
from node.lab.network import Network
from node.lab.process import Process, port_problem, spawn, wait_for, with_variable
from node.plural import counted

ROOT = Path(__file__).resolve().parents[2]
NODES_DEFAULT = 5
NODES_MAX = 64
BASE_PORT = 5000
NETNS_REDIS = 0  # its number in a network; the nodes have their own
NETNS_REDIS_PORT = 6379
NETNS_SETS = ("host", "advertise_host", "redis_url")  # what --netns decides
LOCK_LIMIT_S = 120.0
POLL_S = 0.1
WATCH_S = 0.5
STOP_GRACE_S = 5.0  # beyond drain_s
SEEN_LIMIT_S = 5.0  # for a restarted node to be seen by its peers, once it is ready
LOG_TAIL_LINES = 20

FIELDS = frozenset(f.name for f in dataclasses.fields(Config))
PER_NODE = ("port", "node_id")  # numbered by the launcher
# What the nodes of one cluster must agree on: as at the cluster's start, whatever a later `add` finds in its shell.
PER_CLUSTER = (
    "cluster",
    "host",
    "redis_url",
    "gossip_keys",
    "gossip_key_file",
    "api_token",
    "shards",
    "tls_cert",
    "tls_key",
)
LAUNCH_ID = "RUMOR_LAUNCH_ID"  # marks the environment of everything that a launched cluster starts
LAUNCHER = "RUMOR_LAUNCHER"  # what the user called; for messages

USAGE = """\
[N]                    start N nodes (5 unless told) and a Redis, and stay until Ctrl-C
[N] --detach           the same, and return when the cluster is ready
[N] --netns            the same, each node and Redis in a network namespace of its own (root, Linux), with
                       a key and a token: for the cuts of `rumor partition`
status [--json]        what runs
kill K                 end node K at once (kill -9)
pause K, resume K      stop it as a debugger would (SIGSTOP), let it go on
restart K              start node K again; if it runs, it drains first
add                    one node more; as with restart: RUMOR_… and OTEL_… as at the start unless set anew, other
                       variables as in the shell that calls
stop                   end everything, in good order

K is a node's number, from 1, or `redis` for the Redis that was started with the nodes."""


class Usage(ConfigError):
    """The command line makes no sense. Nothing was done."""

    code = "usage"


class LaunchFailed(RumorError):
    """The command could not be carried out; what it had started was ended again."""

    code = "launch_failed"


class Interrupted(Exception):
    """Asked to end while starting."""


@dataclass
class NodeRecord:
    """One node as written down. `over` is what it was told beyond the cluster's settings."""

    number: int
    node_id: str
    url: str
    pid: int
    began: str
    over: dict[str, str] = field(default_factory=dict)
    log_from: int = 0  # where in its log this life begins

    @property
    def process(self) -> Process:
        return Process(self.pid, self.began)

    @property
    def label(self) -> str:
        return f"node {self.number}"


@dataclass
class RedisRecord:
    """The cluster's Redis. Without a pid it is somebody else's, and left alone."""

    url: str
    port: int = 0
    pid: int = 0
    began: str = ""

    number = 0
    label = "redis"

    @property
    def is_own(self) -> bool:
        return self.pid != 0

    @property
    def process(self) -> Process:
        return Process(self.pid, self.began)


@dataclass
class Record:
    """Everything about a launched cluster that a later command needs. Holds secrets: its file is for its owner only."""

    launch_id: str
    base_port: int
    told: dict[str, str]
    cwd: str
    python_path: str
    redis: RedisRecord
    nodes: list[NodeRecord] = field(default_factory=list)
    network: Network | None = None  # with --netns: where the nodes and Redis live
    otel: dict[str, str] = field(default_factory=dict)  # OTEL_… variables at the cluster's start

    @property
    def is_running(self) -> bool:
        return any(one.process.is_alive for one in self.nodes) or (self.redis.is_own and self.redis.process.is_alive)


class Signals:
    """Counts requests to end, instead of breaking into whatever runs: children are never lost between two lines."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A SIGHUP ignored from the start is nohup's doing. SIGINT is ignored for any `&` job of a script; there it
            # is the only way to end us that the user knows, so it is taken back.
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._count)

    def _count(self, number: int, frame: object) -> None:
        self.count += 1

    def check(self) -> None:
        if self.count:
            raise Interrupted


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
    folder = folder_of(data_dir)
    word, rest = (words[0], list(words[1:])) if words else (str(NODES_DEFAULT), [])
    for name in PER_NODE:
        if name in flags:
            raise Usage(
                f"{settings.flag(name)} is for one node.", "Ports are counted from RUMOR_BASE_PORT (--base-port)."
            )
    if word.lstrip("+-").isdigit():
        expect_words(rest, 0, word)
        return start(folder, int(word), flags, detach, parse_base_port(base_port), netns)
    if word not in ("status", "kill", "pause", "resume", "restart", "add", "stop"):
        raise Usage(f"{word!r} is neither a number of nodes nor a command.", f"What there is:\n{indent(USAGE)}")
    if netns:
        raise Usage(f"--netns after {word} means nothing.", "A cluster's network is chosen when it starts.")
    if flags and word not in ("add", "restart"):
        raise Usage(
            f"{word} takes no settings ({settings.flag(next(iter(flags)))}).", "Give them at start, add or restart."
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
    """The commands on a running cluster that change something."""
    if word == "add":
        cluster.add(flags)
        return 0
    targets = [cluster.find(name) for name in rest]
    for target in targets:
        if word == "restart":
            cluster.restart(target, flags)
        else:
            number, state, done = {
                "kill": (signal.SIGKILL, "exited", "killed"),
                "pause": (signal.SIGSTOP, "paused", "paused"),
                "resume": (signal.SIGCONT, "running", "goes on"),
            }[word]
            if not target.process.signal(number):
                raise LaunchFailed(
                    f"{target.label} is not running.", f"{program()} restart {target.number or 'redis'} starts it."
                )
            wait_for(lambda target=target, state=state: target.process.state == state, STOP_GRACE_S)  # type: ignore[misc]
            say(f"{target.label} {done} (pid {target.pid})")
    return 0


def start(folder: Path, count: int, flags: Mapping[str, str], detach: bool, base_port: int, netns: bool = False) -> int:
    """Start a cluster of `count` nodes; return when it is ready (detached) or has ended."""
    if not 1 <= count <= NODES_MAX:
        raise Usage(f"N is {count}: 1 to {NODES_MAX} nodes can be started.", f"For example: {program()} 5")
    if not netns and base_port + count - 1 > 65_535:
        raise Usage(
            f"RUMOR_BASE_PORT is {base_port}: {count} ports from there end beyond 65535.", "Choose a lower one."
        )
    if netns:
        network.refuse_if_unable()
    for name, hint in settings.strangers(os.environ).items():
        say(f"{name} is not read by anything. {hint}")
    signals = Signals()
    with locked(folder):
        old = load(folder)
        if old is not None and old.is_running:
            alive = [node.url for node in old.nodes if node.process.is_alive]
            raise LaunchFailed(
                f"A cluster is already running in {folder}: {', '.join(alive) or 'only its Redis'}.",
                f"See it with `{program()} status`, end it with `{program()} stop`, or set RUMOR_DATA_DIR for another.",
            )
        told = {name: value for name, value in from_environment(os.environ).items() if name not in PER_NODE} | dict(
            flags
        )
        if netns:
            refuse_settings_of_netns(told)
        if old is not None and old.network is not None and old.network.close():
            say("Removed the network namespaces that an earlier cluster had left.")
        record = Record(
            launch_id=secrets.token_hex(8),
            base_port=base_port,
            told=told,
            cwd=os.getcwd(),
            python_path=os.environ.get("PYTHONPATH", ""),
            otel=otel_variables(os.environ),
            redis=RedisRecord(told.get("redis_url", "")),
            network=network.choose() if netns else None,
        )
        cluster = Cluster(folder, record)
        try:
            began_s = time.monotonic()
            cluster.start(count, signals)
            took_s = time.monotonic() - began_s
        except Interrupted:
            say("\nInterrupted; ending what was started.")
            cluster.end(signals)
            return 130
        except BaseException:
            cluster.end(signals)
            raise
    print(summary(cluster, took_s, detach), flush=True)
    if detach:
        return 0
    return stay(cluster, signals)


def stay(cluster: Cluster, signals: Signals) -> int:
    """Watch until asked to end, or until another command has ended the cluster."""
    seen = {one.label: one.process for one in cluster.all()}
    while not signals.count:
        wait_for(lambda: signals.count, WATCH_S)
        cluster.reap_children()
        record = load(cluster.folder)
        if record is None or record.launch_id != cluster.record.launch_id:
            say("The cluster was stopped.")
            return 0
        cluster.record = record
        for one in cluster.all():
            if one.process.is_alive and seen.get(one.label) != one.process:
                say(f"{one.label} runs (pid {one.pid})")
                seen[one.label] = one.process
            elif not one.process.is_alive and seen.pop(one.label, None) is not None:
                say(f"{one.label} has ended; its log is {cluster.log(one)}")
    say("\nStopping. Running tasks may finish; a second Ctrl-C ends them.")
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


def status(folder: Path, as_json: bool) -> int:
    """Print what runs. 1 if nothing does."""
    record = load(folder)
    if as_json:
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
        print(json.dumps({"redis": private_redis.without_secret(record.redis.url) if record else None, "nodes": nodes}))
    if record is None:
        say(f"No cluster runs in {folder}.\n  Start one with `{program()}`.")
        return 1
    if not as_json:
        cluster = Cluster(folder, record)
        for node in record.nodes:
            state = node.process.state
            reason = (cluster.why_not_ready(node, ()) or "ready") if state == "running" else state
            print(f"{node.label:<8} {node.url:<28} pid {node.pid:<8} {reason}")
        own = f"pid {record.redis.pid:<8} {record.redis.process.state}" if record.redis.is_own else "not ours"
        print(f"{'redis':<8} {private_redis.without_secret(record.redis.url):<28} {own}")
    return 0


class Cluster:
    """A record, the folder it stands in, and the processes of it that are our own children."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.was_told_token = bool(record.told.get("api_token"))

    def all(self) -> list[NodeRecord | RedisRecord]:
        return [*self.record.nodes, *([self.record.redis] if self.record.redis.is_own else [])]

    def find(self, name: str) -> NodeRecord | RedisRecord:
        """A node by number, or the Redis. Raises Usage if there is none."""
        if name == "redis":
            if not self.record.redis.is_own:
                raise Usage("This cluster's Redis was not started with it.", "Act on it where it runs.")
            return self.record.redis
        for node in self.record.nodes:
            if name == str(node.number):
                return node
        numbers = ", ".join(str(node.number) for node in self.record.nodes)
        raise Usage(f"There is no node {name!r}.", f"There are: {numbers}.")

    def log(self, one: NodeRecord | RedisRecord) -> Path:
        return self.folder / (f"node-{one.number}.log" if isinstance(one, NodeRecord) else "redis/redis.log")

    # Starting

    def start(self, count: int, signals: Signals) -> None:
        """Start Redis and the nodes, and wait until each is ready and sees all."""
        if self.record.network is not None and not self.was_told_token:
            self.record.told["api_token"] = self._make_token()
        configs = [self._config(number, {}) for number in range(1, count + 1)]  # a wrong setting ends it here
        for config in configs:
            self._refuse_busy_port(config)
        port = NETNS_REDIS_PORT
        if self.record.network is not None:
            self.save()  # first: by its mark a later command finds what is made now, whatever becomes of us
            self.record.network.open()
            self.record.network.add(NETNS_REDIS)
        elif not self.record.redis.url:
            port = private_redis.choose_port(self.record.base_port)
        if not self.record.redis.url:
            (self.folder / "redis" / "redis.log").unlink(missing_ok=True)  # as the nodes' logs: of this run only
            self._start_redis(port)
        self._make_key()
        for number, config in enumerate(configs, 1):
            self.log(NodeRecord(number, "", "", 0, "")).unlink(missing_ok=True)
            self._start_node(number, {}, config)
        self._wait_ready(self.record.nodes, 60.0 + 2.0 * count, signals.check)

    def add(self, flags: Mapping[str, str]) -> None:
        """One node more, on the next port."""
        number = max((node.number for node in self.record.nodes), default=0) + 1
        if number > NODES_MAX:
            raise LaunchFailed(
                f"There are {number - 1} nodes, and {NODES_MAX} is the most.", "Restart one that has ended."
            )
        over = overrides(flags)
        config = self._config(number, over)
        self._refuse_busy_port(config)
        node = self._start_node(number, over, config)
        try:
            self._await_one(node)
        except RumorError:
            node.process.signal(signal.SIGKILL)
            self.record.nodes.remove(node)
            self.save()
            if self.record.network is not None:
                self.record.network.remove(number)
            raise

    def restart(self, one: NodeRecord | RedisRecord, flags: Mapping[str, str]) -> None:
        """End it in good order if it runs, and start it again."""
        if isinstance(one, RedisRecord):
            self._end([one], private_redis.STOP_LIMIT_S, lambda: False)
            self._start_redis(one.port)
            say(f"redis runs (pid {one.pid})")
            return
        over = one.over | overrides(flags)
        config = self._config(one.number, over)
        self._end([one], self._drain_s() + STOP_GRACE_S, lambda: False)
        self._refuse_busy_port(config)
        self._await_one(self._start_node(one.number, over, config))

    def _config(self, number: int, over: Mapping[str, str]) -> Config:
        """The checked configuration of one node."""
        told = self.record.told | dict(over)
        if not told.get("gossip_keys") and not told.get("gossip_key_file"):
            told["gossip_key_file"] = str(self.folder / "gossip.key")
        if told.get("host") in ("0.0.0.0", "::") and not told.get("advertise_host"):
            told["advertise_host"] = "127.0.0.1"
        if self.record.redis.url:
            told["redis_url"] = self.record.redis.url
        port = self.record.base_port + number - 1
        if self.record.network is not None:
            # Each has an address of its own, so all have one port, as machines of a real cluster would.
            port = self.record.base_port
            told |= {"host": self.record.network.address(number), "node_id": f"node{number}"}
        return settings.from_text(told | {"port": str(port)})

    def _refuse_busy_port(self, config: Config) -> None:
        if self.record.network is None:  # else the address is not this machine's, and its ports are all free
            refuse_busy_port(config)

    def _make_key(self) -> None:
        """The cluster's gossip key, made once per folder; only its owner may read it."""
        path = self.folder / "gossip.key"
        if not path.exists():
            write_private(path, base64.b64encode(secrets.token_bytes(32)).decode("ascii") + "\n")

    def _make_token(self) -> str:
        """The cluster's API token, made once per folder; only its owner may read it."""
        path = token_path(self.folder)
        if not path.exists():
            write_private(path, secrets.token_urlsafe(24) + "\n")
        return path.read_text("ascii").strip()

    def _start_redis(self, port: int) -> None:
        net = self.record.network
        host, inside = (net.address(NETNS_REDIS), net.inside(NETNS_REDIS)) if net else ("127.0.0.1", ())
        mark = {LAUNCH_ID: self.record.launch_id}
        started, child, url = private_redis.start(self.folder / "redis", port, mark, host, inside)
        self._children[child.pid] = child
        redis = self.record.redis
        redis.url, redis.port, redis.pid, redis.began = url, port, started.pid, started.began
        self.save()

    def _start_node(self, number: int, over: dict[str, str], checked: Config) -> NodeRecord:
        """Start the process and write it down. `checked` was made before Redis had a URL; the rest of it stands."""
        config = self._config(number, over) if checked.redis_url != self.record.redis.url else checked
        environ = self.record.otel | {name: value for name, value in os.environ.items() if not is_ours(name)}
        for item in dataclasses.fields(Config):
            value = getattr(config, item.name)
            if value != item.default:
                environ[variable(item.name)] = as_text(value)
        environ[LAUNCH_ID] = self.record.launch_id
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), self.record.python_path)))
        log = self.folder / f"node-{number}.log"
        log_from = log.stat().st_size if log.exists() else 0
        # -P: the working directory does not come before the program's own modules; --tasks looks there all the same.
        command = [sys.executable, "-P", "-m", "node", "node", "--port", str(config.port)]
        if self.record.network is not None:
            self.record.network.add(number)
            command = [*self.record.network.inside(number), *command]
        started, child = spawn(command, environ, log, self.record.cwd)
        self._children[child.pid] = child
        scheme = "https" if config.tls_cert else "http"
        url = f"{scheme}://{config.reachable_host}:{config.port}"
        node = NodeRecord(number, config.name, url, started.pid, started.began, over, log_from)
        self.record.nodes = sorted(
            [*(one for one in self.record.nodes if one.number != number), node], key=lambda one: one.number
        )
        self.save()
        return node

    def _await_one(self, node: NodeRecord) -> None:
        """Wait until a node that joins a running cluster is ready, and, for a little while, until all have seen it."""
        self._wait_ready([node], 60.0, lambda: None)
        others = [one for one in self.record.nodes if one.process.state == "running" and one is not node]

        def all_see_all() -> bool:
            return not any(self.why_not_ready(one, [node, *others]) for one in (node, *others))

        if not wait_for(all_see_all, SEEN_LIMIT_S, POLL_S):
            say(f"Note: not every node sees every other yet; `{program()} status` tells more.")
        say(f"{node.label} is ready: {node.url} (pid {node.pid})")

    def _wait_ready(self, nodes: Sequence[NodeRecord], limit_s: float, check: Callable[[], None]) -> None:
        """Wait until each of these is ready and sees all of them. Raises LaunchFailed with the first reason."""
        waiting = list(nodes)
        reason = ""
        end_s = time.monotonic() + limit_s
        while waiting:
            check()
            node = waiting[0]
            if not node.process.is_alive:
                child = self._children.get(node.pid)
                code = child.wait() if child else None
                raise self._failure(node, f"{node.label} ended before it was ready (exit status {code})")
            reason = self.why_not_ready(node, nodes) or ""
            if not reason:
                waiting.pop(0)
            elif time.monotonic() > end_s:
                raise self._failure(node, f"{node.label} was not ready within {limit_s:.0f} s: {reason}")
            else:
                # All are looked at, not only the one waited for: one that fails should be told at once.
                for other in waiting[1:]:
                    if not other.process.is_alive:
                        waiting.remove(other)
                        waiting.insert(0, other)
                        break
                time.sleep(POLL_S)

    def _failure(self, node: NodeRecord, message: str) -> LaunchFailed:
        log = self.log(node)
        text = private_redis.tail(log, node.log_from, LOG_TAIL_LINES)
        return LaunchFailed(f"{message}.\n{indent(text)}", f"The whole log: {log}")

    def why_not_ready(self, node: NodeRecord, others: Iterable[NodeRecord]) -> str | None:
        """In words, or None when it is ready and holds `others` alive."""
        told = self.record.told
        remote = Remote(node.url, told.get("api_token", ""), told.get("tls_cert", ""), timeout_s=1.0)
        try:
            code, body = remote.request("GET", "/readyz")
            if code != 200:
                answer = decode(body)
                reason = answer.get("reason") if isinstance(answer, dict) else None
                return f"not ready: {reason or body.decode('utf-8', 'replace').strip()[:300]}"
            wanted = {other.node_id for other in others}
            if not wanted:
                return None
            _, view = remote.call("GET", "/cluster")
        except Unreachable:
            return "does not answer"
        except RumorError as error:
            return f"answers {error.code}: {error.message}"
        alive = {member["node_id"] for member in view["members"] if member["state"] == "alive"}
        missing = sorted(wanted - alive)
        return f"does not see {', '.join(missing)} alive" if missing else None

    # Ending

    def end(self, signals: Signals) -> None:
        """End nodes, then Redis, then whatever they left behind; remove network and record.

        A further signal hurries it.
        """
        before = signals.count
        self._end(self.record.nodes, self._drain_s() + STOP_GRACE_S, lambda: signals.count > before)
        if self.record.redis.is_own:
            self._end([self.record.redis], private_redis.STOP_LIMIT_S, lambda: False)
        for stray in with_variable(LAUNCH_ID, self.record.launch_id):
            if stray.pid != os.getpid():
                stray.signal(signal.SIGKILL)
        self.reap_children()
        if self.record.network is not None:
            self.record.network.close()
        (self.folder / "cluster.json").unlink(missing_ok=True)

    def _end(self, ones: Sequence[NodeRecord | RedisRecord], limit_s: float, is_hurried: Callable[[], bool]) -> None:
        """SIGTERM, and SIGKILL for what is still there at the limit."""
        for one in ones:
            one.process.signal(signal.SIGTERM)
            one.process.signal(signal.SIGCONT)  # a paused process hears nothing else
        wait_for(lambda: is_hurried() or not any(one.process.is_alive for one in ones), limit_s)
        for one in ones:
            if one.process.signal(signal.SIGKILL):
                say(f"{one.label} did not end in time and was killed.")
                one.process.wait(STOP_GRACE_S)

    def _drain_s(self) -> float:
        return float(self.record.told.get("drain_s", Config.drain_s))

    def reap_children(self) -> None:
        """Take the exit status of children that ended, so that none stays a zombie."""
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]

    def save(self) -> None:
        """Whole or not at all: a reader never meets half a record."""
        path = self.folder / "cluster.json"
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        write_private(temporary, json.dumps(dataclasses.asdict(self.record), indent=1))
        temporary.replace(path)


def load(folder: Path) -> Record | None:
    """The record of the cluster in this folder, None if there is none. Raises LaunchFailed if it cannot be read."""
    path = folder / "cluster.json"
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return None
    except PermissionError:
        raise not_yours(path) from None
    try:
        values = json.loads(text)
        redis = RedisRecord(**values.pop("redis"))
        nodes = [NodeRecord(**node) for node in values.pop("nodes")]
        net = values.pop("network", None)
        return Record(**values, redis=redis, nodes=nodes, network=Network(**net) if net else None)
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchFailed(
            f"{path} cannot be read: {error!r}.", "Was it written by another version? End what runs, then remove it."
        ) from None


def running(folder: Path) -> Record:
    """The record, or a clear error that there is none."""
    record = load(folder)
    if record is None:
        raise LaunchFailed(f"No cluster runs in {folder}.", f"Start one with `{program()}`.")
    return record


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One command at a time in a folder; the kernel frees it when the command ends, however it ends."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except PermissionError:
        raise not_yours(folder) from None
    except OSError as error:
        raise LaunchFailed(f"{folder} cannot be made: {error.strerror}.", "Set RUMOR_DATA_DIR to another.") from None
    with file as lock:

        def is_mine() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_for(is_mine, LOCK_LIMIT_S):
            raise LaunchFailed(
                f"Another command has been at work in {folder} for {LOCK_LIMIT_S:.0f} s.", "Wait for it."
            )
        yield


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Settings that stand in RUMOR_… variables, as field name -> text."""
    return {name: environ[variable(name)] for name in sorted(FIELDS) if variable(name) in environ}


def otel_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """How tracing is set up: OpenTelemetry has variables of its own."""
    return {name: value for name, value in environ.items() if name.startswith("OTEL_")}


def overrides(flags: Mapping[str, str]) -> dict[str, str]:
    """What a later node is told beyond its cluster's settings."""
    for name in PER_CLUSTER:
        if name in flags:
            raise Usage(f"{settings.flag(name)} is the same for a whole cluster.", "Give it when the cluster starts.")
    found = from_environment(os.environ) | dict(flags)
    return {name: value for name, value in found.items() if name not in PER_CLUSTER and name not in PER_NODE}


def is_ours(name: str) -> bool:
    """Whether an environment variable is a setting or the launcher's own, to be told anew or not at all."""
    return name in (LAUNCH_ID, LAUNCHER, "RUMOR_BASE_PORT", "RUMOR_DATA_DIR") or (
        name.startswith("RUMOR_") and name[6:].lower() in FIELDS
    )


def refuse_settings_of_netns(told: Mapping[str, str]) -> None:
    """With --netns the addresses and the Redis are the launcher's own."""
    for name in NETNS_SETS:
        if told.get(name):
            raise Usage(
                f"{settings.flag(name)} (or {variable(name)}) is set, and with --netns the launcher decides it.",
                "Leave it out: each node has an address in its namespace, and so has a Redis of their own.",
            )


def not_yours(path: Path) -> LaunchFailed:
    return LaunchFailed(
        f"{path} may not be read by this user.", "A cluster that root started is root's: use sudo, or RUMOR_DATA_DIR."
    )


def refuse_busy_port(config: Config) -> None:
    problem = port_problem(config.host, config.port)
    if problem is not None:
        hint = "End what holds it, or choose other ports: RUMOR_BASE_PORT=5100."
        if sys.platform == "darwin" and config.port == BASE_PORT:
            hint += " On macOS the AirPlay Receiver takes 5000 (System Settings, General, AirDrop & Handoff)."
        raise LaunchFailed(f"{problem}.", hint)


def parse_base_port(text: str | None) -> int:
    text = text if text is not None else os.environ.get("RUMOR_BASE_PORT") or str(BASE_PORT)
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise Usage(f"RUMOR_BASE_PORT is {text!r}: a port is 1 to 65535.", "For example: RUMOR_BASE_PORT=5100")
    return int(text)


def expect_words(rest: Sequence[str], count: int, word: str) -> None:
    if len(rest) > count:
        raise Usage(f"{rest[count]!r} after {word!r} means nothing.", f"What there is:\n{indent(USAGE)}")


def folder_of(data_dir: str | None) -> Path:
    """Where a cluster's data and record are: as told, by RUMOR_DATA_DIR, or the default."""
    return Path(data_dir or os.environ.get("RUMOR_DATA_DIR") or default_folder()).expanduser().absolute()


def token_path(folder: Path) -> Path:
    return folder / "api.token"


def default_folder() -> Path:
    """`.rumor` in the project when run from its source tree, else in the working directory."""
    return (ROOT if (ROOT / "setup.cfg").exists() else Path.cwd()) / ".rumor"


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def program() -> str:
    return os.environ.get(LAUNCHER) or "rumor launch"


def partition_program() -> str:
    """How the cuts are called beside what the user called."""
    launcher = os.environ.get(LAUNCHER, "")
    return str(Path(launcher).parent / "partition.sh") if launcher.endswith(".sh") else "rumor partition"


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for the answer."""
    print(text, file=sys.stderr, flush=True)


def summary(cluster: Cluster, took_s: float, detach: bool) -> str:
    """What a user wants to know when the cluster is ready."""
    record = cluster.record
    first, second = record.nodes[0], record.nodes[min(1, len(record.nodes) - 1)]
    token = ' -H "Authorization: Bearer $RUMOR_API_TOKEN"' if record.told.get("api_token") else ""
    lines = [f"Rumor is ready: {counted(len(record.nodes), 'node')}, {took_s:.1f} s.", ""]
    lines += [f"  {node.label:<8} {node.url}  (pid {node.pid})" for node in record.nodes]
    owner = f"  (pid {record.redis.pid})" if record.redis.is_own else ""
    lines += [f"  redis    {private_redis.without_secret(record.redis.url)}{owner}", f"  data     {cluster.folder}", ""]
    if record.network is not None and not cluster.was_told_token:
        lines += [
            "Every call carries the token:",
            f"  export RUMOR_API_TOKEN=$(cat {token_path(cluster.folder)}) RUMOR_URL={first.url}",
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
        lines += [f"  {program()} kill 2       # the others take over; then: {program()} restart 2"]
    if record.network is not None:
        lines += [
            f"  {partition_program()} watch         # what each node believes; in a second terminal:",
            f"  {partition_program()} no-gossip 1   # or no-redis, isolate, split, …; then: heal",
        ]
    lines += ["", f"Stop with {'' if detach else 'Ctrl-C, or '}{program()} stop"]
    return "\n".join(lines)
