"""A cluster in trouble, told in words: what scripts/demo.sh runs.

A steady load goes through all nodes while the demo kills, pauses and drains nodes and takes Redis away. Each line
reports what the nodes' own timeline says (`GET /cluster`). At the end the demo looks up every accepted task: none may
be missing or unfinished, and each has committed once (Redis holds one outcome for a task; it refused later ones).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.errors import RumorError  # noqa: E402
from node import SyncClient  # noqa: E402
from node.client.one_node import Remote  # noqa: E402

NODES = 5
CALM_S = 3.0  # time between two faults
SETTLE_S = 1.5  # time between a fault and the report of it
TASK_S = (0.2, 1.0, 2.0, 4.0)  # lengths of the tasks, in turn
BATCH_S = 0.25
END_LIMIT_S = 60.0
TERMINAL = ("succeeded", "dead", "cancelled")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo.sh", description="A cluster in trouble, told in words.")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to make faults (%(default)g)")
    parser.add_argument("--rate", type=float, default=40.0, help="tasks a second (%(default)g)")
    parser.add_argument("--stay", action="store_true", help="leave the cluster running at the end")
    args = parser.parse_args()
    demo = Demo(own_folder(os.environ), args.rate)
    # SIGTERM must end the cluster, too: by default it would end this process without `finally`.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    keep = False
    try:
        demo.start()
        demo.trouble(args.seconds)
        status = demo.account()
        keep = args.stay
        return status
    except KeyboardInterrupt:
        return 130
    finally:
        demo.end(keep)


def own_folder(environ: Mapping[str, str]) -> Path:
    """The folder of the demo's cluster, which no other cluster uses."""
    data_dir = environ.get("RUMOR_DATA_DIR")
    return Path(data_dir) / "demo" if data_dir else ROOT / ".rumor-demo"


@dataclass
class Load:
    """Submits tasks at a steady rate, in a thread of its own; remembers the id of every accepted task."""

    urls: list[str]
    rate: float
    ids: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(END_LIMIT_S)

    def _run(self) -> None:
        sent, begin_s = 0, time.monotonic()
        # The client repeats what got no answer, with the same Idempotency-Key: nothing is stored twice.
        with SyncClient(self.urls, within_s=END_LIMIT_S) as client:
            while not self._end.wait(BATCH_S):
                want = int((time.monotonic() - begin_s) * self.rate) - sent
                bodies = [("sleep", TASK_S[(sent + n) % len(TASK_S)]) for n in range(want)]
                try:
                    for type_, data in bodies:
                        self.ids.append(client.submit(type_, data).id)
                        sent += 1
                except RumorError as error:
                    self.errors[error.code] += 1


