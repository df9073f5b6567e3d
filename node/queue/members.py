"""The member list in Redis, for checks at a node's start: which nodes live by their own word."""

from __future__ import annotations

from typing import Any

import msgspec
import redis.asyncio

from cluster import keys


async def live(client: redis.asyncio.Redis) -> dict[str, str]:
    """node_id -> session of each node that listens on its session's channel."""
    sessions: dict[str, str] = {}
    rows: Any = await client.hgetall(keys.LEADER_MEMBERS)
    for raw, row in rows.items():
        try:
            session = msgspec.msgpack.decode(row)[0]
            channels: Any = await client.pubsub_numsub(keys.wake(session))
        except (msgspec.DecodeError, LookupError, TypeError):
            continue  # the row of a node of another version
        if channels and channels[0][1] > 0:
            sessions[raw.decode("utf-8", "replace")] = session
    return sessions
