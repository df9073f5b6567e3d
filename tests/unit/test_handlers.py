"""Which types the live nodes run, as one node knows it, and where parked tasks go when a handler is back."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from cluster import keys
from cluster.config import Config
from cluster.load import Load, Meta, QueueLoad
from cluster.shards.answers import QueueHead, Unparked
from cluster.shards.calls import Calls
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, RedisWord, Verdict, View
from node.observe import report
from node.queue.backlog import Backlog
from node.queue.handlers import Handlers
from node.queue.placement import Placement

MAIL = keys.parked("default", "mail")


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
    """Takes the calls of `Handlers` in the place of the shards, the lanes and the other nodes. It owns shard 3."""

    calls = Calls(1.0, 0, 60.0)

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.here: list[tuple[int, Sequence[QueueHead]]] = []
        self.woken: list[tuple[str, int, Sequence[QueueHead]]] = []
        self.backlog = Backlog()
        self.placement = Placement("n1", 8, Random(1))
        self.handlers = Handlers(
            Config(node_id="n1", queues="default:4"),
            ["noop"],
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            self.placement,
            self,  # type: ignore[arg-type]
            lambda shard, heads: self.here.append((shard, heads)),
        )

    def send(self, call: Any) -> None:
        self.sent.append(call)

    def work(self, session: str, shard: int, heads: Sequence[QueueHead]) -> None:
        self.woken.append((session, shard, heads))

    async def knows(self, members: View, **types: list[str]) -> None:
        self.handlers.see(members)
        self.placement.see(members, ["n1", "n2", "n3"] * 2 + ["n1"] * 2)
        await self.handlers.refresh(Redis(**types))  # type: ignore[arg-type]


def free(slots: int) -> dict[str, QueueLoad]:
    return {"default": QueueLoad(slots, 0, 0)}


async def test_a_task_is_parked_when_every_live_node_has_said_what_it_has() -> None:
    desk = Desk()
    await desk.knows(view(peer("n2"), peer("n3")), n2=["a"], n3=["b"])
    assert [desk.handlers.parks(name) for name in ("noop", "a", "c")] == [False, True, True]
    lacking = [desk.handlers.lacks("default", name) for name in ("noop", "a", "b", "c")]
    assert lacking == [False, False, False, True]
    assert desk.handlers.lacks("mail", "a"), "no node with slots for mail has it"
    assert desk.handlers.lacks("gpu", "c")
    await desk.knows(view(peer("n2"), peer("n3")), n2=["a"])
    assert not desk.handlers.parks("c"), "n3 has not said, so it may have it"
    assert not desk.handlers.lacks("default", "c")
    for gone in (MemberState.DEAD, MemberState.LEFT, MemberState.LEAVING):
        await desk.knows(view(peer("n2"), peer("n3", gone)), n2=["a"], n3=["b"])
        assert desk.handlers.lacks("default", "b"), gone
    await desk.knows(view(peer("n3", MemberState.SUSPECT)), n3=["b"])
    assert not desk.handlers.lacks("default", "b")
    await desk.knows(view())
    assert desk.handlers.lacks("default", "b")


def test_a_new_session_is_news_and_one_that_goes_is_none() -> None:
    handlers = Desk().handlers
    assert handlers.see(view(peer("n2")))
    assert not handlers.see(view(peer("n2")))
    assert not handlers.see(view())
    assert handlers.see(view(peer("n2")))


async def test_parked_tasks_go_to_a_node_with_their_type_as_it_has_free_slots() -> None:
    desk = Desk()
    desk.backlog.set(MAIL, 3, 9, 1_000)
    await desk.knows(view(peer("n2", queues=free(4)), peer("n3", queues=free(4))), n2=["noop"], n3=[])
    desk.handlers.unpark([3])
    assert desk.sent == []
    assert desk.handlers.parked([3]) == {MAIL: (9, 1_000)}
    assert desk.handlers.parked([4]) == {}, "another node owns it"
    await desk.knows(view(peer("n2", queues=free(0)), peer("n3", queues=free(4))), n2=["mail"], n3=[])
    desk.handlers.unpark([3])
    assert desk.sent == [], "it has no free slot"
    await desk.knows(view(peer("n2", queues=free(3)), peer("n3", queues=free(4))), n2=["mail"], n3=[])
    desk.handlers.unpark([3])
    desk.handlers.unpark([3])
    (call,) = desk.sent
    assert (call.script, call.keys[1], call.args[-1]) == ("unpark", keys.ready(3, "@default@mail"), 3)
    heads = [QueueHead("default", 3, 7)]
    call.on_reply(Unparked(6, heads))
    assert desk.woken == [("n2/1-1", 3, heads)]
    assert desk.handlers.parked([3]) == {MAIL: (6, 1_000)}
    desk.handlers.unpark([3])
    assert len(desk.sent) == 1, "those that were sent count, until gossip tells of them"
    assert desk.here == []


async def test_parked_tasks_that_this_node_can_run_are_its_own_and_an_old_node_may_have_any() -> None:
    desk = Desk()
    desk.backlog.set(keys.parked("default", "noop"), 3, 1, 1_000)
    desk.handlers.unpark([3])
    desk.sent[0].on_reply(OSError())
    desk.handlers.unpark([3])
    desk.sent[1].on_reply(Unparked(0, [QueueHead("default", 1, 7)]))
    assert desk.here == [(3, [QueueHead("default", 1, 7)])]
    assert desk.handlers.parked([3]) == {}
    desk.backlog.set(MAIL, 3, 1, 1_000)
    desk.handlers.unpark([3])
    assert len(desk.sent) == 2
    await desk.knows(view(peer("n2")))
    desk.handlers.unpark([3])
    desk.sent[2].on_reply(Unparked(0, [QueueHead("default", 1, 7)]))
    assert len(desk.here) == 2
    assert desk.woken == []


@pytest.mark.parametrize("row", [b"\xc1", b"\x93\xa1a", None])
async def test_a_word_that_cannot_be_read_is_none(row: bytes | None) -> None:
    desk = Desk()
    redis = Redis(n2=[])
    redis.rows[keys.handlers("n2")] = row  # type: ignore[assignment]
    desk.handlers.see(view(peer("n2")))
    await desk.handlers.refresh(redis)  # type: ignore[arg-type]
    assert not desk.handlers.parks("c")


def test_health_names_type_count_and_since_when_over_all_nodes() -> None:
    odd = keys.parked("default", "odd")
    loads = {MAIL: QueueLoad(0, 3, 1, 1_800_000_000_000), odd: QueueLoad(0, 2, 0, 1_800_000_000_000), **free(3)}
    members = view(peer("n2", queues=loads), peer("n3", MemberState.DEAD, loads))
    own = {MAIL: (2, 1_800_000_060_000), keys.parked("gpu", "other"): (1, 1_800_000_000_000)}
    unhandled = report.unhandled(members, own, lambda queue, type_: type_ != "odd")
    rows = [row for row in report.problems(members, True, [MAIL], [], None, unhandled) if row["code"] != "no_leader"]
    assert [(row["code"], row["queue"], row["type"], row["count"], row["since_ms"]) for row in rows] == [
        ("type_unhandled", "default", "mail", 5, 1_800_000_000_000),
        ("type_unhandled", "gpu", "other", 1, 1_800_000_000_000),
    ]
    assert rows[0]["message"] == (
        "5 tasks of type 'mail' wait since 2027-01-15T08:00:00+00:00: "
        "no live node that serves queue 'default' has a handler for it."
    )
    assert rows[1]["message"].startswith("1 task of type 'other' waits since")
    assert report.status(rows) == "degraded"


def test_the_name_of_such_a_queue_tells_it_from_all_others() -> None:
    assert keys.parked_of(keys.parked("mail", "a.b:c/d-e")) == ("mail", "a.b:c/d-e")
    assert keys.parked_of("mail") is None


def test_a_queue_for_which_every_node_has_no_slot_is_served_by_nobody() -> None:
    rows = report.problems(view(peer("n2")), True, ["mail", "default"], [])
    assert [row["message"] for row in rows if row["code"] == "queue_unserved"] == [
        "Tasks wait in queue 'mail', which no live node serves."
    ]
