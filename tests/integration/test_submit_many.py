"""`submit_many` against a real node that is killed in the middle: no id is lost, and nothing is stored twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Invalid, RumorError
from node import SyncClient
from node.client.asking import Answer, Ask, NoAnswer
from tests.chaos.nodes import fleet

ITEMS: list[Any] = [("noop", "\ud800" if n == 1_200 else n) for n in range(5_000)]


def test_a_node_that_is_killed_in_the_middle_costs_no_id(
    redis_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fleet(tmp_path, redis_server.url, tasks="") as nodes:
        nodes.start(1)
        (node,) = nodes.nodes
        client = SyncClient(node.remote.url, learn=False, within_s=3.0)
        whole, asked = client._ask, 0

        def ask(step: Ask) -> Answer | NoAnswer:
            """Kill the node when the third request has left, before its answer is read."""
            nonlocal asked
            asked += 1
            read = step.request.meanwhile
            assert read is not None
            return (
                whole(replace(step, request=replace(step.request, meanwhile=node.kill))) if asked == 3 else whole(step)
            )

        monkeypatch.setattr(client, "_ask", ask)
        results = client.submit_many(ITEMS)
        assert len(results) == len(ITEMS)
        assert isinstance(results[1_200], Invalid)
        ids = {n: result.id for n, result in enumerate(results) if not isinstance(result, RumorError)}
        assert ids.keys() == set(range(2_000)) - {1_200}
        doubtful = [result for result in results if isinstance(result, RumorError) and result.idempotency_key]
        assert len(doubtful) >= 1_000

        monkeypatch.undo()
        node.start()
        nodes.wait_ready()
        again = client.submit_many(ITEMS, idempotency_key=doubtful[0].idempotency_key, within_s=30.0)
        client.close()
        repeated = {n: result.id for n, result in enumerate(again) if not isinstance(result, RumorError)}
        assert repeated.keys() == set(range(5_000)) - {1_200}
        assert {n: repeated[n] for n in ids} == ids
        assert len(set(repeated.values())) == 4_999
        assert sorted(row["id"] for row in nodes.nodes[0].tasks(fields="")) == sorted(repeated.values())
