"""Lists against a real Redis: what they show, how far they look, and what a reader is told who cannot be served."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from cluster import keys
from cluster.errors import BadRequest, StoreUnavailable, TaskUnreadable, TooManyReads, unanswered, unread
from cluster.shards.answers import SettleKind
from cluster.shards.aside import TURN_US
from cluster.shards.lane import Call
from cluster.shards.task import State
from node.queue import queries as querying
from node.queue import search as searching
from node.queue.engine import Engine
from node.queue.placement import shard_of_key
from node.queue.queries import LISTS_AT_ONCE, PAGE_BYTES_MAX, READS_AT_ONCE, TURNS_WAITING_MAX
from node.queue.submitting import CROWD
from node.schema import ListQuery, Submission, Submitted, TaskList
from tests.integration.conftest import RedisServer
from tests.integration.test_engine import engine as engine
from tests.integration.test_engine import submit
from tests.kept import FAILURE, keep
from tests.waiting import wait_until_async

SEARCHED_MAX = 2_000  # of these tests: as SEARCH_MAX, with fewer tasks to make


class Reads:
    """The reads that a node sends aside."""

    def __init__(self, engine: Engine) -> None:
        self.calls: list[tuple[Call[Any], int]] = []
        self._add = engine.shards._aside.add
        engine.shards._aside.add = self._note  # type: ignore[method-assign]

    def _note(self, call: Call[Any], us: int) -> None:
        self.calls.append((call, us))
        self._add(call, us)

    def shards(self) -> set[int | None]:
        return {keys.shard_of(call.key) for call, _ in self.calls}


async def make(engine: Engine, count: int, kind: str = "old", **more: Any) -> list[str]:
    return await keep(engine.shards, engine.config.shards, count, kind, **more)


async def pages(engine: Engine, **query: Any) -> list[TaskList]:
    """All pages of a listing."""
    found = [await engine.list_tasks(ListQuery(**query))]
    while found[-1].cursor:
        found.append(await engine.list_tasks(ListQuery(**query, cursor=found[-1].cursor)))
    return found


def ids_of(found: list[TaskList]) -> list[str]:
    return [task.id for page in found for task in page.tasks]


@pytest.fixture
def small_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SEARCH_MAX", SEARCHED_MAX)
    monkeypatch.setattr(searching, "SCAN_MAX", 20)


@pytest.mark.usefixtures("small_searches")
async def test_a_list_by_type_looks_at_a_bounded_number_of_tasks_and_says_how_many(engine: Engine) -> None:
    rare = await make(engine, 5, "rare")
    await make(engine, 5_000, first_ms=1_750_000_000_000)
    found = await pages(engine, type="rare")
    assert all(page.searched <= SEARCHED_MAX for page in found)
    assert [page.complete for page in found] == [False] * (len(found) - 1) + [True]
    assert len(found) >= 3
    assert found[0].tasks == []
    assert ids_of(found) == sorted(rare, reverse=True)
    nothing = await pages(engine, type="nope")
    assert ids_of(nothing) == []
    assert sum(page.searched for page in nothing) >= 5_005


@pytest.mark.usefixtures("small_searches")
async def test_a_replay_by_type_finds_all_dead_tasks_however_many_others_there_are(engine: Engine) -> None:
    await make(engine, 3, "fail", outcome=SettleKind.DEAD, payload=FAILURE)
    await make(engine, 5_000, outcome=SettleKind.DEAD, payload=FAILURE, first_ms=1_750_000_000_000)
    assert await engine.replay("fail", None) == 3
    assert await engine.replay("fail", None) == 0


async def test_a_key_is_looked_for_in_its_own_shard_alone(engine: Engine) -> None:
    mine = await make(engine, 30, key="user:1")
    await make(engine, 300)
    reads = Reads(engine)
    assert ids_of(await pages(engine, key="user:1")) == sorted(mine, reverse=True)
    for state in ("succeeded", "queued", "retrying", "dead"):
        await engine.list_tasks(ListQuery(key="user:1", state=State(state)))
    assert reads.shards() == {shard_of_key("user:1", engine.config.shards)}
    running = await submit(engine, "sleep", 30, key="user:1")
    other = await submit(engine, "sleep", 30)
    assert ids_of(await pages(engine, key="user:1", state=State.RUNNING)) == [running.id]
    assert ids_of(await pages(engine, state=State.RUNNING)) == [other.id, running.id]
    assert ids_of(await pages(engine, state=State.RUNNING, limit=1)) == [other.id, running.id]
    assert ids_of(await pages(engine, type="sleep", state=State.RUNNING, limit=1)) == [other.id, running.id]


async def test_the_tasks_of_one_state_are_found_without_looking_at_others(engine: Engine) -> None:
    dead = await make(engine, 40, outcome=SettleKind.DEAD, payload=FAILURE)
    await make(engine, 3_000)
    blockers = [await submit(engine, "sleep", 60) for _ in range(8)]
    waiting = [(await submit(engine, "noop", priority=level)).id for level in ("low", "high", "normal") for _ in "12"]
    later = [(await submit(engine, "noop", delay_s=600 + n)).id for n in range(5)]
    other = [(await submit(engine, "noop", queue="other")).id for _ in range(3)]
    for state, expected in (
        ("dead", set(dead)),
        ("queued", {*waiting, *other}),
        ("scheduled", set(later)),
        ("running", {task.id for task in blockers}),
        ("retrying", set()),
        ("waiting", set()),
        ("cancelled", set()),
    ):
        found = await pages(engine, state=State(state), limit=7)
        assert set(ids_of(found)) == expected
        assert len(ids_of(found)) == len(expected), "each once"
        assert {task.state for page in found for task in page.tasks} <= {state}
        assert all(page.complete for page in found)
        assert sum(page.searched for page in found) <= len(expected) + 64 * 5 * len(found)
    assert ids_of(await pages(engine, state=State.SCHEDULED)) == later[::-1]
    assert set(ids_of(await pages(engine, state=State.QUEUED, queue="other"))) == set(other)
    with pytest.raises(BadRequest, match="queue"):
        await engine.list_tasks(ListQuery(queue="other"))


async def test_a_batch_that_fills_large_buckets_is_listed_whole_and_in_order(engine: Engine) -> None:
    """Tasks of one moment are in one bucket, and many more are in it than one script looks at."""
    sent = [Submission(type="noop", queue="other", key="user:1") for _ in range(3_000)]
    made = [answer.task.id for answer in await engine.submit(sent) if isinstance(answer, Submitted)]
    shard = shard_of_key("user:1", engine.config.shards)
    names = [keys.bucket_prefix(shard) + task_id[:9] for task_id in made]
    assert max(Counter(names).values()) > 4 * searching.SCAN_MAX
    newest = sorted(made, reverse=True)
    assert len(newest) == len(sent)
    for limit in (7, 100, 500):
        assert ids_of([await engine.list_tasks(ListQuery(key="user:1", limit=limit))]) == newest[:limit]
    assert ids_of(await pages(engine, key="user:1", limit=500)) == newest
    assert ids_of(await pages(engine, limit=500)) == newest


async def test_queued_tasks_are_listed_where_strict_priorities_make_negative_scores(engine: Engine) -> None:
    engine.shards.calls._aging_ms = int(1e12)  # as with `priority_aging_s` 1e9
    levels = ("low", "high", "low", "high")
    made = {(await submit(engine, "noop", queue="other", priority=level)).id for level in levels}
    shown = ids_of(await pages(engine, state=State.QUEUED, limit=1))
    assert (set(shown), len(shown)) == (made, len(made))


async def test_a_list_shows_a_summary_and_more_on_request(engine: Engine) -> None:
    (broken,) = await make(engine, 1, outcome=SettleKind.DEAD, payload=FAILURE, data=b'{"big":1}')
    done = await engine.wait((await submit(engine, "process", "Hello")).id, 5)

    async def rows(fields: str | None) -> dict[str, dict[str, Any]]:
        page = await engine.list_tasks(ListQuery(fields=fields))
        return {task["id"]: task for task in msgspec.json.decode(msgspec.json.encode(page))["tasks"]}

    short = await rows(None)
    for row in short.values():
        assert not {"data", "result", "history"} & set(row)
    assert short[broken]["error"] == {"type": "Broken", "message": "no luck"}
    assert short[done.id]["error"] is None
    whole = await rows("data, result,error")
    assert whole[broken]["data"] == {"big": 1}
    assert whole[broken]["error"]["traceback"] == "Traceback: line 1"
    assert (whole[done.id]["data"], whole[done.id]["result"]) == (
        "Hello",
        {"processed": "Hello"} | whole[done.id]["result"],
    )
    assert "result" not in (await rows("data"))[done.id]
    with pytest.raises(BadRequest, match="'history'"):
        await rows("data,history")


async def test_a_summary_cuts_a_long_error_and_shows_one_that_it_cannot_read(engine: Engine) -> None:
    long = msgspec.json.encode({"type": "E", "message": "x" * 5_000})
    await make(engine, 1, outcome=SettleKind.DEAD, payload=long)
    await make(engine, 1, outcome=SettleKind.DEAD, payload=b'"no object"')
    page = await engine.list_tasks(ListQuery(state=State.DEAD))
    errors = [msgspec.json.decode(task.error) for task in page.tasks]
    assert sorted(len(error["message"]) for error in errors) == [0, 1_000]


async def test_a_page_is_bounded_in_bytes_and_goes_on(engine: Engine) -> None:
    big = b'"' + b"x" * 900_000 + b'"'
    made = await make(engine, 7, data=big)
    found = await pages(engine, fields="data")
    assert ids_of(found) == sorted(made, reverse=True)
    assert [page.complete for page in found] == [False] * (len(found) - 1) + [True]
    assert all(len(msgspec.json.encode(page)) <= PAGE_BYTES_MAX + 10_000 for page in found)
    assert len(found) == 4
    assert len(await pages(engine)) == 1, "summaries are small"


async def test_however_many_read_large_tasks_the_work_goes_on_beside_them(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share its way to Redis, where a call has 0.8 s: 300 of 1 MB at once would look like a Redis that is away."""
    made = await make(engine, 100, data=b'"' + b"x" * 10_000 + b'"')
    ask = engine.shards.ask
    now = most = 0

    async def counted(call: Any, **more: Any) -> Any:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            return await ask(call, **more)
        finally:
            now -= 1

    monkeypatch.setattr(engine.shards, "ask", counted)
    tasks = await asyncio.gather(*(engine.get(task_id) for task_id in made))
    assert [task.id for task in tasks] == made
    assert most == READS_AT_ONCE


