"""Cuts as words, as pairs and as rules; and the table of beliefs."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.lab import beliefs_table
from node.lab.cuts import REDIS, USAGE, BadCut, Cut, merge, parse, read, restore_text, rules

NODES = (1, 2, 3, 4, 5)
ADDRESSES = {REDIS: "10.0.0.10", **{number: f"10.0.0.{10 + number}" for number in NODES}}


def pairs(text: str) -> set[tuple[int, int]]:
    return {pair for cut in parse(text.split(), NODES) for pair in cut.pairs(NODES)}


def rules_of(text: str, own: int) -> list[str]:
    return [shlex.join(rule) for rule in rules(parse(text.split(), NODES), ADDRESSES, own)]


def both(one: int, *others: int) -> set[tuple[int, int]]:
    return {(one, other) for other in others} | {(other, one) for other in others}


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("split 1,2 3,4,5", both(1, 3, 4, 5) | both(2, 3, 4, 5)),
        ("split 1 2 3", both(1, 2, 3) | both(2, 3)),
        ("split 1,2 3,redis", both(1, 3, REDIS) | both(2, 3, REDIS)),
        ("isolate 3", both(3, 1, 2, 4, 5, REDIS)),
        ("no-gossip 3", both(3, 1, 2, 4, 5)),
        ("no-redis 3", both(3, REDIS)),
        ("no-redis 1,2", both(1, REDIS) | both(2, REDIS)),
        ("oneway 2 4", {(2, 4)}),
        ("oneway 2 redis", {(2, REDIS)}),
        ("oneway 1,2 4", {(1, 4), (2, 4)}),
        ("loss 3 30%", both(3, 1, 2, 4, 5, REDIS)),
        ("reject 3", both(3, 1, 2, 4, 5)),
    ],
)
def test_a_cut_takes_away_exactly_the_packets_it_names(text: str, lost: set[tuple[int, int]]) -> None:
    assert pairs(text) == lost


def test_what_a_node_would_receive_is_dropped_by_its_own_firewall_and_redis_is_cut_at_the_node() -> None:
    comment = "-m comment --comment 'oneway 2 4'"
    assert rules_of("oneway 2 4", own=4) == [f"-s 10.0.0.12 {comment} -j DROP"]
    assert rules_of("oneway 2 4", own=2) == [], "the sender does not learn of it from its kernel"
    comment = "-m comment --comment 'no-redis 2'"
    assert rules_of("no-redis 2", own=2) == [f"-d 10.0.0.10 {comment} -j DROP", f"-s 10.0.0.10 {comment} -j DROP"]
    assert rules_of("no-redis 2", own=1) == []


def test_a_reject_resets_tcp_and_drops_the_rest() -> None:
    named = "-s 10.0.0.13 -m comment --comment 'reject 3'"
    assert rules_of("reject 3", own=1) == [
        f"{named} '!' -p tcp -j DROP",
        f"{named} -p tcp '!' --tcp-flags RST RST -j REJECT --reject-with tcp-reset",
    ]


def test_what_one_cut_drops_no_other_answers() -> None:
    chosen = parse(["reject", "3"], NODES) + parse(["split", "1,2", "3,4,5"], NODES)
    targets = ["REJECT" in rule for rule in rules(chosen, ADDRESSES, 1)]
    assert targets == sorted(targets)


def test_a_later_loss_takes_the_place_of_the_earlier_one_and_other_cuts_add_up() -> None:
    in_force = parse(["loss", "3", "30%"], NODES) + parse(["no-redis", "3"], NODES)
    more = parse(["loss", "3", "50%"], NODES) + parse(["loss", "2", "10"], NODES) + parse(["no-redis", "3"], NODES)
    assert [str(cut) for cut in merge(in_force, more)] == ["loss 2 10%", "loss 3 50%", "no-redis 3"]


def test_a_party_that_does_not_run_gets_no_rule_and_is_in_none() -> None:
    running = {number: address for number, address in ADDRESSES.items() if number != 4}
    cut = Cut("split", ((1, 2), (3, 4, 5)))
    assert len(rules([cut], running, 1)) == 2
    assert rules([cut], running, 4) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("isolate 9", "'9' is no node that runs here"),
        ("isolate three", "'three' is no node"),
        ("isolate \u00b2", "is no node"),
        ("isolate redis", "'redis' is no node"),
        ("isolate", "isolate takes 1 word, not 0"),
        ("isolate 1 2", "isolate takes 1 word, not 2"),
        ("split 1,2", "split takes 2 words, not 1"),
        ("split 1,2 2,3", "the groups overlap"),
        ("oneway 2 2", "cannot be cut off from itself"),
        ("loss 3 0%", "'0%' is not a share of all packets"),
        ("loss 3 101%", "'101%' is not a share"),
        ("loss 3 some", "'some' is not a share"),
        ("cut 3", "'cut' is no cut"),
    ],
)
def test_words_that_mean_no_cut_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadCut) as caught:
        parse(text.split(), NODES)
    assert reason in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("verb", USAGE)
def test_every_example_of_the_help_is_a_cut_and_its_words_lead_back_to_it(verb: str) -> None:
    for cut in parse([verb, *USAGE[verb][0].split()], NODES):
        assert parse(str(cut).split(), NODES) == [cut]


@given(st.sampled_from(list(USAGE)), st.integers(1, 5))
def test_what_is_written_into_a_firewall_is_read_back(verb: str, own: int) -> None:
    chosen = parse([verb, *USAGE[verb][0].split()], NODES)
    made = rules(chosen, ADDRESSES, own)
    saved = "\n".join(f"[2:84] {line}" if line.startswith("-A") else line for line in restore_text(made).splitlines())
    found = read(saved)
    assert found is not None
    assert found.packets == 2 * len(made)
    assert dict(found.rules) == ({str(chosen[0]): len(made)} if made else {})


def test_a_firewall_without_our_chain_holds_nothing_of_ours() -> None:
    assert read("*filter\n:INPUT ACCEPT [0:0]\n[1:2] -A INPUT -s 10.0.0.1/32 -j DROP\nCOMMIT\n") is None


def member(node_id: str, state: str, redis: str, verdict: str) -> dict[str, Any]:
    return {"node_id": node_id, "state": state, "redis": redis, "verdict": verdict}


def test_the_table_shows_both_witnesses_the_leader_the_owners_and_who_does_not_answer() -> None:
    view = {
        "members": [member("a", "alive", "live", "healthy"), member("b", "dead", "unknown", "cut_from_peers")],
        "leader": {"node_id": "a", "epoch": 3},
        "shards": {"0": "a", "1": "a", "2": "b"},
    }
    lines = beliefs_table.table({1: view, 2: None, 3: {**view, "leader": None}}, {1: "a", 2: "b", 3: "c"}).splitlines()
    assert lines[0].endswith("  shards of  1  2  3")
    assert lines[1].split() == ["node", "1", "alive/live", "dead/?", "unknown", "1", "(epoch", "3)", "2", "1", "0"]
    assert lines[2].split() == ["node", "2", "no", "answer"]
    assert "none" in lines[3]


def test_colours_take_no_room() -> None:
    view = {"members": [member("a", "alive", "live", "healthy")], "leader": None, "shards": {}}
    plain, coloured = (beliefs_table.table({1: view}, {1: "a"}, colour=colour) for colour in (False, True))
    assert coloured != plain
    for code in (beliefs_table.GREEN, beliefs_table.YELLOW, beliefs_table.RED, beliefs_table.OFF):
        coloured = coloured.replace(code, "")
    assert coloured == plain
