"""A Redis that lets a node in no longer, or not at all: the node says so in Redis's words, and no password is told.

Real nodes on a real Redis, whose passwords and users change while tasks run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.chaos.nodes import Fleet, Node, fleet
from tests.integration.conftest import RedisServer
from tests.processes import free_base_port
from tests.waiting import wait_until

LIMIT_S = 15.0
OLD, NEW = "0ld-s3cret", "n3w-s3cret"
AS_A_NODE = ("~*", "&*", "+@all", "-@dangerous", "-@admin", "+info")


@pytest.fixture
def admin(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A connection that stays signed in, as one who has all rights."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "admin", "on", ">root", "~*", "&*", "+@all")
    with redis.Redis.from_url(redis_server.url, username="admin", password="root") as client:
        yield client


@pytest.fixture
def start(tmp_path: Path, redis_server: RedisServer) -> Iterator[Callable[..., Fleet]]:
    made: list[Any] = []

    def make(userinfo: str, count: int = 1, **settings: object) -> Fleet:
        made.append(fleet(tmp_path, url(redis_server, userinfo), **settings))
        nodes: Fleet = made[-1].__enter__()
        nodes.start(count)
        return nodes

    yield make
    for one in made:
        one.__exit__(None, None, None)


def url(server: RedisServer, userinfo: str) -> str:
    return server.url.replace("redis://", f"redis://{userinfo}")


def kick(admin: redis.Redis) -> None:
    """End everybody's connections but this one."""
    for kind in ("normal", "pubsub"):
        admin.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def problem(node: Node) -> dict[str, Any]:
    _, body = node.remote.request("GET", "/health")
    found = json.loads(body)["problems"]
    return next((row for row in found if row["code"].startswith("redis_") and row["severity"] == "fatal"), {})


def lines(node: Node, event: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]
    return [row for row in rows if row["event"] == event]


@pytest.mark.parametrize(
    ("userinfo", "words"),
    [("", "NOAUTH"), (f":{NEW}@", "WRONGPASS"), (f"nobody:{NEW}@", "WRONGPASS"), (f"reader:{NEW}@", "NOPERM")],
)
def test_a_node_that_redis_does_not_let_in_says_why_and_ends(
    start: Callable[..., Fleet],
    admin: redis.Redis,
    tmp_path: Path,
    redis_server: RedisServer,
    userinfo: str,
    words: str,
) -> None:
    admin.config_set("requirepass", OLD)
    admin.execute_command("ACL", "SETUSER", "reader", "on", f">{NEW}", "~*", "&*", "+@read", "+@connection")
    node = Fleet(tmp_path, url(redis_server, userinfo)).make("127.0.0.1", free_base_port(1))
    node.start()
    assert node.wait() == 2
    assert words in node.log()
    assert "Redis refuses" in node.log()
    assert "is it running" not in node.log()
    assert "s3cret" not in node.log()


def test_a_changed_password_is_told_in_redis_s_words_until_it_fits_again(
    start: Callable[..., Fleet], admin: redis.Redis
) -> None:
    admin.config_set("requirepass", OLD)
    node = start(f":{OLD}@").nodes[0]
    ids = node.submit("sleep", 2.0, 3)
    admin.config_set("requirepass", NEW)
    kick(admin)
    found = wait_until(lambda: problem(node), LIMIT_S, "the node notices")
    assert found["code"] == "redis_refuses"
    assert "WRONGPASS" in found["message"]
    assert "redis_url" in found["hint"]

    def is_told() -> bytes:
        status, body = node.remote.request("POST", "/tasks", {"type": "noop"})
        assert status == 503
        return body if "Redis refuses: WRONGPASS" in json.loads(body)["error"]["message"] else b""

    body = wait_until(is_told, LIMIT_S, "a lane that had nothing to do finds out")
    assert "WRONGPASS" in json.loads(node.remote.request("GET", "/readyz")[1])["reason"]
    told = subprocess.run(
        [sys.executable, "-m", "node", "status", "--url", node.remote.url], capture_output=True, text=True, check=False
    )
    assert "WRONGPASS" in told.stdout + told.stderr
    admin.config_set("requirepass", OLD)
    wait_until(node.is_ready, LIMIT_S, "it works again by itself")
    wait_until(lambda: len(lines(node, "redis_back")) == 1, LIMIT_S, "its return is told")
    assert [node.task(task, wait_s=20)["state"] for task in ids] == ["succeeded"] * 3
    assert [node.task(task)["attempt"] for task in ids] == [1] * 3
    assert len(lines(node, "redis_refuses")) == 1
    assert not lines(node, "redis_away")
    assert [event["kind"] for event in node.get("/cluster")["events"] if event["kind"].startswith("redis_")] == [
        "redis_refuses",
        "redis_back",
    ]
    assert "s3cret" not in node.log() + told.stdout + told.stderr + body.decode() + json.dumps(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [(["off"], "WRONGPASS"), (["resetkeys"], "NOPERM"), (["resetchannels"], "NOPERM"), (["-evalsha"], "NOPERM")],
)
def test_a_user_whose_rights_are_taken_away_is_told_so_and_works_again_with_them(
    start: Callable[..., Fleet], admin: redis.Redis, change: list[str], words: str
) -> None:
    admin.execute_command("ACL", "SETUSER", "rumor", "on", f">{OLD}", *AS_A_NODE)
    node = start(f"rumor:{OLD}@").nodes[0]
    admin.execute_command("ACL", "SETUSER", "rumor", *change)
    kick(admin)
    found = wait_until(lambda: problem(node), LIMIT_S, "the node notices")
    assert found["code"] == "redis_refuses"
    assert words in found["message"]
    admin.execute_command("ACL", "SETUSER", "rumor", "on", *AS_A_NODE)
    wait_until(node.is_ready, LIMIT_S, "it works again by itself")
    task = node.submit("noop")[0]
    assert node.task(task, wait_s=10)["state"] == "succeeded"
    wait_until(lambda: len(lines(node, "redis_back")) == 1, LIMIT_S, "its return is told once")


def test_one_blip_is_one_event_and_one_return(start: Callable[..., Fleet], redis_server: RedisServer) -> None:
    node = start("").nodes[0]
    redis_server.restart()
    wait_until(lambda: lines(node, "redis_back"), LIMIT_S, "its end is told")
    redis_server.restart()
    wait_until(lambda: len(lines(node, "redis_back")) == 2, LIMIT_S, "so is that of the second")
    assert len(lines(node, "redis_away")) + len(lines(node, "redis_refuses")) == 2
    kinds = [event["kind"] for event in node.get("/cluster")["events"] if event["kind"].startswith("redis_")]
    assert kinds == ["redis_away", "redis_back"] * 2


def test_a_node_works_over_a_unix_socket_and_in_its_database(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    server = RedisServer(tmp_path, "--unixsocket", str(path))
    try:
        with fleet(tmp_path, f"unix://{path}?db=1") as nodes:
            nodes.start(2)
            ids = nodes.spread("noop", None, each=10)
            assert {row["state"] for row in nodes.wait_ended(ids, 20)} == {"succeeded"}
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0, "database 0 is another"
    finally:
        server.kill()
