"""A session's word on another one that is silent: whether it may be gone, as one witness sees it.

Two thoughts are behind the table. *The same silence*: a heartbeat that moved after gossip lost the session proves that
gossip's silence was a cut, so both silences must have begun together. *Nobody knows better*: whoever might still hear
the session is asked, and speaks of its own look (`cluster.swim.looks`), never of what it was told. Who hears nobody
therefore decides nothing; it says so, and the others decide.

| word       | when                                                                                                   |
| ---------- | ------------------------------------------------------------------------------------------------------ |
| *veto*     | gossip does not hold it dead; or it answered; or its kernel accepted in this silence, and not both     |
|            | silences have lasted for stalled_s; or nothing below holds                                             |
| *refused*  | gossip holds it dead by refusal, the look was refused, and its heartbeat has not moved since           |
| *dead*     | both silences are the same and have lasted for suspicion_min_s (with *refused*: *both*)                |
| *abstains* | gossip holds it dead, it did not answer just before, and its heartbeat moved since, or nobody watched: |
|            | most likely this node is cut off from it, and knows nothing                                            |

A veto is nothing: it need not be said. Pure: values in, a word out. `jury` says who is heard, `lua/vote.lua` decides.

Does not know: Redis, gossip's reasons, how a look is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.config import Config
from cluster.swim.events import Sight
from cluster.vitals.witness import Belief, Standstill

MOVES_BEATS = 2  # beats after the doubt began within which the last heartbeat of a session that died may still be seen


class Word(StrEnum):
    """What one session says of another."""

    VETO = "veto"
    ABSTAINS = "abstains"
    DEAD = "dead"
    REFUSED = "refused"
    BOTH = "both"  # dead and refused


@dataclass(frozen=True, slots=True)
class Silence:
    """What gossip and this node's own sockets know of a session."""

    belief: Belief
    since_s: float  # when this node began to doubt it; when it answered last, if that was later
    answered_s: float  # when it last answered this node, directly or through a helper
    is_accepted: bool  # whether its kernel took a connection in this silence, as far as this node knows


def word(silence: Silence, sight: Sight, watched: Standstill | None, now_s: float, config: Config) -> Word:
    """The word of a node whose look ended just now with `sight`."""
    silent_s = now_s - silence.since_s
    unmoved_s = watched.for_s if watched is not None else 0.0
    if silence.belief is Belief.ALIVE or sight is Sight.ANSWERED:
        return Word.VETO
    hangs = silence.is_accepted or sight is Sight.ACCEPTED
    if hangs and min(silent_s, unmoved_s) < config.stalled_s:
        return Word.VETO
    is_same = has_stood(silence, watched, now_s, config, beats=1)
    is_old = silent_s >= config.suspicion_min_s
    if silence.belief is Belief.GONE and sight is Sight.REFUSED and may_be_gone(silence, watched, now_s, config):
        return Word.BOTH if is_same and is_old else Word.REFUSED
    if is_same:
        return Word.DEAD if is_old else Word.VETO
    return Word.ABSTAINS if now_s - silence.answered_s > MOVES_BEATS * config.heartbeat_interval_s else Word.VETO


def is_new(silence: Silence, now_s: float, config: Config) -> bool:
    """Whether the silence is so young that its session's last heartbeat may not have been read yet."""
    return now_s - silence.since_s <= MOVES_BEATS * config.heartbeat_interval_s


def may_be_gone(silence: Silence, watched: Standstill | None, now_s: float, config: Config) -> bool:
    """Whether nothing was seen in Redis that a process which ended when the silence began could not have done."""
    return is_new(silence, now_s, config) or has_stood(silence, watched, now_s, config, beats=MOVES_BEATS)


def has_stood(silence: Silence, watched: Standstill | None, now_s: float, config: Config, *, beats: int) -> bool:
    """Whether the heartbeat was watched without a gap, and has not moved, from `beats` after the silence began on."""
    if watched is None or now_s - watched.asked_s > config.heartbeat_stale_s / 2:
        return False  # Nobody watched it, or this node was stopped meanwhile.
    return watched.since_s <= silence.since_s + beats * config.heartbeat_interval_s


def alibi_s(silence: Silence, sight: Sight, watched: Standstill | None, now_s: float, config: Config) -> float:
    """For how long this node's testimony that the session lives is to outlast this node itself; 0: it has none.

    It testifies only while the session's heartbeat stands still, which is when others may take it for dead.
    """
    unmoved_s = watched.for_s if watched is not None else 0.0
    if unmoved_s < config.heartbeat_stale_s / 2:
        return 0.0
    if sight is Sight.ANSWERED:
        return config.suspicion_min_s
    if sight is Sight.ACCEPTED:
        return max(0.0, config.stalled_s - min(now_s - silence.since_s, unmoved_s))
    return 0.0
