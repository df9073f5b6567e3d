"""The launcher: what it starts is ready, what it ends is gone, and it touches nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.lab.process import Process, of_pid, with_variable
from tests.processes import ROOT, TRACEBACK, LaunchedCluster, clean_environ, free_base_port, launch
from tests.waiting import wait_until

Make = Callable[..., LaunchedCluster]

START_LIMIT_S = 60.0
STOP_LIMIT_S = 30.0


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's business."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    assert child.poll() is None, "a bystander was ended"
    child.kill()
    child.wait()


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """For a launch that is meant to fail or is watched while it runs."""
    made = clean_environ() | {"RUMOR_DATA_DIR": str(tmp_path / "data"), "RUMOR_BASE_PORT": str(free_base_port(3))}
    yield made
    launch("stop", environ=made)


def launch_id(folder: Path) -> str:
    return str(json.loads((folder / "cluster.json").read_text("utf-8"))["launch_id"])


def processes(cluster: LaunchedCluster) -> list[Process]:
    return [of_pid(row["pid"]) for row in cluster.status()["nodes"]]


def test_a_detached_start_returns_when_every_node_sees_every_node_alive(cluster: Make) -> None:
    one = cluster(nodes=3)
    status = one.status()
    assert set(status) == {"redis", "nodes"}
    assert status["redis"].startswith("redis://127.0.0.1:")
    names = {row["node_id"] for row in status["nodes"]}
    for number, row in enumerate(status["nodes"], 1):
        assert set(row) == {"number", "node_id", "url", "pid", "state"}
        assert (row["number"], row["url"], row["state"]) == (number, one.url(number), "running")
        assert one.remote(number).request("GET", "/readyz")[0] == 200
        members = one.remote(number).call("GET", "/cluster")[1]["members"]
        assert {member["node_id"] for member in members if member["state"] == "alive"} >= names


def test_nodes_are_killed_paused_resumed_restarted_and_added_one_by_one(cluster: Make) -> None:
    one = cluster(nodes=2)
    first, second = one.node(1), one.node(2)

    one.kill(2)
    assert (one.node(2)["state"], one.node(2)["pid"]) == ("exited", None)
    again = one.launch("kill", "2", check=False)
    assert again.returncode == 1
    assert "node 2 is not running" in again.stderr

    one.restart(2)
    assert one.node(2)["state"] == "running"
    assert one.node(2)["pid"] != second["pid"]
    assert one.remote(2).request("GET", "/readyz")[0] == 200

    one.pause(2)
    assert one.node(2)["state"] == "paused"
    one.resume(2)
    assert one.node(2)["state"] == "running"

    assert one.add() == 3
    assert one.node(3)["url"] == one.url(3)
    assert one.remote(3).request("GET", "/readyz")[0] == 200
    assert one.node(1) == first, "node 1 was not touched"


def test_a_restart_from_another_shell_keeps_how_tracing_is_set_up(
    cluster: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-of-this-test")
    one = cluster(nodes=1)
    del one.environ["OTEL_SERVICE_NAME"]
    one.restart(1)
    assert of_pid(one.node(1)["pid"]) in list(with_variable("OTEL_SERVICE_NAME", "shop-of-this-test"))


def test_stop_ends_all_that_was_started_and_nothing_else(cluster: Make, bystander: subprocess.Popen[bytes]) -> None:
    one, other = cluster(nodes=2), cluster(nodes=1)
    assert one.redis_url != other.redis_url
    ended, mark = processes(one), launch_id(one.folder)
    one.pause(2)  # a paused node hears no SIGTERM; it must end all the same
    one.stop()
    assert not [process for process in ended if process.is_alive]
    assert not list(with_variable("RUMOR_LAUNCH_ID", mark))
    assert other.node(1)["state"] == "running"
    assert one.launch("stop").returncode == 0, "stopping twice is no error"
    assert one.launch("status", check=False).returncode == 1


def test_a_pid_that_now_belongs_to_somebody_else_is_never_signalled(
    cluster: Make, bystander: subprocess.Popen[bytes]
) -> None:
    one = cluster(nodes=1)
    one.kill(1)
    path = one.folder / "cluster.json"
    record = json.loads(path.read_text("utf-8"))
    record["nodes"][0]["pid"] = bystander.pid  # as if the kernel had given the pid away again
    path.write_text(json.dumps(record), "utf-8")
    assert one.node(1)["state"] == "exited"
    assert one.launch("pause", "1", check=False).returncode == 1
    one.stop()
    assert of_pid(bystander.pid).state == "running"


def test_a_second_start_in_the_same_place_says_that_one_is_running(cluster: Make) -> None:
    one = cluster(nodes=1)
    before = one.node(1)
    again = one.launch("2", "--detach", check=False)
    assert again.returncode == 1
    assert "already running" in again.stderr
    assert one.url(1) in again.stderr
    assert one.node(1) == before


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_busy_port_is_named_with_who_holds_it(environ: dict[str, str], kind: socket.SocketKind) -> None:
    port = int(environ["RUMOR_BASE_PORT"]) + 1
    with socket.socket(socket.AF_INET, kind) as holder:
        holder.bind(("127.0.0.1", port))
        if kind is socket.SOCK_STREAM:
            holder.listen()
        done = launch("2", "--detach", environ=environ)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    if sys.platform == "linux":
        assert f"held by pid {os.getpid()}" in done.stderr
    assert launch("status", "--json", environ=environ).stdout == '{"redis": null, "nodes": []}\n'


def test_a_node_that_cannot_start_fails_the_launch_with_its_own_words_and_leaves_nothing(
    environ: dict[str, str],
) -> None:
    done = launch("2", "--detach", "--tasks", "no_such_module_anywhere", environ=environ)
    assert done.returncode == 1
    assert "no_such_module_anywhere" in done.stderr
    assert "ended before it was ready" in done.stderr
    assert launch("status", environ=environ).returncode == 1


def test_a_folder_that_cannot_be_made_and_a_setting_that_nobody_reads_are_named(environ: dict[str, str]) -> None:
    done = launch("1", "--detach", environ=environ | {"RUMOR_DATA_DIR": "/dev/null/x", "RUMOR_LEAS_S": "3"})
    assert done.returncode == 1
    assert "/dev/null/x cannot be made: Not a directory." in done.stderr
    assert "RUMOR_LEAS_S is not read by anything. Did you mean RUMOR_LEASE_S?" in done.stderr
    assert TRACEBACK not in done.stderr


def test_ctrl_c_ends_the_whole_cluster(environ: dict[str, str]) -> None:
    folder = Path(environ["RUMOR_DATA_DIR"])
    command = [sys.executable, "-m", "node", "launch", "2"]
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        try:
            assert launcher.stdout is not None
            lines = iter(launcher.stdout.readline, "")
            assert any("Stop with Ctrl-C" in line for line in lines), "the summary comes when the cluster is ready"
            mark = launch_id(folder)
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(STOP_LIMIT_S) == 0
        finally:
            launcher.kill()
    assert not list(with_variable("RUMOR_LAUNCH_ID", mark))
    assert not (folder / "cluster.json").exists()


def test_a_signal_while_starting_leaves_nothing_behind(environ: dict[str, str]) -> None:
    folder = Path(environ["RUMOR_DATA_DIR"])
    command = [sys.executable, "-m", "node", "launch", "3", "--detach"]
    with subprocess.Popen(command, env=environ, cwd=ROOT, stdout=subprocess.DEVNULL) as launcher:
        try:
            wait_until((folder / "cluster.json").exists, START_LIMIT_S, "something was started")
            mark = launch_id(folder)
            launcher.send_signal(signal.SIGTERM)
            assert launcher.wait(STOP_LIMIT_S) == 130
        finally:
            launcher.kill()
    assert not list(with_variable("RUMOR_LAUNCH_ID", mark))


def test_what_was_accepted_is_still_there_after_stop_and_start(cluster: Make) -> None:
    one = cluster(nodes=1)
    task = one.remote(1).call("POST", "/tasks", {"type": "noop", "data": 7, "delay_s": 3600})[1]
    one.launch("stop")
    one.launch("1", "--detach")
    found = one.remote(1).call("GET", f"/tasks/{task['id']}")[1]
    assert (found["state"], found["data"]) == ("scheduled", 7)


def test_settings_and_secrets_reach_the_nodes_and_no_process_list(cluster: Make) -> None:
    one = cluster(nodes=1, api_token="s3cret-token", queues="default:4,mail:1")
    assert one.remote(1).request("GET", "/cluster")[0] == 200
    one.token = "wrong"
    assert one.remote(1).request("GET", "/cluster")[0] == 401
    one.token = "s3cret-token"
    workers = one.remote(1).call("GET", "/workers")[1]["workers"]
    assert set(workers[0]["queues"]) == {"default", "mail"}
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "s3cret-token" not in shown
    assert "s3cret-token" not in one.log(1)
    for name in ("cluster.json", "gossip.key"):
        assert stat.S_IMODE((one.folder / name).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["0"], "N is 0"),
        (["65"], "N is 65"),
        (["fly"], "'fly' is neither"),
        (["kill"], "needs the number"),
        (["stop", "2"], "'2' after 'stop'"),
        (["3", "4"], "'4' after '3'"),
        (["--port", "5000"], "--port is for one node"),
        (["--lease-s", "soon"], "lease_s is 'soon'"),
        (["status", "--lease-s", "3"], "status takes no settings"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--base-port", "x"], "RUMOR_BASE_PORT is 'x'"),
        (["2", "--base-port", "65535"], "beyond 65535"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_with_status_2(
    tmp_path: Path, words: list[str], told: str
) -> None:
    done = launch(*words, environ=clean_environ() | {"RUMOR_DATA_DIR": str(tmp_path)})
    assert done.returncode == 2, done.stderr
    assert told in done.stderr


def test_a_node_that_does_not_exist_is_refused_with_status_2(cluster: Make) -> None:
    one = cluster(nodes=1)
    done = one.launch("kill", "7", check=False)
    assert done.returncode == 2
    assert "There is no node '7'" in done.stderr


def test_commands_answer_soon(cluster: Make) -> None:
    """A command that takes a second is not used. The bound is generous: other tests share this machine."""
    one = cluster(nodes=1)
    began_s = time.monotonic()
    one.status()
    assert time.monotonic() - began_s < 2.0
