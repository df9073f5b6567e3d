"""Tasks in sums: what one second brought, of one node or of many; never a task by itself.

Pure: counters are read and the difference to the last reading is the sum. It merges with others' by adding. Percentiles
come from the histograms that `/metrics` has anyway, so that watching costs nothing for each task; between two bounds
they are interpolated, which is as exact as a chart needs. For charts that begin before somebody looked, the cluster
keeps sums of longer steps as plain counters, to which each node adds its own.

Does not know: Redis, HTTP, the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from node.observe.metrics import OTHER, SECONDS, Labels, Metrics

TYPES_MAX = 20  # in one sum; what is beyond is counted as OTHER
STEP_S = 5  # of what is kept for charts
STEPS_KEPT = 120
SETTLED_S = 2.0  # after its end all nodes have told what they counted in a step


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
        """Nothing happened."""
        return not (self.accepted or self.outcomes or self.refused or self.reaped or self.wait or self.run)


def count(one: Sum, into: dict[str, int]) -> None:
    """Add a sum to plain counters, as the cluster keeps them; types are left out."""
    told = {"accepted": one.accepted, "refused": one.refused, "reaped": one.reaped}
    told |= {f"outcome:{name}": n for name, n in one.outcomes.items()}
    told |= {f"wait:{bucket}": n for bucket, n in one.wait.items()}
    told |= {f"run:{bucket}": n for bucket, n in one.run.items()}
    _add(into, {name: n for name, n in told.items() if n})


def counted(counters: Mapping[str, int]) -> Sum:
    """The sum that such counters are. What another version wrote, and is not known here, is passed over."""
    found = Sum(by="")
    for name, n in counters.items():
        kind, _, of = name.partition(":")
        if kind in ("accepted", "refused", "reaped") and not of:
            setattr(found, kind, n)
        elif kind == "outcome":
            found.outcomes[of] = n
        elif kind in ("wait", "run") and of.isascii() and of.isdigit():
            getattr(found, kind)[int(of)] = n
    return found


def steps(now_s: float) -> range:
    """The steps that are kept and over, oldest first. A step's number is its start by the clock, in steps."""
    end = int((now_s - SETTLED_S) // STEP_S)
    return range(end - STEPS_KEPT, end)


class Summing:
    """Makes one node's sums from its counters."""

    def __init__(self, me: str, metrics: Metrics) -> None:
        self._me = me
        self._metrics = metrics
        self._last = self._read()

    def take(self) -> Sum:
        """What happened since the last time."""
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
    """Many nodes' sums as one, for people: latencies in milliseconds."""
    outcomes: dict[str, int] = {}
    types: dict[str, dict[str, int]] = {}
    wait, run = [0] * (len(SECONDS) + 1), [0] * (len(SECONDS) + 1)
    accepted = refused = reaped = 0
    for one in sums:
        accepted += one.accepted
        refused += one.refused
        reaped += one.reaped
        _add(outcomes, one.outcomes)
        for kind, counts in one.types.items():
            _add(types.setdefault(kind if kind in types or len(types) < TYPES_MAX else OTHER, {}), counts)
        for found, told in ((wait, one.wait), (run, one.run)):
            for bucket, n in told.items():
                if 0 <= bucket < len(found):
                    found[bucket] += n
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
    """The value below which that share lies, taken as spread evenly inside its bucket; the last bound for what is
    beyond it."""
    wanted = share * sum(counts)
    below = 0.0
    for n, count in enumerate(counts):
        if count and below + count >= wanted:
            low = bounds[n - 1] if n else 0.0
            high = bounds[n] if n < len(bounds) else bounds[-1]
            return low + (high - low) * (wanted - below) / count
        below += count
    return bounds[-1]


def _risen(was: Sequence[int], now: Sequence[int]) -> dict[int, int]:
    return {n: after - before for n, (before, after) in enumerate(zip(was, now, strict=True)) if after > before}


def _add(to: dict[str, int], more: dict[str, int]) -> None:
    for name, n in more.items():
        to[name] = to.get(name, 0) + n
