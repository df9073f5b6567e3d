"""Wake-ups: the receiver reads what the sender meant, in few messages; no message makes the reader raise."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.shards.answers import QueueHead
from cluster.shards.calls import Calls
from cluster.shards.lane import Call
from node.queue.wakes import Cancelled, Due, Wakes, Work, parse_wake

SHARDS = 64
SESSION = "n1/018bcfe5680-00000001"
SCORES = st.integers(-(10**13), 10**13)


class SentCalls:
    """Shards that keep the calls they are to send."""

    def __init__(self) -> None:
        self.calls = Calls(60.0, 1000, 60.0)
        self.sent: list[Call[Any]] = []

    def send(self, call: Call[Any]) -> None:
        self.sent.append(call)

    def messages(self) -> list[tuple[str, Any]]:
        """Of each message: its channel, and its meaning to the receiver."""
        messages = []
        for call in self.sent:
            _, channel, message = call.command()
            assert isinstance(message, bytes)
            messages.append((str(channel), parse_wake(message, SHARDS)))
        return messages


HEADS = st.builds(QueueHead, st.text("abc-", min_size=1, max_size=5), st.integers(1, 10**6), SCORES)


@given(st.lists(st.tuples(st.integers(0, SHARDS - 1), HEADS), min_size=1, max_size=8))
def test_work_is_read_as_it_was_sent_and_a_turn_of_the_loop_is_one_message(heads: list[tuple[int, QueueHead]]) -> None:
    shards = SentCalls()

    async def turn() -> None:
        wakes = Wakes(shards)  # type: ignore[arg-type]
        for shard, head in heads:
            wakes.work(SESSION, shard, [head, QueueHead("empty", 0, 0)])
        await asyncio.sleep(0)

    asyncio.run(turn())
    ((channel, wake),) = shards.messages()
    assert SESSION in channel
    latest = {(shard, head.queue): head for shard, head in heads}
    assert wake == Work([(shard, head) for (shard, _), head in latest.items()])


async def test_of_several_due_times_in_a_shard_the_first_is_told() -> None:
    shards = SentCalls()
    wakes = Wakes(shards)  # type: ignore[arg-type]
    for in_s in (9.0, 2.0, 5.0):
        wakes.due(SESSION, 3, in_s)
    wakes.due(SESSION, 4, 7.0)
    await asyncio.sleep(0)
    ((_, wake),) = shards.messages()
    assert isinstance(wake, Due)
    assert wake.dues == [(3, pytest.approx(2.0, abs=0.1)), (4, pytest.approx(7.0, abs=0.1))]


async def test_each_session_is_told_its_own_and_a_cancel_leaves_at_once() -> None:
    shards = SentCalls()
    wakes = Wakes(shards)  # type: ignore[arg-type]
    wakes.work(SESSION, 1, [QueueHead("q", 1, 5)])
    wakes.work("n2/018bcfe5680-00000002", 2, [QueueHead("q", 1, 5)])
    wakes.cancelled(SESSION, "id-01", 7)
    assert shards.messages()[0][1] == Cancelled("id-01", 7)
    await asyncio.sleep(0)
    assert [wake for _, wake in shards.messages()[1:]] == [
        Work([(1, QueueHead("q", 1, 5))]),
        Work([(2, QueueHead("q", 1, 5))]),
    ]
    await asyncio.sleep(0)
    assert len(shards.sent) == 3, "nothing is told twice"


JSONISH = st.recursive(
    st.none() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
encode = msgspec.msgpack.encode


@given(st.binary(max_size=60) | st.builds(encode, st.tuples(st.sampled_from("wdcx"), JSONISH)))
@example(encode(("d", [[1, float("inf")]])))
@example(encode(("d", [[1, float("nan")]])))
@example(b"\x92\xa1w" + b"\x91" * 2000)
def test_no_message_at_all_makes_the_reader_raise(message: bytes) -> None:
    assert isinstance(parse_wake(message, SHARDS), Work | Due | Cancelled | None)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        encode(("x", [])),
        encode(("w", [[64, "q", 1, 1]])),
        encode(("w", [[-1, "q", 1, 1]])),
        encode(("w", [[1, "q", 1]])),
        encode(("d", [[1, "soon"]])),
        encode(("c", ["id"])),
        encode(("c", ["id", None])),
    ],
)
def test_a_message_of_another_form_is_nothing(message: bytes) -> None:
    assert parse_wake(message, SHARDS) is None
