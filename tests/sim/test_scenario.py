"""Scenarios as text: what they mean, that they replay, that the verdict sees what is wrong, and many drawn ones.

Invariants of a drawn scenario (see `cluster.sim.scenario`): deaths are known in time, none is false, and in the end
there is one view.
"""

from __future__ import annotations

import re

import pytest

from cluster.config import Config
from cluster.sim.network import Link
from cluster.sim.scenario import GOOD, KINDS, Malformed, detections, main, parse, play, problems, timeline
from tests.sim.invariants import hint, seeds

NAMES = ("n1", "n2", "n3", "n4", "n5")
ALL = (
    "crash:n2@4-8,dying:n3@5,pause:n4@6-8,slow:n5:0.1@6-9,cut:n2+n6@12-16,oneway:n7@17-19,loss:0.2@20-22,port:n8@9,"
    "join:late@23,leave:n6@24,vanish:n7@25,icmp@10"
)


def test_a_text_says_what_when_and_until_when() -> None:
    doings = parse("cut:n1+n2@25-60.5, crash:n3@5", NAMES, 1)
    assert [str(doing) for doing in doings] == ["crash:n3@5", "cut:n1+n2@25-60.5"]


@pytest.mark.parametrize(
    "text",
    [
        *("crash", "crash:n3", "crash:n9@5", "crash:n3@1", "crash:n3@5-4", "crash:n3@soon", "flood:n3@5", "pause:n3@5"),
        *("loss:2@5-6", "loss:some@5-6", "loss:0.3@5", "cut:n1+n9@5-6", "slow:n3:fast@5-6", "random:x@5-6", "@5"),
    ],
)
def test_what_is_no_scenario_is_named(text: str) -> None:
    with pytest.raises(Malformed, match="^'?" + re.escape(text.partition("@")[0])):
        parse(text, NAMES, 1)


def test_the_same_seed_draws_and_plays_the_same_and_another_does_not() -> None:
    shown = ["\n".join(timeline(*play(6, seed, "random:5@4-10"))) for seed in (3, 3, 4)]
    assert shown[0] == shown[1] != shown[2]


def test_every_kind_of_fault_can_be_played() -> None:
    sim, doings = play(10, 5, ALL)
    assert {doing.kind for doing in doings} | {"random"} == set(KINDS)
    assert problems(sim, doings) == [], hint(sim)
    text = "\n".join(timeline(sim, doings))
    for line in ("** crash:n2@4-8", "n3 dead (refused)", "late alive", "n6 left", "n7 dead (silent)"):
        assert line in text


@pytest.mark.parametrize("seed", seeds(20))
def test_a_drawn_scenario_ends_as_it_must(seed: int) -> None:
    sim, doings = play(8, seed, "random:10@4-20")
    assert problems(sim, doings) == [], hint(sim)


@pytest.mark.parametrize("seed", seeds(10))
def test_a_drawn_scenario_on_a_bad_network_ends_as_it_must(seed: int) -> None:
    sim, doings = play(6, seed, "random:6@4-15", Link(loss=0.05, tcp_loss=0.05, delay_s=(0.001, 0.040)))
    assert problems(sim, doings) == [], hint(sim)


# ---- the verdict


def test_a_false_death_is_wrong() -> None:
    hasty = Config(stalled_s=0.6, suspicion_min_s=0.3, suspicion_max_s=0.6)
    sim, doings = play(6, 1, "pause:n3@5-8", config=hasty)
    assert "held n3 dead (stalled), which was running" in problems(sim, doings)[0]


def test_a_death_across_a_cut_is_not() -> None:
    sim, doings = play(6, 1, "cut:n3@5-15")
    assert sim.false_deaths()
    assert problems(sim, doings) == []


def test_a_late_death_is_wrong() -> None:
    slow = Config(probe_interval_s=3600.0, watch_peers=0)
    sim, doings = play(4, 1, "crash:n3@5", config=slow)
    assert any("known to all after" in problem for problem in problems(sim, doings))


def test_views_that_differ_are_wrong() -> None:
    sim, doings = play(4, 1, "crash:n3@5")
    assert problems(sim, doings) == []
    sim.nodes["n2"].is_paused = True  # It no longer runs, and nobody knows.
    assert problems(sim, doings) == ["views differ 12 s after the last fault"]


def test_a_death_has_its_time() -> None:
    sim, doings = play(6, 1, "crash:n3@5,vanish:n4@7")
    took = [took_s for took_s, _, _ in detections(sim, doings)]
    assert took[0] is not None
    assert took[1] is not None
    assert 0 < took[0] < 0.02 < 1 < took[1] < 5


# ---- the command line


def test_one_seed_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes=6", "--seed=7", "--faults=crash:n3@5"]) == 0
    output = capsys.readouterr().out
    assert "n3 dead (refused)" in output
    assert "seed 7: all is as it must be" in output


def test_of_many_seeds_the_wrong_ones_are_shown_with_how_to_see_them_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--nodes=4", "--seeds=3", "--faults=crash:n3@5"]) == 0
    assert capsys.readouterr().out == "3 seeds, 0 of them wrong\n"
    monkeypatch.setattr("cluster.sim.scenario.REFUSED_BOUND_S", 0.0001)
    assert main(["--nodes=4", "--seeds=1", "--seed=2", "--faults=crash:n3@5"]) == 1
    assert main(["--nodes=4", "--seeds=2", "--faults=crash:n3@5"]) == 1
    output = capsys.readouterr().out
    assert "replay: python -m cluster.sim --nodes 4 --seed 2 --faults 'crash:n3@5' --loss 0 --delay-ms 0.2 1" in output


def test_a_mistake_on_the_command_line_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--faults=crash:nobody@5"])
    assert "there is no node 'nobody'" in capsys.readouterr().err


def test_the_good_network_is_the_default() -> None:
    assert Link() == GOOD
