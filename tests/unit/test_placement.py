"""Where new tasks go: to nodes that serve the queue and have room, and not all to one that had room a moment ago."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import ring
from cluster.load import Load, Meta, QueueLoad
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, RedisWord, Verdict, View
from node.queue.placement import CHUNK_MAX, Placement, Victim, shard_of_key, victim

SHARDS = 64


def peer(name: str, queues: dict[str, int], free: int | None = None, queued: int = 0) -> Peer:
    """A healthy member; by default all its slots are free."""
    loads = {q: QueueLoad(slots if free is None else free, queued, 0) for q, slots in queues.items()}
    return Peer(
        name,
        f"{name}/018bcfe5680-00000001",
        "127.0.0.1",
        5000,
        MemberState.ALIVE,
        Evidence.NONE,
        "",
        1,
        None,
        RedisWord.LIVE,
        0.0,
        Verdict.HEALTHY,
        Load(True, False, False, loads),
        Meta(queues),
    )


def placement(me: str, *peers: Peer, seed: int = 1) -> Placement:
    """The placement of node `me`, which sees these members."""
    placing = Placement(me, SHARDS, Random(seed))
    placing.see(*seen(me, *peers))
    return placing


def seen(me: str, *peers: Peer) -> tuple[View, tuple[str, ...]]:
    """A view of these members, and the owner of each shard in it."""
    weights = {peer.node_id: sum(peer.meta.queues.values()) for peer in peers if peer.meta}
    return View(me, f"{me}/x", peers, None, 0, True, True), ring.owners(weights, SHARDS)


def spread(of: Placement, queue: str, tasks: int, own: dict[str, int]) -> Counter[str]:
    """The nodes to which that many tasks go, placed one by one."""
    return Counter(place(of, queue, own) for _ in range(tasks))


def place(of: Placement, queue: str, own: dict[str, int]) -> str:
    """The node to which the next task goes."""
    node, shard = of.choose(queue, own)
    of.placed(queue, shard, 1)
    return node


def test_only_nodes_that_serve_the_queue_are_chosen() -> None:
    placing = placement("a", peer("a", {"default": 9}), peer("b", {"default": 9, "gpu": 1}), peer("c", {"default": 9}))
    assert set(spread(placing, "gpu", 200, {})) == {"b"}


def test_a_shard_that_the_chosen_node_owns_is_chosen() -> None:
    peers = (peer("a", {"q": 4}), peer("b", {"q": 4}), peer("c", {"q": 4}))
    placing, (_, owners) = placement("a", *peers), seen("a", *peers)
    for _ in range(300):
        node, shard = placing.choose("q", {"q": 3})
        assert owners[shard] == node


def test_a_queue_that_nobody_serves_goes_to_any_shard() -> None:
    placing = placement("a", peer("a", {"q": 4}), peer("b", {"q": 4}))
    chosen = [placing.choose("gpu", {}) for _ in range(2000)]
    assert {node for node, _ in chosen} == {""}
    assert {shard for _, shard in chosen} == set(range(SHARDS))


def test_without_a_view_any_shard_will_do() -> None:
    node, shard = Placement("a", SHARDS, Random(1)).choose("q", {})
    assert node == ""
    assert 0 <= shard < SHARDS


def test_of_two_choices_the_less_loaded_one_is_taken() -> None:
    free, busy = peer("b", {"q": 10}), peer("b", {"q": 10}, free=0, queued=500)
    assert set(spread(placement("a", peer("a", {"q": 10}), free), "q", 5, {"q": 100})) == {"b"}
    assert set(spread(placement("a", peer("a", {"q": 10}), busy), "q", 5, {"q": 0})) == {"a"}


def test_load_counts_in_the_nodes_own_slots() -> None:
    """Ten tasks more than slots are few for a hundred slots and many for two."""
    large, small = peer("b", {"q": 100}, free=0, queued=10), peer("a", {"q": 2})
    assert set(spread(placement("a", small, large), "q", 5, {"q": 10})) == {"b"}


def test_a_tie_is_this_nodes_own() -> None:
    placing = placement("a", peer("a", {"q": 10}), peer("b", {"q": 10}))
    assert spread(placing, "q", 5, {"q": -10}) == {"a": 5}


@pytest.mark.parametrize("seed", range(5))
def test_a_burst_does_not_all_follow_one_stale_figure(seed: int) -> None:
    peers = (
        peer("a", {"q": 10}, free=0),
        peer("b", {"q": 10}),
        peer("c", {"q": 10}, free=2),
        peer("d", {"q": 10}, free=1),
    )
    placing = placement("a", *peers, seed=seed)
    own = {"q": 0}
    for _ in range(400):
        own["q"] += place(placing, "q", own) == "a"
    assert 60 <= own["q"] <= 140, "each takes about its share of a burst that nobody has reported on yet"


def test_a_newer_figure_replaces_what_was_added_to_the_old_one() -> None:
    me = peer("a", {"q": 10}, free=0)
    placing = placement("a", me, peer("b", {"q": 10}))
    assert spread(placing, "q", 40, {"q": 5})["a"] > 0, "b's estimate has grown past ours"
    placing.see(*seen("a", me, peer("b", {"q": 10}, free=9)))
    assert spread(placing, "q", 5, {"q": 5}) == {"b": 5}


def test_a_node_that_keeps_up_with_what_it_gets_goes_on_getting_it() -> None:
    """The node is idle each time it speaks, so its load never moves; what was added to it must not stay for ever."""
    placing = placement("a", peer("a", {"q": 10}, free=0), peer("b", {"q": 10}))
    own = {"q": 20}
    for _ in range(30):
        assert spread(placing, "q", 5, own) == {"b": 5}
        placing.fade()


def test_what_goes_to_a_shard_of_ones_own_or_of_nobody_is_not_added_to_anybody() -> None:
    placing = placement("a", peer("a", {"q": 10}), peer("b", {"q": 10}))
    for shard in placing.mine:
        placing.placed("q", shard, 100)
    Placement("a", SHARDS, Random(1)).placed("q", 3, 1)
    assert spread(placing, "q", 5, {"q": 0}) == {"b": 5}


@given(st.text(min_size=1, max_size=50), st.integers(1, 256))
def test_a_key_is_in_one_shard_whoever_looks(key: str, shards: int) -> None:
    if key.isprintable():
        assert 0 <= shard_of_key(key, shards) < shards
        assert shard_of_key(key, shards) == shard_of_key(str(key), shards)


def test_keys_keep_their_shards_in_the_next_version_too() -> None:
    """Tasks stay in the shard that an earlier version chose, and a repeat by Idempotency-Key must go there too."""
    assert [shard_of_key(key, 64) for key in ("a", "user:17", "cron:nightly:1700000000")] == [47, 7, 14]


def test_keys_spread_over_all_shards() -> None:
    held = Counter(shard_of_key(f"user:{n}", 16) for n in range(16_000))
    assert len(held) == 16
    assert max(held.values()) < 1200


@given(st.integers(1, 10_000), st.integers(1, 30))
def test_a_batch_goes_in_chunks_that_reach_every_node(tasks: int, nodes: int) -> None:
    placing = placement("n0", *(peer(f"n{n}", {"q": 4}) for n in range(nodes)))
    size = placing.chunk_size(tasks, "q")
    assert 1 <= size <= CHUNK_MAX
    assert tasks < 4 * nodes or -(-tasks // size) >= 3 * nodes
    assert placing.chunk_size(tasks, "nobody's") >= 1


def test_a_batch_goes_to_the_least_busy_of_all_until_it_is_not() -> None:
    peers = (
        peer("a", {"q": 2}),
        peer("b", {"q": 2}),
        peer("c", {"q": 2}, free=1),
        peer("d", {"q": 2}, free=0, queued=3),
    )
    placing = placement("a", *peers)
    own = {"q": -2}
    went: Counter[str] = Counter()
    for _ in range(5):
        node, shard = placing.choose("q", own, is_batch=True)
        if node == "a":
            own["q"] += 1
        placing.placed("q", shard, 1)
        went[node] += 1
    assert went == {"a": 2, "b": 2, "c": 1}, "every slot that was free, and no other"


def test_the_idlest_other_node_is_asked_for_as_much_as_it_has_room_for() -> None:
    placing = placement("a", peer("a", {"q": 9}), peer("b", {"q": 4}, free=2), peer("c", {"q": 4}, free=3))
    assert placing.idlest("q") == ("c", 3)
    placing.placed_on("q", "c", 2)
    assert placing.idlest("q") == ("b", 2)
    placing.placed_on("q", "b", 2)
    placing.placed_on("q", "c", 1)
    assert placing.idlest("q") == ("", 0)
    assert placing.idlest("nobody's") == ("", 0)


def test_the_member_with_the_most_waiting_tasks_is_stolen_from() -> None:
    members = [
        peer("a", {"q": 9}, free=0, queued=50),
        peer("b", {"q": 4}, free=0, queued=3),
        peer("c", {"q": 4}, free=0, queued=7),
        peer("d", {"other": 4}, free=0, queued=90),
    ]
    assert victim(members, "a", "q") == Victim("c", 7, 0)
    assert victim(members, "z", "q") == Victim("a", 50, 0)
    assert victim(members, "d", "nobody's") is None


def test_whom_gossip_alone_knows_owns_nothing_and_is_not_stolen_from() -> None:
    invented = replace(peer("b", {"q": 4}, free=0, queued=10**9), is_vouched=False)
    assert not invented.is_able
    assert victim([invented], "a", "q") is None


def test_tasks_that_a_member_has_free_slots_for_are_left_to_it() -> None:
    assert victim([peer("b", {"q": 4}, free=3, queued=5)], "a", "q") == Victim("b", 2, 0)
    assert victim([peer("b", {"q": 4}, free=4, queued=4)], "a", "q") is None


def test_the_free_slots_of_a_member_that_claims_nothing_count_for_nothing() -> None:
    able = peer("b", {"q": 4}, free=4, queued=4)
    stalled = dataclasses.replace(able, load=msgspec.structs.replace(able.load, stalled=True))
    assert victim([stalled], "a", "q") == Victim("b", 4, 0)


def test_the_victims_shards_come_along() -> None:
    load = Load(True, False, False, {"q": QueueLoad(0, 2, 0b1010)})
    assert victim([dataclasses.replace(peer("b", {"q": 1}), load=load)], "a", "q") == Victim("b", 2, 0b1010)


def test_a_member_without_a_load_is_no_victim() -> None:
    assert victim([dataclasses.replace(peer("b", {"q": 1}), load=None)], "a", "q") is None
