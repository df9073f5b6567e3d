"""What must hold in simulated runs, whatever the workload; each check prints the seed and how to run it again."""

from __future__ import annotations

import os

from cluster.config import Config
from cluster.session import node_of
from cluster.sim.network import Sim
from cluster.sim.scenario import silent_bound_s as silent_bound_s  # the tests import the bounds from here
from cluster.sim.scenario import stalled_bound_s as stalled_bound_s
from cluster.swim.events import Evidence, MemberState


def seeds(count: int) -> list[int]:
    """Seeds of one test. RUMOR_SIM_SEEDS multiplies them; RUMOR_SIM_SEED runs just that one."""
    only = os.environ.get("RUMOR_SIM_SEED")
    return [int(only)] if only else list(range(count * int(os.environ.get("RUMOR_SIM_SEEDS", "1"))))


def hint(sim: Sim) -> str:
    """The seed, the faults, and the command that runs this test again with that seed."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "tests/sim").partition("[")[0]
    return f"{sim.replay_hint()}\nreplay: RUMOR_SIM_SEED={sim.seed} python -m pytest '{test}'"


def settled(seed: int, nodes: int, config: Config | None = None, *, has_registry: bool = False) -> Sim:
    """A cluster at 2 s, in which all know all."""
    sim = Sim(seed, nodes, config=config, has_registry=has_registry)
    sim.run_until(2.0)
    assert sim.is_converged(), hint(sim)
    return sim


def holds_dead(sim: Sim, session: str, since_s: float, within_s: float, evidence: set[Evidence]) -> float:
    """All others hold the session dead within the bound, by evidence of these kinds. Returns how long the last took."""
    known_s = sim.known_dead_s(session)
    missing = [node.name for node in sim.running() if node.name not in (*known_s, node_of(session))]
    assert not missing, f"{missing} do not know of the death of {session}\n{hint(sim)}"
    took_s = max(known_s.values()) - since_s
    assert took_s <= within_s, (
        f"{session} was known dead to all after {took_s:.3f} s, bound {within_s:.3f}\n{hint(sim)}"
    )
    assert sim.evidence_of(session) <= evidence, f"{sim.evidence_of(session)}\n{hint(sim)}"
    return took_s


def nobody_dies_falsely(sim: Sim) -> None:
    """Nobody ever held a running session dead."""
    false = sim.false_deaths()
    assert not false, f"{len(false)} false deaths, the first: {false[0]}\n{hint(sim)}"


def converges(sim: Sim, within_s: float) -> float:
    """All running nodes hold exactly each other alive, within the bound. Returns how long it took."""
    began_s = sim.now_s
    assert sim.run_while(lambda: not sim.is_converged(), within_s), f"not converged after {within_s} s\n{hint(sim)}"
    return sim.now_s - began_s


def states_of(sim: Sim, name: str) -> set[MemberState | None]:
    """What the running nodes hold of a node's present session."""
    return set(sim.views_of(name).values())
