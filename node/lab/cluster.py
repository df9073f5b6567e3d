"""A cluster that runs on this machine: starts, adds, restarts and ends its nodes and its Redis.

It ends only the processes that the record names, and their descendants: every process that a launched cluster starts
carries the cluster's mark in its environment. Nodes get their settings by environment, so that `ps` shows no secrets.

Does not know: how a node works (it asks `/readyz` and `/cluster`, as any user could); command lines.
"""

from __future__ import annotations

import base64
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cluster.config import Config
from cluster.errors import RumorError, bind_hint
from cluster.hosts import hostport
from node.client.asking import decoded
from node.client.errors import Unreachable
from node.client.one_node import Remote
from node.escapes import one_line
from node.lab import ownership, private_redis
from node.lab import record as records
from node.lab.process import bind_fault, spawn, wait_for, with_variable
from node.lab.record import LAUNCH_ID, LAUNCHER, LaunchFailed, NodeRecord, Record, RedisRecord, Usage

NODES_MAX = 64
BASE_PORT = 5000
NETNS_REDIS = 0  # number of Redis in a network; nodes count from 1
NETNS_REDIS_PORT = 6379
POLL_S = 0.1
READY_LIMIT_S = 60.0
READY_LIMIT_EACH_S = 2.0  # extra time for each node of a cluster that starts
STOP_GRACE_S = 5.0  # beyond drain_s
SEEN_LIMIT_S = 5.0  # time for all peers to see a node that is ready
LOG_TAIL_LINES = 20


class Interrupted(Exception):
    """A signal asked the launcher to end while it started the cluster."""