async def test_callers_who_would_wait_too_long_for_a_list_are_told_so(engine: Engine) -> None:
    asked = LISTS_AT_ONCE + TURNS_WAITING_MAX + 10
    outcomes = await asyncio.gather(*(engine.list_tasks(ListQuery()) for _ in range(asked)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooManyReads)]
    assert len(refused) == asked - LISTS_AT_ONCE - TURNS_WAITING_MAX
    assert all(isinstance(outcome, TaskList | TooManyReads) for outcome in outcomes)
    assert (await engine.list_tasks(ListQuery())).complete


async def test_many_who_ask_for_counts_and_running_tasks_share_the_reads(engine: Engine) -> None:
    reads = Reads(engine)
    await asyncio.gather(*(engine.workers() for _ in range(100)), *(engine.counts() for _ in range(100)))
    assert len(reads.calls) <= 3 * engine.config.shards


async def test_a_reader_is_told_what_a_reader_can_do(engine: Engine, redis_server: RedisServer) -> None:
    task = await submit(engine, "noop")
    redis_server.stop()
    for read in (
        lambda: engine.get(task.id),
        lambda: engine.list_tasks(ListQuery()),
        lambda: engine.list_tasks(ListQuery(type="noop")),
        engine.counts,
        engine.sums,
    ):
        with pytest.raises(StoreUnavailable) as caught:
            await asyncio.wait_for(read(), 10)
        assert "Idempotency" not in str(caught.value)
        assert "gain" in caught.value.hint
        assert not caught.value.may_have_happened
    redis_server.cont()


