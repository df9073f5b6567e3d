"""docker-compose.yml, and cuts in it: each container's own firewall does what the command says, and no more.

The laws are those of the exercises in network namespaces; here are the few that show that containers obey them, too.
"""

from __future__ import annotations

import subprocess

import pytest

from scripts.screenshots import browser, chromium, until
from tests.chaos.ledger import check_kept, check_ran_once
from tests.docker.conftest import COUNT, Compose
from tests.exercises import Ground, across, around, exercise, refused_quickly
from tests.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.docker]

ALL = range(1, COUNT + 1)


def container(compose: Compose, service: str) -> str:
    return compose("ps", "-q", service).strip()


def inside(name: str, *words: str, user: str = "0") -> subprocess.CompletedProcess[str]:
    command = ["docker", "exec", "--user", user, name, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_task_is_taken_by_any_published_port_with_the_token_alone(ground: Ground) -> None:
    [task_id] = ground.node(1).submit("process", "hello")
    assert ground.node(5).task(task_id, wait_s=10.0)["state"] == "succeeded"
    ground.node(1).remote.token, token = "", ground.node(1).remote.token
    try:
        assert ground.node(1).remote.request("GET", "/cluster")[0] == 401
    finally:
        ground.node(1).remote.token = token


def test_split_each_side_holds_the_other_cut_off_and_nothing_runs_twice(ground: Ground) -> None:
    sessions = ground.sessions()
    with exercise(ground, "split 1,2 3,4,5") as run:
        ground.wait_believed(across((1, 2), (3, 4, 5), "cut_from_peers"), run.text)
        run.submit(ALL)
        wait_until(lambda: run.ledger.started(run.ids) == len(run.ids), 20, "both sides work")
        run.check()
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == 0


def test_no_redis_is_half_a_death_and_the_node_keeps_its_tasks(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    with exercise(ground, "no-redis 3", seconds=8.0) as run:
        ground.wait_believed({(peer, 3): "cut_from_redis" for peer in ALL if peer != 3}, run.text)
        run.submit([1, 2, 4, 5])
        run.heal()
        run.check()
    assert ground.sessions() == sessions
    assert ground.fences() == fences


def test_reject_looks_like_a_dead_process_and_the_second_witness_saves_it(ground: Ground) -> None:
    sessions, fences = ground.sessions(), ground.fences()
    with exercise(ground, "reject 3", seconds=8.0) as run:
        ground.wait_believed(around(3, COUNT, "cut_from_peers"), run.text)
        assert ground.node(1).member("node3")["evidence"] == "refused"
        run.check()
        run.heal()
    assert ground.sessions() == sessions
    assert ground.fences() == fences


def test_isolate_both_witnesses_agree_and_the_tasks_run_elsewhere(ground: Ground) -> None:
    session = ground.node(3).session
    with exercise(ground, "isolate 3", seconds=20.0) as run:
        believed = around(3, COUNT, "cut_from_peers") | {(peer, 3): "dead" for peer in ALL if peer != 3}
        ground.wait_believed(believed, run.text)
        held = run.ledger.open_on("node3")
        assert held
        wait_until(lambda: len(run.ledger.of(held)) == 2 * len(held), 10, "all its tasks have started elsewhere")
        refused_quickly(ground.node(3), ground.work(run.ledger, 0.1))
        run.heal()
        run.check(again=held)
    assert ground.node(3).session != session


def test_only_the_command_may_alter_a_firewall_and_heal_leaves_it_as_it_was(compose: Compose, ground: Ground) -> None:
    name = container(compose, "node3")
    before = inside(name, "iptables", "-S").stdout
    assert inside(name, "iptables", "-S", user="rumor").returncode != 0, "the node itself may not"
    ground.partition("no-gossip", "3")
    ground.partition("loss", "3", "10%")
    assert inside(name, "iptables", "-S").stdout.count("-A RUMOR") == 4 + 4 + 2
    ground.partition("heal")
    assert inside(name, "iptables", "-S").stdout == before


def test_a_container_that_starts_anew_has_lost_its_rules_and_gets_them_with_the_next_cut(
    compose: Compose, ground: Ground
) -> None:
    ground.partition("split", "4", "2,5")
    compose("restart", "--timeout", "5", "node4")
    assert "2 expected: restarted since?" in ground.partition("status").stdout
    ground.partition("oneway", "1", "2")
    assert "expected" not in ground.partition("status").stdout
    ground.partition("heal")
    ground.wait_agreed("restart of node 4")


def test_the_page_at_a_published_port_goes_on_with_another_node_when_its_own_dies(
    compose: Compose, ground: Ground
) -> None:
    """A browser on the host may not reach the addresses that nodes have among themselves: it goes by public URLs."""
    pytest.importorskip("playwright")
    if chromium() is None:
        pytest.skip("no Chromium on PATH: install one, or set RUMOR_TEST_CHROMIUM")
    home = f"http://localhost:{compose.environ['NODE1_PORT']}"
    with browser() as one:
        page = one.new_page()
        page.goto(home)
        until(page, "document.getElementById('door').open")
        page.get_by_role("textbox", name="Token").fill(ground.node(1).remote.token)
        page.get_by_role("button", name="Continue").click()
        until(page, "net.isLive && cluster.view !== null")
        compose("kill", "node1")
        until(page, "net.isLive && net.base !== HOME", 10)
        assert page.evaluate("net.base") in {f"http://localhost:{compose.environ[f'NODE{n}_PORT']}" for n in ALL}
        until(page, "cluster.view.members.some(m => m.node_id === 'node1' && m.verdict === 'dead')", 10)
        compose("start", "node1")
        until(page, "net.isLive && net.base === HOME", 20)
    ground.wait_agreed("a kill of node 1")


def test_stop_drains_a_node_and_its_file_system_is_read_only(compose: Compose, ground: Ground) -> None:
    name = container(compose, "node5")
    assert "Read-only" in inside(name, "touch", "/app/x").stderr
    run_as = subprocess.run(["docker", "exec", name, "id", "-u"], capture_output=True, text=True, check=True)
    assert run_as.stdout.strip() == "10001"
    ledger = ground.new_ledger()
    ids = ground.node(5).submit("chaos.sleep", ground.work(ledger, 4.0), 30)
    wait_until(lambda: ledger.started(ids) == len(ids), 10, "all run")
    assert ledger.open_on("node5"), "some of them on the node that is stopped"
    compose("stop", "node5")
    stopped = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.ExitCode}}", name], capture_output=True, text=True, check=True
    )
    assert stopped.stdout.strip() == "0"
    tasks = ground.fleet.wait_ended(ids, 20)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    compose("start", "node5")
    ground.wait_agreed("a stop of node 5")
