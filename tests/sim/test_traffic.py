"""Gossip costs little and does not grow with the cluster.

Invariants, sealed bytes per node and second:
- idle: below 700 B/s without load, in clusters of 5 as of 32 (two pings and two acks a second at some 130 bytes);
- with loads that change ten times a second: below 6 KiB/s;
- while 30 % is lost, or a quarter hangs now and then: below 8 KiB/s;
- a second process that has the name of a live node and does not give up: below 8 KiB/s;
- one death: at most some tens of datagrams from each node of 16.
"""

from __future__ import annotations

import pytest

from cluster.sim.network import Crash, Link, Pause, Resume, SetLink, Sim, Start, Tell
from cluster.swim.events import SetLoad
from tests.sim.invariants import hint, seeds, settled


def bytes_per_node_s(sim: Sim, duration_s: float) -> float:
    before = sum(sim.sent.values())
    sim.run_until(sim.now_s + duration_s)
    return (sum(sim.sent.values()) - before) / len(sim.nodes) / duration_s


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("nodes", [5, 32])
def test_an_idle_cluster_is_quiet(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    sim.run_until(6.0)
    assert bytes_per_node_s(sim, 10.0) < 700, hint(sim)
    assert sim.total("suspicions") == 0, hint(sim)


@pytest.mark.parametrize("seed", seeds(2))
def test_changing_loads_stay_cheap(seed: int) -> None:
    sim = settled(seed, 16)
    for name in sim.nodes:
        for step in range(100):
            sim.at(2.0 + 0.1 * step, Tell(name, SetLoad(bytes([step]) * 60)))
    assert bytes_per_node_s(sim, 10.0) < 6144, hint(sim)


@pytest.mark.parametrize("seed", seeds(2))
def test_trouble_stays_bounded(seed: int) -> None:
    lossy = settled(seed, 16)
    lossy.at(2.0, SetLink(Link(loss=0.3, tcp_loss=0.3)))
    assert bytes_per_node_s(lossy, 20.0) < 8192, hint(lossy)
    hanging = settled(seed, 16)
    for name in ("n2", "n5", "n9", "n14"):
        for step in range(7):
            hanging.at(2.0 + 3.0 * step, Pause(name))
            hanging.at(3.0 + 3.0 * step, Resume(name))
    assert bytes_per_node_s(hanging, 20.0) < 8192, hint(hanging)


@pytest.mark.parametrize("seed", seeds(4))
def test_a_death_is_told_in_tens_of_datagrams_a_node(seed: int) -> None:
    sim = settled(seed, 16)
    sim.run_until(4.0)
    sim.at(4.0, Crash("n5"))
    before = sim.total("datagrams_out")
    sim.run_until(6.0)
    spent = sim.total("datagrams_out") - before
    assert spent / 15 < 60, f"{spent}\n{hint(sim)}"


@pytest.mark.parametrize("seed", seeds(2))
def test_a_contested_name_makes_no_storm(seed: int) -> None:
    sim = settled(seed, 8)
    sim.add("twin")
    sim.at(2.0, Start("twin", seeds=("n1",), node_id="n3"))
    assert bytes_per_node_s(sim, 10.0) < 8192, hint(sim)