async def test_a_read_after_a_rest_takes_no_harm_from_a_redis_that_was_away_meanwhile(
    engine: Engine, redis_server: RedisServer
) -> None:
    await submit(engine, "noop", delay_s=600)
    assert (await engine.counts())["states"]["scheduled"] == 1
    redis_server.kill()
    await wait_until_async(lambda: not engine.shards.is_up, 5, "the lanes noticed; nobody reads")
    redis_server.start()
    await wait_until_async(lambda: engine.shards.is_up, 5, "the lanes are back")
    answers = await asyncio.gather(engine.counts(), engine.list_tasks(ListQuery()), engine.workers(), engine.sums())
    assert answers[0]["states"]["scheduled"] == 1


async def test_who_repeats_a_submission_is_told_what_a_submitter_can_do(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(engine, "noop", idempotency_key="k")

    async def fails(task_id: str) -> None:
        raise unread(unanswered("no answer within 1 s", is_sent=True))

    monkeypatch.setattr(engine.queries, "get", fails)
    with pytest.raises(StoreUnavailable, match="Idempotency-Key") as caught:
        await submit(engine, "noop", idempotency_key="k")
    assert caught.value.may_have_happened


async def test_a_list_whose_time_is_up_shows_what_it_found(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await make(engine, 2_000)
    monkeypatch.setattr(querying, "PAGE_WITHIN_S", 0.0)
    page = await engine.list_tasks(ListQuery(type="old", limit=500))
    assert not page.complete
    assert page.cursor
    assert page.tasks
    monkeypatch.undo()
    seen = [task.id for task in page.tasks]
    cursor: str | None = page.cursor
    while cursor:
        more = await engine.list_tasks(ListQuery(type="old", limit=500, cursor=cursor))
        seen += [task.id for task in more.tasks]
        cursor = more.cursor
    assert len(seen) == len(set(seen)) == 2_000


async def test_no_read_may_hold_redis_for_longer_than_a_turn(engine: Engine) -> None:
    await make(engine, 3_000)
    reads = Reads(engine)
    for query in (
        ListQuery(limit=500),
        ListQuery(limit=500, fields="data"),
        ListQuery(type="nope"),
        ListQuery(key="k"),
        ListQuery(state=State.QUEUED, type="x"),
    ):
        await engine.list_tasks(query)
    await asyncio.gather(engine.counts(), engine.workers(), engine.sums())
    assert max(us for _, us in reads.calls) <= TURN_US


async def test_a_large_batch_of_one_key_makes_no_bucket_that_takes_long_to_list(engine: Engine) -> None:
    """A list reads a whole bucket, and tasks with one key share a shard."""
    items = [Submission(type="noop", data=Raw(b"null"), key="user:1", queue="nobody") for _ in range(3 * CROWD)]
    results = await engine.submit(items)
    ids = [result.task.id for result in results if isinstance(result, Submitted)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(items)
    assert max(Counter(task_id[:9] for task_id in ids).values()) <= CROWD
    listed = await pages(engine, key="user:1", limit=500)
    assert ids_of(listed) == ids[::-1]


DAMAGE = {  # what another program, or an older version, can leave in the place of a task or beside it
    "no task": ("", b"no task"),
    "nothing": ("", b""),
    "no state": (".", b"garbage"),
    "numbers that are none": (".", b"succeeded x y z 1 1 1 1 node"),
    "a state that is none": (".", b"lost 1 1 0 0 0 0 - node"),
    "a result that is no JSON": (".", b"succeeded 1 1 0 1 1 1 - node NaN"),
    "a result that is half": (".", b'succeeded 1 1 0 1 1 1 - node {"a":'),
    "a result that is not UTF-8": (".", b'succeeded 1 1 0 1 1 1 - node "\xff"'),
    "progress that is no JSON": (".progress", b"half way"),
}
QUERIES: tuple[dict[str, Any], ...] = (
    {},
    {"fields": "data,result,error"},
    {"state": State.SUCCEEDED},
    {"state": State.SUCCEEDED, "fields": "result"},
    {"type": "old"},
    {"type": "old", "state": State.SUCCEEDED, "limit": 1},
)


@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize(("field", "value"), DAMAGE.values(), ids=DAMAGE)
async def test_a_task_that_cannot_be_read_spoils_no_list_of_others(
    engine: Engine, field: str, value: bytes, query: dict[str, Any]
) -> None:
    made = await make(engine, 5)
    bucket = keys.bucket_prefix(engine.queries.shard(made[2])) + made[2][:9]
    await engine.client.hset(bucket, made[2] + field, value)  # type: ignore[misc]
    found = [msgspec.json.decode(msgspec.json.encode(page)) for page in await pages(engine, **query)]
    others = [*reversed(made[3:]), *reversed(made[:2])]
    shown = [task["id"] for page in found for task in page["tasks"]]
    unreadable = [task_id for page in found for task_id in page.get("unreadable", ())]
    assert sorted({*shown, made[2]}) == sorted(made)
    assert [task_id for task_id in shown if task_id != made[2]] == others if "state" not in query else True
    is_seen = made[2] in unreadable
    assert not (is_seen and made[2] in shown)
    if not query or query == {"fields": "data,result,error"}:
        is_hidden = field == ".progress" and not query  # a row does not read it
        assert is_seen is not is_hidden
        if is_seen and query:
            with pytest.raises(TaskUnreadable):
                await engine.get(made[2])


@pytest.mark.parametrize("member", ["no id", "\x1b[2J", b"\xff\xfe", "", "01JDZ6M0X2R5T8V1W4Y7Z0B3C6-ff"])
@pytest.mark.parametrize("at", [-1.0, 1e18])
async def test_what_is_no_id_of_a_task_spoils_no_list(engine: Engine, member: str | bytes, at: float) -> None:
    made = await make(engine, 3, outcome=SettleKind.DEAD, payload=FAILURE)
    await engine.client.zadd(keys.dead(1), {member: at})
    await engine.client.zadd(keys.scheduled(1), {member: at})
    await engine.client.sadd(keys.sessions(1), member)  # type: ignore[misc]
    for limit in (1, 50):
        found = await pages(engine, state=State.DEAD, limit=limit)
        assert sorted(ids_of(found)) == sorted(made)
        assert sum(len(page.unreadable or ()) for page in found) == 1
    assert not ids_of(await pages(engine, state=State.SCHEDULED))
    assert sorted(ids_of(await pages(engine))) == sorted(made)
    assert await engine.replay(None, None) == 3
