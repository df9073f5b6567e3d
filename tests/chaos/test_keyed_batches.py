"""Gateways are killed in the middle of keyed batches, which are repeated at another node: every task is there once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from cluster import keys
from cluster.errors import RumorError
from node.client.one_node import Remote
from tests.chaos.nodes import Fleet, Node
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]

TASKS = 3_000  # of a batch: long enough for a kill to hit it
UNSERVED = "idle"  # a queue that no node serves: what is stored stays there, and can be counted
IN_THE_MIDDLE = 8  # kills that must have hit a batch of which some was stored and some was not
ROUNDS_MAX = 60
SHARDS = 64


class Poster(threading.Thread):
    """Sends one batch to one node, once."""

    def __init__(self, node: Node, key: str, batch: list[dict[str, Any]]) -> None:
        super().__init__()
        self._node, self._key, self._batch = node, key, batch
        self.ids: list[str] | None = None  # None: there was no answer

    def run(self) -> None:
        # Every thread needs a connection of its own.
        remote = Remote(self._node.remote.url, self._node.remote.token, timeout_s=30.0)
        try:
            self.ids = post(remote, self._key, self._batch)
        except RumorError:
            self.ids = None


def post(remote: Remote, key: str, batch: list[dict[str, Any]]) -> list[str]:
    """The ids in the answer of one node, which must have accepted every task."""
    status, answer = remote.call("POST", "/tasks/batch", batch, headers={"Idempotency-Key": key})
    assert status == 200
    assert answer["accepted"] == len(batch), [row for row in answer["results"] if "error" in row][:3]
    return [row["id"] for row in answer["results"]]


def test_a_batch_whose_gateway_is_killed_in_the_middle_is_stored_once_by_its_repeat(
    make_fleet: Make, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3)
    client = redis.Redis.from_url(redis_server.url)

    def stored() -> int:
        """Tasks in Redis, by its own account of all queues."""
        with client.pipeline(transaction=False) as pipe:
            for shard in range(SHARDS):
                pipe.zcard(keys.ready(shard, UNSERVED))
            return sum(pipe.execute())

    def batch(key: str) -> list[dict[str, Any]]:
        return [{"type": "noop", "queue": UNSERVED, "data": {"of": key, "n": n}} for n in range(TASKS)]

    began_s = time.monotonic()
    expected = {("calm", n): task_id for n, task_id in enumerate(post(fleet.nodes[0].remote, "calm", batch("calm")))}
    takes_s = time.monotonic() - began_s
    hits = unanswered = 0
    for number in range(ROUNDS_MAX):
        if hits >= IN_THE_MIDDLE:
            break
        victim, other = fleet.nodes[number % 3], fleet.nodes[(number + 1) % 3]
        wait_until(victim.is_ready, 30, f"node {victim.number} is back")
        wait_until(other.is_ready, 30, f"node {other.number} is there")
        key, before = f"round {number}", stored()
        poster = Poster(victim, key, batch(key))
        poster.start()
        # Half of the kills strike at a moment by the clock, half when the first tasks are seen in Redis.
        if number % 2:
            poster.join(takes_s * (number % 10) / 10)
        else:
            wait_until(
                lambda before=before, poster=poster: stored() > before or not poster.is_alive(), 20, "it is stored"
            )
        victim.kill()
        hits += before < stored() < before + TASKS
        poster.join()
        unanswered += poster.ids is None
        ids = post(other.remote, key, batch(key))
        if poster.ids is not None:
            assert ids == poster.ids, "the answer that the client got, and the answer to its repeat"
        expected |= {(key, n): task_id for n, task_id in enumerate(ids)}
        assert post(other.remote, key, batch(key)) == ids, "and once more"
        victim.start()
    print(f"{number} kills, {unanswered} without an answer, {hits} in the middle")
    assert hits >= IN_THE_MIDDLE
    assert len(set(expected.values())) == len(expected) == stored(), "every accepted task, and no other"
    assert {row["id"] for row in other.tasks(state="queued")} == set(expected.values())
    for item in list(expected)[:: len(expected) // 50]:
        assert other.task(expected[item])["data"] == {"of": item[0], "n": item[1]}, "each in its place"
