"""What an error of Redis means, and when nobody can write there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.errors import away, refused
from cluster.load import Load
from cluster.refusal import refusal
from cluster.swim.events import Evidence, MemberState
from cluster.view import Peer, View
from tests.unit.test_report import peer, view

REFUSED = Load(False, False, False, {})
REPLICAS = "NOREPLICAS Not enough good replicas to write."
DISK = (
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands that "
    "may modify the data set are disabled."
)


@pytest.mark.parametrize(
    "text",
    [
        REPLICAS,
        f"{REPLICAS} script: cc95fff2c1b24d5f45720e15cbe31ed7596c8de3, on @user_script:50.",
        f"ERR Error running script (call to f_cc95fff2): @user_script:50: @user_script: 50: -{REPLICAS}",
    ],
    ids=["plain", "7", "6.2"],
)
def test_the_words_are_redis_s_own_without_the_place_in_a_script(text: str) -> None:
    why = refusal(text)
    assert why.words == "NOREPLICAS Not enough good replicas to write"
    assert "min-replicas-to-write" in why.hint


def test_a_script_that_holds_redis_is_named_with_its_remedy() -> None:
    why = refusal("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.")
    assert why.words == "BUSY Redis is busy running a script"
    assert "SCRIPT KILL" in why.hint


def test_only_what_the_server_says_of_itself_is_said_to_everybody() -> None:
    assert refusal(REPLICAS).is_of_all
    assert refusal(DISK).is_of_all
    assert refusal(DISK).words.endswith("unable to persist to disk")
    for text in ("NOPERM No permissions to access a key", "READONLY You can't write against a read only replica.", "x"):
        assert not refusal(text).is_of_all


def test_the_error_certainly_did_not_happen_and_says_what_to_do() -> None:
    error = refused(Exception(REPLICAS))
    assert (error.message, error.may_have_happened) == (
        "Redis refuses: NOREPLICAS Not enough good replicas to write.",
        False,
    )
    assert error.refusal == refusal(REPLICAS)


def test_only_who_stores_is_told_that_nothing_was_stored() -> None:
    assert away().message == "Redis does not answer."
    assert away(storing=True).message == "Redis does not answer; nothing was stored."


def refused_view(text: str, *others: Peer) -> View:
    """The view of a node that Redis refuses."""
    base = view(peer(load=REFUSED), *others)
    return View(base.node_id, base.session, base.members, None, 0, False, True, refusal(text))


def test_all_are_refused_while_redis_says_so_and_so_does_everybody_who_may_be_running() -> None:
    assert refused_view(REPLICAS).is_refused_like_all
    assert refused_view(REPLICAS, peer("n2", load=REFUSED), peer("n3", state=MemberState.LEFT)).is_refused_like_all
    assert refused_view(REPLICAS, peer("n2", state=MemberState.DEAD, evidence=Evidence.REFUSED)).is_refused_like_all
    assert not refused_view("NOPERM no").is_refused_like_all
    assert not view().is_refused_like_all


@pytest.mark.parametrize("state", [MemberState.ALIVE, MemberState.SUSPECT, MemberState.LEAVING])
def test_whom_redis_serves_may_write_a_tombstone(state: MemberState) -> None:
    assert not refused_view(REPLICAS, peer("n2", state=state)).is_refused_like_all


def test_who_is_known_to_gossip_alone_changes_nothing() -> None:
    invented = replace(peer("n2"), is_vouched=False)
    assert refused_view(REPLICAS, invented).is_refused_like_all


@pytest.mark.parametrize("evidence", [Evidence.SILENT, Evidence.STALLED])
def test_who_is_only_silent_may_write_to_another_master(evidence: Evidence) -> None:
    assert not refused_view(REPLICAS, peer("n2", state=MemberState.DEAD, evidence=evidence)).is_refused_like_all
