"""All survivors know of every kind of death within its bound, with the evidence that fits.

Invariants, for clusters of 2 to 64 nodes:
- a process that is gone: 20 ms, by refusal (1 to 3 ms until its kernel closes its sockets, in any order; at most two
  tries of its port, 3 ms apart; its UDP port is closed as well; one hop to tell all);
- a process whose sockets close one after another within 30 ms: 80 ms (tries at 3, 9, 21, 45 ms after the end of a
  watch, as many for its UDP port); if a closing socket drops a SYN, one try of 80 ms (a fifth of the probe timeout)
  more;
- if kernels do not tell that a UDP port is closed: 100 ms of grace (a quarter of the probe timeout) more;
- a process whose TCP port alone is closed, or whose UDP answers are slow: not dead at all;
- all nodes but one at once: the survivor knows within two rounds (it probes helpers that say nothing);
- a newer life: the earlier session is over within the same time, however soon the newer one came;
- a host that is gone: the silent bound, and half of such deaths within 2.5 s;
- a process that hangs: not before `stalled_s`, not after the stalled bound;
- several at once: the same bounds;
- and a lossy, slow network makes detection slower, not wrong.
"""

from __future__ import annotations

from statistics import median

import pytest

from cluster.sim.network import ClosePort, Crash, EndWatches, Link, Pause, Resume, SetLink, Sim, Slow, Start, Vanish
from cluster.swim.events import Evidence, MemberState
from tests.sim.invariants import (
    converges,
    hint,
    holds_dead,
    nobody_dies_falsely,
    seeds,
    settled,
    silent_bound_s,
    stalled_bound_s,
)

GONE_S = 0.020
SLOWLY_GONE_S = 0.080
REFUSED, SILENT, STALLED, SUPERSEDED = Evidence.REFUSED, Evidence.SILENT, Evidence.STALLED, Evidence.SUPERSEDED


