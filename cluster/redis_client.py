"""The one way to make a client of Redis: without retries, deadlines or reconnections of its own.

A repeated claim claims more, so a client must repeat nothing by itself; whoever calls decides about time.

Does not know: what is asked of Redis.
"""

from __future__ import annotations

import os
from typing import Any

import redis.asyncio
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cluster import redis_address
from cluster.errors import ConfigError

CONNECT_WITHIN_S = 5.0


def connect(url: str, *, connect_within_s: float | None = CONNECT_WITHIN_S, **more: Any) -> redis.asyncio.Redis:
    """A client for this URL, not connected yet. Raises ConfigError for a bad URL, or a file in it that is not there."""
    address = redis_address.parse(url)
    for name in redis_address.FILES:
        path = address.options.get(name)
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(
                f"redis_url has the parameter {name!r}, and this process cannot read {path!r}.",
                "Correct the path, or the rights of the file.",
            )
    kind: Any = UnixDomainSocketConnection if address.path else SSLConnection if address.is_tls else Connection
    pools: Any = ConnectionPool
    pool = pools(
        connection_class=kind,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=None,
        socket_connect_timeout=connect_within_s,
        **({} if address.path else {"socket_keepalive": True}),
        **address.arguments(),
        **more,
    )
    clients: Any = redis.asyncio.Redis
    client: redis.asyncio.Redis = clients.from_pool(pool)
    return client
