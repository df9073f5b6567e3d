"""Upkeep: at intervals, this node looks at two things in Redis beside the shards: its memory and the catalog.

Redis may lose its data without a word. So this node looks again and again for what it once wrote there (its types, the
facts of the cluster, the fingerprints of its gossip keys), and writes all of it anew if its types are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import redis.asyncio
import structlog

from cluster.config import Config
from cluster.errors import RumorError
from cluster.gossip.keyring import gossip_keys
from cluster.scripts import UNANSWERED
from node.observe import redis_memory
from node.observe.redis_memory import Memory
from node.queue import redis_checks
from node.queue.catalog import Catalog
from node.queue.handlers import Handlers

CATALOG_INTERVAL_S = 5.0  # between two looks at the catalog
MEMORY_INTERVAL_S = 1.0  # between two looks at Redis's memory

log = structlog.get_logger("rumor.engine")


class Upkeep:
    """One node's upkeep of what it shares with the cluster in Redis."""

    def __init__(
        self,
        config: Config,
        client: redis.asyncio.Redis,
        catalog: Catalog,
        handlers: Handlers,
        on_memory: Callable[[Memory], None],
    ) -> None:
        self._config = config
        self._client = client
        self._catalog = catalog
        self._handlers = handlers
        self._is_news = asyncio.Event()  # a node is new: its types are to be read before the interval is over
        self._on_memory = on_memory
        self._keys = gossip_keys(config)

    async def watch_memory(self) -> None:
        """Look at Redis's memory until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._config.redis_timeout_s):
                    figures: Any = await self._client.info("memory")
                self._on_memory(redis_memory.look(figures, self._config.retention_max_bytes))
            except UNANSWERED as error:
                log.debug("memory_unread", error=str(error))
            await asyncio.sleep(MEMORY_INTERVAL_S)

    async def keep_catalog(self) -> None:
        """Publish this node's types, and read those of the others, until cancelled."""
        is_published = False
        while True:
            try:
                async with asyncio.timeout(self._config.redis_timeout_s):
                    if not is_published:
                        await redis_checks.agree(self._client, self._config)
                        await redis_checks.sign(self._client, self._config, self._keys)
                        await self._catalog.publish(self._client)
                    is_published = await self._catalog.refresh(self._client)
                    await self._handlers.publish(self._client)
                    await self._handlers.refresh(self._client)
            except UNANSWERED as error:
                log.debug("catalog_unread", error=str(error))
            except (RumorError, ValueError, KeyError) as error:  # or what stands there is none of ours
                log.error("cluster_facts_differ", error=str(error))
            try:
                async with asyncio.timeout(CATALOG_INTERVAL_S):
                    await self._is_news.wait()
            except TimeoutError:
                pass
            self._is_news.clear()

    async def announce(self) -> None:
        """Say which types this node runs before anybody hears of it, so that nobody has to guess."""
        try:
            async with asyncio.timeout(self._config.redis_timeout_s):
                await self._catalog.publish(self._client)
                await self._handlers.publish(self._client)
        except UNANSWERED as error:
            log.debug("handlers_unsaid", error=str(error))

    def look_soon(self) -> None:
        """Read the other nodes' types now, and not only when it is time again."""
        self._is_news.set()

    async def refresh_catalog(self) -> None:
        """Read the other nodes' types now. If Redis does not answer, the catalog stays as it is."""
        try:
            async with asyncio.timeout(self._config.redis_timeout_s):
                await self._catalog.refresh(self._client)
        except UNANSWERED as error:
            log.debug("catalog_unread", error=str(error))
