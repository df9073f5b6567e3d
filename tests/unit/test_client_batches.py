"""`submit_many`: one result for each item whatever one holds, and no id is lost whatever ends the call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from cluster.errors import BadRequest, Invalid, RumorError
from node.client import batches
from node.client.asking import Answer, Ask, NoAnswer, Steps
from node.client.errors import Unreachable
from tests.unit.test_client_asking import BROKEN, REFUSED, World, asker, error


def stores(ask: Ask) -> Answer:
    """A node that stores what is a submission and refuses each other item."""
    base = ask.request.headers["Idempotency-Key"]
    rows: list[dict[str, Any]] = []
    for place, item in enumerate(json.loads(ask.request.body or b"")):
        if isinstance(item, dict):
            rows.append({"id": f"{base}+{place}", "state": "queued", **item})
        else:
            rows.append({"error": {"code": "invalid", "message": f"$[{place}] is null", "hint": ""}})
    return Answer(200, json.dumps({"results": rows}).encode())


def ids(results: list[Any]) -> list[str | None]:
    return [None if isinstance(result, RumorError) else result.id for result in results]


class Odd:
    def __iter__(self) -> Iterator[str]:
        raise ZeroDivisionError


HOSTILE: list[tuple[Any, str]] = [
    (("noop", "a\ud800b"), r"half of a surrogate pair stands in .*\\ud800"),
    (("noop", {"\udfff": 1}), "half of a surrogate pair"),
    (("noop", float("nan")), "a number that JSON does not have"),
    (("noop", [1, {"a": float("-inf")}]), "a number that JSON does not have"),
    (("noop", object()), "unsupported"),
    (("noop", {(1, 2): 3}), "which JSON does not have"),
    (("\ud800", 1), "half of a surrogate pair"),
    (("noop",), "this item is a tuple of 1"),
    (("noop", 1, 2), "this item is a tuple of 3"),
    ("noop", "this item is of type str"),
    (None, "this item is of type NoneType"),
    (["noop", 1], "this item is of type list"),
    ({"type": "noop", "data": b"\xff", "queue": object()}, "unsupported|not JSON"),
    (("noop", 10**5000), "Exceeds the limit"),
]


@pytest.mark.parametrize(("item", "why"), HOSTILE)
def test_an_item_that_is_no_json_has_its_error_and_the_others_keep_their_places(item: Any, why: str) -> None:
    world = World(stores)
    results = world.run(batches.submit_many(asker(world), [("noop", 1), item, ("noop", 3)], "k"))
    assert ids(results) == ["k/0+0", None, "k/0+2"]
    assert isinstance(results[1], Invalid)
    with pytest.raises(Invalid, match=why):
        raise results[1]


def test_a_value_that_contains_itself_has_its_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    world = World(stores)
    assert ids(world.run(batches.submit_many(asker(world), [("noop", loop), ("noop", 1)], "k"))) == [None, "k/0+1"]


def test_items_that_are_all_unfit_need_no_node() -> None:
    world = World(stores)
    results = world.run(batches.submit_many(asker(world), [("noop", object())] * 1_500, None))
    assert ids(results) == [None] * 1_500
    assert world.asks == []


def test_one_bad_item_of_1500_leaves_1499_ids() -> None:
    items = [("noop", "\ud800" if n == 1_200 else "x") for n in range(1_500)]
    world = World(stores)
    results = world.run(batches.submit_many(asker(world), items, "k"))
    assert [n for n, one in enumerate(ids(results)) if one is None] == [1_200]
    assert ids(results)[1_201] == "k/1000+201"


@pytest.mark.parametrize("refusal", [error(413, "too_large"), error(400, "bad_request"), error(422, "invalid")])
def test_what_a_node_refuses_as_a_whole_is_cut_until_the_item_at_fault_is_alone(refusal: Answer) -> None:
    world = World(lambda ask: refusal if b"bad" in (ask.request.body or b"") else stores(ask))
    items = [("noop", "bad" if n in (3, 700) else n) for n in range(1_002)]
    results = world.run(batches.submit_many(asker(world), items, "k"))
    assert [n for n, one in enumerate(ids(results)) if one is None] == [3, 700]
    assert len({one for one in ids(results) if one}) == 1_000
    assert len(world.asks) < 45
    again = World(world.says)
    assert ids(again.run(batches.submit_many(asker(again), items, "k"))) == ids(results), "the same places, cut again"


def test_a_proxy_that_takes_less_than_a_node_is_served_in_smaller_requests() -> None:
    page = Answer(413, b"<html>413 Request Entity Too Large</html>")
    world = World(lambda ask: page if len(ask.request.body or b"") > 10_000 else stores(ask))
    results = world.run(
        batches.submit_many(asker(world), [*(("noop", "x" * 100),) * 900, ("noop", "x" * 20_000)], None)
    )
    assert [n for n, one in enumerate(ids(results)) if one is None] == [900]


def test_a_conflict_is_not_cut_since_the_halves_would_be_stored_under_other_keys() -> None:
    world = World(lambda _: error(422, "idempotency_conflict"))
    results = world.run(batches.submit_many(asker(world), [("noop", 1)] * 4, "k"))
    assert [getattr(result, "code", None) for result in results] == ["idempotency_conflict"] * 4
    assert len(world.asks) == 1


@pytest.mark.parametrize("status", [(401, "unauthorized"), (403, "forbidden")])
def test_a_caller_who_is_refused_hears_it_at_once_and_in_the_middle_keeps_the_ids(status: tuple[int, str]) -> None:
    world = World(lambda _: error(*status))
    with pytest.raises(RumorError) as told:
        world.run(batches.submit_many(asker(world), [("noop", 1)], None))
    assert told.value.status == status[0]
    world = World(lambda ask: stores(ask) if len(world.asks) == 1 else error(*status))
    results = world.run(batches.submit_many(asker(world), [("noop", n) for n in range(2_500)], None))
    assert len([one for one in ids(results) if one]) == 1_000
    assert {getattr(result, "status", None) for result in results[1_000:]} == {status[0]}


def test_nodes_that_die_in_the_middle_leave_the_ids_and_the_key_to_repeat_with() -> None:
    world = World(lambda ask: stores(ask) if len(world.asks) == 1 else BROKEN if len(world.asks) == 2 else REFUSED)
    items = [("noop", n) for n in range(3_000)]
    results = world.run(batches.submit_many(asker(world, 5.0), items, None))
    assert len([one for one in ids(results) if one]) == 1_000
    lost, unsent = results[1_000], results[2_000]
    assert isinstance(lost, Unreachable)
    assert isinstance(unsent, Unreachable)
    assert (lost.may_have_happened, unsent.may_have_happened) == (True, False)
    assert lost.idempotency_key
    assert f"idempotency_key={lost.idempotency_key!r}" in lost.hint
    assert world.now_s < 100 + 5.0 + 1.0, "a part that fails uses up the time of the whole call"
    again = World(stores)
    repeated = again.run(batches.submit_many(asker(again), items, lost.idempotency_key))
    assert ids(repeated)[:1_000] == ids(results)[:1_000]


def test_an_answer_that_cannot_be_read_may_have_stored() -> None:
    world = World(lambda _: Answer(200, b'{"results": []}'))
    (result,) = world.run(batches.submit_many(asker(world), [("noop", 1)], "k"))
    assert isinstance(result, RumorError)
    assert result.may_have_happened
    assert result.idempotency_key == "k"


def interrupted(steps: Steps[Any], answers: int, how: BaseException) -> BaseException:
    """Carry the steps out; after so many answers, `how` ends them, as a driver hands it in."""
    step = next(steps)
    try:
        while True:
            if isinstance(step, Ask) and not answers:
                steps.throw(how)
            answers -= isinstance(step, Ask)
            step = steps.send((stores(step) if isinstance(step, Ask) else None, 100.0))
    except BaseException as error:
        return error


@pytest.mark.parametrize("how", [KeyboardInterrupt(), TimeoutError(), MemoryError()])
def test_what_ends_the_call_carries_the_results_so_far_and_the_key(how: BaseException) -> None:
    items = [("noop", n) for n in range(2_500)]
    steps = batches.submit_many(asker(World(stores)), items, None)
    error: Any = interrupted(steps, 2, how)
    assert error is how
    assert len(error.results) == 2_000
    assert all(ids(error.results))
    assert "2,000 of 2,500 items" in error.__notes__[0]
    assert error.idempotency_key in error.__notes__[1]
    world = World(stores)
    assert ids(world.run(batches.submit_many(asker(world), items, error.idempotency_key)))[:2_000] == ids(error.results)


@pytest.mark.parametrize("key", ["", "a\nb", " a", "a ", "\ud800", "\x7f", "k" * 256, b"k", 7])
def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(key: Any) -> None:
    world = World(stores)
    with pytest.raises(BadRequest, match="Idempotency-Key"):
        world.run(batches.submit_many(asker(world), [("noop", 1)], key))
    assert world.asks == []


def test_the_longest_key_of_a_batch_leaves_room_for_the_places() -> None:
    world = World(stores)
    items = [("noop", n) for n in range(1_200)]
    with pytest.raises(BadRequest, match="it has 251 characters") as told:
        world.run(batches.submit_many(asker(world), items, "k" * 251))
    assert "1 to 250" in told.value.hint
    world.run(batches.submit_many(asker(world), items, "k" * 250))
    assert max(len(ask.request.headers["Idempotency-Key"]) for ask in world.asks) == 255


def test_every_item_has_one_result_under_any_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random batches, random refusals: the results are as many as the items, and each id is that of its item."""
    monkeypatch.setattr(batches, "BATCH_TASKS", 7)
    for seed in range(300):
        rng = Random(seed)
        items: list[Any] = [("noop", f"i{n}") for n in range(rng.randrange(40))]
        for n in range(len(items)):
            if rng.random() < 0.2:
                items[n] = rng.choice(HOSTILE)[0] if rng.random() < 0.5 else ("noop", "bad")

        def says(ask: Ask, rng: Random = rng) -> Answer | NoAnswer:
            if b"bad" in (ask.request.body or b"") and rng.random() < 0.9:
                return error(400, "bad_request")
            return stores(ask) if rng.random() < 0.9 else rng.choice([BROKEN, REFUSED, error(413, "too_large")])

        world = World(says)
        results = world.run(batches.submit_many(asker(world), items, "k"))
        assert len(results) == len(items), f"seed {seed}"
        for item, result in zip(items, results, strict=True):
            if not isinstance(result, RumorError):
                assert result.data == item[1], f"seed {seed}"