class Demo:
    """The cluster, the faults, and the report."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.base = int(os.environ.get("RUMOR_BASE_PORT", "5000"))
        self.urls = [f"http://127.0.0.1:{self.base + n}" for n in range(NODES)]
        self.console = Console(highlight=False)
        self.load = Load(self.urls, rate)
        self._environ = {**os.environ, "RUMOR_DATA_DIR": str(folder), "RUMOR_BASE_PORT": str(self.base)}
        self._begin_s = time.monotonic()
        self._is_ours = False
        self._counted: dict[tuple[str, str], float] = {}  # (life, counter) -> its highest value

    # ---- life

    def start(self) -> None:
        self.console.print(f"Starting {NODES} nodes and a Redis …")
        try:
            self.launch(str(NODES), "--detach")
        except KeyboardInterrupt:
            self._is_ours = True  # so that `end` ends what has started
            raise
        self._is_ours = True
        self._begin_s = time.monotonic()
        self.console.print(f"\n[bold]Open {self.urls[0]}/ in a browser: the cluster, live.[/bold]\n")
        self.say("load", f"{self.load.rate:g} tasks a second of 0.2 to 4 s, through all nodes")
        self.load.start()

    def end(self, keep: bool) -> None:
        if not self._is_ours:
            return
        self.load.stop()
        if keep:
            self.console.print(f"The cluster runs on: {self.urls[0]}/  (end it with: {self.stop_command()})")
            return
        with suppress(KeyboardInterrupt, subprocess.SubprocessError, SystemExit):
            self.launch("stop")
        self.console.print("Everything that this demo started has ended.")

    def stop_command(self) -> str:
        variables = {name: self._environ[name] for name in ("RUMOR_BASE_PORT", "RUMOR_DATA_DIR")}
        return " ".join(f"{name}={value}" for name, value in variables.items()) + " scripts/launch_cluster.sh stop"

    def launch(self, *words: str) -> str:
        """Run `rumor launch …`; its output. If it fails, show that and exit."""
        done = subprocess.run(
            [sys.executable, "-m", "node", "launch", *words],
            env=self._environ,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            self.console.print(done.stdout + done.stderr, markup=False)
            sys.exit(done.returncode)
        return done.stdout

    # ---- trouble

    def trouble(self, seconds: float) -> None:
        """Make one fault after the other until the time is up; finish the last one."""
        faults: tuple[Callable[[], None], ...] = (
            lambda: self.kill(3),
            lambda: self.hang(2, 2.0),
            self.kill_the_leader,
            lambda: self.hang(4, 7.0),
            lambda: self.drain(5),
            self.take_redis_away,
        )
        until_s = time.monotonic() + seconds
        n = 0
        while time.monotonic() < until_s:
            time.sleep(min(CALM_S, max(0.0, until_s - time.monotonic())))
            faults[n % len(faults)]()
            self.watch_counters()
            n += 1

    def kill(self, number: int, what: str = "") -> None:
        node_id, since_ms = self.node_id(number), time.time_ns() // 1_000_000
        self.watch_counters()
        self.launch("kill", str(number))
        self.say("kill", f"kill -9 for node {number}{what}")
        time.sleep(SETTLE_S)
        self.tell_death(number, node_id, since_ms)
        self.launch("restart", str(number))
        self.say("start", f"node {number} is back, as a new session, and takes its share of the shards")

    def kill_the_leader(self) -> None:
        leader = self.view().get("leader")
        if leader is None:
            return
        number = int(leader["node_id"].rpartition(":")[2]) - self.base + 1
        self.kill(number, f": the leader, epoch {leader['epoch']}")
        now = self.view().get("leader")
        if now is not None:
            self.say("", f"the leader is {now['node_id']} now, epoch {now['epoch']}; no queue waited for it")

    def hang(self, number: int, seconds: float) -> None:
        node_id, since_ms = self.node_id(number), time.time_ns() // 1_000_000
        self.launch("pause", str(number))
        self.say("pause", f"node {number} hangs for {seconds:g} s (SIGSTOP): its process exists but answers nothing")
        time.sleep(seconds)
        if seconds > 5:
            self.tell_death(number, node_id, since_ms)
        self.launch("resume", str(number))
        time.sleep(SETTLE_S)
        kinds = [event["kind"] for event in self.events(number, node_id, since_ms)]
        if seconds > 5:
            self.say(
                "resume", f"node {number} continues, finds its tombstone, may commit none of its tasks, and joins again"
            )
        elif "member_dead" in kinds:
            self.say("resume", f"node {number} was held dead by gossip")
        else:
            self.say("resume", f"node {number} refutes the suspicion; it kept its tasks, and none ran twice")

    def drain(self, number: int) -> None:
        self.say("drain", f"SIGTERM for node {number}: it claims no more tasks and finishes those that it runs")
        self.launch("restart", str(number))
        self.say("start", f"node {number} is back; no attempt was lost")

    def take_redis_away(self) -> None:
        before = len(self.load.ids)
        self.launch("kill", "redis")
        self.say("redis", "kill -9 for Redis: submissions get 503, running tasks go on, no node is held dead")
        time.sleep(3.0)
        self.launch("restart", "redis")
        time.sleep(SETTLE_S)
        self.say(
            "redis",
            f"Redis is back: nodes write the outcomes that waited; {len(self.load.ids) - before} tasks accepted since",
        )

    # ---- reporting

    def tell_death(self, number: int, node_id: str, since_ms: int) -> None:
        """Report a death, from the timeline of a survivor."""
        firsts: dict[str, Mapping[str, Any]] = {}
        for event in self.events(number, node_id, since_ms):
            firsts.setdefault(event["kind"], event)
        fenced, dead, suspect = (firsts.get(kind) for kind in ("session_fenced", "member_dead", "member_suspect"))
        first = min((event["at_ms"] for event in firsts.values()), default=None)
        if first is None or fenced is None or dead is None:
            self.say("", f"node {number} is not held dead yet: see {self.urls[0]}/")
            return
        words = {"refused": "its port refuses connections", "stalled": "its kernel answers, the node does not"}
        why = words.get(str((suspect or dead)["evidence"]), str((suspect or dead)["evidence"]))
        tasks = sum(
            event.get("tasks", 0)
            for row in self.views(number)
            for event in row["events"]
            if event["kind"] == "session_reaped" and event["node_id"] == node_id and event["at_ms"] >= since_ms
        )
        self.say(
            "",
            f"first sign, then: held dead {dead['at_ms'] - first} ms later ({why}), fenced after "
            f"{fenced['at_ms'] - first} ms; {tasks} tasks queued again",
        )

    def say(self, what: str, text: str) -> None:
        at_s = time.monotonic() - self._begin_s
        self.console.print(f"[dim]{at_s:6.1f} s[/dim]  [bold]{what:<7}[/bold] {text}", soft_wrap=True)

    # ---- asking the nodes

    def views(self, without: int = 0) -> list[dict[str, Any]]:
        """GET /cluster of every node that answers."""
        views = []
        for number, url in enumerate(self.urls, 1):
            if number != without:
                with suppress(RumorError), SyncClient(url, within_s=2.0, learn=False, insist=False) as node:
                    views.append(node.cluster())
        return views

    def view(self, without: int = 0) -> dict[str, Any]:
        return next(iter(self.views(without)), {})

    def node_id(self, number: int) -> str:
        return f"127.0.0.1:{self.base + number - 1}"

    def events(self, without: int, node_id: str, since_ms: int) -> list[Mapping[str, Any]]:
        events = self.view(without).get("events", [])
        return [event for event in events if event["node_id"] == node_id and event["at_ms"] >= since_ms]

    def watch_counters(self) -> None:
        """Remember the highest value of each counter in each life of a node: counters end with their process."""
        for url in self.urls:
            with suppress(RumorError):
                status, body = Remote(url, timeout_s=2.0).request("GET", "/metrics")
                if status != 200:
                    continue
                start = next(line for line in body.decode().splitlines() if line.startswith("process_start_time"))
                for line in body.decode().splitlines():
                    name, _, value = line.rpartition(" ")
                    if name.startswith(
                        ("rumor_task_refused_total{", "rumor_tasks_reaped_total", "rumor_fences_total{")
                    ):
                        key = (f"{url} {start}", name)
                        self._counted[key] = max(self._counted.get(key, 0.0), float(value))

    def total(self, prefix: str) -> int:
        return int(sum(value for (_, name), value in self._counted.items() if name.startswith(prefix)))

    # ---- the end

    def account(self) -> int:
        """Wait for the last task, look up every task, and report how each ended."""
        self.load.stop()
        ids = self.load.ids
        self.say("count", f"{len(ids)} tasks were accepted; waiting for the last one")
        states: Counter[str] = Counter()
        again = 0
        with SyncClient(self.urls, within_s=END_LIMIT_S) as client:
            until_s = time.monotonic() + END_LIMIT_S
            for task_id in reversed(ids):
                left_s = max(1.0, until_s - time.monotonic())
                try:
                    task = client.wait(task_id, within_s=left_s)
                except RumorError as error:
                    states[error.code] += 1
                    continue
                states[str(task.state)] += 1
                again += task.delivery > 1
        self.watch_counters()
        rows = {
            "accepted": len(ids),
            "different ids": len(set(ids)),
            "succeeded, committed once": states["succeeded"],
            "lost or unfinished": len(ids) - sum(states[state] for state in TERMINAL),
            "ran again after their node was gone": again,
            "late outcomes refused": self.total("rumor_task_refused_total"),
        }
        self.console.print()
        for name, value in rows.items():
            self.console.print(f"  {name:<36}{value:>8,}")
        is_complete = rows["succeeded, committed once"] == len(set(ids)) == len(ids)
        self.console.print(
            "\n[bold]Nothing was lost.[/bold]" if is_complete else f"\n[bold red]Not all: {dict(states)}[/bold red]"
        )
        if self.load.errors:
            self.console.print(f"  submissions that the client gave up: {json.dumps(self.load.errors)}")
        return 0 if is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
