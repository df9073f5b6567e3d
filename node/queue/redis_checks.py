"""Checks of Redis that a node makes before it starts: that it will not lose tasks, and that it is this cluster's."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError, ResponseError

from cluster import keys
from cluster.config import Config
from cluster.errors import ConfigError, StoreUnsafe
from cluster.refusal import refusal_in
from cluster.scripts import is_answer
from node.queue import members, migration

VERSIONS = {"valkey": (7, 2), "redis": (6, 2)}  # oldest versions that have the commands that the scripts use

ANSWER_WITHIN_S = 10.0  # time that Redis has for each look whether it still reads its data
LOOK_EVERY_S = 0.5

log = structlog.get_logger("rumor.node")

Note = dict[str, str]


async def loaded(client: redis.asyncio.Redis) -> None:
    """Return when Redis has read its data: after a restart that takes it minutes, if the data are large.

    Until then it refuses all that a node does, and says so itself: a node that ended instead would come late, since its
    supervisor waits longer after each end. Whatever else is wrong, `ready` says.
    """
    is_told = False
    while True:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                info: Any = await client.info("persistence")
        except (RedisError, OSError):  # a time-out is an OSError, too
            return
        if not info.get("loading"):
            return
        if not is_told:
            is_told = True
            left_s = info.get("loading_eta_seconds")
            log.warning("redis_loading", left_s=left_s, hint="Redis reads its data. This node starts once it is done.")
        await asyncio.sleep(LOOK_EVERY_S)


async def examine(client: redis.asyncio.Redis, config: Config) -> list[Note]:
    """Faults of the server that a node can live with, as problems for /health.

    It reads INFO alone: managed servers often forbid CONFIG. Raises StoreUnsafe if the server is too old or may evict
    tasks (unless insecure_redis).
    """
    info: Any = await client.info("everything")
    kind = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{kind}_version", "0.0"))
    if tuple(int(part) for part in version.split(".")[:2]) < VERSIONS[kind]:
        oldest = ".".join(map(str, VERSIONS[kind]))
        raise StoreUnsafe(f"the server is {kind} {version}; Rumor needs {kind} {oldest} or newer.", "Upgrade it.")
    policy = str(info.get("maxmemory_policy", "unknown"))
    notes: list[Note] = []
    if policy != "noeviction":
        message = f"Redis's maxmemory-policy is {policy!r}: when memory is short it deletes tasks that were accepted."
        if not config.insecure_redis:
            raise StoreUnsafe(message, "CONFIG SET maxmemory-policy noeviction, or start with --insecure-redis.")
        notes.append({"code": "redis_evicts", "message": message, "hint": "CONFIG SET maxmemory-policy noeviction"})
    if not info.get("aof_enabled"):
        notes.append(
            {
                "code": "redis_no_aof",
                "message": "Redis has no append-only file: a restart loses everything since its last snapshot.",
                "hint": "CONFIG SET appendonly yes, and write it into its configuration.",
            }
        )
    if not info.get("connected_slaves"):
        notes.append(
            {
                "code": "redis_no_replica",
                "message": "Redis has no replica: while Redis is down, no task is accepted and none starts.",
                "hint": "Add a replica, and something that moves the address in redis_url to it.",
            }
        )
    return notes


async def agree(client: redis.asyncio.Redis, config: Config) -> None:
    """Write the cluster's fixed facts if this is its first node, else compare them.

    Raises ConfigError if they differ, or if nodes that store tasks in another form run; StoreUnsafe if Redis refuses to
    write.
    """
    try:
        await client.hsetnx(keys.LEADER_CONFIG, "shards", str(config.shards))
        await client.hsetnx(keys.LEADER_CONFIG, "cluster", config.cluster)
        await client.hsetnx(keys.LEADER_CONFIG, "min_schema", str(migration.SCHEMA))
        facts: Any = await client.hgetall(keys.LEADER_CONFIG)
    except ResponseError as error:
        why = refusal_in(error)
        raise StoreUnsafe(f"Redis refuses to store: {why.words}.", why.hint) from None
    shards, cluster, schema = (facts[name].decode() for name in (b"shards", b"cluster", b"min_schema"))
    if int(shards) != config.shards:
        raise ConfigError(
            f"shards is {config.shards}, and this cluster was made with {shards}.",
            f"Start with --shards {shards}; the number is fixed for a cluster's life.",
        )
    if cluster != config.cluster:
        raise ConfigError(
            f"cluster is {config.cluster!r}, and this Redis database belongs to {cluster!r}.",
            "Use another Redis database (redis://…/1), or the same name.",
        )
    if int(schema) > migration.SCHEMA:
        raise ConfigError(
            f"this node speaks schema {migration.SCHEMA}, and the cluster needs at least {schema}.",
            "Upgrade this node.",
        )
    if int(schema) < migration.SCHEMA:
        await migration.raise_schema(client)


async def same_key(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> None:
    """Compare the fingerprints of this node's gossip keys with those of the live nodes, then write this node's own.

    A node seals its messages with its first key and opens others' with any of its keys. A node that could not exchange
    messages with the others would take itself for a cluster of its own, on the same Redis as theirs: this raises
    ConfigError, unless at least one live node can open its messages and be opened by it.
    """
    mine = [_fingerprint(key) for key in ring] or ["none"]
    others: Any = await client.hgetall(keys.LEADER_KEYS)
    living = await members.live(client)
    strangers: list[str] = []
    for raw, prints in others.items():
        node_id, theirs = raw.decode("utf-8", "replace"), prints.decode("utf-8", "replace").split()
        if node_id != config.name and node_id in living and theirs:
            if mine[0] in theirs and theirs[0] in mine:
                strangers = []
                break
            strangers.append(node_id)
    if strangers:
        raise ConfigError(
            f"this node's gossip keys (it seals with {mine[0]}, and opens with {', '.join(mine)}) do not fit those of "
            f"{', '.join(sorted(strangers))}: they could not hear each other.",
            "Give it theirs (--gossip-key-file, or RUMOR_GOSSIP_KEYS). To rotate: OLD,NEW on all, NEW,OLD on all, NEW.",
        )
    await sign(client, config, ring)


async def sign(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> None:
    """Write the fingerprints of this node's gossip keys, first that of the key that seals."""
    prints = [_fingerprint(key) for key in ring] or ["none"]
    await client.hset(keys.LEADER_KEYS, config.name, " ".join(prints))


def _fingerprint(key: bytes) -> str:
    """A short hash that tells keys apart and gives none of them away, since keys are random."""
    return hashlib.blake2b(key, digest_size=6, person=b"rumor-key").hexdigest()


async def ready(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> list[Note]:
    """Make all these checks; returns the problems for /health. Raises ConfigError if no server serves us."""
    try:
        notes = await examine(client, config)
        await agree(client, config)
        await migration.migrate(client, config)
        await same_key(client, config, ring)
    except (RedisError, OSError, TimeoutError) as error:
        if is_answer(error):
            why = refusal_in(error)
            raise ConfigError(f"Redis refuses this node at start: {why.words}.", why.hint) from None
        raise ConfigError(
            f"Redis gives no answer at start: {str(error).rstrip('.')}.",
            "Check redis_url, and that the server is running.",
        ) from None
    return notes
