"""Who is fenced and who is not: the vitals' own code beside gossip's, on a simulated network and a model of Redis.

Invariants, in clusters of 2 to 64 nodes:
- a process that ends is fenced within some ms after gossip knows; two, many, all but one at once too;
- a host that answers nothing is fenced once gossip holds it dead and its heartbeat is stale; a process that hangs,
  after stalled_s;
- a process that lives is not fenced under any two faults (splits, one-way and rejecting cuts, no Redis, stops, kills of
  others, lost subscriptions), unless it was silent to all for suspicion_min_s, hung for stalled_s, or was refused by
  all while it had no subscriber; `Court` says which, as the rule's model does;
- calm costs nothing: no look and no word while nobody is in doubt.

The runs with a name are the shortest ones in which weaker rules (both witnesses of one node; a majority; unanimous
gossip) fence the living.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

import pytest

from cluster.sim.network import Crash, Cut, Link, Pause, Resume, Start, Vanish
from tests.sim.court import Court, Tombstone
from tests.sim.invariants import hint, seeds

BEGIN_S = 4.0
AFTER_S = 9.0  # longer than stalled_s and all that comes before it
# A kill is known by gossip within some 10 ms here; a look, a word and Redis's own notice of the end come on top.
KILL_BOUND_S = 0.030


@contextmanager
def court(seed: int, nodes: int) -> Iterator[Court]:
    """A cluster in which all know all, at BEGIN_S."""
    sim = Court(seed, nodes)
    try:
        sim.run_until(BEGIN_S)
        assert sim.is_converged(), hint(sim)
        assert (sim.fences, sim.calls["vote"], sim.stats["looks"]) == ([], 0, 0), "calm costs nothing"
        yield sim
    finally:
        sim.close()


def names(sim: Court) -> list[str]:
    return list(sim.nodes)


def end(sim: Court, victims: list[str], how: Callable[[str], Crash | Vanish], within_s: float) -> list[float]:
    """End these at once; how long each fence took. Nobody else is fenced."""
    sessions = {sim.nodes[name].session for name in victims}
    began_s = sim.now_s
    for name in victims:
        sim.at(began_s, how(name))
    sim.run_until(began_s + within_s)
    assert {fence.session for fence in sim.fences} == sessions, f"{sim.fences}\n{hint(sim)}"
    return [fence.at_s - began_s for fence in sim.fences]


@pytest.mark.parametrize("seed", seeds(5))
@pytest.mark.parametrize("nodes", [2, 3, 5, 16])
def test_a_process_that_ends_is_fenced_at_once(nodes: int, seed: int) -> None:
    with court(seed, nodes) as sim:
        assert max(end(sim, ["n2"], Crash, 2.0)) < KILL_BOUND_S, hint(sim)
        assert sim.calls["vote"] <= 2 * nodes, "each survivor says its word once, perhaps once more"


@pytest.mark.parametrize(("nodes", "dead"), [(2, 2), (3, 2), (5, 2), (16, 5)])
@pytest.mark.parametrize("seed", seeds(4))
def test_processes_that_end_together_do_not_wait_for_each_others_words(nodes: int, dead: int, seed: int) -> None:
    """A juror that is refused and has no subscriber is not waited for. The whole pair of 2: its next life fences it."""
    with court(seed, nodes) as sim:
        victims = names(sim)[-dead:]
        if dead == nodes:
            begun = [sim.nodes[name].session for name in victims]
            for name in victims:
                sim.at(BEGIN_S, Crash(name))
            sim.run_until(BEGIN_S + 1.0)
            sim.at(BEGIN_S + 1.0, Start(victims[0]))
            sim.run_until(BEGIN_S + 8.0)
            assert {fence.session for fence in sim.fences} == set(begun), hint(sim)
        else:
            assert max(end(sim, victims, Crash, 2.0)) < KILL_BOUND_S, hint(sim)


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("nodes", [3, 5, 16])
def test_the_last_one_fences_all_others(nodes: int, seed: int) -> None:
    """Gossip takes a round or a suspicion to be sure; the fences follow within a beat."""
    with court(seed, nodes) as sim:
        victims = names(sim)[1:]
        end(sim, victims, Crash, 4.0)
        known_s = max(max(sim.known_dead_s(fence.session).values()) for fence in sim.fences)
        assert max(fence.at_s for fence in sim.fences) - known_s < 0.3, hint(sim)


def test_in_a_large_cluster_every_survivor_speaks_and_it_stays_as_fast() -> None:
    with court(1, 64) as sim:
        assert max(end(sim, ["n7"], Crash, 1.0)) < KILL_BOUND_S, hint(sim)
        assert sim.calls["vote"] <= 2 * 64
    with court(2, 64) as sim:
        assert max(end(sim, names(sim)[10:18], Crash, 2.0)) < 2 * KILL_BOUND_S, hint(sim)


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize(("nodes", "dead"), [(2, 1), (3, 1), (5, 2), (16, 1)])
def test_a_host_that_is_gone_is_fenced_by_both_silences(nodes: int, dead: int, seed: int) -> None:
    with court(seed, nodes) as sim:
        took_s = end(sim, names(sim)[-dead:], Vanish, AFTER_S)
        assert max(took_s) < 5.0, f"{took_s}\n{hint(sim)}"


@pytest.mark.parametrize("seed", seeds(3))
def test_a_process_that_hangs_is_fenced_after_stalled_s(seed: int) -> None:
    with court(seed, 4) as sim:
        sim.at(BEGIN_S, Pause("n2"))
        sim.run_until(BEGIN_S + 4.9)
        assert sim.fences == []
        sim.run_until(BEGIN_S + 8.0)
        assert [fence.standing for fence in sim.fences] == ["hung"], hint(sim)


@pytest.mark.parametrize("seed", seeds(3))
def test_a_process_that_is_killed_while_another_one_hangs_waits_only_until_that_one_is_stale(seed: int) -> None:
    with court(seed, 4) as sim:
        sim.at(BEGIN_S, Pause("n3"))
        sim.at(BEGIN_S + 1.5, Resume("n3"))
        (took_s,) = end(sim, ["n2"], Crash, 4.0)
        assert took_s < 1.8, hint(sim)
        assert {why for *_, why in sim.held_up} == {"no word from n3, which may hear it"}, "people are told"


@pytest.mark.parametrize("after_s", [0.02, 0.05, 0.5])
@pytest.mark.parametrize("seed", seeds(4))
def test_a_process_that_is_started_again_at_once_takes_the_place_of_its_earlier_life(after_s: float, seed: int) -> None:
    """Its next life answers at its address: so the earlier one is gone, whatever is refused or accepted there now."""
    with court(seed, 4) as sim:
        earlier = sim.nodes["n2"].session
        sim.at(BEGIN_S, Crash("n2"))
        sim.at(BEGIN_S + after_s, Start("n2"))
        sim.run_until(BEGIN_S + 4.0)
        assert [fence.session for fence in sim.fences] == [earlier], hint(sim)
        assert sim.fences[0].at_s - BEGIN_S < 1.0, f"{sim.fences}\n{hint(sim)}"


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("near", [1, 2, 3, 4])
def test_a_process_that_is_killed_in_an_old_split_is_fenced_by_the_words_of_both_sides(near: int, seed: int) -> None:
    """Its side was refused. The others hold it dead for a cut; they are asked, and say that they know no more."""
    with court(seed, 5) as sim:
        side = tuple(names(sim)[:near])
        sim.at(BEGIN_S, Cut(side, tuple(names(sim)[near:])))
        sim.run_until(BEGIN_S + 12.0)
        assert sim.fences == []
        (took_s,) = end(sim, ["n1"], Crash, 8.0)
        # Who is alone on his side is refused by nobody: all abstain, which counts after stalled_s.
        assert took_s < (0.3 if near > 1 else 7.0), f"{took_s}\n{hint(sim)}"


# ---- the living


def spared(sim: Court, until_s: float) -> list[Tombstone]:
    """Nobody who lives is fenced until then. The fences of those who ended, or were silent to all."""
    sim.run_until(until_s)
    false = [fence for fence in sim.fences if fence.is_false]
    assert not false, f"{false}\n{hint(sim)}"
    return sim.fences


@pytest.mark.parametrize("seed", seeds(8))
def test_a_node_that_hears_nobody_fences_nobody_who_is_stopped_for_a_moment(seed: int) -> None:
    with court(seed, 5) as sim:
        sim.at(BEGIN_S, Cut(("n3",), ("n1", "n2", "n4", "n5")))
        sim.at(12.0, Pause("n1"))
        sim.at(14.0, Resume("n1"))
        assert spared(sim, 20.0) == []


@pytest.mark.parametrize("seed", seeds(8))
def test_a_node_that_hears_nobody_fences_nobody_who_lost_redis_for_a_moment(seed: int) -> None:
    with court(seed, 5) as sim:
        sim.at(BEGIN_S, Cut(("n3",), ("n1", "n2", "n4", "n5")))
        sim.no_redis(12.0, "n1", until_s=16.0)
        assert spared(sim, 22.0) == []


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("stopped", ["n1", "n4"])
def test_no_side_of_a_split_fences_one_of_the_other_who_is_stopped_for_a_moment(stopped: str, seed: int) -> None:
    with court(seed, 5) as sim:
        sim.at(BEGIN_S, Cut(("n1", "n2"), ("n3", "n4", "n5")))
        sim.at(12.0, Pause(stopped))
        sim.at(14.0, Resume(stopped))
        assert spared(sim, 20.0) == []


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("nodes", [4, 5])
def test_a_majority_does_not_fence_who_was_cut_off_and_stopped_together_with_a_peer_that_hears_its_kernel(
    nodes: int, seed: int
) -> None:
    with court(seed, nodes) as sim:
        sim.at(BEGIN_S, Cut(("n1", "n2"), tuple(names(sim)[2:])))
        sim.at(BEGIN_S, Pause("n1"))
        sim.at(BEGIN_S + 4.5, Resume("n1"))
        assert spared(sim, 16.0) == []


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_who_was_cut_off_long_ago_is_not_fenced_when_it_is_stopped_for_a_moment(nodes: int, seed: int) -> None:
    with court(seed, nodes) as sim:
        sim.at(BEGIN_S, Cut(("n1",), tuple(names(sim)[1:])))
        sim.at(12.0, Pause("n1"))
        sim.at(14.0, Resume("n1"))
        assert spared(sim, 20.0) == []


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("nodes", [3, 5])
def test_when_nobody_hears_anybody_unanimity_is_worth_nothing(nodes: int, seed: int) -> None:
    with court(seed, nodes) as sim:
        for name in names(sim):
            sim.at(BEGIN_S, Cut((name,), tuple(other for other in names(sim) if other > name)))
        sim.at(12.0, Pause("n1"))
        sim.at(15.0, Resume("n1"))
        assert spared(sim, 22.0) == []


@pytest.mark.parametrize("seed", seeds(8))
def test_a_refusal_by_two_that_is_told_to_all_does_not_fence_who_resubscribes(seed: int) -> None:
    with court(seed, 5) as sim:
        sim.reject(BEGIN_S, ["n1"], ["n2", "n3"], BEGIN_S + 3.0)
        sim.resubscribe(BEGIN_S + 0.1 * seed, "n1", for_s=0.4)
        assert spared(sim, 14.0) == []


@pytest.mark.parametrize("seed", seeds(4))
def test_a_firewall_that_refuses_in_the_name_of_a_stopped_process_proves_nothing(seed: int) -> None:
    with court(seed, 3) as sim:
        sim.at(BEGIN_S, Pause("n1"))
        sim.reject(BEGIN_S + 1.5, ["n1"], ["n2", "n3"], BEGIN_S + 4.5)
        sim.at(BEGIN_S + 4.5, Resume("n1"))
        assert spared(sim, 14.0) == []


@pytest.mark.parametrize("seed", seeds(4))
def test_the_testimony_of_a_witness_outlives_it(seed: int) -> None:
    """n2 alone hears n1, which the others and Redis have lost; then n2 is stopped. n1 has a lease."""
    with court(seed, 3) as sim:
        sim.at(BEGIN_S, Cut(("n1",), ("n3",)))
        sim.at(BEGIN_S, Cut(("n2",), ("n3",)))
        sim.no_redis(8.0, "n1", until_s=12.0)
        sim.at(9.5, Pause("n2"))
        sim.at(11.0, Resume("n2"))
        assert spared(sim, 18.0) == []


@pytest.mark.parametrize("seed", seeds(3))
def test_a_loss_of_a_third_of_all_packets_fences_nobody(seed: int) -> None:
    with court(seed, 5) as sim:
        sim.link = Link(loss=0.3, tcp_loss=0.3)
        assert spared(sim, 40.0) == []


@pytest.mark.parametrize("seed", seeds(30))
@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_no_two_faults_fence_a_process_that_lives_and_is_heard(nodes: int, seed: int) -> None:
    with court(seed, nodes) as sim:
        until_s = hurt(sim, Random(f"two faults {nodes} {seed}"), 2)
        spared(sim, until_s + AFTER_S)


GAPS_S = (0.0, 0.02, 0.2, 0.5, 0.8, 1.0, 1.3, 1.7, 2.2, 3.0, 4.0, 6.0)
LENGTHS_S = (0.3, 0.8, 1.2, 1.6, 2.0, 2.6, 3.5, 4.7, 9.0)


def hurt(sim: Court, dice: Random, count: int) -> float:
    """Draw faults, one after another. When the last of them begins."""
    at_s, ended = BEGIN_S, set[str]()
    for number in range(count):
        at_s += dice.choice(GAPS_S) * dice.uniform(0.8, 1.2) if number else dice.uniform(0.0, 0.5)
        until_s = at_s + dice.choice(LENGTHS_S)
        side = dice.sample(names(sim), dice.randint(1, len(names(sim)) - 1))
        one, rest = side[0], [name for name in names(sim) if name not in side]
        others = [name for name in names(sim) if name != one]
        match dice.choice(("split", "reject", "deaf", "mute", "redis", "pause", "kill", "vanish", "subscribe", "rack")):
            case "split":
                sim.cut(at_s, Cut(tuple(side), tuple(rest)), until_s)
            case "reject":
                sim.reject(at_s, side, rest, until_s)
            case "deaf":
                sim.cut(at_s, Cut(tuple(others), (one,), one_way=True), until_s)
            case "mute":
                sim.cut(at_s, Cut((one,), tuple(others), one_way=True), until_s)
            case "redis":
                sim.no_redis(at_s, *side, until_s=until_s)
            case "rack":
                sim.cut(at_s, Cut(tuple(side), tuple(rest)), until_s)
                sim.no_redis(at_s, *side, until_s=until_s)
            case "subscribe":
                sim.resubscribe(at_s, *side)
            case "pause" if one not in ended:
                sim.at(at_s, Pause(one))
                sim.at(min(until_s, at_s + 4.7), Resume(one))
                ended.add(one)
            case "kill" | "vanish" as how if one not in ended:
                sim.at(at_s, Crash(one) if how == "kill" else Vanish(one))
                ended.add(one)
    return at_s
