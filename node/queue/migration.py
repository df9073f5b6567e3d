"""Migration: a cluster's tasks of an earlier version, brought into the form of this one, before a node serves.

Schema 1 kept a hash for each task; this version keeps buckets. Nodes of both forms cannot work side by side: each would
miss the other's tasks. So the first node of this version starts only while no node runs, and raises `min_schema`, with
which nodes of the version before refuse to start. Then it migrates shard by shard. Several nodes may do that at once,
and one that is killed in the middle leaves the rest to the next.
"""

from __future__ import annotations

import time
from typing import Any

import redis.asyncio
import structlog

from cluster import keys
from cluster.config import Config
from cluster.errors import ConfigError
from cluster.scripts import call
from node.queue import members

SCHEMA = 2  # version of the stored forms; raise it if older nodes could not read the new ones
BATCH = 200  # tasks that one script brings over; bounds the time that Redis is held
SAY_EVERY_S = 1.0

log = structlog.get_logger("rumor.migration")


async def raise_schema(client: redis.asyncio.Redis) -> None:
    """Say in Redis that tasks have this version's form from now on. Raises ConfigError while older nodes run."""
    running = await members.live(client)
    if running and int(await client.hget(keys.LEADER_CONFIG, "min_schema") or 0) < SCHEMA:
        raise ConfigError(
            f"nodes of an earlier version still run: {', '.join(sorted(running))}.",
            "Stop all of them, then start this version: it stores tasks in another form, and takes theirs over.",
        )
    await client.hset(keys.LEADER_CONFIG, "min_schema", str(SCHEMA))


async def migrate(client: redis.asyncio.Redis, config: Config) -> int:
    """Bring all tasks of schema 1 into buckets; returns how many this node brought over."""
    pipe = client.pipeline(transaction=False)
    for shard in range(config.shards):
        pipe.zcard(keys.old_index(shard))
    counts: Any = await pipe.execute()
    total = sum(counts)
    moved, said_s = 0, time.monotonic()
    for shard, left in enumerate(counts):
        while left:
            now_left = await call(client, "migrate", *_migrate(shard))
            moved += max(0, left - now_left)
            left = now_left
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                log.info("migrating", tasks=moved, of=total, shard=shard)
    if total:
        log.info("migrated", tasks=moved, schema=SCHEMA)
    return moved


def _migrate(shard: int) -> tuple[list[str], list[str | int]]:
    return (
        [keys.never(shard), keys.old_index(shard), keys.buckets(shard)],
        [keys.bucket_prefix(shard), keys.old_task_prefix(shard), keys.inflight_prefix(shard), BATCH],
    )
