"""What the launcher tells its user to type next. It must act on the cluster that the text is about."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import redis_address
from cluster.config import Config
from cluster.errors import AIRPLAY_PORTS, ConfigError, bind_hint, likely_holder
from node.lab import record as records
from node.lab.cluster import Cluster, refuse_busy_port
from node.lab.commands import redis_cli, running, summary
from node.lab.network import Network
from node.lab.record import LAUNCHER, LaunchFailed, NodeRecord, Record, RedisRecord
from node.main import bind

RECORD = Record(
    launch_id="1",
    base_port=6000,
    told={},
    cwd="/",
    python_path="",
    redis=RedisRecord("redis://localhost"),
    nodes=[NodeRecord(number, f"node{number}", f"http://127.0.0.1:{6000 + number}", 1, "0") for number in (1, 2)],
    network=Network("t", "10.0.0"),
)


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER, "scripts/launch_cluster.sh")


def test_commands_name_the_folder_that_was_perhaps_set_for_one_command_only(tmp_path: Path) -> None:
    folder = tmp_path / "an other"
    lines = summary(Cluster(folder, RECORD), 1.0, detach=True).splitlines()
    assert lines[-1] == f"Stop with RUMOR_DATA_DIR='{folder}' scripts/launch_cluster.sh stop"
    typed = [line for line in lines if ".sh" in line]
    assert len(typed) == 4
    assert all(line.count(f"RUMOR_DATA_DIR='{folder}' scripts/") == line.count("scripts/") for line in typed)
    with pytest.raises(LaunchFailed) as told:
        running(folder)
    assert told.value.hint == f"Start one with `RUMOR_DATA_DIR='{folder}' scripts/launch_cluster.sh`."


def test_the_default_folder_needs_no_name() -> None:
    cluster = Cluster(records.folder_of(str(records.default_folder())), replace(RECORD, network=None))
    text = summary(cluster, 1.0, detach=False)
    assert "RUMOR_DATA_DIR" not in text
    assert text.endswith("Stop with Ctrl-C, or scripts/launch_cluster.sh stop")


def test_the_command_that_opens_the_clusters_redis_names_the_file_of_the_password_and_not_the_password(
    tmp_path: Path,
) -> None:
    record = replace(RECORD, redis=RedisRecord("redis://:secret@127.0.0.1:16379/0", 16379, 1, "0"))
    folder = tmp_path / "an other"
    command = f"REDISCLI_AUTH=$(cat '{folder}/redis/password') redis-cli -p 16379"
    assert redis_cli(folder, record) == command
    assert redis_address.shown(record.redis.url) == "redis://127.0.0.1:16379/0"
    elsewhere = replace(record, redis=RedisRecord("redis://:secret@10.0.0.1:6379/0", 6379, 1, "0"))
    assert redis_cli(folder, elsewhere).endswith(" redis-cli -h 10.0.0.1 -p 6379")


def test_on_a_mac_a_busy_port_of_airplay_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    assert likely_holder(5000) == ""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        monkeypatch.setattr("cluster.errors.AIRPLAY_PORTS", (*AIRPLAY_PORTS, port))
        monkeypatch.setattr(sys, "platform", "darwin")
        config = Config(port=port)
        for act in (refuse_busy_port, bind):
            with pytest.raises((LaunchFailed, ConfigError)) as told:
                act(config)
            assert f"AirPlay Receiver holds {port}" in told.value.hint
        assert likely_holder(port + 1) == ""


@pytest.mark.parametrize("act", [refuse_busy_port, bind], ids=["the launcher", "a node"])
@pytest.mark.parametrize("host", ["192.0.2.1", "fe80::1"], ids=["an address of nobody", "an address without its link"])
def test_a_host_that_is_not_ours_is_not_told_as_a_busy_port(act: Callable[[Config], object], host: str) -> None:
    with pytest.raises((LaunchFailed, ConfigError)) as told:
        act(Config(host=host, port=29_999, insecure=True, node_id="n"))
    assert "address of this machine" in told.value.hint
    assert "another" not in told.value.hint.lower()


def test_what_to_do_about_a_port_depends_on_why_it_cannot_be_bound() -> None:
    busy, rights, name = OSError(errno.EADDRINUSE, ""), OSError(errno.EACCES, ""), socket.gaierror(-2, "")
    assert bind_hint(busy, 80).startswith("Another process has it")
    assert bind_hint(rights, 80) == "This user may not open ports as low as 80: choose another port."
    assert bind_hint(name, 80).startswith("host must be an address of this machine")
