"""Arrays of tasks: others have their turn while a large one is parsed, and many at once wait for room."""

from __future__ import annotations

import asyncio
import json

import pytest

from cluster.config import Config
from cluster.errors import TooManyBatches
from node.gateway import batch_body
from node.schema import Submission
from tests.unit.test_gateway_server import opened, serving, to_the_end


class Asked:
    """A request, as far as `BatchRoom` looks at it."""

    def __init__(self, size: int | None, encoding: str = "") -> None:
        self.headers = {} if size is None else {"Content-Length": str(size)}
        if encoding:
            self.headers["Content-Encoding"] = encoding


class Work:
    """Batches that are under way until they are told to end."""

    def __init__(self, largest: int) -> None:
        self.room = batch_body.BatchRoom(largest)
        self.inside: list[int] = []

    async def run(self, n: int, asked: Asked, end: asyncio.Event) -> None:
        async with self.room.taken(asked):  # type: ignore[arg-type]
            self.inside.append(n)
            await end.wait()
            self.inside.remove(n)

    def begin(self, n: int, asked: Asked) -> tuple[asyncio.Task[None], asyncio.Event]:
        end = asyncio.Event()
        return asyncio.ensure_future(self.run(n, asked, end)), end


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_batches_wait_for_room_in_the_order_of_their_coming() -> None:
    work = Work(100)
    sizes = [Asked(100), Asked(60), Asked(None), Asked(40), Asked(1)]
    runs = [work.begin(n, asked) for n, asked in enumerate(sizes)]
    await turns()
    assert work.inside == [0, 1], "200 bytes have room; the third may be the largest, and the small ones come after it"
    runs[1][1].set()
    await turns()
    assert work.inside == [0, 2]
    runs[0][1].set()
    await turns()
    assert work.inside == [2, 3, 4]
    for _, end in runs:
        end.set()
    await asyncio.gather(*(run for run, _ in runs))
    assert work.room._free_bytes == 200


async def test_what_is_to_be_unpacked_counts_as_the_largest() -> None:
    work = Work(100)
    runs = [work.begin(n, Asked(1, "gzip")) for n in range(3)]
    await turns()
    assert work.inside == [0, 1]
    for run, _ in runs:
        run.cancel()
    await asyncio.gather(*(run for run, _ in runs), return_exceptions=True)
    assert work.room._free_bytes == 200


async def test_a_batch_that_finds_no_room_in_time_is_refused_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Work(100)
    held = [work.begin(n, Asked(100)) for n in range(2)]
    await turns()
    gone, _ = work.begin(2, Asked(100))
    await turns()
    gone.cancel()
    monkeypatch.setattr(batch_body, "TURN_WITHIN_S", 0.01)
    late, _ = work.begin(3, Asked(100))
    with pytest.raises(TooManyBatches):
        await asyncio.wait_for(late, 5)
    after, end = work.begin(4, Asked(100))
    held[0][1].set()
    await turns()
    assert work.inside == [1, 4]
    end.set()
    held[1][1].set()
    await asyncio.gather(after, held[0][0], held[1][0])
    assert work.room._free_bytes == 200


@pytest.mark.parametrize("came_together", [True, False])
async def test_a_turn_that_comes_as_its_batch_goes_is_given_on(came_together: bool) -> None:
    work = Work(100)
    held = [work.begin(n, Asked(100)) for n in range(2)]
    await turns()
    going, _ = work.begin(2, Asked(100))
    after, end = work.begin(3, Asked(100))
    await turns()
    if came_together:
        work.room._free_bytes += 100
        work.room._let_in()
        going.cancel()
        await turns()
        work.room._free_bytes -= 100
    else:
        going.cancel()
    held[0][1].set()
    await turns()
    assert 3 in work.inside
    for mark in (end, held[1][1]):
        mark.set()
    await asyncio.gather(after, held[0][0], held[1][0])
    assert work.room._free_bytes == 200


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"type": "noop", "data": "x" * 1_500}] * 10_000).encode(),
        json.dumps([{"type": "noop", "data": [[]] * 200_000}] * 16).encode(),
        json.dumps([{"type": "noop", "dota": 1}] * 10_000).encode(),
        json.dumps([1] * 10_000).encode(),
    ],
    ids=["many", "dense", "unknown fields", "no tasks"],
)
async def test_others_have_their_turns_while_a_batch_is_parsed(body: bytes) -> None:
    config = Config()
    parsing = asyncio.ensure_future(batch_body.parsed(body, config, config.body_max_bytes))
    count = 0
    while not parsing.done():
        await asyncio.sleep(0)
        count += 1
    assert count >= 15
    assert len(await parsing) == len(json.loads(body))


async def test_others_have_their_turns_between_lines_that_do_not_fit() -> None:
    parsing = asyncio.ensure_future(batch_body.parsed_lines([b'{"type":1}'] * 1_000, Config(), 1))
    count = 0
    while not parsing.done():
        await asyncio.sleep(0)
        count += 1
    assert count >= 4
    assert [item for item in await parsing if isinstance(item, Submission)] == []


async def test_an_array_that_breaks_off_stores_nothing() -> None:
    body = b"[" + b'{"type":"noop","data":"' + b"x" * 1_000_000 + b'"},'
    body = body * 1 + (body[1:] * 2) + b'{"type":'
    head = b"POST /tasks/batch HTTP/1.1\r\nConnection: close\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with serving() as (port, engine):
        answer = await to_the_end(await opened(port, head + body))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"it ends too early" in answer
        assert not engine.tasks
