"""Suspicion: how long a suspect has to refute, and when it gets no time.

The kinds of silence differ. If a process is gone, its kernel *refuses* connects: two members that see this settle the
matter at once. A host that answers nothing has `suspicion_min_s` to `suspicion_max_s`. A process that hangs while its
kernel accepts has `stalled_s`: short hangs are common and heal by themselves.

Does not know: the table, timers, the wire.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.config import Config
from cluster.swim.events import Evidence
from cluster.swim.table import EVIDENCE_RANK

CONFIRMATIONS = 3  # independent confirmations that bring a suspicion down to its shortest (Lifeguard: K)
WITNESSES = 2  # members whose connects must be refused before that alone is a death


@dataclass(slots=True)
class Suspicion:
    """One member under suspicion at one incarnation."""

    session: str
    incarnation: int
    started_s: float
    accusers: dict[str, Evidence] = field(default_factory=dict)
    excused_s: float = 0.0  # time added because this node was away, or heard the suspect answer
    tell_s: float = math.inf  # when this node, if it is an accuser, tells the suspect again

    def confirm(self, by: str, evidence: Evidence) -> bool:
        """Count this accusation. False if it adds nothing: one accuser counts once, with the strongest it saw."""
        strongest = self.accusers.get(by)
        if strongest is not None and EVIDENCE_RANK[strongest] >= EVIDENCE_RANK[evidence]:
            return False
        self.accusers[by] = evidence
        return True

    def refusers(self) -> dict[str, None]:
        """The accusers whose connect was refused."""
        return {by: None for by, evidence in self.accusers.items() if evidence is Evidence.REFUSED}

    def ends_s(self, config: Config, live: int) -> float:
        """When the suspect is dead if it has not refuted, in a cluster of `live` members."""
        return self.started_s + self.excused_s + timeout_s(config, tuple(self.accusers.values()), live)

    def verdict(self) -> Evidence:
        """The evidence of a death by this suspicion. STALLED weighs most: an accuser saw the host live."""
        return max(self.accusers.values(), key=lambda evidence: (evidence is Evidence.STALLED, EVIDENCE_RANK[evidence]))


def timeout_s(config: Config, evidence: tuple[Evidence, ...], live: int) -> float:
    """Seconds that a suspect has, given what its accusers saw (one entry each) and the number of live members.

    One accuser that reached the suspect's kernel is enough to treat it as hung: the others may be cut off.
    """
    if Evidence.STALLED in evidence:
        return config.stalled_s
    expected = min(CONFIRMATIONS, max(live - 2, 0))
    return suspicion_timeout_s(config.suspicion_min_s, config.suspicion_max_s, len(evidence) - 1, expected)


def suspicion_timeout_s(min_s: float, max_s: float, confirmed: int, expected: int) -> float:
    """Seconds that a silent suspect has to refute, counted from the first accusation.

    The accuser itself may be the slow one, so a lone suspicion lasts `max_s`. Each independent confirmation shortens
    it on a log curve, down to `min_s` at `expected` of them (0 in a pair: nobody else could confirm).
    Source: SWIM §4.2 (suspicion), Lifeguard LHA-Suspicion (the curve).
    """
    if confirmed >= expected:
        return min_s
    share = math.log(confirmed + 1) / math.log(expected + 1)
    return max_s - share * (max_s - min_s)


def witnesses_needed(able: int) -> int:
    """How many different members must be refused to make a death of it, if `able` members can be. At least one."""
    return min(WITNESSES, max(able, 1))