class Signals:
    """Counts the signals that ask to end. None breaks into running code, so no child is lost between two lines."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup lets a process begin with SIGHUP ignored, and means it. A shell script does the same with SIGINT for
            # each of its `&` jobs; but users know no other way to end the launcher, so it takes SIGINT back.
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            signal.signal(number, self._count)

    def _count(self, number: int, frame: object) -> None:
        self.count += 1

    def check(self) -> None:
        if self.count:
            raise Interrupted


class Cluster:
    """A record, its folder, and those of its processes that are this process's children."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder = folder
        self.record = record
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.has_given_token = bool(record.told.get("api_token"))

    def all(self) -> list[NodeRecord | RedisRecord]:
        return [*self.record.nodes, *([self.record.redis] if self.record.redis.is_own else [])]

    def find(self, name: str) -> NodeRecord | RedisRecord:
        """A node by number, or the Redis. Raises Usage if there is none."""
        if name == "redis":
            if not self.record.redis.is_own:
                raise Usage("The launcher did not start this cluster's Redis.", "Act on it where it runs.")
            return self.record.redis
        for node in self.record.nodes:
            if name == str(node.number):
                return node
        numbers = ", ".join(str(node.number) for node in self.record.nodes)
        raise Usage(f"There is no node {name!r}.", f"The nodes are: {numbers}.")

    def log(self, member: NodeRecord | RedisRecord) -> Path:
        return records.log_path(self.folder, member.number)

    # Starting

    def start(self, count: int, signals: Signals) -> None:
        """Start Redis and the nodes, and wait until each is ready and sees all."""
        if self.record.network is not None and not self.has_given_token:
            self.record.told["api_token"] = self._make_token()
        configs = [self._config(number, {}) for number in range(1, count + 1)]  # raises for a wrong setting
        for config in configs:
            self._refuse_busy_port(config)
        port = NETNS_REDIS_PORT
        if self.record.network is not None:
            self.save()  # first: if this process dies, a later command finds by the mark what it made
            self.record.network.open()
            self.record.network.add(NETNS_REDIS)
        elif not self.record.redis.url:
            port = private_redis.choose_port(self.record.base_port)
        if not self.record.redis.url:
            self.log(self.record.redis).unlink(missing_ok=True)  # like the nodes' logs, it begins with this run
            self._start_redis(port)
        self._make_key()
        for number, config in enumerate(configs, 1):
            records.log_path(self.folder, number).unlink(missing_ok=True)
            self._start_node(number, {}, config)
        self._wait_ready(self.record.nodes, READY_LIMIT_S + READY_LIMIT_EACH_S * count, signals.check)

    def add(self, flags: Mapping[str, str]) -> None:
        """Start one more node, on the next port."""
        number = max((node.number for node in self.record.nodes), default=0) + 1
        if number > NODES_MAX:
            raise LaunchFailed(
                f"{number - 1} nodes were started, and {NODES_MAX} is the limit.", "Restart one that has ended."
            )
        over = records.overrides(flags, os.environ)
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

    def restart(self, member: NodeRecord | RedisRecord, flags: Mapping[str, str]) -> None:
        """Drain and end it if it runs, then start it again."""
        if isinstance(member, RedisRecord):
            self._end([member], private_redis.STOP_LIMIT_S, lambda: False)
            self._start_redis(member.port)
            say(f"redis runs (pid {member.pid})")
            return
        over = member.over | records.overrides(flags, os.environ)
        config = self._config(member.number, over)
        self._end([member], self._drain_s() + STOP_GRACE_S, lambda: False)
        self._refuse_busy_port(config)
        self._await_one(self._start_node(member.number, over, config))

    def _config(self, number: int, over: Mapping[str, str]) -> Config:
        return records.node_config(self.record, self.folder, number, over)

    def _refuse_busy_port(self, config: Config) -> None:
        if self.record.network is None:  # in a namespace of its own a node finds every port free
            refuse_busy_port(config)

    def _make_key(self) -> None:
        """Make the cluster's gossip key, once for a folder."""
        ownership.secret(records.key_path(self.folder), base64.b64encode(secrets.token_bytes(32)).decode("ascii"))

    def _make_token(self) -> str:
        """The cluster's API token; made once for a folder."""
        return ownership.secret(records.token_path(self.folder), secrets.token_urlsafe(24))

    def _start_redis(self, port: int) -> None:
        network = self.record.network
        host, inside = (network.address(NETNS_REDIS), network.inside(NETNS_REDIS)) if network else ("127.0.0.1", ())
        mark = {LAUNCH_ID: self.record.launch_id}
        process, child, url = private_redis.start(records.redis_folder(self.folder), port, mark, host, inside)
        self._children[child.pid] = child
        redis = self.record.redis
        redis.url, redis.port, redis.pid, redis.began = url, port, process.pid, process.began
        self.save()

    def _start_node(self, number: int, over: dict[str, str], checked: Config) -> NodeRecord:
        """Start the process and record it. `checked`: its configuration, perhaps from before Redis had a URL."""
        config = self._config(number, over) if checked.redis_url != self.record.redis.url else checked
        log = records.log_path(self.folder, number)
        log_from = log.stat().st_size if log.exists() else 0
        # -P keeps modules of the working directory from hiding the program's own; --tasks looks there all the same.
        command = [sys.executable, "-P", "-m", "node", "node", "--port", str(config.port)]
        if self.record.network is not None:
            self.record.network.add(number)
            command = [*self.record.network.inside(number), *command]
        environ = records.node_environ(self.record, config, os.environ)
        process, child = spawn(command, environ, log, self.record.cwd)
        self._children[child.pid] = child
        scheme = "https" if config.tls_cert else "http"
        url = f"{scheme}://{hostport(config.reachable_host, config.port)}"
        node = NodeRecord(number, config.name, url, process.pid, process.began, over, log_from)
        self.record.put(node)
        self.save()
        return node

    def _await_one(self, node: NodeRecord) -> None:
        """Wait until a node that joins is ready; then, for up to SEEN_LIMIT_S, until all nodes see each other."""
        self._wait_ready([node], READY_LIMIT_S, lambda: None)
        others = [other for other in self.record.nodes if other.process.state == "running" and other is not node]

        def all_see_all() -> bool:
            return not any(self.why_not_ready(observer, [node, *others]) for observer in (node, *others))

        if not wait_for(all_see_all, SEEN_LIMIT_S, POLL_S):
            say(f"Note: some nodes do not see each other yet; `{program(self.folder)} status` shows each.")
        say(f"{node.label} is ready: {node.url} (pid {node.pid})")

    def _wait_ready(self, nodes: Sequence[NodeRecord], limit_s: float, check: Callable[[], None]) -> None:
        """Wait until each of these nodes is ready and sees the others. Raises LaunchFailed with the first reason."""
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
                # Look at all nodes, not only at the first, so that a node that has ended is reported at once.
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
        """The reason in words; None when the node is ready and holds `others` alive."""
        shared = self.record.told
        remote = Remote(node.url, shared.get("api_token", ""), shared.get("tls_cert", ""), timeout_s=1.0)
        try:
            code, body = remote.request("GET", "/readyz")
            if code != 200:
                answer = decoded(body)
                reason = answer.get("reason") if isinstance(answer, dict) else None
                return one_line(f"not ready: {reason or body.decode('utf-8', 'replace').strip()[:300]}")
            expected = {other.node_id for other in others}
            if not expected:
                return None
            _, view = remote.call("GET", "/cluster")
        except Unreachable:
            return "does not answer"
        except RumorError as error:
            return one_line(f"answers {error.code}: {error.message}")
        alive = {member["node_id"] for member in view["members"] if member["state"] == "alive"}
        missing = sorted(expected - alive)
        return f"does not see {', '.join(missing)} alive" if missing else None

    # Ending

    def end(self, signals: Signals) -> None:
        """End the nodes, then Redis, then any process they left behind; remove the network and the record.

        A further signal ends the nodes at once.
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
        records.remove(self.folder)

    def _end(self, members: Sequence[NodeRecord | RedisRecord], limit_s: float, is_hurried: Callable[[], bool]) -> None:
        """Send SIGTERM, and at the limit SIGKILL to those that still run."""
        for member in members:
            member.process.signal(signal.SIGTERM)
            member.process.signal(signal.SIGCONT)  # a paused process acts on SIGTERM only after this
        wait_for(lambda: is_hurried() or not any(member.process.is_alive for member in members), limit_s)
        for member in members:
            if member.process.signal(signal.SIGKILL):
                say(f"{member.label} did not end in time and was killed.")
                member.process.wait(STOP_GRACE_S)

    def _drain_s(self) -> float:
        return float(self.record.told.get("drain_s", Config.drain_s))

    def reap_children(self) -> None:
        """Take the exit status of children that ended, so that none stays a zombie."""
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]

    def save(self) -> None:
        records.save(self.folder, self.record)


def refuse_busy_port(config: Config) -> None:
    fault = bind_fault(config.host, config.port)
    if fault is not None:
        problem, error = fault
        raise LaunchFailed(f"{problem}.", bind_hint(error, config.port, "choose other ports: RUMOR_BASE_PORT=5100"))


def program(folder: Path | None = None) -> str:
    """The launcher as the user called it, for messages; with the variable by which it acts on the cluster there."""
    return _in_folder(folder) + (os.environ.get(LAUNCHER) or "rumor launch")


def partition_program(folder: Path | None = None) -> str:
    """The command for cuts that belongs to the launcher that the user called."""
    launcher = os.environ.get(LAUNCHER, "")
    cuts = str(Path(launcher).parent / "partition.sh") if launcher.endswith(".sh") else "rumor partition"
    return _in_folder(folder) + cuts


def _in_folder(folder: Path | None) -> str:
    """The variable that names this folder: it may have been set for one command only."""
    if folder is None or folder == records.folder_of(str(records.default_folder())):
        return ""
    return f"RUMOR_DATA_DIR={shlex.quote(str(folder))} "


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def say(text: str) -> None:
    """Print progress to stderr: stdout is for the answer."""
    print(text, file=sys.stderr, flush=True)
