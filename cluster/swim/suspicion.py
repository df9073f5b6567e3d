"""Suspicion: how long a suspect has to refute, and when no time is needed.

The kinds of silence differ. A process that is gone is *refused* by its kernel: two members that saw it settle the
matter at once. A host that answers nothing has between `suspicion_min_s` and `suspicion_max_s`. A process that hangs
while its kernel accepts has `stalled_s`: short hangs are common and heal by themselves.

Does not know: the table, timers, the wire.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.config import Config
from cluster.swim.events import Evidence
from cluster.swim.table import EVIDENCE_RANK

CONFIRMATIONS = 3  # independent ones that bring a suspicion down to its shortest (Lifeguard: K)
WITNESSES = 2  # members that must have been refused before that alone is a death


@dataclass(slots=True)
class Suspicion:
    """One member under suspicion at one incarnation."""

    session: str
    incarnation: int
    started_s: float
    accusers: dict[str, Evidence] = field(default_factory=dict)
    excused_s: float = 0.0  # added while this node was away, or heard the suspect answer
    tell_s: float = math.inf  # when this node, as an accuser, tells the suspect again

    def confirm(self, by: str, evidence: Evidence) -> bool:
        """Whether this accusation adds anything. One accuser counts once, with the strongest it saw."""
        known = self.accusers.get(by)
        if known is not None and EVIDENCE_RANK[known] >= EVIDENCE_RANK[evidence]:
            return False
        self.accusers[by] = evidence
        return True

    def refusers(self) -> dict[str, None]:
        """The accusers whose connect was refused."""
        return {by: None for by, evidence in self.accusers.items() if evidence is Evidence.REFUSED}

    def ends_s(self, config: Config, live: int) -> float:
        """When the suspect is dead unless it refutes, in a cluster of `live` members."""
        return self.started_s + self.excused_s + timeout_s(config, tuple(self.accusers.values()), live)

    def verdict(self) -> Evidence:
        """The evidence that a death by this suspicion carries: the host that was seen to live weighs most."""
        return max(self.accusers.values(), key=lambda evidence: (evidence is Evidence.STALLED, EVIDENCE_RANK[evidence]))


def timeout_s(config: Config, evidence: tuple[Evidence, ...], live: int) -> float:
    """Seconds a suspect has, given what its accusers saw (one entry each) and the number of live members.

    One accuser that reached its kernel is enough to treat it as hung: the others may be the ones cut off.
    """
    if Evidence.STALLED in evidence:
        return config.stalled_s
    expected = min(CONFIRMATIONS, max(live - 2, 0))
    return suspicion_timeout_s(config.suspicion_min_s, config.suspicion_max_s, len(evidence) - 1, expected)


def suspicion_timeout_s(min_s: float, max_s: float, confirmed: int, expected: int) -> float:
    """Seconds a silent suspect has to refute, counted from the first accusation.

    One accuser may itself be the slow one, so a lone suspicion lasts `max_s`; each independent confirmation
    shortens it on a log curve, down to `min_s` at `expected` of them (0 in a pair: nobody else could confirm).
    Source: SWIM §4.2 (suspicion), Lifeguard LHA-Suspicion (the curve).
    """
    if confirmed >= expected:
        return min_s
    share = math.log(confirmed + 1) / math.log(expected + 1)
    return max_s - share * (max_s - min_s)


def witnesses_needed(able: int) -> int:
    """Different members that must have been refused to make a death of it, where `able` could be (at least one)."""
    return min(WITNESSES, max(able, 1))
