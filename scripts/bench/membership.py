"""How soon members know, and how often wrongly: kill -9, SIGSTOP, joins, loss, pauses, silent hosts, cuts, idle cost.

    python scripts/bench/membership.py [--nodes 16] [--trials 5] [--scenarios kill,stop,…] [--json FILE]
        [--command 'python -m node agent']

It measures any command that accepts `--name N --port P --seed HOST:PORT` and prints the lines of `rumor agent`: one
JSON object a line, {"t": CLOCK_MONOTONIC seconds, "event": "start" | "ready" | "join" | "suspect" | "alive" | "dead" |
"left", "subject": name}; SIGUSR1 prints {"event": "stats", "bytes_out": …}; it ends when its standard input closes. All
agents run on this machine's loopback with their default settings. Times count from just before the fault to the `t` of
the line that reports it, of the first and of the last survivor.

    start    all start at once: until all know all
    kill     SIGKILL of one agent; then it starts again, as one more join
    many     SIGKILL of a quarter at once: until the last survivor knows the last of them
    stop     SIGSTOP of one until all hold it dead; then SIGCONT: until all views agree
    join     one more starts: until all know it and it knows all
    idle     CPU and bytes of each agent over --seconds
    loss     30 % of all UDP and TCP packets lost for --seconds: deaths of agents that live
    pauses   a quarter of the agents stopped 1 s in 3, then 3 s in 6, for --seconds each: the same
    silent   all packets from and to one agent dropped; then they pass again
    cut      no packet passes between two halves for --seconds; then all pass: until all views agree

loss, silent and cut need root, unshare and iptables: then everything runs in a network namespace of its own, which
takes its rules with it. Where they cannot run, the benchmark leaves them out and says why.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bed import ROOT
from figures import levels, markdown, publish, say

BASE_PORT = 22_000
BASE_GROUP = 50_000  # group of the first agent; firewall rules recognise an agent's packets by its group
START_LIMIT_S = 120.0
DETECT_LIMIT_S = 60.0
AGREE_LIMIT_S = 120.0
SETTLE_S = 2.0  # pause between trials, so that none measures the aftermath of another
AFTERMATH_S = 8.0  # time after a disturbance in which deaths still count as its own
INSIDE = "RUMOR_BENCH_NAMESPACE"
SCENARIOS = ("start", "join", "kill", "many", "stop", "idle", "loss", "pauses", "silent", "cut")
FILTERED = ("loss", "silent", "cut")

AIMS = {  # for 16 agents: (median, p99 or None), in seconds unless the row says otherwise
    "kill -9: the first survivor knows": (0.020, None),
    "kill -9: the last survivor knows": (0.060, 0.250),
    "host silent: the last knows": (2.5, None),
    "SIGSTOP: the last knows": (6.0, None),
    "SIGCONT: all know it is back": (0.2, 1.0),
    "one more joins: all know": (0.2, 1.0),
    "cut over: all views agree": (2.0, None),
    "false deaths, 30 % loss": (0, None),
    "false deaths, pauses 1 s in 3": (0, None),
    "false deaths, pauses 3 s in 6": (0, None),
    "idle: CPU s per agent and minute": (0.3, None),
    "idle: bytes per agent and second": (1500, None),
}
AIM_MANY = {"kill -9: the last survivor knows": (0.150, 0.250)}  # for 64 and 100


class Missed(Exception):
    """The agents did not learn of something in time."""


@dataclass
class Agent:
    """One agent, through all its lives."""

    name: str
    number: int
    port: int
    process: subprocess.Popen[bytes] = field(init=False)
    lines: list[dict[str, Any]] = field(default_factory=list)
    view: dict[str, str] = field(default_factory=dict)  # subject -> its last event, in this life
    is_running: bool = False
    buffer: bytes = b""

    def heard(self, event: str, subject: str, since_s: float) -> float | None:
        """The time when it first reported this event after `since_s`."""
        return next(
            (
                line["t"]
                for line in self.lines
                if line["t"] >= since_s and line["event"] == event and line["subject"] == subject
            ),
            None,
        )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


class Cluster:
    """Agents on loopback, and one thread that reads their lines."""

    def __init__(self, command: Sequence[str], size: int) -> None:
        self.command = command
        self.agents: list[Agent] = []
        self._selector = selectors.DefaultSelector()
        self._changed = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        for _ in range(size):
            self.start(self.add())

    def add(self) -> Agent:
        number = len(self.agents)
        agent = Agent(f"n{number}", number, BASE_PORT + number)
        self.agents.append(agent)
        return agent

    def start(self, agent: Agent) -> None:
        """Start it; do not wait."""
        seeds = [other for other in self.agents[:2] if other is not agent]
        words = [*self.command, "--name", agent.name, "--port", str(agent.port)]
        for seed in seeds:
            words += ["--seed", f"127.0.0.1:{seed.port}"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RUMOR_")}
        environ["PYTHONPATH"] = str(ROOT)
        group = {"group": BASE_GROUP + agent.number} if os.geteuid() == 0 else {}
        agent.process = subprocess.Popen(
            words, env=environ, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **group
        )  # type: ignore[call-overload]
        assert agent.process.stdout is not None
        os.set_blocking(agent.process.stdout.fileno(), False)
        with self._changed:
            agent.view, agent.buffer, agent.is_running = {}, b"", True
            self._selector.register(agent.process.stdout, selectors.EVENT_READ, agent)

    def kill(self, *agents: Agent) -> float:
        """Send SIGKILL to all at once; the time of it."""
        for agent in agents:
            agent.is_running = False
        at_s = time.monotonic()
        for agent in agents:
            agent.signal(signal.SIGKILL)
        for agent in agents:
            self._reap(agent)
        return at_s

    def close_input(self, agent: Agent) -> None:
        """Let it leave and end in good order."""
        agent.is_running = False
        assert agent.process.stdin is not None
        agent.process.stdin.close()
        self._reap(agent)

    def _reap(self, agent: Agent) -> None:
        agent.process.wait(20)
        assert agent.process.stdin is not None
        agent.process.stdin.close()

    def close(self) -> None:
        for agent in self.agents:
            with contextlib.suppress(ProcessLookupError):
                agent.process.kill()
            agent.process.wait()
        self._is_over = True
        self._reader.join()

    def running(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.is_running]

    def _read(self) -> None:
        while not self._is_over:
            for key, _ in self._selector.select(0.2):
                agent = key.data
                data = os.read(key.fd, 65_536)
                with self._changed:
                    if not data:
                        self._selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                        continue
                    *lines, agent.buffer = (agent.buffer + data).split(b"\n")
                    for line in map(json.loads, lines):
                        agent.lines.append(line)
                        agent.view[line["subject"]] = line["event"]
                    self._changed.notify_all()

    # ---- what the agents believe

    def wait(self, condition: Callable[[], bool], limit_s: float, what: str) -> None:
        """Wait until the condition holds. Raises Missed."""
        until_s = time.monotonic() + limit_s
        with self._changed:
            while not condition():
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    raise Missed(f"not within {limit_s:g} s: {what}")
                self._changed.wait(min(left_s, 0.5))

    def knows(self, observer: Agent, subject: Agent) -> bool:
        return observer is subject or observer.view.get(subject.name) in ("join", "alive")

    def agree(self) -> bool:
        """Whether all running agents hold each other alive, and no other agent."""
        names = {agent.name for agent in self.running()}
        return all(
            {name for name, word in agent.view.items() if word in ("join", "alive", "suspect")} == names - {agent.name}
            and "suspect" not in agent.view.values()
            for agent in self.running()
        )

    def wait_agree(self, what: str, limit_s: float = AGREE_LIMIT_S) -> float:
        """Wait until all views agree; the time of the last line that made them agree."""
        self.wait(self.agree, limit_s, f"{what}; {self.disagreement()}")
        return max((agent.lines[-1]["t"] for agent in self.running() if agent.lines), default=0.0)

    def disagreement(self) -> str:
        return ", ".join(
            f"{a.name}: {len([w for w in a.view.values() if w in ('join', 'alive')])}" for a in self.agents
        )

    def wait_reported(self, event: str, subject: Agent, since_s: float) -> list[float]:
        """Wait until all other running agents reported this event; the seconds each took from `since_s`."""
        others = [agent for agent in self.running() if agent is not subject]

        def all_reported() -> bool:
            return all(agent.heard(event, subject.name, since_s) is not None for agent in others)

        self.wait(all_reported, DETECT_LIMIT_S, f"{event} {subject.name}")
        return sorted((agent.heard(event, subject.name, since_s) or 0.0) - since_s for agent in others)

    def reports(self, event: str, since_s: float) -> int:
        """How many times any agent reported this event about any other."""
        return sum(
            1 for agent in self.agents for line in agent.lines if line["t"] >= since_s and line["event"] == event
        )

    def stats(self) -> dict[str, dict[str, Any]]:
        """The counters that each agent prints on SIGUSR1."""
        asked_s = time.monotonic()
        for agent in self.running():
            agent.signal(signal.SIGUSR1)
        stats: dict[str, dict[str, Any]] = {}

        def all_printed() -> bool:
            for agent in self.running():
                for line in reversed(agent.lines):
                    if line["t"] < asked_s:
                        break
                    if line["event"] == "stats":
                        stats[agent.name] = line
            return len(stats) == len(self.running())

        self.wait(all_printed, 10.0, "stats")
        for agent in self.running():
            agent.view.pop(agent.name, None)  # the subject of such a line is the agent itself
        return stats


# ---- packets


class Filter:
    """iptables in the namespace of this benchmark. Packets are dropped where they arrive: no sender gets an error."""

    def __init__(self, size: int) -> None:
        self.ports = f"{BASE_PORT}:{BASE_PORT + size + 10}"

    @contextlib.contextmanager
    def loss(self, share: float) -> Iterator[None]:
        """Lose datagrams, and TCP packets in both directions."""
        matches = ["udp --dport", "tcp --dport", "tcp --sport"]
        rules = [
            f"-A INPUT -p {match} {self.ports} -m statistic --mode random --probability {share} -j DROP"
            for match in matches
        ]
        with self._rules(rules):
            yield

    @contextlib.contextmanager
    def silent(self, agent: Agent) -> Iterator[None]:
        """Drop all packets from and to this agent."""
        with self._rules(
            [
                f"-t mangle -A OUTPUT -m owner --gid-owner {BASE_GROUP + agent.number} -j MARK --set-mark 1",
                "-A INPUT -m mark --mark 1 -j DROP",
                f"-A INPUT -p udp --dport {agent.port} -j DROP",
                f"-A INPUT -p tcp --dport {agent.port} -j DROP",
            ]
        ):
            yield

    @contextlib.contextmanager
    def cut(self, half: int, size: int) -> Iterator[None]:
        """Drop all packets between the first `half` agents and the others."""
        rules = []
        for mark, (mine, theirs) in enumerate([((0, half), (half, size)), ((half, size), (0, half))], 1):
            groups = f"{BASE_GROUP + mine[0]}-{BASE_GROUP + mine[1] - 1}"
            ports = f"{BASE_PORT + theirs[0]}:{BASE_PORT + theirs[1] - 1}"
            rules.append(f"-t mangle -A OUTPUT -m owner --gid-owner {groups} -j MARK --set-mark {mark}")
            rules += [f"-A INPUT -m mark --mark {mark} -p {kind} --dport {ports} -j DROP" for kind in ("udp", "tcp")]
        with self._rules(rules):
            yield

    @contextlib.contextmanager
    def _rules(self, rules: Sequence[str]) -> Iterator[None]:
        done: list[str] = []
        try:
            for rule in rules:
                subprocess.run(["iptables", *rule.split()], check=True)
                done.append(rule)
            yield
        finally:
            for rule in reversed(done):
                subprocess.run(["iptables", *rule.replace("-A ", "-D ", 1).split()], check=True)


def why_not_filtered() -> str:
    """The reason for which no packets can be dropped here; empty if they can."""
    if os.geteuid() != 0:
        return "not root"
    missing = [name for name in ("unshare", "iptables", "ip") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} on PATH"
    probe = "ip link set lo up && iptables -A OUTPUT -m owner --gid-owner 1 -j DROP && iptables -t mangle -S >/dev/null"
    done = subprocess.run(["unshare", "--net", "sh", "-c", probe], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"iptables in a namespace: {done.stderr.strip() or done.returncode}"


# ---- scenarios: each adds figures to its rows

Rows = dict[str, list[float]]


class Bench:
    def __init__(self, cluster: Cluster, packets: Filter, trials: int, seconds: float, dice: random.Random) -> None:
        self.cluster = cluster
        self.packets = packets
        self.trials = trials
        self.seconds = seconds
        self.dice = dice
        self.rows: Rows = {}

    def note(self, row: str, value: float) -> None:
        self.rows.setdefault(row, []).append(value)

    def victim(self) -> Agent:
        return self.dice.choice(self.cluster.running()[1:])

    def settle(self) -> None:
        self.cluster.wait_agree("all views agree")
        time.sleep(SETTLE_S)

    def kill(self) -> None:
        for _ in range(self.trials):
            self.settle()
            victim = self.victim()
            at_s = self.cluster.kill(victim)
            self.note("kill -9: the benchmark has reaped it", time.monotonic() - at_s)
            took = self.cluster.wait_reported("dead", victim, at_s)
            self.note("kill -9: the first survivor knows", took[0])
            self.note("kill -9: the last survivor knows", took[-1])
            self.again(victim)

    def again(self, agent: Agent) -> None:
        """Start it again: one more join."""
        self.cluster.start(agent)
        self.cluster.wait(lambda: bool(agent.view), START_LIMIT_S, "start")
        at_s = max(line["t"] for line in agent.lines if line["event"] == "start")
        self.note("one more joins: all know", self.cluster.wait_agree("a join") - at_s)

    def many(self) -> None:
        for _ in range(max(1, self.trials // 3)):
            self.settle()
            victims = self.dice.sample(self.cluster.running()[1:], len(self.cluster.running()) // 4)
            at_s = self.cluster.kill(*victims)
            took = max(self.cluster.wait_reported("dead", victim, at_s)[-1] for victim in victims)
            self.note("kill -9 of a quarter: the last knows all", took)
            for victim in victims:
                self.cluster.start(victim)
            self.cluster.wait_agree("a quarter started again")

    def join(self) -> None:
        for _ in range(self.trials):
            self.settle()
            agent = self.cluster.agents[-1] if not self.cluster.agents[-1].is_running else self.cluster.add()
            self.again(agent)
            self.cluster.close_input(agent)
            self.cluster.wait_agree("one left")

    def stop(self) -> None:
        for _ in range(self.trials):
            self.settle()
            victim = self.victim()
            victim.is_running = False
            at_s = time.monotonic()
            victim.signal(signal.SIGSTOP)
            took = self.cluster.wait_reported("dead", victim, at_s)
            self.note("SIGSTOP: the first knows", took[0])
            self.note("SIGSTOP: the last knows", took[-1])
            victim.is_running = True
            at_s = time.monotonic()
            victim.signal(signal.SIGCONT)
            self.note("SIGCONT: all know it is back", self.cluster.wait_agree("it is back") - at_s)

    def idle(self) -> None:
        self.settle()
        agents = self.cluster.running()
        before, cpu = self.cluster.stats(), [cpu_s(agent) for agent in agents]
        time.sleep(self.seconds)
        spent = [cpu_s(agent) - was for agent, was in zip(agents, cpu, strict=True)]
        after = self.cluster.stats()
        for agent, used_s in zip(agents, spent, strict=True):
            self.note("idle: CPU s per agent and minute", used_s * 60 / self.seconds)
            lines = [stats[agent.name] for stats in (before, after)]
            first, last = (line.get("bytes_out", 0) + line.get("exchange_bytes", 0) for line in lines)
            self.note("idle: bytes per agent and second", (last - first) / (lines[1]["t"] - lines[0]["t"]))

    def loss(self) -> None:
        self.settle()
        at_s = time.monotonic()
        with self.packets.loss(0.3):
            time.sleep(self.seconds)
        self._count_false("false deaths, 30 % loss", at_s)

    def pauses(self) -> None:
        for paused_s, every_s in ((1.0, 3.0), (3.0, 6.0)):
            self.settle()
            some = self.dice.sample(self.cluster.running()[1:], len(self.cluster.running()) // 4)
            at_s = time.monotonic()
            due = sorted((at_s + self.dice.random() * every_s, n, True) for n in range(len(some)))
            while due and due[0][0] < at_s + self.seconds:
                when_s, n, is_pause = due.pop(0)
                time.sleep(max(0.0, when_s - time.monotonic()))
                some[n].signal(signal.SIGSTOP if is_pause else signal.SIGCONT)
                due.append((when_s + (paused_s if is_pause else every_s - paused_s), n, not is_pause))
                due.sort()
            for agent in some:
                agent.signal(signal.SIGCONT)
            self._count_false(f"false deaths, pauses {paused_s:g} s in {every_s:g}", at_s)

    def _count_false(self, row: str, since_s: float) -> None:
        time.sleep(AFTERMATH_S)
        self.note(row, self.cluster.reports("dead", since_s))
        self.note(row.replace("deaths", "suspicions"), self.cluster.reports("suspect", since_s))
        self.cluster.wait_agree("all views agree after a disturbance")

    def silent(self) -> None:
        for _ in range(self.trials):
            self.settle()
            victim = self.victim()
            victim.is_running = False
            at_s = time.monotonic()
            with self.packets.silent(victim):
                took = self.cluster.wait_reported("dead", victim, at_s)
            victim.is_running = True
            at_s = time.monotonic()
            self.note("host silent: the first knows", took[0])
            self.note("host silent: the last knows", took[-1])
            self.note("host back: all views agree", max(0.0, self.cluster.wait_agree("the host is back") - at_s))

    def cut(self) -> None:
        self.settle()
        size = len(self.cluster.running())
        with self.packets.cut(size // 2, size):
            time.sleep(self.seconds)
        at_s = time.monotonic()
        self.note("cut over: all views agree", max(0.0, self.cluster.wait_agree("the cut is over") - at_s))


def cpu_s(agent: Agent) -> float:
    """User and system CPU seconds of the agent's process."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown(row: str, values: Sequence[float], size: int) -> list[str]:
    """A row of the table: figures, and their aim."""
    aims = {**AIMS, **(AIM_MANY if size >= 64 else {})}
    median_aim, p99_aim = aims.get(row, (None, None))
    figures = levels(values)
    digits = 3 if "idle: CPU" in row or not row.startswith(("idle", "false")) else 0
    cells = [f"{figures[name]:.{digits}f}" for name in ("min", "p50", "p99", "max")]
    aim, verdict = "", ""
    if median_aim is not None:
        aim = f"≤ {median_aim:g}" + (f", p99 ≤ {p99_aim:g}" if p99_aim is not None else "")
        is_met = figures["p50"] <= median_aim and (p99_aim is None or figures["p99"] <= p99_aim)
        verdict = "met" if is_met else "missed"
    return [row, str(len(values)), *cells, aim, verdict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16, help="at least 4 (%(default)s)")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of idle, loss, pauses and cut (%(default)s)"
    )
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), metavar="A,B,…", help="%(default)s")
    parser.add_argument("--command", default=f"{sys.executable} -P -m node agent", help="the agent to measure")
    parser.add_argument("--seed", type=int, default=1, help="chooses victims and times (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    scenarios = options.scenarios.split(",")
    if unknown := [name for name in scenarios if name not in SCENARIOS]:
        parser.error(f"{', '.join(unknown)}: no such scenario")
    if options.nodes < 4:
        parser.error("--nodes: at least 4")
    if any(name in FILTERED for name in scenarios) and INSIDE not in os.environ:
        why = why_not_filtered()
        if not why:
            line = f"ip link set lo up && exec {shlex.join([sys.executable, *sys.argv])}"
            os.execvpe("unshare", ["unshare", "--net", "sh", "-c", line], {**os.environ, INSIDE: "1"})
        scenarios = [name for name in scenarios if name not in FILTERED]
        say(f"left out {', '.join(FILTERED)}: {why}")
    run(options, scenarios)


def run(options: argparse.Namespace, scenarios: Sequence[str]) -> None:
    began_s = time.monotonic()
    cluster = Cluster(shlex.split(options.command), options.nodes)
    bench = Bench(cluster, Filter(options.nodes), options.trials, options.seconds, random.Random(options.seed))
    missed: list[str] = []
    try:
        all_s = cluster.wait_agree("the start", START_LIMIT_S)
        if "start" in scenarios:
            last_s = max(agent.lines[0]["t"] for agent in cluster.agents)
            bench.note("all start at once: all know, from the last one's start", all_s - last_s)
        for name in [name for name in scenarios if name != "start"]:
            say(f"{time.monotonic() - began_s:6.1f} s  {name}")
            try:
                getattr(bench, name)()
            except Missed as error:
                missed.append(f"{name}: {error}")
                say(missed[-1])
    finally:
        cluster.close()
    head = (f"s, {options.nodes} agents", "n", "min", "median", "p99", "max", "aim", "")
    table = markdown(head, [shown(row, values, options.nodes) for row, values in bench.rows.items()])
    table += "".join(f"\n\nMISSED {line}" for line in missed)
    mean = {row: statistics.fmean(values) for row, values in bench.rows.items()}
    figures = {"nodes": options.nodes, "rows": bench.rows, "mean": mean, "missed": missed}
    publish(f"Membership of {options.nodes} agents", table, figures, options.json)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
