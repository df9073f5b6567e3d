"""Search: one page of a listing, merged from several sources, with bounded work.

A source is a shard; where queues are listed, one queue of a shard. It lists its tasks newest first, and each time it is
asked it says how far it looked. The *bound* is the newest of these places: beyond it a source may have more. A page
holds only rows up to the bound, so it lacks none.

What a source answered is kept to the end of the page, and each look goes on where the one before ended. Once enough
rows are known, only sources that may have a newer one than the last of them are asked again.

A search that finds little ends after SEARCH_MAX tasks or when its time is up. Its page is then short, and the caller
may go on from `next`. Looks become small before that end, so that all sources end near the same place: the next page
looks again at what this one saw beyond it.

Does not know: Redis, what a filter keeps.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.shards.answers import Listed

SEARCH_MAX = 20_000  # tasks that one page looks at, at most
SCAN_MAX = 100  # tasks that one script looks at: some 0.7 ms where each is in a bucket of its own
SCAN_MIN = 4  # tasks that one script looks at, at least: fewer cost as much as the call itself

SCORED_PLACE = re.compile(  # a score, below 0 under strict priorities (a very large priority_aging_s), and an id
    r"(-?[0-9]{1,20}) (.*)\Z", re.DOTALL
)

S = TypeVar("S")
Order = tuple[int, str]
Look = Callable[[S, str, int, int], Awaitable[Listed]]  # (source, place to go on after, rows wanted, tasks to look at)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, as (place, id), newest first."""

    rows: Sequence[tuple[str, str]]
    next: str  # the place after which the listing goes on; "" at its end
    searched: int  # tasks that this page looked at, each counted once; some may lie beyond `next`
    is_complete: bool  # whether the page is full, or holds the last of the listing


async def search(
    sources: Sequence[S], look: Look[S], before: str, limit: int, is_filtered: bool, is_late: Callable[[], bool]
) -> Found:
    """The first `limit` rows after the place `before`. `is_late` says whether the time is up."""
    if not sources:
        return Found((), "", 0, True)
    places = dict.fromkeys(range(len(sources)), before)  # of each source that may have more: the place to go on after
    reached: dict[int, Order] = {}  # the same places, to compare
    rows: list[tuple[Order, str, str]] = []  # the newest known, one more than the page holds
    searched = matched = 0
    # Tasks spread evenly. An even share and as much again, and a few, nearly always makes a plain page in one round.
    share = 2 * limit // len(sources) + SCAN_MIN
    scan = min(limit, share, SCAN_MAX, max(1, SEARCH_MAX // len(sources)))
    missing = limit
    asked: Sequence[int] = tuple(places)
    while True:
        parts = await asyncio.gather(*(look(sources[n], places[n], missing, scan) for n in asked))
        for n, part in zip(asked, parts, strict=True):
            searched += part.searched
            matched += len(part.rows)
            rows += [(order(place), place, task_id) for place, task_id in part.rows]
            if part.reached:
                places[n], reached[n] = part.reached, order(part.reached)
            else:
                del places[n]
                reached.pop(n, None)
        rows.sort(reverse=True)
        del rows[limit + 1 :]
        newest = max(reached, key=reached.__getitem__, default=None)
        ready = [row for row in rows if newest is None or row[0] >= reached[newest]][:limit]
        missing = limit - len(ready)
        if newest is None or not missing or is_late():
            break
        if len(rows) >= limit:  # only what is newer than the last of these rows may change the page
            asked = among = [n for n, place in reached.items() if place > rows[limit - 1][0]]
        else:
            asked, among = heapq.nlargest((len(reached) + 1) // 2, reached, key=reached.__getitem__), list(reached)
        expected = missing * searched // max(1, matched)  # tasks that hold the rows that are missing
        scan = min(expected // len(among) + SCAN_MIN, SCAN_MAX)
        if is_filtered:
            scan = min(scan, (SEARCH_MAX - searched) // (2 * len(asked)))
            if scan < SCAN_MIN:
                break
    page = [(place, task_id) for _, place, task_id in ready]
    if not missing and (newest is not None or len(rows) > limit):
        return Found(page, page[-1][0], searched, True)
    return Found(page, "" if newest is None else places[newest], searched, newest is None)


def order(place: str) -> Order:
    """A sort key for a place: by score and then id, or by id alone."""
    scored = SCORED_PLACE.match(place)
    return (int(scored[1]), scored[2]) if scored else (0, place)
