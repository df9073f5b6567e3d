"""Tasks in sums: what happened in one second, on one node or on many; never a task by itself.

Pure: a sum is the difference between two readings of the counters, and sums of many nodes merge by adding. Percentiles
come from the histograms that `/metrics` has anyway, so watching costs nothing for each task. Between two bounds they
are interpolated, which is as exact as a chart needs. A chart begins before anybody looked: for it the cluster keeps
sums of longer steps as plain counters, to which each node adds its own.

Does not know: Redis, HTTP, the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from node.observe.metrics import OTHER, SECONDS, Labels, Metrics

TYPES_MAX = 20  # types in one sum; further ones count as OTHER
STEP_S = 5  # length of the steps that are kept for charts
STEPS_KEPT = 120  # ten minutes of them
SETTLED_S = 2.0  # time after the end of a step by which all nodes have added their counts to it


class Sum(Struct, omit_defaults=True):
    """What happened in one interval. Histograms are sparse: index of the bucket -> how many."""

    by: str
    accepted: int = 0
    outcomes: dict[str, int] = {}
    refused: int = 0
    reaped: int = 0
    types: dict[str, dict[str, int]] = {}  # type -> outcome -> how many
    wait: dict[int, int] = {}
    run: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.accepted or self.outcomes or self.refused or self.reaped or self.wait or self.run)


def count(own: Sum, counters: dict[str, int]) -> None:
    """Add a sum to plain counters, as the cluster keeps them; types are left out."""
    counts = {"accepted": own.accepted, "refused": own.refused, "reaped": own.reaped}
    counts |= {f"outcome:{name}": n for name, n in own.outcomes.items()}
    counts |= {f"wait:{bucket}": n for bucket, n in own.wait.items()}
    counts |= {f"run:{bucket}": n for bucket, n in own.run.items()}
    _add(counters, {name: n for name, n in counts.items() if n})


def counted(counters: Mapping[str, int]) -> Sum:
    """The sum that such counters hold. Counters of another version, which have names unknown here, are left out."""
    kept = Sum(by="")
    for name, n in counters.items():
        kind, _, of = name.partition(":")
        if kind in ("accepted", "refused", "reaped") and not of:
            setattr(kept, kind, n)
        elif kind == "outcome":
            kept.outcomes[of] = n
        elif kind in ("wait", "run") and of.isascii() and of.isdigit():
            getattr(kept, kind)[int(of)] = n
    return kept


def steps(now_s: float) -> range:
    """The numbers of the steps that are kept and over, oldest first. Step n begins at n * STEP_S by the clock."""
    end = int((now_s - SETTLED_S) // STEP_S)
    return range(end - STEPS_KEPT, end)


class Summing:
    """Makes the sums of one node from its counters."""

    def __init__(self, me: str, metrics: Metrics) -> None:
        self._me = me
        self._metrics = metrics
        self._last = self._read()

    def take(self) -> Sum:
        """The sum since the last call."""
        was, self._last = self._last, self._read()
        now = self._last
        types: dict[str, dict[str, int]] = {}
        for (kind, outcome), n in now.types.items():
            if (more := n - was.types.get((kind, outcome), 0)) > 0:
                _add(types.setdefault(kind if kind in types or len(types) < TYPES_MAX else OTHER, {}), {outcome: more})
        return Sum(
            by=self._me,
            accepted=now.accepted - was.accepted,
            refused=now.refused - was.refused,
            reaped=now.reaped - was.reaped,
            outcomes={
                name: n - was.outcomes.get(name, 0) for name, n in now.outcomes.items() if n > was.outcomes.get(name, 0)
            },
            types=types,
            wait=_risen(was.wait, now.wait),
            run=_risen(was.run, now.run),
        )

    def _read(self) -> _Reading:
        metrics = self._metrics
        return _Reading(
            metrics.accepted.value,
            sum(metrics.refused.values.values()),
            metrics.reaped.value,
            dict(metrics.commits.values),
            dict(metrics.commits_by_type.values),
            list(metrics.wait_s.counts),
            list(metrics.run_s.counts),
        )


class _Reading(NamedTuple):
    """The counters at one moment."""

    accepted: int
    refused: int
    reaped: int
    outcomes: dict[str, int]
    types: dict[Labels, int]
    wait: list[int]
    run: list[int]


def report(sums: Iterable[Sum]) -> dict[str, Any]:
    """The sums of many nodes as one, for people: latencies in milliseconds."""
    outcomes: dict[str, int] = {}
    types: dict[str, dict[str, int]] = {}
    wait, run = [0] * (len(SECONDS) + 1), [0] * (len(SECONDS) + 1)
    accepted = refused = reaped = 0
    for each in sums:
        accepted += each.accepted
        refused += each.refused
        reaped += each.reaped
        _add(outcomes, each.outcomes)
        for kind, counts in each.types.items():
            _add(types.setdefault(kind if kind in types or len(types) < TYPES_MAX else OTHER, {}), counts)
        for total, sparse in ((wait, each.wait), (run, each.run)):
            for bucket, n in sparse.items():
                if 0 <= bucket < len(total):
                    total[bucket] += n
    return {
        "accepted": accepted,
        "outcomes": outcomes,
        "refused": refused,
        "reaped": reaped,
        "types": types,
        "wait_ms": percentiles_ms(wait),
        "run_ms": percentiles_ms(run),
    }


def percentiles_ms(counts: Sequence[int], bounds: Sequence[float] = SECONDS) -> dict[str, float] | None:
    """p50, p95 and p99 of a histogram; None when it is empty."""
    if not sum(counts):
        return None
    return {f"p{q}": round(1000 * quantile(counts, q / 100, bounds), 2) for q in (50, 95, 99)}


def quantile(counts: Sequence[int], share: float, bounds: Sequence[float] = SECONDS) -> float:
    """The value below which this share of all values lies; the last bound if it lies beyond that.

    Inside a bucket the values count as evenly spread.
    """
    rank = share * sum(counts)
    below = 0.0
    for n, count in enumerate(counts):
        if count and below + count >= rank:
            low = bounds[n - 1] if n else 0.0
            high = bounds[n] if n < len(bounds) else bounds[-1]
            return low + (high - low) * (rank - below) / count
        below += count
    return bounds[-1]


def _risen(was: Sequence[int], now: Sequence[int]) -> dict[int, int]:
    return {n: after - before for n, (before, after) in enumerate(zip(was, now, strict=True)) if after > before}


def _add(to: dict[str, int], more: dict[str, int]) -> None:
    for name, n in more.items():
        to[name] = to.get(name, 0) + n
