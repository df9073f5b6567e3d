"""A page merged from many sources: nothing is missed or shown twice, in order, with bounded work for each page."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from random import Random

import pytest

from cluster.shards.answers import Listed
from node.queue import search as searching
from node.queue.search import SCAN_MAX, SCAN_MIN, SEARCH_MAX, Found, order, search


class Shelf:
    """Sources as lists of places, newest first; `keeps` is the filter. Notes how much it was asked."""

    def __init__(self, sources: Sequence[Sequence[str]], keeps: Callable[[str], bool] = lambda task_id: True) -> None:
        self.sources = sources
        self.keeps = keeps
        self._orders = [[order(place) for place in reversed(source)] for source in sources]
        self.looks: list[tuple[int, int]] = []  # (source, tasks looked at)

    async def look(self, source: int, before: str, limit: int, scan: int) -> Listed:
        """As list.lua does it."""
        rows: list[tuple[str, str]] = []
        orders = self._orders[source]
        end = bisect_left(orders, order(before)) if before else len(orders)
        left = self.sources[source][len(orders) - end :]
        for searched, place in enumerate(left[:scan], 1):
            task_id = place.rpartition(" ")[2]
            if self.keeps(task_id):
                rows.append((place, task_id))
            if len(rows) == limit or searched == scan:
                self.looks.append((source, searched))
                return Listed(place, searched, rows)
        self.looks.append((source, len(left)))
        return Listed("", len(left), rows)

    async def page(self, before: str, limit: int, is_filtered: bool, is_late: bool = False) -> Found:
        return await search(
            range(len(self.sources)), self.look, before, limit, is_filtered, lambda: is_late and bool(self.looks)
        )


def shelf(seed: int, tasks: int, shards: int, scored: bool, keeps: Callable[[str], bool] = lambda _: True) -> Shelf:
    rng = Random(seed)
    sources: list[list[str]] = [[] for _ in range(shards)]
    for n in range(tasks):
        score = f"{rng.randrange(1, 50) if rng.random() < 0.5 else 10 + n} " if scored else ""
        # Some seeds have most tasks in one shard, as a key may put them there.
        shard = 0 if seed % 3 == 0 and rng.random() < 0.8 else rng.randrange(shards)
        sources[shard].append(f"{score}{n:06d}")
    return Shelf([sorted(source, key=order, reverse=True) for source in sources], keeps)


@pytest.mark.parametrize("seed", range(30))
async def test_following_the_cursor_shows_each_task_once_newest_first(seed: int) -> None:
    rng = Random(seed)
    is_filtered = seed % 2 == 1
    one = shelf(seed, rng.choice((0, 1, 50, 1500)), rng.choice((1, 7, 64)), seed % 5 == 0)
    if is_filtered:
        one.keeps = lambda task_id: int(task_id) % 37 == 0
    limit = rng.choice((1, 20, 500))
    seen: list[str] = []
    before = ""
    while True:
        page = await one.page(before, limit, is_filtered)
        assert page.is_complete == (len(page.rows) == limit or not page.next)
        seen += [place for place, _ in page.rows]
        if not page.next:
            break
        assert not before or order(page.next) < order(before), "every page gets on"
        before = page.next
    everything = [place for source in one.sources for place in source if one.keeps(place.rpartition(" ")[2])]
    assert seen == sorted(everything, key=order, reverse=True)


async def test_a_search_that_finds_nothing_stops_at_its_bound_and_says_so() -> None:
    one = shelf(1, 60_000, 64, False, keeps=lambda _: False)
    searched, pages, before = 0, 0, ""
    while True:
        page = await one.page(before, 30, True)
        assert page.searched <= SEARCH_MAX
        assert page.rows == []
        searched += page.searched
        pages += 1
        if not page.next:
            break
        assert not page.is_complete
        assert page.searched >= SEARCH_MAX * 0.9
        before = page.next
    assert page.is_complete
    assert 60_000 <= searched <= 60_000 * 1.06, "what a page looked at beyond its place is little"
    assert max(looked for _, looked in one.looks) <= SCAN_MAX


async def test_one_full_shard_is_searched_alone_after_the_first_look_at_the_others() -> None:
    everything = [f"{n:06d}" for n in range(10_000, 0, -1)]
    one = Shelf([everything, *([] for _ in range(63))], keeps=lambda task_id: task_id == "000001")
    page = await one.page("", 30, True)
    assert [task_id for _, task_id in page.rows] == ["000001"]
    assert page.is_complete
    assert sum(1 for source, _ in one.looks if source) == 63


@pytest.mark.parametrize("seed", range(40))
async def test_one_page_over_everything_counts_each_task_once(seed: int) -> None:
    rng = Random(seed)
    tasks, shards = rng.choice((0, 30, 900, 9_000)), rng.choice((1, 7, 64))
    every = rng.choice((1, 2, 19, 1_000, 100_000))
    one = shelf(seed, tasks, shards, seed % 5 == 0, keeps=lambda task_id: int(task_id) % every == 1 % every)
    page = await one.page("", 10_000, True)
    kept = [place for source in one.sources for place in source if one.keeps(place.rpartition(" ")[2])]
    assert [place for place, _ in page.rows] == sorted(kept, key=order, reverse=True)
    assert (page.searched, page.next, page.is_complete) == (tasks, "", True)


@pytest.mark.parametrize("every", [1, 2, 20])
@pytest.mark.parametrize("limit", [100, 500])
async def test_a_search_that_finds_much_looks_at_little_more_than_it_needs(every: int, limit: int) -> None:
    one = shelf(1, 80_000, 64, False, keeps=lambda task_id: int(task_id) % every == 0)
    page = await one.page("", limit, True)
    assert len(page.rows) == limit
    needed = limit * every
    assert page.searched <= 2.5 * needed + 64 * SCAN_MIN


async def test_a_source_that_is_far_enough_is_asked_no_more() -> None:
    """Enough rows are known after the first round, and only the full source may have a newer one."""
    full = [f"{n:06d}" for n in range(10_000, 9_000, -1)]
    one = Shelf([full, *([f"{n * 10 + shard:06d}" for n in range(90, 0, -1)] for shard in range(9))])
    page = await one.page("", 100, True)
    assert [place for place, _ in page.rows] == full[:100]
    assert all(sum(1 for source, _ in one.looks if source == shard) == 1 for shard in range(1, 10))
    assert page.searched == sum(looked for _, looked in one.looks)


async def test_a_plain_page_looks_at_little_more_than_it_shows() -> None:
    one = shelf(1, 30_000, 64, False)
    page = await one.page("", 50, False)
    assert len(page.rows) == 50
    assert page.searched <= 64 * 6 + 50


async def test_a_page_whose_time_is_up_holds_what_is_sure_and_goes_on_later() -> None:
    one = shelf(1, 15_000, 64, False, keeps=lambda task_id: int(task_id) % 10 == 0)
    page = await one.page("", 100, True, is_late=True)
    assert len(one.looks) == 64, "one round"
    assert 0 < len(page.rows) < 100
    assert not page.is_complete
    rest = await one.page(page.next, 1_500, True)
    ids = [int(task_id) for _, task_id in (*page.rows, *rest.rows)]
    assert ids == [n for n in range(14_999, -1, -1) if n % 10 == 0]


async def test_nothing_to_look_at_is_an_empty_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await search((), Shelf([]).look, "", 10, False, lambda: False) == Found((), "", 0, True)
    monkeypatch.setattr(searching, "SEARCH_MAX", 40)
    page = await shelf(1, 5_000, 64, False, keeps=lambda _: False).page("", 10, True)
    assert page.searched == 64, "more shards than tasks to look at: one in each"


def test_a_place_may_have_a_score_below_zero() -> None:
    places = ["-20 b", "-3 a", "-3 b", "0 a", "7 a"]
    assert sorted(reversed(places), key=order) == places
    for place in ("- a", "--3 a", "-3.5 a", "3- a", "\u00b2 a"):
        assert order(place) == (0, place), "what has no score is an id, or something else that stands there"
