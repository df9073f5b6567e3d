"""Every cut of `rumor partition` in network namespaces: what each node believes, what runs, when all is one again.

The law behind all of them: what one witness loses is not lost. Only where both agree (a node cut from its peers *and*
from Redis) may a task run twice, and even then it commits once.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.exercises import Ground, across, around, deaths, exercise, hold, note, refused_quickly
from tests.netns.conftest import COUNT
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.netns]

ALL = range(1, COUNT + 1)


def inside_of(ground: Ground, number: int) -> list[str]:
    """What runs a command in a node's namespace."""
    told = json.loads((ground.fleet.folder / "cluster.json").read_text("utf-8"))
    return ["ip", "netns", "exec", f"{told['network']['mark']}n{number}"]


def test_split_each_side_holds_the_other_cut_off_and_nothing_runs_twice(ground: Ground) -> None:
    sessions, fences, leader = ground.sessions(), ground.fences(), ground.node(1).get("/cluster")["leader"]
    with exercise(ground, "split 1,2 3,4,5") as run:
        ground.wait_believed(across((1, 2), (3, 4, 5), "cut_from_peers"), run.text)
        run.submit(ALL)  # both sides take, run and finish tasks meanwhile
        wait_until(lambda: run.ledger.started(run.ids) == len(run.ids), 20, "both sides work")
        for view in ground.views().values():
            assert view["leader"] == leader, "Redis elects the leader, and both sides reach it"
        for number, side in ((1, {1, 2}), (3, {3, 4, 5})):
            owners = set(ground.node(number).get("/cluster")["shards"].values())
            assert owners == {ground.node(one).node_id for one in side}, "each side looks after all shards"
        run.check()
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == fences


