"""The page's own code turns events into words: which events are one story, what led to what, which node saw it when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from node.gateway import page as pages

T0 = 1_800_000_000_000
NUMBERS = count(1)


@pytest.fixture(scope="module")
def tell(one_browser: Any) -> Iterator[Any]:
    """`tell(events)`: the stories, newest first, as n1's page tells them."""
    context = one_browser.new_context()
    page = context.new_page()
    page.route("**/*", lambda route: route.fulfill(body=pages.load().body, content_type="text/html"))
    page.goto("http://127.0.0.1:9/")
    yield lambda events: page.evaluate("events => stories.tell(events, 'n1')", events)
    context.close()


def event(ms: int, kind: str, node: str, by: str = "", seen_by: str = "", **more: Any) -> dict[str, Any]:
    return {
        **{"at_ms": T0 + ms, "kind": kind, "node_id": node, "session": f"{node}/1-1", "by": by},
        **{"seen_by": seen_by or by or node, "id": f"e-{next(NUMBERS)}", **more},
    }


def death(ms: int = 0, evidence: str = "refused", tasks: int = 12) -> list[dict[str, Any]]:
    return [
        event(ms, "connection_refused", "n2", "n1"),
        event(ms + 3, "connection_refused", "n2", "n3"),
        event(ms + 3, "member_suspect", "n2", "n1", evidence=evidence),
        event(ms + 4, "member_dead", "n2", "n3", evidence=evidence),
        event(ms + 4, "member_dead", "n2", "n3", seen_by="n1", evidence=evidence),  # n1 heard of it by gossip
        event(ms + 5, "session_fenced", "n2", "n3", evidence=evidence),
        event(ms + 6, "session_fenced", "n2", "n3", seen_by="n1", evidence=evidence),
        event(ms + 7, "shards_moved", "n1", "n1", to={"n1": 11, "n3": 10}, shards=21),
        event(ms + 7, "shards_moved", "n3", "n3", to={"n1": 11, "n3": 10}, shards=21),
        event(ms + 8, "session_reaped", "n2", "n3", tasks=tasks),
    ]


def texts(story: dict[str, Any]) -> list[str]:
    return [f"+{step['ms']} {step['text']}" for step in story["steps"]]


def test_a_kill_is_one_story_with_who_saw_it_and_how_much_later(tell: Any) -> None:
    (story,) = tell(death())
    assert story["title"] == "n2 is gone; others took over its work after 8 ms"
    assert texts(story) == [
        "+0 n1 and n3 (+3 ms) saw n2 refuse new connections",
        "+3 n1 suspected n2",
        "+4 The peers of n2 declared it dead: its port refuses connections, so its process is gone",
        "+5 Redis confirms: nothing listens on the channel of n2 any more."
        " n3 fenced n2: its tasks may be given to others now",
        "+7 21 shards moved to n1 (11) and n3 (10)",
        "+8 12 tasks that n2 was running are queued again",
    ]


def test_the_order_in_which_events_arrive_changes_nothing(tell: Any) -> None:
    events = death()
    assert tell(events[::-1]) == tell(events)


def test_a_leaders_death_tells_who_leads_next_once(tell: Any) -> None:
    elected = [event(20, "leader_elected", "n3", seen_by=by, epoch=2) for by in ("n3", "n1")]
    (story,) = tell([*death(), *elected])
    assert sum("n3 became the leader (epoch 2)" in text for text in texts(story)) == 1


def test_a_node_that_dies_right_after_it_came_has_two_stories(tell: Any) -> None:
    gone, joined = tell(
        [event(-1800, "node_started", "n2"), event(-1790, "member_joined", "n2", seen_by="n1"), *death()]
    )
    assert gone["title"] == "n2 is gone; others took over its work after 8 ms"
    assert joined["title"] == "n2 joined"


def test_one_witness_alone_is_told_as_such(tell: Any) -> None:
    (story,) = tell([one for one in death(evidence="silent") if one["kind"] == "member_dead"])
    assert story["title"] == "The peers of n2 declared it dead; Redis has not confirmed it yet"
    assert story["why"] == "n2 keeps its tasks until Redis confirms or its lease runs out."


def test_a_refuted_suspicion_ends_well(tell: Any) -> None:
    (story,) = tell(
        [event(0, "member_suspect", "n2", "n3", evidence="stalled"), event(900, "member_alive", "n2", seen_by="n1")]
    )
    assert (story["tone"], story["title"]) == ("good", "n2 was suspected but is alive")
    assert "the process hangs" in texts(story)[0]


def test_a_lease_that_ran_out_is_redis_alone(tell: Any) -> None:
    (story,) = tell(
        [event(0, "session_fenced", "n2", "n3", evidence="lease"), event(9, "session_reaped", "n2", "n3", tasks=1)]
    )
    assert "Redis alone" in texts(story)[0]
    assert "1 task that n2 was running is queued again" in texts(story)[1]


def test_leaving_in_good_order_is_no_death(tell: Any) -> None:
    (story,) = tell(
        [
            event(0, "node_draining", "n2", "n2", tasks=3),
            event(5, "member_leaving", "n2", seen_by="n1"),
            event(900, "member_left", "n2", seen_by="n1"),
            event(901, "connection_ended", "n2", "n1"),
        ]
    )
    assert story["title"] == "n2 left in good order"
    assert "(3 tasks)" in texts(story)[0]


def test_a_connection_that_ends_and_nothing_more_is_no_story(tell: Any) -> None:
    assert tell([event(0, "connection_ended", "n2", "n1")]) == []


def test_a_node_cut_off_from_redis_is_told_with_what_followed_and_its_return(tell: Any) -> None:
    joined = event(-9000, "member_joined", "n2", seen_by="n1")
    silent = event(0, "redis_silent", "n2")
    moved = event(-80, "shards_moved", "n1", seen_by="n1", shards=3, to={"n1": 3})
    story, _ = tell([joined, silent, moved])
    assert (story["tone"], story["title"]) == ("warn", "n2 is cut off from Redis")
    assert story["why"].startswith("Only Redis misses it:")
    assert "3 shards moved to n1" in texts(story)[1]
    back = [event(5000, "shards_moved", "n1", seen_by="n1", shards=3, to={"n2": 3}), event(5300, "redis_heard", "n2")]
    story, _ = tell([joined, silent, moved, *back])
    assert (story["tone"], story["title"]) == ("good", "n2 was cut off from Redis and is back")
    assert [text.partition(" ")[0] for text in texts(story)] == ["+0", "+0", "+5000", "+5300"]
    again, story, _ = tell([joined, silent, moved, *back, event(9000, "redis_silent", "n2")])
    assert (again["title"], story["title"]) == ("n2 is cut off from Redis", "n2 was cut off from Redis and is back")
    fenced = event(30_000, "session_fenced", "n2", "n3", evidence="lease")
    story, _ = tell([joined, silent, moved, fenced])
    assert "heartbeat" in texts(story)[0]
    assert story["title"] == "n2 lost its lease; it was fenced after 30 s"


def test_tasks_are_never_given_back_before_the_fence_is_told(tell: Any) -> None:
    (story,) = tell([*death(), event(90, "session_reaped", "n2", "n1", tasks=1)])
    early = event(-1, "session_reaped", "n2", "n1", tasks=1)
    (odd,) = tell([*death(), early])
    for one in (story, odd):
        words = texts(one)
        fence, reap = (
            next(n for n, text in enumerate(words) if part in text) for part in ("n3 fenced n2", "queued again")
        )
        assert fence < reap
