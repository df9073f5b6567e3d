"""The command that cuts, where not every node can be met."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node.lab import partition
from node.lab.partition import CutFailed, Place, Site


@pytest.mark.parametrize("threads", [3, 1])
def test_heal_reaches_all_others_where_one_node_cannot_be_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Also the nodes whose turn had not come when that one failed."""

    def place(number: int, *inside: str) -> Place:
        return Place(number, f"n{number}", f"10.0.0.{number}", "http://127.0.0.1:1", "", inside)

    (tmp_path / "inside").write_text(f'echo "$3" >> {tmp_path}/ran-"$0"\n')
    met = [place(number, "sh", "-c", f". {tmp_path}/inside", str(number)) for number in (1, 3)]
    site = Site("a test", (place(2, "false"), *met), "10.0.0.9")
    monkeypatch.setattr(partition, "find", lambda *_: site)
    monkeypatch.setattr(partition, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(threads))
    with pytest.raises(CutFailed, match="node 2"):
        partition.partition(["heal"])
    for number in (1, 3):
        assert (tmp_path / f"ran-{number}").read_text().strip() == partition.HEAL.strip()


def test_a_lock_that_another_user_holds_is_told_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "ALONE_LIMIT_S", 0.1)
    other = os.open(partition.ROOT, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(CutFailed, match=f"has locked {partition.ROOT}"), partition.alone():
            pass
    finally:
        os.close(other)
    with partition.alone():
        pass


@pytest.mark.parametrize(("environ", "service"), [(["RUMOR_REDIS_URL=redis://redis2:6379/0"], "redis2"), ([], "redis")])
def test_the_redis_that_is_cut_off_is_the_one_that_the_nodes_use(environ: list[str], service: str) -> None:
    """After a second Redis was promoted, the first is only its copy."""
    containers = [{"Config": {"Env": ["PATH=/bin"]}}, {"Config": {"Env": environ}}]
    assert partition.redis_host(containers) == service
