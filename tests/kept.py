"""Finished tasks in Redis by the hundred thousand, made by the queue's own scripts and faster than any worker could."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from cluster.redis_client import connect
from cluster.shards.answers import SettleKind
from cluster.shards.calls import BATCH_MAX, Calls, NewTask, Settlement
from cluster.shards.shards import Shards
from cluster.shards.task import Backoff, Ids, Spec, packed
from node.queue.placement import shard_of_key

SESSION = "elsewhere/00000000001-00000001"
QUEUE = "elsewhere"  # a queue that no node serves
FAILURE = b'{"type":"Broken","message":"no luck","traceback":"Traceback: line 1"}'


async def keep(
    shards: Shards,
    of: int,
    count: int,
    kind: str = "old",
    outcome: SettleKind = SettleKind.SUCCEEDED,
    key: str | None = None,
    data: bytes = b'"data"',
    payload: bytes = b'"result"',
    first_ms: int = 1_700_000_000_000,
) -> list[str]:
    """Store, claim and settle `count` tasks over all `of` shards (with a key, in its shard); their ids, in order.

    They are a millisecond apart and begin in the past, so each task that a node makes now is newer.
    """
    spec = Spec(kind, QUEUE, 5, 1, 60.0, Backoff(1.0, 2.0, 60.0), key)
    form = packed(spec)
    ids = Ids()
    news: list[list[NewTask]] = [[] for _ in range(of)]
    made: list[str] = []
    for n in range(count):
        shard = n % of if key is None else shard_of_key(key, of)
        made.append(ids.next(first_ms + n, shard))
        news[shard].append(
            NewTask(made[-1], shard, QUEUE, 5, 0, spec, form, data, False, "", 0, "", lambda *_: None, None)
        )

    async def fill(shard: int) -> None:
        calls = shards.calls
        for first in range(0, len(news[shard]), BATCH_MAX):
            part = news[shard][first : first + BATCH_MAX]
            await shards.ask(partial(calls.store, shard, SESSION, part))
            left = len(part)
            while left:
                claims = await shards.ask(partial(calls.claim, shard, QUEUE, SESSION, BATCH_MAX, None))
                assert claims.tasks, f"{left} tasks were stored and cannot be claimed"
                outcomes = [Settlement(task, outcome, payload, 86_400_000) for task in claims.tasks]
                await shards.ask(partial(calls.settle, shard, SESSION, outcomes))
                left -= len(outcomes)

    await asyncio.gather(*(fill(shard) for shard in range(of)))
    return made


def fill(redis_url: str, count: int, of: int = 64, **more: Any) -> None:
    """`keep` for tests without an event loop. (It has a thread of its own, since a browser keeps a loop running.)"""

    async def run() -> None:
        client = connect(redis_url)
        shards = Shards(client, Calls(60.0, 1_000_000, 86_400.0), of, 30.0)
        shards.start()
        await keep(shards, of, count, **more)
        await shards.close()
        await client.aclose()

    failures: list[Exception] = []

    def in_thread() -> None:
        try:
            asyncio.run(run())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
