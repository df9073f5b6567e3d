"""Newcomers: addresses at which members may be, senders not known yet, and newcomers with a live member's name.

This node believes nothing that a stranger says until it has answered a ping of ours, which a recording of its datagrams
cannot do. Everything here is bounded; the oldest goes first.

Does not know: the table, the wire, how a node asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf

from cluster.bounded import Bounded
from cluster.swim.events import Address

JOIN_FIRST_S = 0.2  # shortest time between two pings to an address; it grows up to JOIN_MAX_S
JOIN_GROWTH = 1.5
JOIN_MAX_S = 5.0
JOINS_MAX = 256
CHALLENGE_SPACING_S = 0.05  # time between two questions to the strangers at one address
CONTESTS_MAX = 64


@dataclass(slots=True)
class PendingAddress:
    """An address at which a member may be, and from which no answer came yet."""

    next_s: float
    spacing_s: float = JOIN_FIRST_S


class Joins:
    """Addresses that are pinged until they answer."""

    def __init__(self) -> None:
        self._asked: dict[Address, PendingAddress] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def add(self, address: Address, now_s: float) -> bool:
        """Take up this address. Returns whether it is new here, so that the caller is to ask it now."""
        if address in self._asked or len(self._asked) >= JOINS_MAX:
            return False
        self._asked[address] = PendingAddress(now_s + JOIN_FIRST_S)
        return True

    def due(self, now_s: float) -> list[Address]:
        """The addresses to ask now; each then waits longer than before."""
        addresses = [address for address, pending in self._asked.items() if pending.next_s <= now_s]
        for address in addresses:
            pending = self._asked[address]
            pending.next_s = now_s + pending.spacing_s
            pending.spacing_s = min(pending.spacing_s * JOIN_GROWTH, JOIN_MAX_S)
        return addresses

    @property
    def due_s(self) -> float:
        """When the next address is to be asked."""
        return min((pending.next_s for pending in self._asked.values()), default=inf)

    def drop(self, address: Address) -> None:
        """Ask this address no more: it answered."""
        self._asked.pop(address, None)

    def clear(self) -> None:
        """Ask nobody any more."""
        self._asked.clear()


class Challenges:
    """When the strangers at an address were last asked who they are."""

    def __init__(self) -> None:
        self._asked: Bounded[Address, float] = Bounded(JOINS_MAX)

    def is_due(self, source: Address, now_s: float) -> bool:
        """Whether to ask the strangers at this address now. Counts them as asked if so."""
        asked_s = self._asked.pop(source, -inf)
        is_due = now_s - asked_s >= CHALLENGE_SPACING_S
        self._asked[source] = now_s if is_due else asked_s
        return is_due


class Contest(StrEnum):
    """How a contested name stands."""

    ASK = "ask"  # ask the earlier life now
    WAIT = "wait"  # the earlier life was asked, and still has time to answer
    OVER = "over"  # the earlier life did not answer: the newcomer may have the name


class Contests:
    """Newcomers that bear the name of a live member at another address. That member, the earlier life, is asked first.

    A mistaken second start must not end a healthy node. While the earlier life answers, the newcomer is not taken in:
    it learns of the earlier life from our table, asks it, and gives up. If the earlier life is silent, it is over.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._asked: Bounded[str, float] = Bounded(
            CONTESTS_MAX
        )  # session of a newcomer -> when the earlier life was asked

    def weigh(self, newcomer: str, answered_s: float, now_s: float) -> Contest:
        """How the name of this newcomer stands; `answered_s` is when the earlier life last answered."""
        asked_s = self._asked.get(newcomer)
        if asked_s is not None and now_s - asked_s < self._patience_s:
            return Contest.WAIT
        if asked_s is not None and answered_s <= asked_s:
            del self._asked[newcomer]
            return Contest.OVER
        self._asked[newcomer] = now_s
        return Contest.ASK
