"""A member that lies, with the key, beside honest nodes that have a Redis: gossip does nothing that Redis can confirm.

Invariants, in clusters of 6 nodes, one of which lies 50 times a second to all, for 10 s, in each way of `liar.LIES`:
- no living session is held fenced or superseded, its own node included; no node gives up its session or its name;
- no session enters a table that the registry does not know, so names do not pile up, nor does anybody take another's;
- no member's address changes; no epoch far beyond the registry's is believed; all numbers stay small;
- when it is gone, all views are equal within CONVERGE_S, and loads are the members' own again;
- the same holds with random lies beside crashes, restarts, pauses, cuts and loss.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from cluster.sim.network import Crash, Link, Sim, Tell
from cluster.sim.scenario import CONVERGE_S, parse, stage
from cluster.swim.core import Swim
from cluster.swim.events import Evidence, MemberState, SetEpoch, SetLoad
from cluster.swim.plausible import INCARNATION_AHEAD
from tests.sim.invariants import converges, hint, seeds
from tests.sim.liar import LIES, Liar

LIAR = "n6"
GOOD = Link()
BEGINS_S, ENDS_S = 3.0, 13.0
EPOCH = 7


def lying(seed: int, kind: str, link: Link = GOOD, faults: str = "") -> Sim:
    """Five honest nodes; in the place of the sixth, a liar from BEGINS_S to ENDS_S."""
    sim = Sim(seed, 6, link, has_registry=True)
    names = tuple(sim.nodes)[:5]
    stage(sim, parse(faults, names, seed))
    sim.at(1.0, Crash(LIAR))
    for name in names:
        sim.at(1.5, Tell(name, SetEpoch(EPOCH)))
        sim.at(1.5, Tell(name, SetLoad(name.encode())))
    sim.run_until(BEGINS_S)
    node = sim.nodes[LIAR]
    node.life += 1
    node.session = f"{LIAR}/0019ab00000-0000000f"
    node.swim = cast(Swim, Liar(sim, LIAR, LIES[kind]))
    sim._schedule_tick(node)
    return sim


def honest(sim: Sim) -> list[Any]:
    return [node for node in sim.running() if node.name != LIAR]


def check(sim: Sim) -> None:
    """What holds in every moment."""
    places = {node.session: node.address for node in sim.nodes.values()}
    for node in honest(sim):
        assert not node.conflicts, f"{node.name}: {node.conflicts}\n{hint(sim)}"
        assert node.swim.epoch < 10_000, hint(sim)
        members = node.swim.members()
        assert len(members) <= len(sim.nodes), f"{[m.identity.session for m in members]}\n{hint(sim)}"
        for member in members:
            session = member.identity.session
            assert session in sim.registered, f"{node.name} took in {session}\n{hint(sim)}"
            assert session not in places or (member.identity.host, member.identity.port) == places[session], hint(sim)


def check_end(sim: Sim) -> None:
    for node in honest(sim):
        assert sim.evidence_of(node.session) <= {Evidence.REFUSED, Evidence.SILENT, Evidence.STALLED}, hint(sim)
        me = next(m for m in node.swim.members() if m.identity.node_id == node.name)
        assert (me.identity.session, me.state) == (node.session, MemberState.ALIVE), hint(sim)


@pytest.mark.parametrize("kind", [kind for kind in LIES if kind != "random"])
@pytest.mark.parametrize("seed", seeds(2))
def test_a_lie_takes_nobodys_tasks_session_name_or_voice(seed: int, kind: str) -> None:
    sim = lying(seed, kind)
    while sim.now_s < ENDS_S:
        sim.run_until(sim.now_s + 0.25)
        check(sim)
    sim.at(ENDS_S, Crash(LIAR))
    sim.run_until(ENDS_S + 0.001)
    converges(sim, CONVERGE_S)
    check(sim)
    check_end(sim)
    assert max(m.incarnation for node in honest(sim) for m in node.swim.members()) <= 2000 * INCARNATION_AHEAD
    # Two turns of probes: every node has heard every member at first hand.
    sim.run_until(sim.now_s + 2 * 6 * sim.config.probe_interval_s)
    for node in honest(sim):
        loads = {m.identity.node_id: m.load for m in node.swim.members() if m.state is MemberState.ALIVE}
        assert loads == {name: name.encode() for name in loads}, f"{node.name}\n{hint(sim)}"


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("kind", ["mute", "mute softly", "mute loads", "epoch 10^15", "names", "later", "fenced"])
def test_while_it_lies_that_way_members_still_hear_each_other(seed: int, kind: str) -> None:
    sim = lying(seed, kind)
    sim.run_until(BEGINS_S + 2.0)
    sim.at(BEGINS_S + 2.0, Tell("n2", SetLoad(b"busy")))
    while sim.now_s < ENDS_S:
        sim.run_until(sim.now_s + 0.25)
        for node in honest(sim):
            states = {m.identity.node_id: m.state for m in node.swim.members() if m.identity.node_id != LIAR}
            assert MemberState.DEAD not in states.values(), f"{node.name}: {states}\n{hint(sim)}"
    for node in honest(sim):
        member = sim.view(node.name, "n2")
        assert member is not None
        assert member.load == b"busy", hint(sim)


@pytest.mark.parametrize("seed", seeds(12))
def test_random_lies_beside_the_usual_faults_leave_no_trace(seed: int) -> None:
    link = Link(loss=0.02, tcp_loss=0.02, delay_s=(0.001, 0.020))
    sim = lying(seed, "random", link, "random:5@4-12")
    while sim.now_s < ENDS_S:
        sim.run_until(sim.now_s + 0.25)
        check(sim)
    sim.at(ENDS_S, Crash(LIAR))
    sim.run_until(ENDS_S + 8.0)  # The last fault is over, and what it killed is known.
    converges(sim, CONVERGE_S)
    check(sim)
    check_end(sim)


def test_a_liar_of_the_same_seed_lies_the_same() -> None:
    first, second = (lying(3, "random") for _ in range(2))
    for sim in (first, second):
        sim.run_until(6.0)
    assert first.sent == second.sent
