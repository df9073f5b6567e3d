"""What follows a kill -9, and when: a cluster loses a node in each round, the leader and a follower in turn.

    python scripts/bench/recovery.py [--nodes 3] [--rounds 20] [--tasks 10] [--json FILE]

Every node runs sleepers and has free slots, so that slots are not the limit. All times count from just before the kill:

- seen dead: `member_dead` in the timeline of the first and of the last survivor
- fenced, reaped: `session_fenced` and the last `session_reaped` in any survivor's timeline
- run again: the second start of the first and of the last of its tasks, by Redis's clock
- new leader: `leader_elected` in the timeline of the first and of the last survivor, where the leader was killed

All processes share one machine's clock, so their times compare; they are whole milliseconds. Deaths and fencings of
sessions that nobody killed are counted, too. Each round ends with a restart of its node.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bed import Bed, Node
from figures import levels, markdown, publish, say

from node.lab.process import wait_for

SLEEP_S = 2.0
KILL_LIMIT_S = 30.0  # time for all steps after a kill
STEPS = (
    "seen dead, first",
    "seen dead, last",
    "fenced",
    "reaped",
    "run again, first",
    "run again, last",
    "new leader, first",
    "new leader, last",
)


class Lost(Exception):
    """A step that had to follow a kill did not."""


def play(nodes: Sequence[Node], victim: Node, is_leader: bool, tasks: int) -> dict[str, Any]:
    """Play one round: ms from the kill to each step, and deaths that should not have been."""
    survivors = [node for node in nodes if node is not victim]
    before = victim.get("/cluster")
    session, epoch = before["session"], before["leader"]["epoch"]
    ids = [task_id for node in nodes for task_id in submit(node, tasks)]
    mine = wait_running(survivors[0], victim, ids)

    killed_ms = time.time_ns() / 1e6
    victim.kill()
    victim.child.wait()

    def timeline() -> list[list[dict[str, Any]]]:
        rows = [node.get("/cluster")["events"] for node in survivors]
        return [[event for event in events if event["at_ms"] >= int(killed_ms)] for events in rows]

    def is_over() -> bool:
        nonlocal views
        views = timeline()
        return (
            all(at(events, "member_dead", session) for events in views)
            and any(at(events, "session_fenced", session) for events in views)
            and sum(tasks for _, tasks in reaped(views, session)) >= len(mine)
            and (not is_leader or all(elected(events, epoch) for events in views))
        )

    views: list[list[dict[str, Any]]] = []
    if not wait_for(is_over, KILL_LIMIT_S, 0.05):
        raise Lost(f"{victim.name} was killed, but not all steps followed within {KILL_LIMIT_S:g} s: {views}")
    again = wait_again(survivors[0], mine)

    seen = [at(events, "member_dead", session)[0] for events in views]
    figures: dict[str, float] = {
        "seen dead, first": min(seen),
        "seen dead, last": max(seen),
        "fenced": min(itertools.chain(*(at(events, "session_fenced", session) for events in views))),
    }
    if mine:
        figures["reaped"] = max(at_ms for at_ms, tasks in reaped(views, session) if tasks)
        figures |= {"run again, first": min(again), "run again, last": max(again)}
    if is_leader:
        led = [elected(events, epoch)[0] for events in views]
        figures |= {"new leader, first": min(led), "new leader, last": max(led)}
    wait_ended(survivors[0], ids)  # no sleeper may reach into the next round
    false = [
        event
        for events in timeline()
        for event in events
        if event["kind"] in ("member_dead", "session_fenced") and event.get("session") != session
    ]
    return {
        "killed": "leader" if is_leader else "follower",
        "tasks": len(mine),
        "ms": {name: at_ms - killed_ms for name, at_ms in figures.items()},
        "false": false,
        "timelines": {node.name: events for node, events in zip(survivors, timeline(), strict=True)},
        "evidence": sorted(
            {str(e.get("evidence")) for events in views for e in events if e["kind"] == "session_fenced"}
        ),
    }


def at(events: Iterable[dict[str, Any]], kind: str, session: str) -> list[int]:
    """The times of the events of this kind that concern this session."""
    return [event["at_ms"] for event in events if event["kind"] == kind and event.get("session") == session]


def reaped(views: Iterable[Iterable[dict[str, Any]]], session: str) -> list[tuple[int, int]]:
    """(time, tasks) of each event that says that tasks of the session were queued again."""
    kind = "session_reaped"
    return [
        (event["at_ms"], event["tasks"])
        for events in views
        for event in events
        if event["kind"] == kind and event["session"] == session
    ]


def elected(events: Iterable[dict[str, Any]], epoch: int) -> list[int]:
    return [event["at_ms"] for event in events if event["kind"] == "leader_elected" and event["epoch"] > epoch]


def submit(node: Node, tasks: int) -> list[str]:
    answer = node.remote.call("POST", "/tasks/batch", [{"type": "sleep", "data": SLEEP_S}] * tasks)[1]
    assert answer["rejected"] == 0, answer["results"][:2]
    return [row["id"] for row in answer["results"]]


def wait_running(witness: Node, victim: Node, ids: Sequence[str]) -> list[str]:
    """Wait until all of these tasks run somewhere; those that the victim runs."""
    rows: list[dict[str, Any]] = []

    def all_run() -> bool:
        nonlocal rows
        rows = [witness.get(f"/tasks/{task_id}") for task_id in ids]
        return all(row["state"] == "running" for row in rows)

    if not wait_for(all_run, SLEEP_S * 0.8):
        raise Lost(f"not all tasks ran before the first one ended: {[row['state'] for row in rows]}")
    return [row["id"] for row in rows if row["node_id"] == victim.name]


def wait_again(witness: Node, ids: Sequence[str]) -> list[int]:
    """Wait until each task was delivered again; the times of these starts, in ms by Redis's clock."""
    started_ms = {}
    for task_id in ids:

        def is_again(task_id: str = task_id) -> bool:
            row = witness.get(f"/tasks/{task_id}")
            if row["delivery"] >= 2:
                started_ms[task_id] = row["started_at_ms"]
            return task_id in started_ms

        if not wait_for(is_again, KILL_LIMIT_S):
            raise Lost(f"{task_id} did not run again within {KILL_LIMIT_S:g} s: {witness.get(f'/tasks/{task_id}')}")
    return list(started_ms.values())


