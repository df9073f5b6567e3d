"""Laws of parsing: no bytes raise anything but our own errors, and what is accepted can be read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Invalid, RumorError, TooLarge
from node.gateway import parse
from node.schema import ListQuery, Submission, run_at_ms

NESTING_MAX = 5

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('[]{}"\\aé'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\a'), inner, max_size=3),
    max_leaves=20,
)


def refusal(read: Callable[[], object]) -> RumorError | None:
    """The error of ours that it raises, if it does."""
    try:
        read()
    except RumorError as error:
        return error
    return None


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(values, st.booleans())
def test_depth_is_over_agrees_with_counting_the_levels(value: Any, is_ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    for limit in range(1, 7):
        assert parse.depth_is_over(text, limit) is (depth(value) > limit)


@given(values)
def test_data_is_kept_as_it_was_sent(value: Any) -> None:
    text = json.dumps({"type": "noop", "data": value}).encode()
    if depth(value) <= NESTING_MAX:
        item = parse.submission(text, NESTING_MAX)
        assert json.loads(bytes(item.data)) == value
    else:
        with pytest.raises(Invalid, match=r"\$\.data is nested deeper than 5 levels"):
            parse.submission(text, NESTING_MAX)


pieces = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b":",
        b",",
        b'"type"',
        b'"data"',
        b'"noop"',
        b"1",
        b"-",
        b"1e999",
        b"\xff",
        b" ",
    ]
)


@given(st.binary() | st.lists(pieces).map(b"".join))
def test_no_bytes_at_all_raise_anything_but_our_own_errors(body: bytes) -> None:
    readers: tuple[Callable[[], object], ...] = (
        lambda: parse.submission(body, NESTING_MAX),
        lambda: list(parse.batch(body, 3, NESTING_MAX, 1_000)),
        lambda: list(parse._in_parts(body, 3, NESTING_MAX, 1_000)),
        lambda: parse.replay(body),
    )
    for error in filter(None, map(refusal, readers)):
        assert error.message
        assert error.hint
        assert len(error.message) < 1000


@given(st.lists(st.binary(max_size=20) | st.just(b'{"type":"noop"}'), max_size=5))
def test_each_line_has_one_result(chunk: list[bytes]) -> None:
    results = parse.lines(chunk, NESTING_MAX, 1)
    assert len(results) == len(chunk)
    for line, result in zip(chunk, results, strict=True):
        assert isinstance(result, Submission) or line != b'{"type":"noop"}'


@given(st.lists(values.map(lambda value: {"type": "noop", "data": value}) | values, max_size=5))
def test_a_batch_gives_each_item_what_it_gets_alone(items: list[Any]) -> None:
    body = json.dumps(items).encode()
    for together in (parsed(body, 5), apart(body, 5)):
        check_each(items, together)


@given(st.lists(pieces, max_size=6), st.sampled_from([b"", b" ", b"\n\t "]), st.sampled_from([b"", b"x", b"]", b",1"]))
def test_an_array_is_one_whichever_way_it_is_read(items: list[bytes], space: bytes, tail: bytes) -> None:
    body = b"[" + space + (space + b"," + space).join(items) + space + b"]" + tail
    readers = (lambda: parsed(body, 3), lambda: apart(body, 3))
    at_once, item_by_item = (refusal(reader) for reader in readers)
    if at_once is None or item_by_item is None:
        assert at_once is item_by_item is None
        assert [str(item) for item in parsed(body, 3)] == [str(item) for item in apart(body, 3)]
    elif isinstance(at_once, TooLarge) or isinstance(item_by_item, TooLarge):
        pass  # What stands behind the tasks that may come need not be looked at.
    else:
        assert str(at_once) == str(item_by_item)


def test_items_beyond_the_most_are_not_even_looked_at() -> None:
    seen = 0

    def count(text: bytes, *_: object) -> Submission:
        nonlocal seen
        seen += 1
        return Submission(type="noop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "_or_error", count)
        with pytest.raises(TooLarge, match="more than 100 tasks, at most 100"):
            apart(b"[" + b"1," * parse.AT_ONCE_BYTES + b"1]", 100)
    assert seen <= 100


@pytest.mark.parametrize("size", [1_000, parse.AT_ONCE_BYTES])
def test_a_task_of_an_array_is_no_larger_than_one_alone(size: int) -> None:
    body = json.dumps([{"type": "noop"}, {"type": "noop", "data": "x" * size}, {"type": "noop"}]).encode()
    results = [item for part in parse.batch(body, 5, NESTING_MAX, 500) for item in part]
    assert isinstance(results[1], TooLarge)
    assert "$[1]" in results[1].message
    assert isinstance(results[0], Submission)
    assert isinstance(results[2], Submission)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"noop","' + b"a" * 1_000_000 + b'":1}',
        b'{"type":"noop","priority":"' + b"a" * 1_000_000 + b'"}',
        b'{"type":"noop","queue":"' + b"a" * 1_000_000 + b'"}',
        b'{"type":"' + b"a" * 1_000_000 + b'"}',
        b'{"type":"noop","delay_s":' + b"1" * 100_000 + b"}",
    ],
)
def test_an_error_is_short_however_long_its_field_is(body: bytes) -> None:
    error = refusal(lambda: parse.submission(body, NESTING_MAX))
    assert error is not None
    assert len(str(error)) < 1_000


def parsed(body: bytes, tasks_max: int) -> list[parse.Parsed]:
    return [item for part in parse.batch(body, tasks_max, NESTING_MAX, 1_000_000) for item in part]


def apart(body: bytes, tasks_max: int) -> list[parse.Parsed]:
    """As a large array is read."""
    return [item for part in parse._in_parts(body, tasks_max, NESTING_MAX, 1_000_000) for item in part]


def check_each(items: list[Any], together: list[parse.Parsed]) -> None:
    for place, (item, result) in enumerate(zip(items, together, strict=True)):
        alone = parse.lines([json.dumps(item).encode()], NESTING_MAX, 1)[0]
        if isinstance(alone, RumorError):
            assert isinstance(result, RumorError)
            assert result.code == alone.code
            assert f"$[{place}]" in result.message
        else:
            assert msgspec.json.encode(result) == msgspec.json.encode(alone)


@given(st.dictionaries(st.sampled_from([*ListQuery.__struct_fields__, "x"]), st.text(max_size=8)))
def test_no_query_raises_anything_but_our_own_errors(pairs: dict[str, str]) -> None:
    error = refusal(lambda: parse.query(ListQuery, pairs))
    assert error is None or error.status == 400


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_run_at_is_the_instant_whatever_its_offset(instant: datetime) -> None:
    offset = instant.utcoffset() or timedelta()
    local = instant.astimezone(timezone(timedelta(minutes=offset // timedelta(minutes=1))))
    assert run_at_ms(local.isoformat()) == (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize("text", ["", "now", "1800000000", "2030-01-01", "2030-13-01T00:00:00Z", "2030-01-01T00:00:00"])
def test_run_at_without_a_full_time_and_offset_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(Invalid, match=r"\$\.run_at is ") as caught:
        run_at_ms(text)
    assert repr(text) in caught.value.message


NOW_MS = 1_800_000_000_000
YEAR_MS = 365 * 86_400_000


@pytest.mark.parametrize(
    ("text", "ahead_ms"),
    [
        ("2028-01-15T08:00:00Z", YEAR_MS),
        ("2028-01-15T10:00:00+02:00", YEAR_MS),
        ("2027-01-15T08:00:00Z", 0),
        ("2026-01-15T08:00:00Z", -YEAR_MS),
        ("0001-01-01T00:00:00Z", -63_935_596_800_000),
    ],
)
def test_run_at_is_at_most_a_year_ahead_and_may_be_past(text: str, ahead_ms: int) -> None:
    assert run_at_ms(text, NOW_MS) == NOW_MS + ahead_ms


@pytest.mark.parametrize(
    "text",
    [
        "2028-01-15T08:00:00.001Z",
        "2028-01-15T08:00:00-00:01",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-10:00",
        "3000-01-01T00:00:00+14:00",
    ],
)
def test_run_at_beyond_that_is_refused_with_field_value_and_bound(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        run_at_ms(text, NOW_MS)
    assert caught.value.message == f"$.run_at is {text!r}: more than 365 days ahead."
    assert caught.value.hint == "Use a time up to 2028-01-15T08:00:00Z."


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("delay_s", b"1e400", "0 to 31536000"),
        ("delay_s", b"31536001", "0 to 31536000"),
        ("delay_s", b"-0.001", "0 to 31536000"),
        ("timeout_s", b"1e400", "more than 0 to 604800"),
        ("timeout_s", b"0", "more than 0 to 604800"),
        ("retention_s", b"-1", "0 to 31536000"),
        ("unique_for_s", b"0", "more than 0 to 2592000"),
        ("max_attempts", b"0", "1 to 1000"),
        ("max_attempts", b"1" * 100, "1 to 1000"),
        ("priority", b"10", "0 to 9"),
    ],
)
def test_a_number_out_of_range_is_refused_with_field_value_and_bound(field: str, value: bytes, bound: str) -> None:
    item = b'{"type":"noop","%s":%s}' % (field.encode(), value)
    alone = refusal(lambda: parse.submission(item, NESTING_MAX))
    (together,) = parsed(b"[" + item + b"]", 5)
    (line,) = parse.lines([item], NESTING_MAX, 1)
    for error, root in ((alone, "$"), (together, "$[0]"), (line, "line 1: $")):
        assert isinstance(error, Invalid)
        assert error.message.startswith(f"{root}.{field} is {value.decode()[:70]}")
        assert bound in error.hint


def test_a_header_that_is_not_utf_8_is_refused_in_words_that_json_can_hold() -> None:
    """As aiohttp hands it over: a lone surrogate for each byte. Found by schemathesis."""
    error = refusal(lambda: parse.idempotency_key("k\udcff"))
    assert error is not None
    assert msgspec.json.encode(error.message)
