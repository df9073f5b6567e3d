"""The homes of Idempotency-Keys: each key's own shard, where any node finds what the key stands for.

A key that chose its task's shard is at home there, and store.lua does all in one step. Where a unique name or `key`
chose the shard, this module first notes in the key's home what it stands for. Whoever comes first decides; another
submission is a conflict then. Whether the task itself is stored, its own shard alone says, so that a gateway
that dies between the two steps leaves nothing wrong: a repeat finds its own note and stores the task.

Does not know: how a task is stored, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from cluster.config import Config
from cluster.errors import StoreUnavailable, refused
from cluster.shards.answers import Noted, StoreCode
from cluster.shards.calls import NewTask
from cluster.shards.shards import Shards
from node.queue.names import LINES, NO_ID, conflict, note
from node.queue.placement import shard_of_key


class KeyHomes:
    """One node's questions about Idempotency-Keys. `store` sends a new task to its own shard."""

    def __init__(self, config: Config, shards: Shards, store: Callable[[NewTask], None]) -> None:
        self._shards = shards
        self._count = config.shards
        self._store = store

    def store(self, new: NewTask) -> None:
        """Store a task under an Idempotency-Key that may have another shard than the task."""
        home = shard_of_key(new.idempotency, self._count)
        if home == new.shard:
            self._store(new)
            return
        noted = note(new.id, new.fingerprint)
        on_reply = partial(self._answered, new)
        self._shards.send(self._shards.calls.reserve(home, new.idempotency, noted, new.idempotency_ms, on_reply))

    def _answered(self, new: NewTask, stands: Noted | Exception | None) -> None:
        if isinstance(stands, Exception):
            new.on_code(new, stands, 0, "")
        elif stands is None or stands.fingerprint == new.fingerprint:
            self._store(new)
        else:
            new.on_code(new, StoreCode.MISMATCH, 0, stands.first)

    async def take_for_lines(self, key: str, key_ms: int) -> StoreUnavailable | None:
        """Note that a key stands for a stream of lines; the error if nobody knows. Raises IdempotencyConflict."""
        future: asyncio.Future[Noted | Exception | None] = asyncio.get_running_loop().create_future()

        def answered(stands: Noted | Exception | None) -> None:
            if not future.done():  # it is done if the caller has given up
                future.set_result(stands)

        home = shard_of_key(key, self._count)
        self._shards.send(self._shards.calls.reserve(home, key, note(NO_ID, LINES), key_ms, answered))
        stands = await future
        if isinstance(stands, Exception):
            return stands if isinstance(stands, StoreUnavailable) else refused(stands)
        if stands is not None and stands.fingerprint != LINES:
            raise conflict(stands.first, stands.fingerprint)
        return None
