"""Laws of the wire format: a packed packet comes back, no bytes raise, everything is bounded."""

from __future__ import annotations

from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.swim import wire
from cluster.swim.events import Evidence, MemberState, Tcp
from cluster.swim.plausible import SEQ_AHEAD
from cluster.swim.wire import (
    Ack,
    Body,
    Digest,
    Freshness,
    Gossip,
    Head,
    LoadRow,
    Nack,
    Packet,
    Ping,
    PingReq,
    Pull,
    ReplayWindow,
    Row,
    Rows,
    Seal,
    Sync,
    decode,
    encode_row,
    pack,
)

KEY, OTHER_KEY = b"k" * 32, b"o" * 32

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,62}", fullmatch=True)
sessions = st.builds("{}/{:011x}-{:08x}".format, names, st.integers(0, 2**44 - 1), st.integers(0, 2**32 - 1))
counts = st.integers(0, wire.INCARNATION_MAX)
numbers = st.integers(0, 2**63 - 1)
hosts = st.text(max_size=60)
ports = st.integers(0, 65_535)
loads = st.binary(max_size=wire.LOAD_MAX_BYTES)
rows = st.builds(
    Row,
    session=sessions,
    incarnation=counts,
    state=st.sampled_from(MemberState),
    evidence=st.sampled_from(Evidence),
    by=names,
    host=hosts,
    port=ports,
    meta=st.binary(max_size=wire.META_MAX_BYTES),
    age_s=counts,
)
load_rows = st.builds(LoadRow, sessions, counts, loads)
bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(Ping, counts, sessions),
    st.builds(PingReq, counts, sessions, hosts, ports, st.booleans()),
    st.builds(Ack, counts, sessions),
    st.builds(Nack, counts, sessions, st.none() | st.sampled_from(Tcp)),
    st.just(Gossip()),
    st.builds(Pull, st.binary(max_size=wire.HASH_BYTES * wire.PULL_MAX_ROWS), st.booleans()),
    st.builds(Rows, st.booleans(), st.booleans()),
    st.just(Sync()),
)
digests = st.builds(Digest, counts, st.integers(0, 2**64 - 1))
heads = st.builds(
    Head, sessions, counts, st.sampled_from(MemberState), numbers, digests, numbers, counts, st.binary(max_size=400)
)
packets = st.builds(
    Packet, st.just(wire.VERSION), names, heads, bodies, st.lists(rows, max_size=4), st.lists(load_rows, max_size=4)
)


def packed(packet: Packet) -> bytes:
    return pack(
        packet.cluster,
        packet.head,
        packet.body,
        [encode_row(row) for row in packet.rows],
        [encode_row(load) for load in packet.loads],
    )


def ring(*keys: bytes) -> Seal:
    nonces = count(1)
    return Seal(keys, lambda: next(nonces).to_bytes(wire.NONCE_BYTES, "big"))


@given(packets)
def test_what_is_packed_comes_back_the_same(packet: Packet) -> None:
    assert decode(packed(packet)) == packet


@given(st.binary(max_size=1500))
@settings(max_examples=500)
def test_no_bytes_at_all_make_the_decoder_raise(data: bytes) -> None:
    decode(data)


@given(packets, st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=500)
def test_a_packet_with_a_wrong_byte_does_not_make_the_decoder_raise(packet: Packet, place: int, value: int) -> None:
    data = bytearray(packed(packet))
    data[place % len(data)] = value
    decode(bytes(data))
    decode(bytes(data[: place % len(data)]))


