"""Which types the live nodes run, as one node knows it, and where parked tasks go when a handler is back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from cluster import keys
from cluster.config import Config
from cluster.load import Load, Meta, QueueLoad
from cluster.shards.answers import QueueHead, Unparked
from cluster.shards.calls import BATCH_MAX, Calls
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, RedisWord, Verdict, View
from node.observe import report
from node.queue.backlog import Backlog
from node.queue.handlers import Handlers


def peer(name: str, state: MemberState = MemberState.ALIVE, queues: dict[str, QueueLoad] | None = None) -> Peer:
    load, meta = Load(True, False, False, queues or {}), Meta({"default": 4, "mail": 0})
    witness = (Evidence.NONE, "", 1, None, RedisWord.LIVE, 0.0, Verdict.HEALTHY)
    return Peer(name, f"{name}/1-1", "127.0.0.1", 5000, state, *witness, load, meta)


def view(*peers: Peer) -> View:
    return View("n1", "n1/1-1", (peer("n1"), *peers), None, 0, True, True)


class Redis:
    def __init__(self, **types: list[str]) -> None:
        self.rows = {keys.handlers(name): msgspec.msgpack.encode(names) for name, names in types.items()}

    async def mget(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.rows.get(name) for name in names]


class Desk:
    """Takes the calls of `Handlers` in the place of the shards, the lanes and the other nodes."""

    calls = Calls(1.0, 0, 60.0)

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.here: list[tuple[int, Sequence[QueueHead]]] = []
        self.elsewhere: list[tuple[str, int, Sequence[QueueHead]]] = []
        self.backlog = Backlog()
        self.handlers = Handlers(
            Config(node_id="n1"),
            ["noop"],
            self,  # type: ignore[arg-type]
            self.backlog,
            lambda shard, heads: self.here.append((shard, heads)),
            lambda session, shard, heads: self.elsewhere.append((session, shard, heads)),
        )

    def send(self, call: Any) -> None:
        self.sent.append(call)

    async def knows(self, members: View, **types: list[str]) -> None:
        self.handlers.see(members)
        await self.handlers.refresh(Redis(**types))  # type: ignore[arg-type]


async def test_a_type_is_lacking_when_every_live_node_has_said_so() -> None:
    desk = Desk()
    await desk.knows(view(peer("n2"), peer("n3")), n2=["a"], n3=["b"])
    assert [desk.handlers.lacks(name) for name in ("noop", "a", "b", "c")] == [False, False, False, True]
    await desk.knows(view(peer("n2"), peer("n3")), n2=["a"])
    assert not desk.handlers.lacks("c"), "n3 has not said, so it may have it"
    for gone in (MemberState.DEAD, MemberState.LEFT, MemberState.LEAVING):
        await desk.knows(view(peer("n2"), peer("n3", gone)), n2=["a"], n3=["b"])
        assert desk.handlers.lacks("b"), gone
    await desk.knows(view(peer("n3", MemberState.SUSPECT)), n3=["b"])
    assert not desk.handlers.lacks("b")
    await desk.knows(view())
    assert desk.handlers.lacks("b")


def test_a_new_session_is_news_and_one_that_goes_is_none() -> None:
    handlers = Desk().handlers
    assert handlers.see(view(peer("n2")))
    assert not handlers.see(view(peer("n2")))
    assert not handlers.see(view())
    assert handlers.see(view(peer("n2")))


async def test_parked_tasks_go_to_the_node_that_has_their_type_in_chunks_until_none_is_left() -> None:
    desk = Desk()
    desk.backlog.set(keys.parked("mail"), 3, BATCH_MAX + 5, 1_000)
    await desk.knows(view(peer("n2")), n2=["noop"])
    desk.handlers.unpark([3])
    assert desk.sent == []
    assert desk.handlers.parked([3]) == {"mail": (BATCH_MAX + 5, 1_000)}
    assert desk.handlers.parked([4]) == {}, "another node owns it"
    await desk.knows(view(peer("n2")), n2=["mail"])
    desk.handlers.unpark([3])
    desk.handlers.unpark([3])
    (call,) = desk.sent
    assert (call.script, call.keys[1]) == ("unpark", keys.ready(3, "@mail"))
    heads = [QueueHead("default", BATCH_MAX, 7)]
    call.on_reply(Unparked(5, heads))
    assert desk.elsewhere == [("n2/1-1", 3, heads)]
    assert len(desk.sent) == 2
    desk.sent[1].on_reply(Unparked(0, heads))
    assert len(desk.sent) == 2
    assert desk.here == []


async def test_parked_tasks_that_this_node_can_run_are_its_own() -> None:
    desk = Desk()
    desk.backlog.set(keys.parked("noop"), 3, 1, 1_000)
    desk.handlers.unpark([3])
    desk.sent[0].on_reply(Unparked(0, [QueueHead("default", 1, 7)]))
    assert desk.here == [(3, [QueueHead("default", 1, 7)])]
    desk.sent[0].on_reply(OSError())
    assert len(desk.here) == 1


@pytest.mark.parametrize("row", [b"\xc1", b"\x93\xa1a", None])
async def test_a_word_that_cannot_be_read_is_none(row: bytes | None) -> None:
    desk = Desk()
    redis = Redis(n2=[])
    redis.rows[keys.handlers("n2")] = row  # type: ignore[assignment]
    desk.handlers.see(view(peer("n2")))
    await desk.handlers.refresh(redis)  # type: ignore[arg-type]
    assert not desk.handlers.lacks("c")


def test_health_names_type_count_and_since_when_over_all_nodes() -> None:
    loads = {"@mail": QueueLoad(0, 3, 1, 1_800_000_000_000), "@odd": QueueLoad(0, 0, 0)}
    members = view(peer("n2", queues=loads), peer("n3", MemberState.DEAD, loads))
    parked = {"mail": (2, 1_800_000_060_000), "other": (1, 1_800_000_000_000)}
    rows = [row for row in report.problems(members, True, ["@mail"], [], parked=parked) if row["code"] != "no_leader"]
    assert [(row["code"], row["type"], row["count"], row["since_ms"]) for row in rows] == [
        ("type_unhandled", "mail", 5, 1_800_000_000_000),
        ("type_unhandled", "other", 1, 1_800_000_000_000),
    ]
    assert rows[0]["message"] == (
        "5 tasks of type 'mail' wait since 2027-01-15T08:00:00+00:00: no live node has a handler for it."
    )
    assert rows[1]["message"].startswith("1 task of type 'other' waits since")
    assert report.status(rows) == "degraded"


def test_a_queue_for_which_every_node_has_no_slot_is_served_by_nobody() -> None:
    rows = report.problems(view(peer("n2")), True, ["mail", "default"], [])
    assert [row["message"] for row in rows if row["code"] == "queue_unserved"] == [
        "Tasks wait in queue 'mail', which no live node serves."
    ]
