"""What `rumor top` shows: drawn as text, from answers and events as nodes give them."""

from __future__ import annotations

import asyncio
import io
import os
import pty
from typing import Any

import pytest
from rich.console import Console

from cluster.errors import RumorError
from node.cli.top import Top, keys
from node.cli.top_picture import Board, bar, in_words, sparkline
from node.client.stream import Event


def member(node_id: str, **more: Any) -> dict[str, Any]:
    load = {"running": 8, "stalled": False, "leaving": False, "queues": {"default": {"free": 2, "queued": 3}}}
    row = {"node_id": node_id, "state": "alive", "redis": "live", "verdict": "healthy", "rtt_ms": 1.25, "load": load}
    return {**row, "redis_age_s": 0.1, **more}


def board() -> Board:
    made = Board()
    made.view = {
        "node_id": "n1",
        "leader": {"node_id": "n2", "epoch": 7},
        "shards": {"0": "n1", "1": "n2", "2": "n2"},
        "members": [
            member("n1", rtt_ms=None),
            member("n2"),
            member("n3", redis="stale", redis_age_s=4.13, verdict="cut_from_redis"),
            member("n4", state="dead", redis="gone", verdict="dead"),
        ],
    }
    made.slots = {"n1": {"default": {"slots": 10, "running": 8}}, "n2": {"default": {"slots": 10, "running": 1}}}
    return made


def sums(at_s: float, **more: Any) -> tuple[Event, float]:
    states = {"queued": 5, "running": 9, "dead": 0}
    told = {"kind": "task_sums", "accepted": 200, "outcomes": {"succeeded": 150, "dead": 1}, "states": states}
    told["wait_ms"] = {"p50": 1.4, "p95": 20.0, "p99": 1234.5}
    return Event("task", {**told, "queues": {"default": {"queued": 5}, "mail": {"queued": 4}}, **more}), at_s


