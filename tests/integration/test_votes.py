"""`vote.lua` and `fence.lua` against their model in Python, and what a call that comes late, or twice, may not do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import redis.asyncio

from cluster import keys
from cluster.swim.events import Sight
from cluster.vitals.calls import WORD_BEATS, FenceReply, Pulse, Vote
from cluster.vitals.jury import FRESH_S, Ballot, Undecided
from cluster.vitals.witness import Fence, Path
from cluster.vitals.words import Word
from tests.integration.conftest import RedisServer
from tests.vote_model import Slot

TARGET = "t/0190aaaaaaaa-0badcafe"
VOTERS = tuple(f"n{number}/0190aaaaaaaa-0000000{number}" for number in range(1, 5))
ONE, TWO, THREE, _ = VOTERS
BEAT_S = 0.25
STANDS_MS, FRESH_MS = int(1000 * WORD_BEATS * BEAT_S), int(1000 * FRESH_S)


class Court:
    """One silent session in Redis, and the calls about it."""

    def __init__(self, pulse: Pulse, client: Any) -> None:
        self.pulse = pulse
        self.client = client

    async def now_ms(self) -> int:
        seconds, us = await self.client.time()
        return int(seconds) * 1000 + int(us) // 1000

    async def beat(self, value: bytes | None) -> None:
        if value is None:
            await self.client.delete(keys.heartbeat(TARGET))
        else:
            await self.client.set(keys.heartbeat(TARGET), value)

    async def until_subscribed(self, count: int) -> None:
        async with asyncio.timeout(5):
            while await self.pulse.subscribers(TARGET) != count:
                await asyncio.sleep(0.001)

    async def vote(self, ballot: Ballot, age_ms: int = 0) -> Vote:
        said_ms = await self.now_ms() - age_ms
        return await self.pulse.vote(ballot, said_ms, BEAT_S, "refused", 60_000, ballot.voter.partition("/")[0])


@pytest.fixture
async def court(redis_server: RedisServer) -> AsyncIterator[Court]:
    pulse = Pulse(redis_server.url, 2.0, lambda: None)
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        yield Court(pulse, client)
    await pulse.close()


def ballot(voter: str, word: Word, ways: str = "f", jury: tuple[str, ...] = (), **more: Any) -> Ballot:
    return replace(Ballot(TARGET, voter, word, Sight.REFUSED, 0.0, None, 0.0, ways, jury), **more)


def is_ours(reply: Vote) -> bool:
    return isinstance(reply, FenceReply) and reply.is_ours


async def test_the_call_of_the_last_juror_fences(court: Court) -> None:
    await court.beat(b"7 votes")
    first = await court.vote(ballot(ONE, Word.REFUSED, jury=(TWO, THREE)))
    assert first == Undecided(0, 0, (TWO, THREE), ())
    second = await court.vote(ballot(TWO, Word.ABSTAINS, jury=(ONE, THREE)))
    assert second == Undecided(0, 1, (THREE,), ())
    last = await court.vote(ballot(THREE, Word.REFUSED, jury=(ONE, TWO)))
    assert is_ours(last)
    assert (await court.client.get(keys.heartbeat(TARGET))).startswith(b"fenced refused ")
    assert await court.client.exists(keys.words(TARGET)) == 0
    again = await court.vote(ballot(ONE, Word.REFUSED))
    assert again == replace(last, is_ours=False)  # type: ignore[type-var]


async def test_a_subscriber_or_a_missing_word_or_an_alibi_stands_in_the_way(court: Court) -> None:
    await court.beat(b"7 votes")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(court.pulse.listen(TARGET))
        assert await court.vote(ballot(ONE, Word.REFUSED)) == Undecided(1, 0, (), ())
    await court.until_subscribed(0)
    await court.vote(ballot(TWO, Word.VETO, ways="", alibi_s=5.0))
    assert await court.vote(ballot(ONE, Word.REFUSED, jury=(TWO,))) == Undecided(0, 2, (TWO,), ())
    assert await court.vote(ballot(ONE, Word.REFUSED)) == Undecided(0, 2, (), (TWO,))
    await court.vote(ballot(TWO, Word.VETO, ways=""))  # It takes its testimony back.
    assert is_ours(await court.vote(ballot(ONE, Word.REFUSED)))


async def test_a_word_is_void_when_the_session_beats_and_a_call_that_comes_late_changes_nothing(court: Court) -> None:
    await court.beat(b"7 votes")
    await court.vote(ballot(TWO, Word.DEAD, seen=b"7 votes"))
    await court.beat(b"8 votes")
    reply = await court.vote(ballot(ONE, Word.DEAD, "fs", (TWO,), seen=b"8 votes"))
    assert reply == Undecided(0, 1, (TWO,), ())
    assert await court.vote(ballot(ONE, Word.DEAD, "fs", seen=b"7 votes")) == Undecided(0, 2, (ONE,), ())
    late = await court.vote(ballot(ONE, Word.REFUSED), age_ms=STANDS_MS + 50)
    assert late == Undecided(0, 1, (), ())
    assert is_ours(await court.vote(ballot(ONE, Word.REFUSED)))


async def test_a_bare_refusal_blocks_the_slow_way_and_old_words_the_fast_one(court: Court) -> None:
    await court.beat(b"7 votes")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(court.pulse.listen(TARGET))
        await court.vote(ballot(TWO, Word.REFUSED))
        assert isinstance(await court.vote(ballot(ONE, Word.DEAD, "fsu", (TWO,))), Undecided)
    await court.until_subscribed(0)
    await court.vote(ballot(TWO, Word.REFUSED), age_ms=FRESH_MS + 50)
    assert await court.vote(ballot(ONE, Word.ABSTAINS, "f", (TWO,))) == Undecided(0, 2, (), ())
    assert isinstance(await court.vote(ballot(ONE, Word.ABSTAINS, "f")), Undecided), "who abstains decides nothing"
    assert is_ours(await court.vote(ballot(ONE, Word.ABSTAINS, "fsu"))), "unless all do for stalled_s"


async def test_the_words_in_redis_end_by_themselves(court: Court) -> None:
    await court.vote(ballot(ONE, Word.ABSTAINS))
    assert 0 < await court.client.pttl(keys.words(TARGET)) <= 60_000


@pytest.mark.parametrize("seed", range(20))
async def test_the_scripts_do_what_their_model_does(court: Court, seed: int) -> None:
    """Times are far enough apart that the milliseconds between the calls do not matter."""
    dice, slot = Random(seed), Slot()
    async with AsyncExitStack() as stack:
        for step in range(60):
            match dice.choice(("vote",) * 12 + ("beat", "subscribe", "lease")):
                case "beat":
                    slot.heartbeat = dice.choice((None, b"%d votes" % step))
                    await court.beat(slot.heartbeat)
                case "subscribe":
                    await stack.aclose()
                    slot.subscribers = dice.choice((0, 1))
                    if slot.subscribers:
                        await stack.enter_async_context(court.pulse.listen(TARGET))
                    await court.until_subscribed(slot.subscribers)
                case "lease":
                    seen = dice.choice((slot.heartbeat or b"", b"other"))
                    real = await court.pulse.fence(Fence(TARGET, Path.LEASE, seen, "lease"), 60_000, "n1")
                    assert outline(slot.fence("lease", seen, "lease", "n1", 0)) == outline(real), f"step {step}"
                case _:
                    said = draw(dice, slot)
                    age_ms = dice.choice((0, 0, 0, FRESH_MS + 100, STANDS_MS + 100))
                    real = await court.vote(said, age_ms)  # type: ignore[assignment]
                    now_ms = await court.now_ms()
                    ours = slot.vote(
                        *(said.voter, said.word, now_ms - age_ms, said.seen, int(1000 * said.alibi_s)),
                        *(said.ways, said.jury),
                        stands_ms=STANDS_MS,
                        fresh_ms=FRESH_MS,
                        cause="refused",
                        by=said.voter.partition("/")[0],
                        now_ms=now_ms,
                    )
                    assert outline(ours) == outline(real), f"step {step}: {said}, {age_ms} ms old"
            if slot.heartbeat is not None and keys.is_tombstone(slot.heartbeat):
                slot = Slot(b"%d votes" % step, slot.subscribers)
                await court.client.delete(keys.words(TARGET))
                await court.beat(slot.heartbeat)


def draw(dice: Random, slot: Slot) -> Ballot:
    seen = dice.choice((None, slot.heartbeat or b"", slot.heartbeat or b"", b"other"))
    jury = tuple(sorted(dice.sample(VOTERS, dice.randint(0, 3))))
    voter = dice.choice([voter for voter in VOTERS if voter not in jury])
    ways = dice.choice(("", "n", "f", "fs", "fsu", "nsu"))
    return ballot(voter, dice.choice(list(Word)), ways, jury, seen=seen, alibi_s=dice.choice((0.0, 0.0, 30.0)))


def outline(reply: Vote) -> object:
    """A reply without the times in it."""
    if isinstance(reply, FenceReply):
        return reply.is_dead, reply.is_ours, keys.tombstone(reply.value) if reply.is_dead else reply.value
    return reply.subscribers, reply.words, reply.missing, tuple(sorted(reply.alibis))
