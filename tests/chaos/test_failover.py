"""Redis lost: people let its address lead to the replica, or restore a backup."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.ledger import Ledger, check_kept, check_ran_once
from tests.chaos.nodes import Fleet
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Start = Callable[..., RedisServer]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Start]:
    """`start_redis("name", "--appendonly", "no")`: one more server, in a folder of its name; it ends with the test."""
    servers: list[RedisServer] = []

    def start(name: str, *extra: str) -> RedisServer:
        (tmp_path / name).mkdir(exist_ok=True)
        servers.append(RedisServer(tmp_path / name, *extra))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def asked(server: RedisServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def has_all(primary: redis.Redis, replica: redis.Redis) -> bool:
    ahead: Any = primary.info("replication")
    behind: Any = replica.info("replication")
    is_up = behind.get("master_link_status") == "up"
    return is_up and ahead["master_repl_offset"] == behind["slave_repl_offset"]


def test_nodes_go_on_by_themselves_with_a_promoted_replica_and_what_runs_is_committed_there(
    make_fleet: Callable[..., Fleet], ledger: Ledger, redis_server: RedisServer, start_redis: Start
) -> None:
    replica = start_redis("replica", "--replicaof", f"127.0.0.1 {redis_server.port}")
    fleet = make_fleet(3)
    sessions = [node.session for node in fleet.nodes]
    with asked(redis_server) as old, asked(replica) as new:
        if not new.config_get("port") or int(new.info("server")["redis_version"].split(".")[0]) < 7:
            pytest.skip("this server cannot change its port while it runs")
        wait_until(lambda: has_all(old, new), 30, "the replica has its first copy, for which it takes seconds")
        ids = fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 4.0}, each=20)
        ids += fleet.spread("chaos.sleep", {"ledger": str(ledger.path), "seconds": 0.1}, each=20, delay_s=5)
        wait_until(lambda: ledger.started(ids[:60]) == 60, 10, "60 run")
        # While nodes work, offsets never stand still. A claim whose reply came back was sent on to the replica.
        wait_until(lambda: has_all(old, new), 10, "the replica is in step")
        assert not any(run.end_s for run in ledger.of(ids[:60])), "they run while Redis is lost"
        redis_server.kill()
        new.replicaof("NO", "ONE")
        new.config_set("port", redis_server.port)  # the nodes' address leads to it now
    # Until the nodes notice, they may still call themselves ready and refuse the next request.
    wait_until(lambda: all(run.end_s for run in ledger.of(ids[:60])), 10, "what ran goes on to its end")
    for node in fleet.nodes:
        wait_until(node.is_ready, 10, f"node {node.number} works again by itself")
    tasks = fleet.wait_ended(ids, 30)
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids)
    assert [node.session for node in fleet.nodes] == sessions
    assert fleet.fences() == 0


def test_a_restored_snapshot_holds_the_tasks_of_its_moment_and_all_of_them_run(
    make_fleet: Callable[..., Fleet], ledger: Ledger, redis_server: RedisServer, start_redis: Start, tmp_path: Path
) -> None:
    """As in docs/operating.md: first without the append-only file, since an empty one would win over the snapshot."""
    fleet = make_fleet(2)
    work = {"ledger": str(ledger.path), "seconds": 3.0}
    running = fleet.spread("chaos.sleep", work, each=20)
    waiting = fleet.spread("chaos.sleep", {**work, "seconds": 0.1}, each=20, delay_s=8)
    wait_until(lambda: ledger.started(running) == len(running), 10, "all run")
    with asked(redis_server) as old:
        old.bgsave()
        wait_until(lambda: not old.info("persistence")["rdb_bgsave_in_progress"], 10, "the snapshot is made")
    later = fleet.nodes[0].submit("chaos.sleep", {**work, "seconds": 0.1}, 5)
    for node in fleet.nodes:
        node.kill()
    redis_server.kill()
    (tmp_path / "restored").mkdir()
    shutil.copy(redis_server.directory / "dump.rdb", tmp_path / "restored")
    restored = start_redis("restored", "--appendonly", "no")
    with asked(restored) as new:
        new.config_set("appendonly", "yes")
        wait_until(lambda: not new.info("persistence")["aof_rewrite_in_progress"], 10, "the file is made")
    for node in fleet.nodes:
        node.environ["RUMOR_REDIS_URL"] = restored.url
        node.start()
    fleet.wait_ready()
    kept = [*running, *waiting]
    tasks = fleet.wait_ended(kept, 60)
    check_kept(tasks, kept, ledger)
    check_ran_once(ledger, kept, again=running)
    assert {task["id"] for task in fleet.nodes[0].tasks()}.isdisjoint(later), "what came after the snapshot is gone"
