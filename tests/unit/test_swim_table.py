"""Laws of the member table: merging is a maximum, and the digest says whether two tables are equal."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.swim import table as table_module
from cluster.swim.events import Evidence, MemberState
from cluster.swim.table import LIVE, Table, merge, precedence
from cluster.swim.wire import Row
from tests.forged import row_of, session_of

claims = st.builds(
    Row,
    session=st.sampled_from([session_of("n1", life) for life in (1, 2, 3)]),
    incarnation=st.integers(0, 3),
    state=st.sampled_from(MemberState),
    evidence=st.sampled_from(Evidence),
    by=st.sampled_from(["", "a", "b"]),
    host=st.sampled_from(["", "n1.test"]),
    port=st.sampled_from([0, 5000]),
    meta=st.sampled_from([b"", b"meta"]),
    age_s=st.integers(0, 3),
)


@given(claims, claims)
def test_merging_is_commutative(one: Row, other: Row) -> None:
    assert merge(one, other) == merge(other, one)


@given(claims, claims, claims)
def test_merging_is_associative(one: Row, other: Row, third: Row) -> None:
    assert merge(merge(one, other), third) == merge(one, merge(other, third))


@given(claims, claims)
def test_merging_is_idempotent(one: Row, other: Row) -> None:
    merged = merge(one, other)
    assert merge(one, one) == one
    assert merge(merged, one) == merge(merged, other) == merged


@given(st.lists(claims, min_size=1, max_size=6).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_tables_that_heard_the_same_are_equal_in_any_order(heard: tuple[list[Row], list[Row]]) -> None:
    rows, shuffled = heard
    assert reduce(merge, rows) == reduce(merge, shuffled)


@given(claims, claims)
def test_the_higher_claim_stands(one: Row, other: Row) -> None:
    assert precedence(merge(one, other)) == max(precedence(one), precedence(other))


def test_a_higher_incarnation_refutes_everything_but_a_tombstone() -> None:
    alive = row_of("n1", incarnation=1)
    for state in MemberState:
        for evidence in Evidence:
            accused = row_of("n1", incarnation=0, state=state, evidence=evidence)
            stands = merge(alive, accused)
            assert stands.incarnation == (0 if evidence is Evidence.FENCED else 1)


def test_a_later_session_stands_above_any_claim_about_an_earlier_one() -> None:
    for state in MemberState:
        earlier = row_of("n1", life=1, incarnation=9, state=state, evidence=Evidence.FENCED)
        later = row_of("n1", life=2)
        assert merge(earlier, later) == later


def test_news_without_address_does_not_lose_the_address() -> None:
    full, news = row_of("n1"), Row(session_of("n1"), 0, MemberState.DEAD, Evidence.SILENT, "a")
    merged = merge(full, news)
    assert (merged.state, merged.host, merged.meta) == (MemberState.DEAD, full.host, full.meta)


rows_of_three = st.builds(
    lambda name, incarnation, state: row_of(name, incarnation=incarnation, state=state),
    st.sampled_from(["n1", "n2", "n3"]),
    st.integers(0, 3),
    st.sampled_from(MemberState),
)


@given(st.lists(rows_of_three, max_size=12), st.lists(rows_of_three, max_size=12))
def test_digests_are_equal_exactly_when_the_live_rows_are(ones: list[Row], others: list[Row]) -> None:
    def filled(rows: list[Row]) -> Table:
        table = Table()
        for row in rows:
            table.put(row, 0.0)
        return table

    def live(table: Table) -> set[tuple[str, int]]:
        return {(entry.row.session, entry.row.incarnation) for entry in table if entry.row.state in LIVE}

    mine, theirs = filled(ones), filled(others)
    assert (mine.digest == theirs.digest) == (live(mine) == live(theirs))
    assert set(mine.live) == {entry.node_id for entry in mine if entry.is_live}


def test_a_full_table_gives_up_the_longest_dead_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "TABLE_MAX", 3)
    table = Table()
    table.put(row_of("old", state=MemberState.DEAD), 1.0)
    table.put(row_of("new", state=MemberState.DEAD), 2.0)
    table.put(row_of("n1"), 3.0)
    assert table.put(row_of("n2"), 4.0) is not None
    assert {entry.node_id for entry in table} == {"new", "n1", "n2"}


def test_a_table_full_of_live_members_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "TABLE_MAX", 2)
    table = Table()
    table.put(row_of("n1"), 1.0)
    table.put(row_of("n2"), 1.0)
    assert table.put(row_of("n3"), 1.0) is None
    assert len(table) == 2


def test_a_death_is_forgotten_by_its_own_age_not_by_when_it_was_heard() -> None:
    table = Table()
    table.put(row_of("n1", state=MemberState.DEAD, age_s=100), 1000.0)
    table.forget_before(899.0)
    assert len(table) == 1
    table.forget_before(901.0)
    assert len(table) == 0
