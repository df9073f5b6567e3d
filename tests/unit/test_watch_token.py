"""Who may hold a watch connection, and for how long a token is good."""

from __future__ import annotations

from base64 import urlsafe_b64encode

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.gossip import watch_token
from cluster.gossip.watch_token import Pass, is_valid, seal

OLD, NEW = b"o" * 32, b"n" * 32
CLAIM = Pass("rumor", "n1", "n2", 1_000_000)
NONCE = b"0" * watch_token.NONCE_BYTES


def test_a_token_is_good_for_its_subject_and_its_minute() -> None:
    token = seal([NEW], CLAIM, NONCE)
    assert is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms)
    assert is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms - 59_000)
    assert not is_valid([NEW], token, "rumor", "n3", CLAIM.at_ms)
    assert not is_valid([NEW], token, "other", "n2", CLAIM.at_ms)
    assert not is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms + 61_000)


def test_every_key_of_the_ring_opens_and_no_other() -> None:
    token = seal([OLD], CLAIM, NONCE)
    assert is_valid([NEW, OLD], token, "rumor", "n2", CLAIM.at_ms)
    assert not is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms)


def test_an_unsealed_token_does_not_pass_where_there_are_keys() -> None:
    token = seal([], CLAIM, NONCE)
    assert is_valid([], token, "rumor", "n2", CLAIM.at_ms)
    assert not is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms)


def test_a_token_whose_text_is_not_utf_8_is_not_good() -> None:
    """Found by scripts/fuzz_wire.py: msgspec raises UnicodeDecodeError, which is not one of its own errors."""
    for plain in (b"\x94\xa1\x9a\xa1a\xa1a\x01", b"\x94" + b"\xa4\xff\xff\xff\xff" * 3 + b"\x01"):
        assert not is_valid([], urlsafe_b64encode(plain).decode(), "rumor", "n2", CLAIM.at_ms)


@settings(deadline=None)  # A busy machine is no failure.
@given(st.text(max_size=700) | st.binary(max_size=300).map(lambda plain: urlsafe_b64encode(plain).decode()))
def test_no_text_at_all_makes_it_raise(token: str) -> None:
    assert not is_valid([NEW], token, "rumor", "n2", CLAIM.at_ms)
    assert is_valid([], token, "rumor", "n2", CLAIM.at_ms) in (True, False)
