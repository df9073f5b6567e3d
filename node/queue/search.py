"""Search: one page of a listing, merged from several sources, with bounded work.

A source is a shard; where queues are listed, one queue of a shard. It lists its tasks newest first, and each time it is
asked it says how far it looked. The *frontier* is the newest of these places: beyond it a source may have more. A page
holds only rows up to the frontier, so it lacks none. Each round asks the sources that hold the frontier up.

A search that finds little ends after SEARCH_MAX tasks or when its time is up. Its page is then short, and the caller
may go on from `next`.

Does not know: Redis, what a filter keeps.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cluster.shards.answers import Listed

SEARCH_MAX = 20_000  # tasks that one page looks at, at most
SCAN_MAX = 100  # tasks that one script looks at: some 0.7 ms where each is in a bucket of its own
ROUND_SOURCES = 4  # sources that one round asks, after the first round has asked all

S = TypeVar("S")
Order = tuple[int, str]
Look = Callable[[S, str, int, int], Awaitable[Listed]]  # (source, place to go on after, rows wanted, tasks to look at)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, as (place, id), newest first."""

    rows: Sequence[tuple[str, str]]
    next: str  # the place after which the listing goes on; "" at its end
    searched: int  # tasks looked at
    is_complete: bool  # whether the page is full, or holds the last of the listing


async def search(
    sources: Sequence[S], look: Look[S], before: str, limit: int, is_filtered: bool, is_late: Callable[[], bool]
) -> Found:
    """The first `limit` rows after the place `before`. `is_late` says whether the time is up."""
    if not sources:
        return Found((), "", 0, True)
    places = dict.fromkeys(range(len(sources)), before)  # of each source that may have more: the place to go on after
    frontier: dict[int, Order] = {}
    rows: list[tuple[Order, str, str]] = []
    searched = 0
    scan = min(SCAN_MAX, max(1, SEARCH_MAX // len(sources)))
    # Tasks spread evenly. An even share and half as much again, or a few, nearly always makes a page in one round.
    wanted = limit if is_filtered else min(limit, 2 * limit // len(sources) + 4, SCAN_MAX)
    asked: Sequence[int] = tuple(places)
    while True:
        parts = await asyncio.gather(
            *(look(sources[n], places[n], wanted, scan if is_filtered else wanted) for n in asked)
        )
        for n, part in zip(asked, parts, strict=True):
            searched += part.searched
            rows += [(order(place), place, task_id) for place, task_id in part.rows]
            if part.reached:
                places[n], frontier[n] = part.reached, order(part.reached)
            else:
                del places[n]
                frontier.pop(n, None)
        newest = max(frontier, key=frontier.__getitem__, default=None)
        bound = None if newest is None else frontier[newest]
        ready = [row for row in rows if bound is None or row[0] >= bound]
        is_bounded = is_filtered and searched + ROUND_SOURCES * scan > SEARCH_MAX
        if newest is None or len(ready) >= limit or is_bounded or is_late():
            break
        asked = heapq.nlargest(ROUND_SOURCES, frontier, key=frontier.__getitem__)
        wanted = min(limit - len(ready), SCAN_MAX)
    ready.sort(reverse=True)
    page = [(place, task_id) for _, place, task_id in ready[:limit]]
    if len(page) == limit and (newest is not None or len(ready) > limit):
        return Found(page, page[-1][0], searched, True)
    return Found(page, "" if newest is None else places[newest], searched, newest is None)


def order(place: str) -> Order:
    """A sort key for a place: by id alone, or by score and then id. Raises ValueError if it is neither."""
    score, space, task_id = place.rpartition(" ")
    digits = score.removeprefix("-")  # strict priorities (a very large priority_aging_s) make scores below 0
    if space and not (digits.isascii() and digits.isdigit()):
        raise ValueError(place)
    return (int(score), task_id) if space else (0, task_id)