def wait_ended(witness: Node, ids: Sequence[str]) -> None:
    for task_id in ids:
        row = witness.get(f"/tasks/{task_id}?wait_s={KILL_LIMIT_S:g}")
        if row["state"] != "succeeded":
            raise Lost(f"{task_id} has not succeeded: {row}")


def choose(nodes: Sequence[Node], want_leader: bool, n: int) -> tuple[Node, bool]:
    """(the node, whether it leads): the node that every view calls the leader, or the n-th of the others."""
    leader = ""

    def all_agree() -> bool:
        nonlocal leader
        leaders = {(node.get("/cluster")["leader"] or {}).get("node_id", "") for node in nodes}
        leader = leaders.pop()
        return not leaders and leader != ""

    if not wait_for(all_agree, KILL_LIMIT_S):
        raise Lost("the nodes do not agree on a leader")
    others = [node for node in nodes if node.name != leader]
    if want_leader:
        return next(node for node in nodes if node.name == leader), True
    return others[n % len(others)], False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3, help="at least 2, at most 10 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=10, help="sleepers for each node (%(default)s)")
    parser.add_argument("--aof", action=argparse.BooleanOptionalAction, default=True, help="Redis's append-only file")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rounds = []
    with Bed(options.aof) as bed:
        for _ in range(options.nodes):
            bed.node()
        for n in range(options.rounds):
            for node in bed.nodes:
                node.wait_ready(options.nodes)
            victim, is_leader = choose(bed.nodes, n % 2 == 0, n // 2)
            rounds.append(play(bed.nodes, victim, is_leader, options.tasks))
            times = ", ".join(f"{name} {ms:.0f}" for name, ms in rounds[-1]["ms"].items())
            say(f"round {n + 1}: {rounds[-1]['killed']} with {rounds[-1]['tasks']} tasks: {times}")
            victim.start()
    rows = []
    for step in STEPS:
        values = [played["ms"][step] for played in rounds if step in played["ms"]]
        if values:
            rows.append([step, str(len(values)), *(f"{ms:.0f}" for ms in levels(values).values())])
    false = [event for played in rounds for event in played["false"]]
    title = f"Recovery of {options.nodes} nodes from kill -9, {options.rounds} rounds"
    table = markdown(("ms from the kill to", "rounds", "min", "median", "p99", "max"), rows)
    table += f"\n\n{len(false)} deaths or fencings of sessions that nobody killed"
    publish(title, table, {"rounds": rounds}, options.json)


if __name__ == "__main__":
    main()
