"""Plans of keyed batches: what they say, and every interleaving of gateways that handle one batch.

The exploration below is a model of the whole protocol with the project's own plans. Two gateways handle requests of
one client. A gateway may die before and after each call to Redis, which looks like an answer that was lost. The client
repeats while an earlier request is still under way, and long after it was answered, when the tasks are past their
retention. Invariants:

- no item ever gets a second task;
- an item that an answer calls accepted has a task;
- all answers name the same ids;
- a repeat that meets no fault accepts every item.

Assumed: a task is kept while a gateway works at the batch, and until a client that got no answer has one to a later
request. `KEPT_MIN_S` and `HOLDS_S` are made for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cluster.shards.task import IdRun, Ids, run_from, shard_of
from node.queue.batch_plan import (
    ALONE,
    Fate,
    Plan,
    beside,
    decoded,
    digest,
    proposal,
    runs,
    start_of,
)
from node.schema import BackoffJson, Submission

RUN = IdRun("01M86CK4HFXK490KQ1BE", 7)

# ---- what a plan says


@given(st.sets(st.integers(0, 40)), st.randoms(use_true_random=False))
def test_a_plan_is_read_as_it_was_written(places: set[int], rng: Random) -> None:
    rising = sorted(places)
    shards = [rng.randrange(256) for _ in rising]
    digests = [rng.choice((ALONE, 1, 0xFFFFFFFF)) for _ in rising]
    plan = decoded(proposal(RUN, rising, shards, digests).encoded())
    assert plan.ids == RUN
    by_place = dict(zip(rising, zip(shards, digests, strict=True), strict=True))
    for place in range(45):
        shard, print_ = by_place.get(place, (0, ALONE))
        assert plan.has(place) == (print_ != ALONE)
        assert plan.fate(place, print_) is (Fate.STORE if plan.has(place) else Fate.ALONE)
        if plan.has(place):
            assert plan.shards[place] == shard
            assert plan.fate(place, 2) is Fate.CONFLICT


@given(st.binary(max_size=80))
def test_bytes_that_are_no_plan_are_refused(value: bytes) -> None:
    try:
        plan = decoded(value)
    except ValueError:
        return
    assert plan.encoded() == value


@given(st.sets(st.integers(0, 30)))
def test_marks_stand_where_their_places_are(places: set[int]) -> None:
    value = marked(proposal(RUN, range(31), [0] * 31, [5] * 31).encoded(), places)
    plan = decoded(value)
    assert {place for place in range(31) if plan.fate(place, 5) is Fate.REPEAT} == places
    assert plan.fate(31, 5) is Fate.ALONE
    assert len(runs(range(31))) == 1


def test_ids_in_a_row_are_those_that_next_would_have_made() -> None:
    one, other = Ids(3), Ids(3)
    run = one.reserve(1_800_000_000_000, 5)
    assert [run.nth(n, 9) for n in range(5)] == [other.next(1_800_000_000_000, 9) for _ in range(5)]
    assert one.next(1_800_000_000_000, 9) == other.next(1_800_000_000_000, 9), "and it goes on behind them"
    assert run_from(run.first) == run
    assert shard_of(run.nth(4, 63), 64) == 63
    last = IdRun(run.prefix, (1 << 30) - 1)
    assert shard_of(last.nth(1, 0), 64) == 0, "the count begins again"


def print_of(data: str, **more: object) -> int:
    item = Submission(type="noop", data=Raw(data.encode()), **more)  # type: ignore[arg-type]
    return digest(item, start_of(item))


def test_a_digest_is_of_the_meaning() -> None:
    assert print_of('{"a": 1, "b": [true, null]}') == print_of('{"b":[true,null],"a":1}')
    assert print_of('"\\u00e9"') == print_of('"é"')
    others = [print_of("1"), print_of("2"), print_of("1", priority=1), print_of("1", queue="q"), print_of('"1"')]
    others += [print_of("1", backoff=BackoffJson(base_s=base_s)) for base_s in (1.0, 2.0)]
    assert len(set(others)) == len(others)


def test_two_submissions_that_differ_beside_their_data_are_never_taken_for_one_another() -> None:
    plain = Submission(type="noop")
    assert beside(plain) == beside(Submission(type="noop", data=Raw(b"1")))
    for name in Submission.__struct_fields__:
        if name == "backoff":
            assert beside(Submission(type="noop", backoff=BackoffJson())) is None
        elif name != "data":
            other = Submission(type="noop")
            setattr(other, name, "x")
            assert beside(other) != beside(plain), name
            assert start_of(other) != start_of(plain), name


# ---- every interleaving

ITEMS = 3
CHUNKS = ((0, 1), (2,))  # items that one script stores
REQUESTS = 4
PRINTS = (11, 12, 13)
GATEWAYS = 2
DEATHS = 2

REFUSED = "refused"
Answer = tuple[str, ...]  # for each item its id, or REFUSED


@dataclass(frozen=True, slots=True)
class Work:
    """One request on its way through a gateway."""

    number: int
    died: int = 0  # how many requests had ended without an answer when it began
    plan: Plan | None = None  # None: it has not asked yet
    left: tuple[int, ...] = tuple(range(len(CHUNKS)))  # chunks to store
    results: tuple[str, ...] = ("",) * ITEMS
    is_marked: bool = False


@dataclass(frozen=True, slots=True)
class World:
    plan: bytes = b""  # in Redis
    kept: frozenset[str] = frozenset()  # ids whose tasks Redis keeps
    made: tuple[int, ...] = (0,) * ITEMS  # tasks that were ever stored for each item
    works: tuple[Work, ...] = ()
    sent: int = 0
    answers: frozenset[Answer] = frozenset()
    refusals: int = 1  # how often the queue may be full
    died: int = 0  # requests that ended without an answer
    repeated: int = 0  # of these, those that were repeated since and answered


def marked(value: bytes, places: set[int]) -> bytes:
    """mark.lua."""
    for offset, marks in runs(sorted(places)):
        value = value[:offset] + marks + value[offset + len(marks) :]
    return value


def own_proposal(number: int) -> Plan:
    return proposal(IdRun(f"{number:020}", 100 * number), range(ITEMS), [number] * ITEMS, PRINTS)


def item_id(plan: Plan, place: int) -> str:
    return plan.ids.nth(place, plan.shards[place])


class Model:
    """The steps that are possible in a world. `flaw`: what this protocol does wrong, to see that it would be found."""

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw

    def next(self, world: World) -> Iterator[World]:
        if world.sent < REQUESTS and len(world.works) < GATEWAYS:
            yield replace(world, works=(*world.works, Work(world.sent, world.died)), sent=world.sent + 1)
        if world.answers and not world.works and world.repeated == world.died:  # a long time passes
            for task_id in sorted(world.kept):
                yield replace(world, kept=world.kept - {task_id})
        for n, work in enumerate(world.works):
            others = world.works[:n] + world.works[n + 1 :]
            for after, went_on in self.steps(world, work):
                if went_on is None:
                    yield replace(after, works=others)
                else:
                    yield replace(after, works=(*world.works[:n], went_on, *world.works[n + 1 :]))
                if after.died < DEATHS:  # the same, but the gateway dies, or learns nothing of it
                    yield replace(
                        after,
                        works=others,
                        died=after.died + 1,
                        answers=world.answers,
                        repeated=world.repeated,
                    )
            if world.died < DEATHS:  # it dies before
                yield replace(world, works=others, died=world.died + 1)

    def steps(self, world: World, work: Work) -> Iterator[tuple[World, Work | None]]:
        """The next step of a request: the world after it, and how the request goes on."""
        if work.plan is None:
            mine = own_proposal(work.number)
            if self.flaw == "no common plan":
                yield world, replace(work, plan=mine)
            elif world.plan:
                yield world, replace(work, plan=decoded(world.plan))
            else:
                yield replace(world, plan=mine.encoded()), replace(work, plan=mine)
        elif work.left:
            for chunk in work.left:
                yield from self.store(world, work, work.plan, chunk)
        elif not work.is_marked and self.flaw != "no marks":
            open_ = {n for n in range(ITEMS) if work.plan.fate(n, PRINTS[n]) is Fate.STORE}
            stored = {n for n in open_ if work.results[n] != REFUSED or self.flaw == "marks what was refused"}
            yield replace(world, plan=marked(world.plan, stored)), replace(work, is_marked=True)
        else:
            repeated = max(world.repeated, work.died)
            yield replace(world, answers=world.answers | {work.results}, repeated=repeated), None

    def store(self, world: World, work: Work, plan: Plan, chunk: int) -> Iterator[tuple[World, Work]]:
        fates = {place: plan.fate(place, PRINTS[place]) for place in CHUNKS[chunk]}
        left = tuple(other for other in work.left if other != chunk)
        for full in (False, True) if world.refusals else (False,):
            kept, made, results, refused = set(world.kept), list(world.made), list(work.results), False
            for place, fate in fates.items():
                results[place] = task_id = item_id(plan, place)
                if fate is Fate.STORE and task_id not in kept:
                    if full and place == CHUNKS[chunk][-1]:
                        results[place], refused = REFUSED, True
                    else:
                        kept.add(task_id)
                        made[place] += 1
            if full and not refused:
                continue
            after = replace(world, kept=frozenset(kept), made=tuple(made), refusals=world.refusals - refused)
            yield after, replace(work, left=left, results=tuple(results))


def complaint(world: World) -> str:
    if max(world.made) > 1:
        return "an item has two tasks"
    for place in range(ITEMS):
        named = {answer[place] for answer in world.answers} - {REFUSED}
        if len(named) > 1:
            return "two answers name two tasks for one item"
        if named and not world.made[place]:
            return "an accepted item has no task"
    return ""


def explore(flaw: str) -> tuple[int, str]:
    """The number of worlds that can come about, and the first complaint about one of them."""
    model = Model(flaw)
    seen = {World()}
    todo = [World()]
    while todo:
        world = todo.pop()
        if found := complaint(world):
            return len(seen), found
        for after in model.next(world):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    return len(seen), ""


def test_no_interleaving_of_two_gateways_makes_two_tasks_of_one_item_or_loses_one() -> None:
    worlds, found = explore("")
    assert found == ""
    assert worlds > 10_000, "it went through all of them"


@pytest.mark.parametrize(
    ("flaw", "found"),
    [
        ("no common plan", "an item has two tasks"),
        ("no marks", "an item has two tasks"),
        ("marks what was refused", "an accepted item has no task"),
    ],
)
def test_the_exploration_finds_what_a_worse_protocol_would_do(flaw: str, found: str) -> None:
    assert explore(flaw)[1] == found


def test_a_repeat_without_a_fault_accepts_every_item_wherever_the_others_stopped() -> None:
    model = Model()
    seen = {World()}
    todo = [World()]
    while todo:
        world = todo.pop()
        if not world.works and world.sent == REQUESTS - 1:
            last = replace(world, works=(Work(REQUESTS),), died=DEATHS, refusals=0, answers=frozenset())
            while last.works:
                last = next(after for after in model.next(replace(last, sent=REQUESTS)))
            assert set(last.made) == {1}, world
        for after in model.next(world):
            if after not in seen:
                seen.add(after)
                todo.append(after)