def drawn(made: Board, now_s: float = 100.0, height: int = 40, width: int = 140, events_max: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(made.picture(now_s, "12:00:00", height, width, events_max))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_both_witnesses_and_the_verdict_stand_side_by_side() -> None:
    text = drawn(board())
    assert "3 of 4 nodes  leader n2 epoch 7" in text
    assert row(text, "n2 ★").split()[2:6] == ["alive", "live", "healthy", "1.2"]
    assert "silent 4.1 s  cut off from Redis" in row(text, "n3")
    assert row(text, "n4").split() == ["n4", "dead", "gone", "dead"]
    assert "8/10" in row(text, "n1")


def test_what_is_wrong_stands_first_and_worst_first() -> None:
    made = board()
    assert "nothing is wrong" in drawn(made).splitlines()[1]
    made.health = {"problems": [{"severity": "warning", "message": "no replica", "hint": "add one"}]}
    made.take(*sums(99.5, states={"dead": 1200, "queued": 0}))
    made.trouble = "none of 3 nodes answered"
    lines = drawn(made).splitlines()
    assert "none of 3 nodes answered" in lines[1]
    assert "1,200 tasks are dead" in lines[2]
    assert "rumor replay" in lines[2]
    assert "no replica  add one" in lines[3]


def test_a_death_is_told_first_while_it_is_news_and_the_node_is_not_back() -> None:
    made = board()
    made.view["members"][3]["session"] = "n4/1"
    made.take(Event("fence", {"kind": "session_fenced", "node_id": "n4", "session": "n4/1", "at_ms": 1_000}), 0.0)
    assert "n4 is gone: both witnesses agree." in drawn(made).splitlines()[1]
    made.take(*sums(99.5, at_ms=500_000))
    assert "n4 is gone" not in drawn(made)


def test_a_narrow_terminal_gets_whole_names_and_numbers() -> None:
    made = board()
    names = [f"10.0.0.1:500{n}" for n in range(3)]
    made.view = {"leader": {"node_id": names[1], "epoch": 1}, "members": [member(name) for name in names]}
    told = {"kind": "shards_moved", "node_id": names[0], "shards": 3, "to": {names[2]: 3}, "at_ms": 1_800_000_000_000}
    made.take(Event("shards", told), 0.0)
    text = drawn(made, width=80)
    assert "…" not in text
    assert row(text, ":5001 ★").split()[2:5] == ["alive", "live", "healthy"]
    assert "3 shards moved to :5002 (3)" in text
    assert names[0] in drawn(made, width=160)
    made.view["members"].append(member("10.0.0.2:5000"))
    assert names[0] in drawn(made, width=80), "names of several hosts are told apart"


def test_it_begins_with_what_was_done_before_somebody_looked() -> None:
    made = board()
    made.begin([{"window_s": 5, "accepted": 50, "outcomes": {"succeeded": 20, "dead": 5}}] * 2)
    made.take(*sums(99.5))
    text = drawn(made)
    assert "accepted 200/s" in text
    assert "▁" * 10 + "█" in text.replace("▂", "▁")


def test_a_queue_that_nobody_serves_or_that_grows_is_told() -> None:
    made = board()
    for second in range(8):
        made.take(*sums(90.0 + second, states={"queued": 1000 + second}))
    text = drawn(made, now_s=97.5)
    assert "Queues grow: 1,007 tasks wait" in text
    assert "served by nobody" in row(text, "mail")
    assert row(text, "default").split()[1:4] == ["5", "9", "20"]
    assert "accepted 200/s" in text
    assert "ended 151/s" in text
    assert "p50 1 ms, p95 20 ms, p99 1,234 ms" in text
    assert "accepted 0/s" in drawn(made, now_s=200.0), "old numbers are not shown as today's"


def test_events_are_told_newest_first_once_and_fill_the_height() -> None:
    made = board()
    for n in range(60):
        event = {"kind": "member_joined", "node_id": f"m{n}", "at_ms": 1_800_000_000_000 + 1000 * n}
        made.take(Event("member", event), 0.0)
        made.take(Event("member", {**event, "seen_by": "another"}), 0.0)
    text = drawn(made, height=40)
    assert len(text.splitlines()) <= 40
    told = [line.split()[1] for line in text.splitlines() if line.endswith(" joined")]
    assert told == [f"m{n}" for n in range(59, 59 - len(told), -1)]
    assert len(told) > 10
    assert len([line for line in drawn(made, height=5).splitlines() if line.endswith(" joined")]) == 3
    for_a_pipe = drawn(made, height=10_000, events_max=10)
    assert len([line for line in for_a_pipe.splitlines() if line.endswith(" joined")]) == 10


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"kind": "member_dead", "node_id": "n4", "evidence": "refused"}, "n4 is dead for its peers: its port refuses"),
        ({"kind": "session_reaped", "node_id": "n4", "by": "n1", "tasks": 3}, "3 tasks of n4 are queued again, by n1"),
        ({"kind": "session_reaped", "node_id": "n4", "by": "n1", "tasks": 1}, "1 task of n4 is queued again, by n1"),
        ({"kind": "shards_moved", "node_id": "n1", "shards": 3, "to": {"n1": 3}}, "3 shards moved to n1 (3)"),
        ({"kind": "shards_moved", "node_id": "n1", "shards": 1, "to": {"n2": 1}}, "1 shard moved to n2 (1)"),
        (
            {"kind": "shards_moved", "node_id": "n1", "shards": 64, "to": {}},
            "64 shards without an owner: no node is able to serve",
        ),
        ({"kind": "something_new", "node_id": "n1"}, "something_new n1"),
    ],
)
def test_an_event_is_told_in_words(event: dict[str, Any], words: str) -> None:
    assert in_words(event).plain.startswith(words)


def test_an_empty_board_can_be_drawn() -> None:
    assert "no events yet" in drawn(Board())
    assert bar(0, 0).plain == bar(10, 10).plain
    assert sparkline(Board()._accepted, 4) == "    "


async def test_q_ends_it_and_the_terminal_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import termios

    outer, inner = pty.openpty()
    with os.fdopen(inner) as terminal, os.fdopen(outer, "wb", buffering=0) as person:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(inner)
        end = asyncio.Event()
        with keys(end):
            assert termios.tcgetattr(inner) != before
            person.write(b"x")
            person.write(b"q")
            async with asyncio.timeout(5):
                await end.wait()
        assert termios.tcgetattr(inner) == before


async def test_without_a_terminal_it_says_what_to_use() -> None:
    with pytest.raises(RumorError, match=r"^no_terminal: .* needs a terminal"):
        await Top(["http://127.0.0.1:1"], "", 1.0).run()
