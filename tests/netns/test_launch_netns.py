"""`launch --netns`: every node and Redis in a namespace of its own, and nothing of it left afterwards."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.lab import network
from node.lab.process import Process
from tests.processes import ROOT, LaunchedCluster, clean_environ, free_base_port, launch

pytestmark = [pytest.mark.chaos, pytest.mark.netns, pytest.mark.usefixtures("able")]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    made = clean_environ() | {"RUMOR_DATA_DIR": str(tmp_path / "data")}
    yield made
    launch("stop", environ=made)


def record(environ: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(environ["RUMOR_DATA_DIR"], "cluster.json").read_text("utf-8"))
    return found


def names(mark: str) -> list[str]:
    """Namespaces and interfaces that carry this mark."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return [name for name in network.namespaces() if name.startswith(mark)] + ([mark] if mark in links else [])


def test_nodes_have_addresses_a_key_and_a_token_and_act_as_any_others() -> None:
    with tempfile.TemporaryDirectory(prefix="rumor-test-") as name:
        folder = Path(name)
        one = LaunchedCluster(folder, 2, netns=True, drain_s=1)
        mark = json.loads((folder / "cluster.json").read_text())["network"]["mark"]
        try:
            status = one.status()
            assert set(status) == {"redis", "nodes"}
            hosts = [row["url"].removeprefix("http://").partition(":")[0] for row in status["nodes"]]
            assert len(set(hosts)) == 2
            assert all(host.startswith("10.213.") for host in hosts)
            assert [row["node_id"] for row in status["nodes"]] == ["node1", "node2"]
            for secret in ("api.token", "gossip.key", "cluster.json"):
                assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600
            assert one.remote(1).request("GET", "/readyz")[0] == 200
            one.token, token = "", one.token
            assert one.remote(1).request("GET", "/cluster")[0] == 401
            one.token = token
            # What a command line needs is in what the launcher printed.
            told = one.environ | {"RUMOR_API_TOKEN": token, "RUMOR_URL": one.url(2)}
            words = [sys.executable, "-m", "node", "submit", "process", "hello", "--wait-s", "10"]
            done = subprocess.run(words, env=told, cwd=ROOT, capture_output=True, text=True, check=False)
            assert "succeeded" in done.stdout, done.stderr

            before = one.node(2)
            one.kill(2)
            one.restart(2)
            assert one.node(2)["url"] == before["url"]
            assert one.add() == 3
            assert one.remote(3).request("GET", "/readyz")[0] == 200
            one.pause(3)
            assert one.node(3)["state"] == "paused"
            assert len(names(mark)) == 1 + 1 + 3 + 1, "hub, Redis, three nodes, and the interface on this side"
        finally:
            one.close()
        assert not names(mark)


def test_what_a_crash_left_is_removed_by_the_next_start_and_by_stop(environ: dict[str, str]) -> None:
    marks = []
    for _ in range(2):
        done = launch("1", "--detach", "--netns", environ=environ)
        assert done.returncode == 0, done.stderr
        told = record(environ)
        marks.append(told["network"]["mark"])
        for one in (*told["nodes"], told["redis"]):
            process = Process(one["pid"], one["began"])
            assert process.signal(signal.SIGKILL)
            assert process.wait(5)
        assert names(marks[-1]), "nobody was there to clean up"
    assert not names(marks[0]), "the second start removed what the first had left"
    assert launch("stop", environ=environ).returncode == 0
    assert not names(marks[1])


def test_ctrl_c_leaves_nothing(environ: dict[str, str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "node", "launch", "1", "--netns", "--drain-s", "1"],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    said = []
    while not said or not said[-1].startswith("Stop with"):
        said.append(child.stdout.readline())
        assert said[-1], said
    assert said[0].startswith("Rumor is ready: 1 node,")
    assert any("export RUMOR_API_TOKEN=$(cat " in line for line in said)
    mark = record(environ)["network"]["mark"]
    assert names(mark)
    child.send_signal(signal.SIGINT)
    rest, _ = child.communicate(timeout=30)
    assert child.returncode == 0, rest
    assert not names(mark)
    assert not Path(environ["RUMOR_DATA_DIR"], "cluster.json").exists()


def test_a_start_that_fails_leaves_no_namespace(environ: dict[str, str]) -> None:
    before = set(network.namespaces())
    done = launch("1", "--detach", "--netns", "--tasks", "no_such_module_anywhere", environ=environ)
    assert done.returncode == 1
    assert not {name for name in network.namespaces() if name.startswith("ru")} - before


@pytest.mark.parametrize("name", ["host", "redis_url", "advertise_host"])
def test_settings_that_the_launcher_decides_are_refused(environ: dict[str, str], name: str) -> None:
    done = launch("1", "--detach", "--netns", environ=environ | {f"RUMOR_{name.upper()}": "redis://10.0.0.1:6379/0"})
    assert done.returncode == 2
    assert f"RUMOR_{name.upper()}" in done.stderr


def test_a_cluster_that_shares_this_machines_network_cannot_be_cut(environ: dict[str, str]) -> None:
    environ["RUMOR_BASE_PORT"] = str(free_base_port(1))
    assert launch("1", "--detach", environ=environ).returncode == 0
    words = [sys.executable, "-m", "node", "partition", "--netns", "isolate", "1"]
    done = subprocess.run(words, env=environ, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "share this machine's network" in done.stderr
    assert "--netns" in done.stderr


def test_the_script_finds_no_cluster_and_says_how_to_start_one(environ: dict[str, str]) -> None:
    script = str(ROOT / "scripts" / "partition.sh")
    done = subprocess.run([script, "status"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "launch_cluster.sh 5 --netns" in done.stderr
