"""A value becomes the JSON that says the same, or an error that says where it cannot."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.exact_json import DEPTH_MAX, NotExact, encode, fault

NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass
class Point:
    x: float
    y: Any = None


class Row(msgspec.Struct, rename="camel"):
    unit_price: float
    more: Any = None


class Odd(enum.Enum):
    NOT = NAN


class Colour(enum.Enum):
    RED = "red"


def nested(depth: int, inside: Any = 1) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (NAN, "$ is nan"),
        (INF, "$ is inf"),
        (-INF, "$ is -inf"),
        ([1.0, NAN], "$[1] is nan"),
        ((1, {"a": INF}), "$[1].a is inf"),
        ({"rows": [{"price": 1.0}, {"price": NAN}]}, "$.rows[1].price is nan"),
        ({"none": None, "n": NAN}, "$.n is nan"),
        (Point(1.0, NAN), "$.y is nan"),
        ([Row(NAN)], "$[0].unitPrice is nan"),
        (Odd.NOT, "$ is nan"),
        ({"null": [2**70, NAN]}, "$.null[1] is nan"),
        ("\ud800", "$ holds a lone surrogate, '\\ud800'"),
        ({"a": ["ok", "x\udfff"]}, "$.a[1] holds a lone surrogate"),
        ({"\ud800": 1}, "holds a lone surrogate"),
        ({1: "a", "1": "b"}, "$ has the keys 1 and '1', which are one in JSON"),
        ([{"a": {1.0: 1, "1.0": 2}}], "$[0].a has the keys 1.0 and '1.0'"),
        ({NAN: 1}, "$ has the key nan"),
        ([{"1": 1, 1: 2}], "$[0] has the keys '1' and 1"),
        ({"a": {None: 1}}, "$.a has the key None"),
        ({(1, 2): 1}, "$ has the key (1, 2)"),
        ({"a": [object()]}, "$.a[0] is object"),
        ({"a": Point(1.0, {3}), "b": range(3)}, "$.b is range"),
        (nested(DEPTH_MAX + 1, NAN), f"is nested deeper than {DEPTH_MAX} levels"),
        (nested(DEPTH_MAX - 1, NAN), "… is nan"),
        (nested(100_000), f"nested deeper than {DEPTH_MAX} levels"),
        (itself(), f"nested deeper than {DEPTH_MAX} levels"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) and value.isascii() else "",
)
def test_what_json_cannot_hold_is_an_error_that_says_where(value: Any, words: str) -> None:
    with pytest.raises(NotExact) as caught:
        encode(value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ([None, {"null": None}], '[null,{"null":null}]'),
        ("null", '"null"'),
        (-0.0, "-0.0"),
        (2**70, "1180591620717411303424"),
        (1.1, "1.1"),
        (9007199254740993, "9007199254740993"),
        (decimal.Decimal("1.10"), '"1.10"'),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), '"2026-01-02T00:00:00Z"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (b"ab", '"YWI="'),
        ((1, 2), "[1,2]"),
        ({3}, "[3]"),
        (Colour.RED, '"red"'),
        ({1: "a", 2: None}, '{"1":"a","2":null}'),
        (Point(1.5), '{"x":1.5,"y":null}'),
        (Row(1.5), '{"unitPrice":1.5,"more":null}'),
        (nested(DEPTH_MAX - 1), "[" * (DEPTH_MAX - 1) + "1" + "]" * (DEPTH_MAX - 1)),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_json_can_hold_is_written_as_ever(value: Any, text: str) -> None:
    assert encode(value).decode() == text
    assert fault(value) is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


def is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(is_finite, parts))


@given(plain)
def test_reading_it_gives_the_same_value_or_it_is_refused(value: Any) -> None:
    if is_finite(value):
        assert json.loads(encode(value)) == value
    else:
        with pytest.raises(NotExact, match=r"^\$"):
            encode(value)
