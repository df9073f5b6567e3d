"""The checks of Redis that a node makes before it starts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from cluster import keys
from cluster.config import Config
from cluster.errors import ConfigError, StoreUnsafe
from cluster.redis_client import connect
from node.main import EXIT_CONFIG
from node.queue import redis_checks
from tests.chaos.nodes import READY_LIMIT_S, fleet
from tests.integration.conftest import RedisServer
from tests.processes import free_base_port
from tests.waiting import wait_until

# A restart then takes 1 ms a key, and Redis answers meanwhile.
READS_SLOWLY = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
KEYS = 4_000

KEY, OTHER = b"k" * 32, b"o" * 32
SESSION = "n1:1/018bcfe5680-00000001"


async def test_a_node_whose_gossip_key_no_live_node_has_does_not_start(redis_server: Any) -> None:
    client = connect(redis_server.url)
    first, second = Config(node_id="n1:1"), Config(node_id="n2:2")
    await redis_checks.same_key(client, first, [KEY])
    await client.hset(keys.LEADER_MEMBERS, "n1:1", msgspec.msgpack.encode([SESSION, "127.0.0.1", 1]))
    async with client.pubsub() as channel:
        await redis_checks.same_key(client, second, [OTHER])  # n1 does not live: its row is an old one
        for name, row in (("n3:1", msgspec.msgpack.encode({})), ("n4:1", b"\xff"), (b"\xff", b"")):
            await client.hset(keys.LEADER_MEMBERS, name, row)  # type: ignore[misc,arg-type]
            await client.hset(keys.LEADER_KEYS, name, row)  # type: ignore[misc,arg-type]
        await channel.subscribe(keys.wake(SESSION))
        await channel.get_message(timeout=2)
        for ring in ([OTHER], []):
            with pytest.raises(ConfigError, match="n1:1") as caught:
                await redis_checks.same_key(client, second, ring)
            assert KEY.decode() not in str(caught.value)
        await redis_checks.same_key(client, second, [KEY, OTHER])  # the first round of a rotation: OLD,NEW
        with pytest.raises(ConfigError, match="OLD,NEW on all"):
            await redis_checks.same_key(client, second, [OTHER, KEY])  # n1 could not open what it seals
        await redis_checks.same_key(client, first, [OTHER])  # its own row is no witness
    await client.aclose()


async def test_a_server_that_is_not_there_is_told_in_one_sentence() -> None:
    class Gone:
        async def info(self, section: str) -> None:
            raise ConnectionError("Error 111 connecting to 127.0.0.1:1. Connection refused.")

    with pytest.raises(ConfigError) as caught:
        await redis_checks.ready(Gone(), Config(), [])  # type: ignore[arg-type]
    assert caught.value.message.endswith(":1. Connection refused.")


def test_a_node_waits_for_a_redis_that_reads_its_data(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", *READS_SLOWLY)
    try:
        with Redis.from_url(server.url) as client:
            client.mset({f"key{n}": n for n in range(KEYS)})
            client.bgrewriteaof()  # one key after another, and no longer one command
            wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], READY_LIMIT_S, "rewritten")
        server.kill()
        server.spawn()
        with fleet(tmp_path, server.url) as nodes:
            node = nodes.make("127.0.0.1", free_base_port(1))
            node.start()
            nodes.nodes.append(node)
            wait_until(lambda: "redis_loading" in node.log(), READY_LIMIT_S, "the node says what it waits for")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", node.port), timeout=5)
            wait_until(node.is_ready, READY_LIMIT_S, "the node is ready")
            assert node.log().count("redis_loading") == 1
    finally:
        server.kill()


async def test_a_server_that_may_evict_is_refused_unless_told_otherwise(redis_server: Any) -> None:
    client = connect(redis_server.url)
    await client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreUnsafe, match="allkeys-lru"):
        await redis_checks.examine(client, Config())
    notes = await redis_checks.examine(client, Config(insecure_redis=True))
    assert "redis_evicts" in [note["code"] for note in notes]
    await client.aclose()


def test_a_node_that_redis_is_unsafe_for_ends_with_the_status_of_a_node_that_did_not_start(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    with Redis.from_url(redis_server.url) as client, fleet(tmp_path, redis_server.url) as nodes:
        for name, value, told in (
            ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is 'allkeys-lru'"),
            ("min-replicas-to-write", "1", "Redis refuses to store: NOREPLICAS"),
        ):
            before = client.config_get(name)[name]
            client.config_set(name, value)
            node = nodes.make("127.0.0.1", free_base_port(1))
            node.start()
            assert node.wait(READY_LIMIT_S) == EXIT_CONFIG
            assert told in node.log()
            client.config_set(name, before)


async def test_a_cluster_keeps_the_number_of_shards_and_the_name_of_its_first_node(redis_server: Any) -> None:
    client = connect(redis_server.url)
    await redis_checks.agree(client, Config(shards=64))
    with pytest.raises(ConfigError, match="64"):
        await redis_checks.agree(client, Config(shards=32))
    with pytest.raises(ConfigError, match="rumor"):
        await redis_checks.agree(client, Config(cluster="other"))
    await client.aclose()