def test_isolate_both_witnesses_agree_and_the_tasks_run_elsewhere(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    third = ground.node(3)
    with exercise(ground, "isolate 3", seconds=20.0) as run:
        # The isolated one cannot tell its peers' death from its own deafness: it accuses nobody by both witnesses.
        believed = around(3, COUNT, "cut_from_peers") | {(peer, 3): "dead" for peer in ALL if peer != 3}
        ground.wait_believed(believed, run.text)
        held = run.ledger.open_on(third.node_id)
        assert held
        wait_until(lambda: len(run.ledger.of(held)) == 2 * len(held), 10, "all its tasks have started elsewhere")
        refused_quickly(third, ground.work(run.ledger, 0.1))
        run.submit([1, 2, 4, 5])
        run.heal()
        run.check(again=held)
    now = ground.sessions()
    assert now.pop(3) != sessions.pop(3), "it goes on under a new session"
    assert now == sessions
    assert ground.fences() >= fences + 1


def test_no_gossip_is_half_a_death_and_the_node_keeps_its_tasks(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    with exercise(ground, "no-gossip 3", seconds=8.0) as run:
        ground.wait_believed(around(3, COUNT, "cut_from_peers"), run.text)
        run.submit(ALL)
        run.check()
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == fences


def test_no_redis_is_the_other_half_and_the_node_forwards_what_it_gets(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    third = ground.node(3)
    with exercise(ground, "no-redis 3", seconds=8.0) as run:
        ground.wait_believed({(peer, 3): "cut_from_redis" for peer in ALL if peer != 3}, run.text)
        work = ground.work(run.ledger, 0.5)
        _, task = third.remote.call("POST", "/tasks", {"type": "chaos.sleep", "data": work})
        wait_until(lambda: run.ledger.started([task["id"]]), 5, "a peer stored it, and it runs")
        assert not run.ledger.open_on(third.node_id) & {task["id"]}
        run.ids.append(task["id"])
        run.submit([1, 2, 4, 5])
        hold(5.0)  # while it cannot commit what ends there
        run.heal()
        run.check()
    assert ground.sessions() == sessions, "its lease is longer than this"
    assert ground.fences() == fences


def test_oneway_nobody_dies_because_others_carry_the_word(ground: Ground) -> None:
    sessions, before = ground.sessions(), deaths(ground)
    with exercise(ground, "oneway 2 4", seconds=8.0) as run:
        run.submit(ALL)
        hold(10.0)
        assert deaths(ground) == before
        ground.wait_believed({}, run.text)
        run.check()
        run.heal()
    assert ground.sessions() == sessions


def test_loss_of_a_third_kills_nobody(ground: Ground) -> None:
    sessions, before = ground.sessions(), deaths(ground)
    with exercise(ground, "loss 3 30%", seconds=8.0) as run:
        run.submit(ALL)
        hold(20.0)
        died = deaths(ground) - before
        note(f"{run.text}: {died} false deaths by gossip in 20 s")
        assert died == 0
        run.heal()
        run.check()
    assert ground.sessions() == sessions


def test_reject_looks_like_a_dead_process_and_the_second_witness_saves_it(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    with exercise(ground, "reject 3", seconds=8.0) as run:
        ground.wait_believed(around(3, COUNT, "cut_from_peers"), run.text)
        [row] = [row for row in ground.node(1).get("/cluster")["members"] if row["node_id"] == ground.node(3).node_id]
        assert row["evidence"] == "refused", "sooner than any silence"
        run.submit(ALL)
        run.check()
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == fences


def test_cuts_add_up_to_a_death_and_come_off_one_by_one(ground: Ground) -> None:
    session = ground.node(3).session
    with exercise(ground, "no-gossip 3; no-redis 3", seconds=15.0) as run:
        assert ground.partition("status").stdout.startswith("in force: no-gossip 3; no-redis 3  (network namespaces")
        dead = {(peer, 3): "dead" for peer in ALL if peer != 3}
        ground.wait_believed(around(3, COUNT, "cut_from_peers") | dead, run.text)
        held = run.ledger.open_on(ground.node(3).node_id)
        assert ground.partition("heal", "no-redis", "3").stdout == "in force: no-gossip 3\n"
        wait_until(lambda: ground.node(3).session != session, 10, "it finds its tombstone, and goes on as another")
        run.heal()
        run.check(again=held)


def test_heal_takes_away_its_own_rules_and_no_other(ground: Ground) -> None:
    inside = [*inside_of(ground, 3), "iptables", "-w"]
    foreign = ["INPUT", "-s", "192.0.2.1", "-j", "DROP"]

    def rules() -> str:
        return subprocess.run([*inside, "-S"], capture_output=True, text=True, check=True).stdout

    subprocess.run([*inside, "-A", *foreign], check=True)
    before = rules()
    for words in ("no-gossip 3", "loss 3 30%", "loss 3 40%", "no-gossip 3"):
        ground.partition(*words.split())
    assert "in force: loss 3 40%; no-gossip 3" in ground.partition("status").stdout
    assert rules().count("-j RUMOR") == 2, "one way in from INPUT, one from OUTPUT"
    ground.partition("heal")
    assert rules() == before
    assert ground.partition("heal").stdout == "in force: nothing\n", "healing twice is no error"
    subprocess.run([*inside, "-D", *foreign], check=True)


def test_cuts_made_at_the_same_moment_are_all_in_force(ground: Ground) -> None:
    words = [f"{verb} {number}" for number in (1, 2, 3) for verb in ("no-gossip", "no-redis")]
    with ThreadPoolExecutor(len(words)) as pool:
        list(pool.map(lambda text: ground.partition(*text.split()), words))
    status = ground.partition("status").stdout
    assert status.startswith(f"in force: {'; '.join(sorted(words))}  (")
    assert "expected" not in status
    ground.partition("heal")


def test_status_tells_of_a_node_that_lost_its_rules_and_the_next_cut_sets_them_again(ground: Ground) -> None:
    ground.partition("split", "4", "2,5")
    subprocess.run([*inside_of(ground, 4), "iptables", "-w", "-F", "RUMOR"], check=True)
    assert "0 rules, 0 packets dropped; 2 expected: restarted since?" in ground.partition("status").stdout
    ground.partition("oneway", "1", "2")
    assert "expected" not in ground.partition("status").stdout
    ground.partition("heal")


def test_watch_prints_what_each_believes(ground: Ground) -> None:
    shown: list[str] = []

    def agree() -> bool:
        """A node that has just reached Redis again, or was slow itself, watches anew, and says "?" for a moment."""
        shown[:] = ground.partition("watch", "--once").stdout.splitlines()
        return all("  ".join(["alive/live"] * COUNT) in line for line in shown[3 : 3 + COUNT])

    wait_until(agree, 10, "all hold all alive and live")
    assert shown[0] == "in force: nothing"
    assert shown[2].split()[:2] == ["node", "1"]
    for number, line in enumerate(shown[3 : 3 + COUNT], 1):
        assert line.startswith(f"node {number}  "), line
        assert "(epoch " in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("isolate 9", "'9' is no node that runs here.\n  The nodes are: 1, 2, 3, 4, 5."),
        ("heal no-redis 3", "'no-redis 3' is not in force"),
        ("status 3", "'3' after 'status' is not expected"),
        ("cut 3", "'cut' is no cut and no command"),
        ("--compose status", "No services of docker-compose.yml run."),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(ground: Ground, words: str, said: str) -> None:
    done = ground.partition(*words.split(), check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert ground.partition("status").stdout.startswith("in force: nothing")
