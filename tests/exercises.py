"""Partition exercises on any running cluster: cut it, ask every node what it believes, heal it.

The tests cut with the command that a person would use. Each test states for every pair of nodes what the one must
believe about the other; it counts runs and commits as the chaos tests do. Times count from the moment the command has
returned; pytest shows them at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RumorError
from node.client.errors import Unreachable
from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.processes import ROOT
from tests.waiting import wait_until

# On a quiet machine detection takes at most about 5 s and a heal about 2 s; the limits leave room for two busy cores.
BELIEF_LIMIT_S = 20.0
HEAL_LIMIT_S = 30.0
COMMAND_LIMIT_S = 60.0
RUN_LIMIT_S = 30.0
MEASURED: list[str] = []

Pair = tuple[int, int]  # (observer, subject)


@dataclass
class Ground:
    """A running cluster: its nodes over HTTP, and the command that cuts it."""

    fleet: Fleet
    redis_url: str
    environ: Mapping[str, str]
    ledgers: Path  # a folder to which the nodes can write, too
    _made: int = field(default=0)

    @property
    def nodes(self) -> list[Node]:
        return self.fleet.nodes

    def node(self, number: int) -> Node:
        return self.nodes[number - 1]

    def partition(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `rumor partition …`."""
        done = subprocess.run(
            [sys.executable, "-m", "node", "partition", *words],
            env={**self.environ},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        assert not check or done.returncode == 0, f"partition {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def new_ledger(self) -> Ledger:
        """An empty ledger, to which a node may write as any user."""
        self._made += 1
        ledger = Ledger(self.ledgers / f"ledger-{self._made}.jsonl")
        ledger.path.touch()
        ledger.path.chmod(0o666)
        return ledger

    def work(self, ledger: Ledger, seconds: float) -> dict[str, Any]:
        return {"ledger": str(ledger.path), "seconds": seconds}

    def views(self) -> dict[int, dict[str, Any]]:
        """`GET /cluster` of each node that answers."""
        views = {}
        for node in self.nodes:
            with suppress(Unreachable):
                views[node.number] = node.get("/cluster")
        return views

    def verdicts(self) -> dict[Pair, str]:
        """What each node believes about each."""
        numbers = {node.node_id: node.number for node in self.nodes}
        return {
            (observer, numbers[row["node_id"]]): row["verdict"]
            for observer, view in self.views().items()
            for row in view["members"]
        }

    def wait_believed(self, expected: Mapping[Pair, str], what: str) -> float:
        """Wait until every node believes this about every other; a pair left out is `healthy`. The seconds it took.

        What a node says about itself does not matter here.
        """
        numbers = [node.number for node in self.nodes]
        goal = {(a, b): "healthy" for a in numbers for b in numbers if a != b} | dict(expected)
        begin_s = time.monotonic()
        since: dict[int, float] = {}  # observer -> time since which all its beliefs are right
        while len(since) < len(numbers):
            verdicts = self.verdicts()
            now_s = time.monotonic() - begin_s
            wrong = {pair: verdicts.get(pair) for pair, verdict in goal.items() if verdicts.get(pair) != verdict}
            for number in numbers:
                if any(observer == number for observer, _ in wrong):
                    since.pop(number, None)
                else:
                    since.setdefault(number, now_s)
            if wrong and now_s > BELIEF_LIMIT_S:
                raise AssertionError(f"{what}: not believed within {BELIEF_LIMIT_S:g} s: {wrong}")
            time.sleep(0.05)
        note(f"{what}: believed after " + ", ".join(f"{since[n]:.1f} s (node {n})" for n in numbers))
        return max(since.values())

    def disagreement(self) -> str:
        """Why the views are not all equal and healthy; empty when they are."""
        views = self.views()
        if len(views) < len(self.nodes):
            return f"no answer from {sorted({node.number for node in self.nodes} - set(views))}"
        sick = {pair: verdict for pair, verdict in self.verdicts().items() if verdict != "healthy"}
        if sick or any(len(view["members"]) != len(self.nodes) for view in views.values()):
            return f"not healthy: {sick}"
        seen = {
            number: json.dumps([[(r["session"], r["state"]) for r in view["members"]], view["leader"], view["shards"]])
            for number, view in views.items()
        }
        if len(set(seen.values())) > 1 or any(view["leader"] is None for view in views.values()):
            return f"they differ: {[(number, view['leader'], view['shards']) for number, view in views.items()]}"
        unready = [node.number for node in self.nodes if not node.is_ready()]
        return f"not ready: {unready}" if unready else ""

    def wait_agreed(self, what: str = "") -> float:
        """Wait until all are ready and healthy, with equal sessions, leader and owners. The seconds it took."""
        begin_s = time.monotonic()
        while why := self.disagreement():
            if time.monotonic() > begin_s + HEAL_LIMIT_S:
                raise AssertionError(f"{what}: no agreement within {HEAL_LIMIT_S:g} s: {why}")
            time.sleep(0.05)
        took_s = time.monotonic() - begin_s
        if what:
            note(f"{what}: all views agree {took_s:.2f} s after heal")
        return took_s

    def fences(self) -> float:
        """The number of sessions that any node fenced so far."""
        return sum(node.metric("rumor_fences_total") for node in self.nodes)

    def sessions(self) -> dict[int, str]:
        return {node.number: node.session for node in self.nodes}


@dataclass
class Exercise:
    """One cut, with tasks that run through it."""

    ground: Ground
    ledger: Ledger
    commits: Commits
    text: str
    ids: list[str] = field(default_factory=list)

    def submit(self, through: Sequence[int], each: int = 5, seconds: float = 0.5) -> list[str]:
        """Submit `each` more tasks through every one of these nodes; their ids."""
        work = self.ground.work(self.ledger, seconds)
        ids = [i for number in through for i in self.ground.node(number).submit_surely("chaos.sleep", work, each)]
        self.ids += ids
        return ids

    def heal(self) -> None:
        self.ground.partition("heal")
        self.ground.wait_agreed(self.text)

    def check(self, again: Collection[str] = ()) -> None:
        """Every accepted task has ended and committed once; it ran once, or at most twice if it is in `again`."""
        tasks = self.ground.fleet.wait_ended(self.ids, RUN_LIMIT_S)
        check_committed_once(self.commits, self.ids)
        check_kept(tasks, self.ids, self.ledger)
        check_ran_once(self.ledger, self.ids, again)


@contextmanager
def exercise(ground: Ground, text: str, seconds: float = 6.0, each: int = 6) -> Iterator[Exercise]:
    """Run tasks of this length everywhere, then cut; heal at the end, whatever happens."""
    ledger = ground.new_ledger()
    with Commits(ground.redis_url) as commits:
        started = Exercise(ground, ledger, commits, text)
        started.submit([node.number for node in ground.nodes], each, seconds)
        wait_until(lambda: ledger.started(started.ids) == len(started.ids), 15, "all run")
        try:
            for part in text.split("; "):
                ground.partition(*part.split())
            yield started
        finally:
            ground.partition("heal")


def hold(seconds: float) -> None:
    """Let time pass: the law is that nothing happens meanwhile."""
    threading.Event().wait(seconds)


def around(node: int, count: int, verdict: str) -> dict[Pair, str]:
    """The verdict of a node on all its peers, and of all its peers on it."""
    peers = [number for number in range(1, count + 1) if number != node]
    return {(node, peer): verdict for peer in peers} | {(peer, node): verdict for peer in peers}


def across(side: Collection[int], other: Collection[int], verdict: str) -> dict[Pair, str]:
    return {pair: verdict for a in side for b in other for pair in ((a, b), (b, a))}


def deaths(ground: Ground) -> int:
    """The number of deaths that nodes saw by gossip so far. (They keep few events: compare soon.)"""
    return sum(len(node.events("member_dead")) for node in ground.nodes)


def refused_quickly(node: Node, work: Mapping[str, Any]) -> None:
    """A node that reaches neither Redis nor a peer says so within seconds, and stores nothing."""
    begin_s = time.monotonic()
    with pytest.raises(RumorError) as caught:
        node.remote.call("POST", "/tasks", {"type": "chaos.sleep", "data": work})
    assert caught.value.status == 503, caught.value
    assert time.monotonic() - begin_s < 5.0


def note(text: str) -> None:
    MEASURED.append(text)


def fleet_of(rows: Sequence[tuple[int, str, str]], token: str, folder: Path, redis_url: str) -> Fleet:
    """A fleet of nodes that run already: (number, node_id, URL). It starts and ends none of them."""
    fleet = Fleet(folder, redis_url)
    for number, node_id, url in rows:
        host, _, port = url.removeprefix("http://").rpartition(":")
        environ = {"RUMOR_API_TOKEN": token, "RUMOR_NODE_ID": node_id}
        fleet.nodes.append(Node(number, host, int(port), environ, folder))
    return fleet
