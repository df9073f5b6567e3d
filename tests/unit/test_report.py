"""What a node says to people: both witnesses' verdicts in words, and one status for all problems."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.load import Load, Meta, QueueLoad
from cluster.refusal import refusal
from cluster.swim.events import Evidence, MemberState
from cluster.view import VERDICT, Leader, Peer, RedisWord, Verdict, View
from node.observe import report

LEADER = Leader("n1", "n1/018bcfe5680-00000001", 3)
HEALTHY = Load(True, False, False, {"default": QueueLoad(3, 0, 0)}, 5)


def peer(name: str = "n1", **more: Any) -> Peer:
    """A healthy member with eight slots, three of them free."""
    values: dict[str, Any] = {
        "node_id": name,
        "session": f"{name}/018bcfe5680-00000001",
        "host": "127.0.0.1",
        "port": 5000,
        "state": MemberState.ALIVE,
        "evidence": Evidence.NONE,
        "by": "",
        "incarnation": 1,
        "rtt_s": None,
        "redis": RedisWord.LIVE,
        "redis_age_s": 0.0,
        "verdict": Verdict.HEALTHY,
        "load": HEALTHY,
        "meta": Meta({"default": 8}, 42, "1.0"),
    }
    return Peer(**{**values, **more})


def view(*peers: Peer, leader: Leader | None = LEADER) -> View:
    """What n1 sees."""
    return View("n1", "n1/018bcfe5680-00000001", peers or (peer(),), leader, 3, True, True)


def codes(problems: list[dict[str, str]]) -> list[str]:
    """The codes alone."""
    return [problem["code"] for problem in problems]


def test_a_healthy_cluster_has_no_problems() -> None:
    problems = report.problems(view(peer(), peer("n2")), True, ["default"], [])
    assert problems == []
    assert report.status(problems) == "ok"


def test_callers_are_sent_to_the_public_url_and_peers_to_the_address() -> None:
    inside = peer(host="172.18.0.3", meta=Meta({"default": 8}, public_url="http://localhost:5001"))
    assert inside.url == "http://172.18.0.3:5000"
    [member] = report.cluster(view(inside), [], [])["members"]
    [worker] = report.workers(view(inside), {})
    assert member["url"] == worker["url"] == "http://localhost:5001"
    assert member["address"] == "172.18.0.3:5000", "where its peers reach it: a wrong advertise_host is seen here"
    assert peer(host="fd00::1").url == "http://[fd00::1]:5000"


def test_only_the_agreement_of_both_witnesses_is_a_death() -> None:
    """The table of the two witnesses, word by word, as `GET /cluster` says it."""
    words = {
        (dead, live): report.cluster(view(peer(verdict=VERDICT[dead, live])), [], [])["members"][0]["verdict"]
        for dead, live in product((False, True), repeat=2)
    }
    assert words == {
        (False, True): "healthy",
        (False, False): "cut_from_redis",
        (True, True): "cut_from_peers",
        (True, False): "dead",
    }


@pytest.mark.parametrize("verdict", [Verdict.CUT_FROM_REDIS, Verdict.CUT_FROM_PEERS])
def test_a_member_that_one_witness_misses_is_a_problem_with_both_their_words(verdict: Verdict) -> None:
    (problem,) = report.problems(view(peer(), peer("n2", verdict=verdict)), True, [], [])
    assert (problem["code"], problem["severity"]) == (verdict.value, "error")
    assert "n2" in problem["message"]
    assert "gossip" in problem["message"] or "peers" in problem["message"]
    assert "Redis" in problem["message"]
    assert problem["hint"]


def test_a_dead_member_is_no_problem_of_the_living() -> None:
    gone = peer("n2", state=MemberState.DEAD, verdict=Verdict.DEAD, load=Load(True, True, False, {}))
    assert report.problems(view(peer(), gone), True, [], []) == []


def test_what_is_wrong_is_said_once_and_the_worst_first() -> None:
    stalled = peer("n2", load=Load(True, True, False, {}))
    notes = [{"code": "no_aof", "message": "m", "hint": "h"}]
    problems = report.problems(view(peer(), stalled, leader=None), False, ["gpu", "default"], notes)
    assert codes(problems) == ["redis_away", "no_leader", "stalled", "queue_unserved", "no_aof"]
    assert [problem["severity"] for problem in problems] == ["fatal", "error", "error", "error", "warning"]
    assert "'gpu'" in problems[3]["message"]


def test_a_redis_that_refuses_to_write_is_said_with_its_words_and_blames_no_member() -> None:
    cut = [peer(name, verdict=Verdict.CUT_FROM_REDIS) for name in ("n1", "n2")]
    why = refusal("NOREPLICAS Not enough good replicas to write.")
    problems = report.problems(replace(view(*cut, leader=None), redis_ok=False, refusal=why), False, [], [])
    assert codes(problems) == ["redis_refuses", "no_leader"]
    assert why.words in problems[0]["message"]
    assert why.hint in problems[0]["hint"]
    assert report.status(problems) == "unavailable"


def test_a_queue_is_served_only_by_a_member_that_is_able() -> None:
    gpu = Meta({"gpu": 1})
    assert report.problems(view(peer(), peer("n2", meta=gpu)), True, ["gpu"], []) == []
    for unable in (
        peer("n2", meta=gpu, state=MemberState.DEAD),
        peer("n2", meta=gpu, state=MemberState.SUSPECT),
        peer("n2", meta=gpu, load=None),
        peer("n2", meta=gpu, load=Load(True, False, True, {})),
        peer("n2", meta=gpu, load=Load(False, False, False, {})),
    ):
        assert "queue_unserved" in codes(report.problems(view(peer(), unable), True, ["gpu"], []))


RANK = {"warning": 0, "error": 1, "fatal": 2}


@given(st.lists(st.sampled_from(sorted(RANK))))
def test_the_status_is_that_of_the_worst_problem_in_whatever_order(severities: list[str]) -> None:
    expected = ["ok", "degraded", "unavailable"][max((RANK[severity] for severity in severities), default=0)]
    assert report.status([{"severity": severity} for severity in severities]) == expected


def test_workers_are_the_members_that_are_there_and_what_redis_says_they_run() -> None:
    peers = (
        peer(),
        peer("n2", state=MemberState.SUSPECT, load=None),
        peer("n3", state=MemberState.LEFT),
        peer("n4", state=MemberState.DEAD),
        peer("n5", meta=None),
    )
    rows = report.workers(view(*peers), {peer().session: ["b-01", "a-02"], peer("n4").session: ["c-00"]})
    assert [(row["node_id"], row["state"]) for row in rows] == [("n1", "alive"), ("n2", "suspect")]
    assert (rows[0]["tasks"], rows[0]["running"], rows[0]["pid"]) == (["a-02", "b-01"], 2, 42)
    assert rows[0]["queues"] == {"default": {"slots": 8, "running": 5}}
    assert rows[1]["queues"] == {"default": {"slots": 8, "running": 0}}
    assert report.head_count(view(*peers)) == {"alive": 3, "known": 5}


def test_the_cluster_is_told_with_its_leader_its_shards_and_its_events() -> None:
    answer = report.cluster(view(peer(rtt_s=0.0012345)), ("n1", "n2"), [{"kind": "join"}])
    assert answer["shards"] == {"0": "n1", "1": "n2"}
    assert answer["leader"] == {"node_id": "n1", "session": "n1/018bcfe5680-00000001", "epoch": 3}
    assert answer["events"] == [{"kind": "join"}]
    assert answer["members"][0]["rtt_ms"] == 1.234 or answer["members"][0]["rtt_ms"] == 1.235
    assert answer["members"][0]["load"]["queues"] == {"default": {"free": 3, "queued": 0, "shards": 0}}
    assert report.cluster(view(leader=None), (), [])["leader"] is None
