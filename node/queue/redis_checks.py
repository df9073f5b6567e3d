"""What a node asks of Redis before it works with it: that it will not lose tasks, and that it is this cluster's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from cluster import keys
from cluster.config import Config
from cluster.errors import ConfigError, StoreUnsafe
from cluster.refusal import refusal

SCHEMA = 1  # raised when an older node could not read what a newer one writes
VERSIONS = {"valkey": (7, 2), "redis": (6, 2)}  # oldest that has what the scripts use

Note = dict[str, str]


async def examine(client: redis.asyncio.Redis, config: Config) -> list[Note]:
    """What is unsafe but tolerable, as problems for /health. INFO alone is read: managed servers often forbid CONFIG.

    Raises StoreUnsafe when tasks could be evicted (unless insecure_redis) or the server is too old.
    """
    told: Any = await client.info("everything")
    kind = "valkey" if "valkey_version" in told else "redis"
    version = str(told.get(f"{kind}_version", "0.0"))
    if tuple(int(part) for part in version.split(".")[:2]) < VERSIONS[kind]:
        oldest = ".".join(map(str, VERSIONS[kind]))
        raise StoreUnsafe(f"the server is {kind} {version}; it takes {oldest} or newer.", "Upgrade it.")
    policy = str(told.get("maxmemory_policy", "unknown"))
    notes: list[Note] = []
    if policy != "noeviction":
        what = f"Redis's maxmemory-policy is {policy!r}: when memory is short it deletes tasks that were accepted."
        if not config.insecure_redis:
            raise StoreUnsafe(what, "CONFIG SET maxmemory-policy noeviction, or start with --insecure-redis.")
        notes.append({"code": "redis_evicts", "message": what, "hint": "CONFIG SET maxmemory-policy noeviction"})
    if not told.get("aof_enabled"):
        notes.append(
            {
                "code": "redis_no_aof",
                "message": "Redis has no append-only file: a restart loses what came after its last snapshot.",
                "hint": "CONFIG SET appendonly yes, and write it into its configuration.",
            }
        )
    if not told.get("connected_slaves"):
        notes.append(
            {
                "code": "redis_no_replica",
                "message": "Redis has no replica: while it is down, nothing is accepted and nothing starts.",
                "hint": "Add a replica, and something that moves the address in redis_url to it.",
            }
        )
    return notes


async def agree(client: redis.asyncio.Redis, config: Config) -> None:
    """Write the cluster's fixed facts if this is its first node, else compare. Raises ConfigError if they differ."""
    try:
        await client.hsetnx(keys.LEADER_CONFIG, "shards", str(config.shards))
        await client.hsetnx(keys.LEADER_CONFIG, "cluster", config.cluster)
        await client.hsetnx(keys.LEADER_CONFIG, "min_schema", str(SCHEMA))
        facts: Any = await client.hgetall(keys.LEADER_CONFIG)
    except ResponseError as error:
        why = refusal(str(error))
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
    if int(schema) > SCHEMA:
        raise ConfigError(
            f"this node speaks schema {SCHEMA}, and the cluster needs at least {schema}.", "Upgrade this node."
        )


async def same_key(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> None:
    """Compare fingerprints of gossip keys with those of the nodes that live, then write one's own.

    A node that nobody can open, or that can open nobody, would hold itself for a cluster of its own, beside one that
    works on the same Redis. Raises ConfigError then. The first key of each seals, all of them open.
    """
    mine = [_fingerprint(key) for key in ring] or ["none"]
    others: Any = await client.hgetall(keys.LEADER_KEYS)
    rows: Any = await client.hgetall(keys.LEADER_MEMBERS)
    strangers: list[str] = []
    for raw, prints in others.items():
        node_id = raw.decode()
        if node_id == config.name or raw not in rows:
            continue
        try:
            session = msgspec.msgpack.decode(rows[raw])[0]
            told: Any = await client.pubsub_numsub(keys.wake(session))
        except (msgspec.DecodeError, IndexError, TypeError):
            continue  # another version's row
        if told and told[0][1] > 0:
            theirs = prints.decode().split()
            if mine[0] in theirs and theirs[0] in mine:
                strangers = []
                break
            strangers.append(node_id)
    if strangers:
        raise ConfigError(
            f"what this node seals ({mine[0]}) or opens ({', '.join(mine)}) does not fit the gossip keys of "
            f"{', '.join(sorted(strangers))}: they could not hear each other.",
            "Give it theirs (--gossip-key-file, or RUMOR_GOSSIP_KEYS). To rotate: OLD,NEW on all, NEW,OLD on all, NEW.",
        )
    await sign(client, config, ring)


async def sign(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> None:
    """Write the fingerprints of this node's gossip keys, the one that seals first."""
    prints = [_fingerprint(key) for key in ring] or ["none"]
    await client.hset(keys.LEADER_KEYS, config.name, " ".join(prints))


def _fingerprint(key: bytes) -> str:
    """Tells keys apart and says nothing of them: the keys are random."""
    return hashlib.blake2b(key, digest_size=6, person=b"rumor-key").hexdigest()


async def ready(client: redis.asyncio.Redis, config: Config, ring: Sequence[bytes]) -> list[Note]:
    """All of the above; a server that is not there at start is a ConfigError that says so."""
    try:
        notes = await examine(client, config)
        await agree(client, config)
        await same_key(client, config, ring)
    except (RedisError, OSError, TimeoutError) as error:
        raise ConfigError(
            f"Redis gives no answer at start: {str(error).rstrip('.')}.",
            "Is redis_url right, and is the server running?",
        ) from None
    return notes
