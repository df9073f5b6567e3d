"""The cost and the speed of membership as the cluster grows; from the simulator, whose times are virtual.

    python scripts/bench/scaling.py [--nodes 10,100,300,1000] [--seeds 3] [--seconds 10] [--json FILE]

The network is a good one (0.2 to 1 ms each way). Idle: datagrams and sealed bytes that a node sends, and CPU time of
this simulator for each node and minute (encoding, sealing and decisions; no system calls). A death: time until the
first and the last survivor know, and extra datagrams that each node sent. A join: time until all nodes know it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from figures import levels, markdown, publish, say

from cluster.config import Config
from cluster.sim.network import Crash, Pause, Sim, Start, Vanish
from cluster.swim.dissemination import NEWS_S

SETTLE_LIMIT_S = 60.0
AFTER_S = 2.0  # time over which the datagrams of a death are counted
HEAD = (
    "nodes", "idle: datagrams/s", "bytes/s", "CPU s/min", "kill -9: first, ms", "last, ms", "datagrams a node",
    "host silent: last, s", "hung: last, s", "join: all, ms",
)  # fmt: skip


def play(nodes: int, seed: int, seconds: float) -> dict[str, float]:
    """Play one cluster: let it settle, watch it idle, then one death of each kind and a join."""
    began_s = time.process_time()
    sim = Sim(seed, nodes)
    sim.run_until(0.2)  # All have started.
    assert sim.run_while(lambda: not sim.is_converged(), SETTLE_LIMIT_S, step_s=0.5), sim.replay_hint()
    settled_s = sim.now_s
    sim.run_until(settled_s + NEWS_S + 1.0)  # until gossip no longer spreads news of the start
    sim.seen.clear()
    say(f"{nodes} nodes settled within {settled_s:.1f} s; that took {time.process_time() - began_s:.0f} s")
    figures: dict[str, float] = {}

    def sent() -> tuple[int, int]:
        return sim.total("datagrams_out"), sim.total("bytes_out")

    before, cpu_s = sent(), time.process_time()
    sim.run_until(sim.now_s + seconds)
    spent_s = time.process_time() - cpu_s
    datagrams, size = (now - was for now, was in zip(sent(), before, strict=True))
    figures |= {"datagrams_s": datagrams / nodes / seconds, "bytes_s": size / nodes / seconds}
    figures["cpu_s_min"] = spent_s / nodes / seconds * 60

    def death(name: str, fault: Crash | Vanish | Pause, limit_s: float) -> list[float]:
        session, at_s = sim.nodes[name].session, sim.now_s
        sim.at(at_s, fault)
        others = len(sim.running()) - 1
        assert sim.run_while(lambda: len(sim.known_dead_s(session)) < others, limit_s, step_s=0.1), sim.replay_hint()
        return sorted(known_s - at_s for known_s in sim.known_dead_s(session).values())

    before = sent()
    at_s = sim.now_s
    took = death("n3", Crash("n3"), 20.0)
    sim.run_until(at_s + AFTER_S)
    idle = figures["datagrams_s"] * nodes * AFTER_S
    figures |= {"kill_first_ms": took[0] * 1000, "kill_last_ms": took[-1] * 1000}
    figures["kill_datagrams"] = (sent()[0] - before[0] - idle) / nodes
    figures["silent_last_s"] = death("n4", Vanish("n4"), 30.0)[-1]
    figures["hung_last_s"] = death("n5", Pause("n5"), 40.0)[-1]
    sim.run_until(sim.now_s + 1.0)
    sim.seen.clear()
    sim.add("late")
    at_s = sim.now_s
    sim.at(at_s, Start("late", ("n1", "n2")))

    def known_s() -> dict[str, float]:
        return {
            seen.observer: seen.at_s for seen in reversed(sim.seen) if seen.change.member.identity.node_id == "late"
        }

    others = len(sim.running())
    assert sim.run_while(lambda: len(known_s()) < others, 30.0, step_s=0.1), sim.replay_hint()
    figures["join_ms"] = (max(known_s().values()) - at_s) * 1000
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="10,100,300,1000", metavar="N,…", help="%(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="clusters of each size, at most (%(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of idle (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    runs: dict[int, list[dict[str, float]]] = {}
    for nodes in map(int, options.nodes.split(",")):
        for seed in range(max(1, min(options.seeds, 1000 // nodes))):
            began_s = time.monotonic()
            runs.setdefault(nodes, []).append(play(nodes, seed, options.seconds))
            say(f"{nodes} nodes, seed {seed}: {time.monotonic() - began_s:.1f} s")
    names = (
        ("datagrams_s", 1), ("bytes_s", 0), ("cpu_s_min", 3), ("kill_first_ms", 1), ("kill_last_ms", 1),
        ("kill_datagrams", 1), ("silent_last_s", 2), ("hung_last_s", 2), ("join_ms", 0),
    )  # fmt: skip
    rows = [
        [str(nodes), *(f"{levels([run[name] for run in some])['p50']:.{digits}f}" for name, digits in names)]
        for nodes, some in runs.items()
    ]
    settings = f"probe interval {Config().probe_interval_s:g} s, {Config().watch_peers} watchers"
    publish(f"Scaling ({settings})", markdown(HEAD, rows), {"runs": {str(n): some for n, some in runs.items()}},
            options.json)  # fmt: skip


if __name__ == "__main__":
    os.nice(5)
    sys.exit(main())
