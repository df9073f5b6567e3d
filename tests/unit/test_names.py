"""Names: what a submission may be repeated under. No name of one kind is ever a name of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cluster.header_text import unfit
from node.gateway import parse
from node.queue.names import LINES, NO_ID, conflict, names_of, note
from node.schema import BatchKey, Submission

TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF), min_size=1, max_size=255)
KEYS = TEXTS.filter(lambda text: unfit(text) is None)


@given(key=KEYS, place=st.integers(0, 10_000), unique_key=KEYS)
def test_no_clients_key_is_a_place_in_a_batch_or_a_unique_name(key: str, place: int, unique_key: str) -> None:
    assert parse.idempotency_key(key) == key
    unique = names_of(Submission(type="t", unique_for_s=1.0, unique_key=unique_key[:200]), None, 1).key
    of_batch = BatchKey(key, [place]).of(0)
    assert len({key, unique, of_batch}) == 3
    assert not unique.isprintable()
    assert not of_batch.isprintable()


@given(key=KEYS, field=st.sampled_from(["queue", "priority", "key", "delay_s", "retention_s", "max_attempts", "data"]))
def test_an_idempotency_key_stands_for_all_that_a_submission_says(key: str, field: str) -> None:
    values = {"queue": "q", "priority": 1, "key": "k", "delay_s": 1.0, "retention_s": 1.0, "max_attempts": 1}
    plain, other = Submission(type="t"), Submission(type="t", **{field: values.get(field, Raw(b"1"))})
    prints = {names_of(item, key, 1).fingerprint for item in (plain, other)}
    assert len(prints) == 2


def test_a_unique_name_chooses_the_shard_before_a_key_and_a_key_before_an_idempotency_key() -> None:
    unique = names_of(Submission(type="t", unique_for_s=1.0, key="k"), "i", 1)
    assert unique.place == unique.unique
    assert names_of(Submission(type="t", key="k"), "i", 1).place == "k"
    assert names_of(Submission(type="t", key="k"), None, 1).place == "k"
    assert names_of(Submission(type="t"), "i", 1).place == "i"
    assert names_of(Submission(type="t"), None, 1).place == ""


def test_a_conflict_says_what_stands_there() -> None:
    assert "lines" in conflict(*note(NO_ID, LINES).split(" ")).message
    assert "task x-01" in conflict("x-01").message
