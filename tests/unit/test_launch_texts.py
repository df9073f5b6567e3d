"""What the launcher tells its user to type next. It must act on the cluster that the text is about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from node.lab import record as records
from node.lab.cluster import Cluster
from node.lab.commands import running, summary
from node.lab.network import Network
from node.lab.record import LAUNCHER, LaunchFailed, NodeRecord, Record, RedisRecord

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
