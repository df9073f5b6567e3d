"""What nodes say of themselves: it comes back as it was sent, within its bounds, and no bytes raise."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.load import (
    LOAD_MAX_BYTES,
    META_MAX_BYTES,
    Load,
    Meta,
    QueueLoad,
    decode_load,
    decode_meta,
    encode_load,
    encode_meta,
)

NAMES = st.text("abcdefghij-_.", min_size=1, max_size=48)
COUNTS = st.integers(0, 10**9)
QUEUE_LOADS = st.builds(
    QueueLoad, free=COUNTS, queued=COUNTS, shards=st.integers(0, 2**256 - 1), head=st.integers(-(10**15), 10**15)
)
LOADS = st.builds(
    Load,
    redis=st.booleans(),
    stalled=st.booleans(),
    leaving=st.booleans(),
    queues=st.dictionaries(NAMES, QUEUE_LOADS, max_size=12),
    running=COUNTS,
)


@given(LOADS)
def test_a_load_is_bounded_and_comes_back_but_for_the_queues_that_do_not_fit(load: Load) -> None:
    data = encode_load(load)
    assert len(data) <= LOAD_MAX_BYTES
    back = decode_load(data)
    assert back is not None
    kept = len(back.queues)
    assert back == msgspec.structs.replace(load, queues=dict(list(load.queues.items())[:kept]))


@given(st.builds(Load, st.booleans(), st.booleans(), st.booleans(), st.dictionaries(NAMES, QUEUE_LOADS, max_size=3)))
def test_a_few_queues_always_fit(load: Load) -> None:
    assert decode_load(encode_load(load)) == load


@given(st.dictionaries(NAMES, st.integers(1, 10_000), max_size=8), st.integers(0, 2**31))
def test_a_meta_comes_back_or_is_refused(queues: dict[str, int], pid: int) -> None:
    meta = Meta(queues, pid, "1.2.3", "http", "http://localhost:5001")
    size = len(msgspec.msgpack.encode(meta))
    if size > META_MAX_BYTES:
        with pytest.raises(ConfigError, match=f"{size} bytes in gossip, at most {META_MAX_BYTES}"):
            encode_meta(meta)
    else:
        assert decode_meta(encode_meta(meta)) == meta


def test_old_and_new_nodes_read_each_others_meta() -> None:
    """Fields are only added: a field that an older node leaves out has its default, one of a newer node is skipped."""
    assert decode_meta(msgspec.msgpack.encode([{"default": 1}, 7, "0.1", "http"])) == Meta({"default": 1}, 7, "0.1")
    newer = msgspec.msgpack.encode([{"default": 1}, 7, "9.0", "http", "", "something new"])
    assert decode_meta(newer) == Meta({"default": 1}, 7, "9.0")


@pytest.mark.parametrize("url", ["http://[", "http://h;script-src *", "http://h\r\nx: y", "javascript:0"])
def test_what_a_peer_says_of_its_public_url_is_one_or_nothing(url: str) -> None:
    """The URL stands in a header of every page, and in the page as a link."""
    assert decode_meta(msgspec.msgpack.encode(Meta({"q": 1}, 7, public_url=url))) == Meta({"q": 1}, 7)


@given(st.binary(max_size=600))
@example(msgspec.msgpack.encode([True, False, False, {"q": [float("inf"), 0, b"", 0]}, 0]))
@example(msgspec.msgpack.encode([True, False, False, {}, float("inf")]))
@example(b"\x91" * 5000)
@example(b"\x95\xc3\xc2\xc2" + b"\x91" * 5000)
@example(b"\x91\xde\x00\x01\xa4\x00\x00\x00\x80")
def test_no_bytes_at_all_make_the_decoders_raise(data: bytes) -> None:
    assert decode_load(data) is None or isinstance(decode_load(data), Load)
    assert decode_meta(data) is None or isinstance(decode_meta(data), Meta)


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(JSONISH, min_size=3, max_size=6))
def test_no_message_of_another_form_makes_the_decoders_raise(message: list[object]) -> None:
    data = msgspec.msgpack.encode(message)
    assert decode_load(data) is None or isinstance(decode_load(data), Load)
    assert decode_meta(data) is None or isinstance(decode_meta(data), Meta)


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x90", b"\x93\xc2\xc2\xc2", b"\xff" * 10, encode_meta(Meta({}))])
def test_bytes_of_another_form_are_no_load(data: bytes) -> None:
    assert decode_load(data) is None


def test_a_newer_nodes_further_fields_are_passed_over() -> None:
    data = msgspec.msgpack.encode([True, False, False, {"default": [1, 2, b"\x03", 4, "new"]}, 5, "new"])
    assert decode_load(data) == Load(True, False, False, {"default": QueueLoad(1, 2, 3, 4)}, 5)


def _one(free: int, queued: int, *, redis: bool = True) -> Load:
    return Load(redis, False, False, {"default": QueueLoad(free, queued, 0)})


def test_a_load_turns_when_others_should_act_otherwise_and_not_when_it_only_changes() -> None:
    assert _one(5, 0).turns(None)
    assert not _one(5, 0).turns(_one(7, 0))
    assert _one(0, 0).turns(_one(1, 0))
    assert _one(0, 3).turns(_one(0, 0))
    assert _one(5, 0, redis=False).turns(_one(5, 0))
    assert Load(True, False, False, {}).turns(_one(1, 0))