@pytest.mark.parametrize("byte", [b"\x91", b"\x81", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"])
def test_deep_nesting_does_not_make_the_decoder_raise(byte: bytes) -> None:
    assert decode(byte * (1400 // len(byte))) is None
    extra = msgspec.msgpack.encode((wire.VERSION, "c", msgspec.Raw(byte * 1300)))
    assert decode(extra) is None


def test_a_list_that_claims_to_be_huge_takes_no_memory() -> None:
    assert decode(b"\xdd\xff\xff\xff\xff" * 100) is None


def some_head(session: str = "n1/0019ab00000-00000001") -> Head:
    return Head(session, 0, MemberState.ALIVE, 1, Digest(1, 1), 0, 0, b"")


def test_fields_that_a_later_version_adds_at_the_end_are_skipped() -> None:
    plain = msgspec.msgpack.decode(pack("c", some_head(), Gossip()))
    plain[2].append("new")
    plain[3].append({"more": [1, 2]})
    plain.append(7)
    packet = decode(msgspec.msgpack.encode(plain))
    assert packet is not None
    assert packet.head == some_head()


def test_another_version_is_not_decoded() -> None:
    plain = msgspec.msgpack.decode(pack("c", some_head(), Gossip()))
    plain[0] = wire.VERSION + 1
    assert decode(msgspec.msgpack.encode(plain)) is None


@pytest.mark.parametrize(
    "session",
    ["", "n1", "n1/zz-1", "n1/0019ab00000-0000001", "-n/0019ab00000-00000001", "n1/0019ab00000-00000001\n"],
)
def test_a_name_that_is_not_a_session_is_not_decoded(session: str) -> None:
    assert decode(pack("c", some_head(session), Gossip())) is None
    assert decode(pack("c", some_head(), Gossip(), [encode_row(Row(session, 0, MemberState.ALIVE))])) is None
    assert decode(pack("c", some_head(), Gossip(), [], [encode_row(LoadRow(session, 0, b""))])) is None


@pytest.mark.parametrize(
    "row",
    [
        Row("n1/0019ab00000-00000001", 0, MemberState.ALIVE, meta=b"m" * (wire.META_MAX_BYTES + 1)),
        Row("n1/0019ab00000-00000001", 0, MemberState.ALIVE, host="h" * (wire.HOST_MAX_CHARS + 1)),
        Row("n1/0019ab00000-00000001", 0, MemberState.ALIVE, by="b" * (wire.NAME_MAX_CHARS + 1)),
        Row("n1/0019ab00000-00000001", 0, MemberState.ALIVE, port=65_536),
        Row("n1/0019ab00000-00000001", -1, MemberState.ALIVE),
        Row("n1/0019ab00000-00000001", wire.INCARNATION_MAX + 1, MemberState.ALIVE),
    ],
)
def test_a_row_out_of_bounds_is_not_decoded(row: Row) -> None:
    assert decode(pack("c", some_head(), Gossip(), [encode_row(row)])) is None


@given(heads, rows)
def test_the_largest_head_leaves_room_for_the_largest_row(head: Head, row: Row) -> None:
    long = "n" * 63 + "/" + "f" * 14 + "-" + "f" * 8
    head = msgspec.structs.replace(head, session=long, load=b"l" * wire.LOAD_MAX_BYTES, state=MemberState.LEAVING)
    row = msgspec.structs.replace(
        row, session=long, by="b" * 63, host="h" * 253, meta=b"m" * 200, evidence=Evidence.SUPERSEDED
    )
    size = len(pack("c" * 63, head, PingReq(wire.INCARNATION_MAX, long, "h" * 253, 65_535, True)))
    assert size < wire.PLAIN_MAX_BYTES
    size = len(pack("c" * 63, head, Rows(True, True), [encode_row(row)])) + wire.LIST_BYTES
    assert size <= wire.PLAIN_MAX_BYTES


# ---- the seal


@given(st.binary(max_size=wire.PLAIN_MAX_BYTES))
def test_what_is_sealed_opens_and_stays_within_a_datagram(data: bytes) -> None:
    seal = ring(KEY)
    sealed = seal.seal(data)
    assert seal.open(sealed) == data
    assert len(sealed) == len(data) + wire.SEAL_BYTES <= wire.DATAGRAM_MAX_BYTES
    assert len(data) < 8 or data not in sealed


@given(st.binary(max_size=1500))
def test_no_bytes_at_all_make_the_seal_raise(data: bytes) -> None:
    assert ring(KEY).open(data) is None
    ring().open(data)


@given(st.binary(min_size=1, max_size=100), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_does_not_open(data: bytes, place: int, flip: int) -> None:
    sealed = bytearray(ring(KEY).seal(data))
    sealed[place % len(sealed)] ^= flip
    assert ring(KEY).open(bytes(sealed)) is None


def test_keys_rotate_without_downtime() -> None:
    old, both, new = ring(KEY), ring(OTHER_KEY, KEY), ring(OTHER_KEY)
    assert both.open(old.seal(b"x")) == b"x"
    assert new.open(both.seal(b"x")) == b"x"
    assert old.open(both.seal(b"x")) is None  # Therefore every ring gets a new key at its end first.


def test_a_node_with_a_key_takes_nothing_unsealed_and_one_without_takes_nothing_sealed() -> None:
    assert ring(KEY).open(ring().seal(b"x")) is None
    assert ring().open(ring(KEY).seal(b"x")) is None
    assert ring().open(ring().seal(b"x")) == b"x"


# ---- replays

SESSION = "n1/0019ab00000-00000001"


def test_a_datagram_is_taken_once() -> None:
    window = ReplayWindow()
    assert window.take(SESSION, 5) is Freshness.NEW
    assert window.take(SESSION, 5) is Freshness.REPEATED


@given(st.permutations(range(1, 60)))
def test_datagrams_that_overtake_each_other_are_each_taken_once(order: list[int]) -> None:
    window = ReplayWindow()
    assert {window.take(SESSION, seq) for seq in order} == {Freshness.NEW}
    assert {window.take(SESSION, seq) for seq in order} == {Freshness.REPEATED}


def test_what_is_older_than_the_window_is_not_taken() -> None:
    window = ReplayWindow()
    assert window.take(SESSION, 10_000) is Freshness.NEW
    assert window.take(SESSION, 10_001 - wire.WINDOW) is Freshness.NEW
    assert window.take(SESSION, 10_000 - wire.WINDOW) is Freshness.OLD


@pytest.mark.parametrize("far", [10 + SEQ_AHEAD + 1, 2**62, 2**63 - 1])
def test_a_number_far_ahead_is_not_taken_and_mutes_nobody(far: int) -> None:
    window = ReplayWindow()
    assert window.take(SESSION, 10) is Freshness.NEW
    assert window.take(SESSION, far) is Freshness.FAR
    assert window.take(SESSION, 11) is Freshness.NEW


@pytest.mark.parametrize("named", [5_000, 10 + SEQ_AHEAD, 2**62])
def test_an_answer_at_first_hand_brings_the_window_back(named: int) -> None:
    window = ReplayWindow()
    window.take(SESSION, named if named > 2**40 else 10)  # Perhaps the first that was ever heard of it is a lie.
    window.take(SESSION, named)
    assert window.take(SESSION, 11) is Freshness.OLD
    assert window.take(SESSION, 12, is_first_hand=True) is Freshness.NEW
    assert window.take(SESSION, 13) is Freshness.NEW
    assert window.take(SESSION, 12) is Freshness.REPEATED


def test_the_window_remembers_a_bounded_number_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WINDOWS_MAX", 3)
    window = ReplayWindow()
    for life in range(10):
        assert window.take(f"n1/0019ab00000-{life:08x}", 1) is Freshness.NEW
    assert len(window._seen) == 3


def test_no_number_makes_the_window_raise_or_grow() -> None:
    window = ReplayWindow()
    for is_first_hand in (False, True):
        for seq in (0, 2**63 - 1, 1, 2**63 - 2):
            window.take(SESSION, seq, is_first_hand=is_first_hand)
    assert window._seen[SESSION][1] < 1 << wire.WINDOW
