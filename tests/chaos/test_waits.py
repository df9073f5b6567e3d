"""Clients wait in the request that submits their task, and nodes are killed: each call returns one result, its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from node import Client
from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.integration.conftest import RedisServer
from tests.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.chaos

Make = Callable[..., Fleet]
Results = list[dict[str, Any]]
LIMIT_S = 60.0


def at(node: Node) -> Client:
    """A client that begins with this node and learns the others."""
    return Client(node.remote.url, within_s=LIMIT_S)


async def run_all(client: Client, ledger: Ledger, name: str, count: int, seconds: float) -> Results:
    work = {"ledger": str(ledger.path), "seconds": seconds}
    runs = (client.run("chaos.sleep", work, idempotency_key=f"{name}-{n}") for n in range(count))
    return await asyncio.gather(*runs)


def check_results(node: Node, results: Results, ledger: Ledger, commits: Commits, killed: set[str]) -> None:
    """There are as many tasks as calls, and each call returned the result of a task of its own."""
    tasks = [task for task in node.tasks() if task["type"] == "chaos.sleep"]
    ids = [task["id"] for task in tasks]
    assert len(tasks) == len(results), "a submission that was sent again is the same task"
    check_kept(tasks, ids, ledger)
    check_ran_once(ledger, ids, again=killed)
    check_committed_once(commits, ids)

    def multiset(rows: Results) -> list[tuple[tuple[str, Any], ...]]:
        return sorted(tuple(sorted(row.items())) for row in rows)

    assert multiset([task["result"] for task in tasks]) == multiset(results)


def carried_out(run: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(run, LIMIT_S))


def test_who_waits_at_a_killed_node_gets_the_result_from_another_and_so_does_who_waits_for_its_tasks(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, queues="default:150")
    first, victim, _ = fleet.nodes

    async def run() -> None:
        async with at(victim) as through_victim, at(first) as through_first:
            calls = [
                asyncio.create_task(run_all(through_victim, ledger, "victim", 60, 2.0)),
                asyncio.create_task(run_all(through_first, ledger, "first", 60, 2.0)),
            ]
            await wait_until_async(lambda: len(ledger.runs()) == 120, 20, "all run")
            victim.kill()
            held = ledger.open_on(victim.node_id)
            assert held, "the victim ran some"
            results = [result for part in await asyncio.gather(*calls) for result in part]
        again = {run.task_id for run in ledger.runs() if run.delivery == 2}
        assert again == held, "all that it ran, ran again, and nothing else"
        check_results(first, results, ledger, commits, held)

    with Commits(redis_server.url) as commits:
        carried_out(run())


def test_a_stream_of_calls_that_wait_loses_and_repeats_none_while_nodes_are_killed_in_turn(
    make_fleet: Make, ledger: Ledger, redis_server: RedisServer
) -> None:
    fleet = make_fleet(3, queues="default:50")
    _, *victims = fleet.nodes
    killed: set[str] = set()
    results: Results = []
    is_over = asyncio.Event()

    async def caller(client: Client, name: str) -> None:
        while not is_over.is_set():
            results.extend(await run_all(client, ledger, f"{name}-{len(results)}", 1, 0.02))

    async def kill_in_turn() -> None:
        for victim in victims:
            count = len(results)
            await wait_until_async(lambda count=count: len(results) > count + 100, 20, "the stream flows")  # type: ignore[misc]
            victim.kill()
            killed.update(ledger.open_on(victim.node_id))
            count = len(results)
            await wait_until_async(lambda count=count: len(results) > count + 100, 20, "it goes on")  # type: ignore[misc]
            victim.start()
            await asyncio.to_thread(fleet.wait_ready)
        is_over.set()

    async def run() -> None:
        clients = [at(node) for node in fleet.nodes for _ in range(4)]
        callers = [caller(client, f"c{n}") for n, client in enumerate(clients)]
        await asyncio.gather(kill_in_turn(), *callers)
        for client in clients:
            await client.close()

    with Commits(redis_server.url) as commits:
        carried_out(run())
        wait_until(lambda: all(node.is_ready() for node in fleet.nodes), 10, "all are ready")
        check_results(fleet.nodes[0], results, ledger, commits, killed)