@pytest.mark.parametrize("seed", seeds(12))
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_a_killed_process_is_known_dead_to_all_within_20_ms(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    session = sim.nodes["n2"].session
    sim.at(2.0, Crash("n2"))
    sim.run_until(2.5)
    holds_dead(sim, session, 2.0, GONE_S, {REFUSED})
    sim.run_until(10.0)
    nobody_dies_falsely(sim)


@pytest.mark.parametrize("seed", seeds(2))
def test_a_killed_process_is_known_dead_to_all_of_64(seed: int) -> None:
    sim = settled(seed, 64)
    session = sim.nodes["n9"].session
    sim.at(2.0, Crash("n9"))
    sim.run_until(2.2)
    holds_dead(sim, session, 2.0, GONE_S, {REFUSED})


@pytest.mark.parametrize("seed", seeds(10))
def test_a_quarter_killed_at_once_is_known_dead_soon(seed: int) -> None:
    sim = settled(seed, 16)
    killed = ("n2", "n3", "n9", "n16")
    for name in killed:
        sim.at(2.0, Crash(name))
    sim.run_until(8.0)
    for name in killed:
        holds_dead(sim, sim.nodes[name].session, 2.0, 0.1, {REFUSED})
    nobody_dies_falsely(sim)


@pytest.mark.parametrize("seed", seeds(10))
@pytest.mark.parametrize("nodes", [3, 4, 5, 16])
def test_all_but_one_killed_at_once_is_known_to_the_survivor(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    killed = [name for name in sim.nodes if name != "n1"]
    for name in killed:
        sim.at(2.0, Crash(name))
    sim.run_until(12.0)
    bound_s = GONE_S if nodes <= 4 else 2 * sim.config.probe_interval_s + 2 * sim.config.probe_timeout_s
    for name in killed:
        holds_dead(sim, sim.nodes[name].session, 2.0, bound_s, {REFUSED})


@pytest.mark.parametrize("seed", seeds(12))
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_a_process_that_dies_slowly_is_known_dead_to_all_within_80_ms(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    session = sim.nodes["n2"].session
    sim.at(2.0, Crash("n2", closes_s=(0.001, 0.030)))
    sim.run_until(3.0)
    holds_dead(sim, session, 2.0, SLOWLY_GONE_S, {REFUSED})


@pytest.mark.parametrize("seed", seeds(12))
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_a_syn_dropped_by_a_dying_process_costs_one_short_try(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    session = sim.nodes["n2"].session
    sim.at(2.0, Crash("n2", closes_s=(0.001, 0.030), syn_loss=0.7))
    sim.run_until(3.0)
    holds_dead(sim, session, 2.0, SLOWLY_GONE_S + 0.2 * sim.config.probe_timeout_s, {REFUSED})


@pytest.mark.parametrize("seed", seeds(8))
@pytest.mark.parametrize("nodes", [2, 3, 16])
def test_where_kernels_do_not_tell_of_udp_a_killed_process_has_a_little_longer(nodes: int, seed: int) -> None:
    sim = settled(seed, nodes)
    sim.at(2.0, SetLink(Link(icmp=False)))
    session = sim.nodes["n2"].session
    sim.at(2.0, Crash("n2"))
    sim.run_until(3.0)
    holds_dead(sim, session, 2.0, GONE_S + 0.25 * sim.config.probe_timeout_s, {REFUSED})


@pytest.mark.parametrize("seed", seeds(8))
@pytest.mark.parametrize("lag_s", [0.0, 0.05])
def test_a_live_node_whose_tcp_port_is_closed_is_not_dead(lag_s: float, seed: int) -> None:
    sim = settled(seed, 16)
    sim.at(2.0, Slow("n3", lag_s))
    sim.at(2.0, ClosePort("n3"))
    sim.run_until(30.0)
    nobody_dies_falsely(sim)


@pytest.mark.parametrize("seed", seeds(6))
@pytest.mark.parametrize("after_s", [0.001, 0.005, 0.050])
def test_a_newer_life_on_the_same_address_ends_the_earlier_at_once(after_s: float, seed: int) -> None:
    sim = settled(seed, 16)
    session = sim.nodes["n4"].session
    sim.at(2.0, Crash("n4"))
    sim.at(2.0 + after_s, Start("n4"))
    sim.run_until(2.0 + after_s + 0.001)
    converges(sim, 0.1)
    holds_dead(sim, session, 2.0, after_s + 0.1, {REFUSED, SUPERSEDED})
    sim.run_until(6.0)
    assert sim.is_converged(), hint(sim)
    nobody_dies_falsely(sim)


@pytest.mark.parametrize("nodes", [2, 3, 5, 16])
def test_a_host_that_is_gone_is_known_within_the_bound_and_mostly_in_two_seconds(nodes: int) -> None:
    took_s = []
    for seed in seeds(15):
        sim = settled(seed, nodes)
        session = sim.nodes["n2"].session
        sim.at(2.0, Vanish("n2"))
        bound_s = silent_bound_s(sim.config, nodes)
        sim.run_until(2.0 + bound_s)
        took_s.append(holds_dead(sim, session, 2.0, bound_s, {SILENT}))
        nobody_dies_falsely(sim)
    assert median(took_s) <= 2.5, sorted(took_s)


@pytest.mark.parametrize("seed", seeds(6))
def test_a_hung_process_has_its_time_and_no_more_and_comes_back(seed: int) -> None:
    sim = settled(seed, 16)
    session = sim.nodes["n3"].session
    sim.at(2.0, Pause("n3"))
    bound_s = stalled_bound_s(sim.config, 16)
    sim.run_until(2.0 + bound_s)
    holds_dead(sim, session, 2.0, bound_s, {STALLED})
    assert min(sim.known_dead_s(session).values()) >= 2.0 + sim.config.stalled_s, hint(sim)
    sim.at(sim.now_s, Resume("n3"))
    sim.run_until(sim.now_s + 0.001)
    converges(sim, 0.5)


@pytest.mark.parametrize("seed", seeds(6))
def test_a_process_that_hangs_and_is_then_killed_is_dead_at_once(seed: int) -> None:
    sim = settled(seed, 16)
    session = sim.nodes["n3"].session
    sim.at(2.0, Pause("n3"))
    sim.at(4.0, Crash("n3"))
    sim.run_until(5.0)
    holds_dead(sim, session, 4.0, GONE_S, {REFUSED})


@pytest.mark.parametrize("seed", seeds(6))
def test_watches_that_end_on_a_live_member_accuse_nobody(seed: int) -> None:
    sim = settled(seed, 16)
    for step in range(20):
        sim.at(2.0 + 0.3 * step, EndWatches("n3"))
    sim.run_until(10.0)
    nobody_dies_falsely(sim)
    assert sim.total("suspicions") == 0, hint(sim)


@pytest.mark.parametrize("seed", seeds(10))
def test_a_crash_on_a_bad_network_is_known_to_all(seed: int) -> None:
    sim = Sim(seed, nodes=7, link=Link(loss=0.05, tcp_loss=0.05, delay_s=(0.001, 0.040), duplicate=0.1, reorder=0.1))
    sim.run_until(5.0)
    session = sim.nodes["n3"].session
    sim.at(5.0, Crash("n3"))
    bound_s = silent_bound_s(sim.config, nodes=7)
    sim.run_until(5.0 + bound_s)
    took_s = holds_dead(sim, session, 5.0, bound_s, {REFUSED, SILENT})
    assert took_s < 1.0 or sim.evidence_of(session) == {SILENT}, hint(sim)
    nobody_dies_falsely(sim)


@pytest.mark.parametrize("seed", seeds(5))
def test_a_host_that_goes_while_a_third_of_all_packets_is_lost_is_known(seed: int) -> None:
    sim = settled(seed, 16)
    sim.at(2.0, SetLink(Link(loss=0.3, tcp_loss=0.3)))
    session = sim.nodes["n5"].session
    sim.at(3.0, Vanish("n5"))
    bound_s = silent_bound_s(sim.config, 16) + 1.0
    sim.run_until(3.0 + bound_s)
    holds_dead(sim, session, 3.0, bound_s, {SILENT})
    nobody_dies_falsely(sim)
    assert {state for name in sim.nodes if name != "n5" for state in sim.views_of(name).values()} <= {
        MemberState.ALIVE,
        MemberState.SUSPECT,
    }, hint(sim)
