"""What a node counts, and `/metrics`.

Counting is on the hot path, so a counter is a plain int that its owner raises with `add`; the Prometheus samples are
made when somebody asks, by one collector in a registry of this node's own. Only the main loop's thread counts here;
vitals keeps its own counters, which are read, never written, from here.

Does not know: the engine, Redis, HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# From a loopback round trip to the longest run that is still a run and not a stuck task.
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0),
)
# From a killed process to a lease that ran out.
RECOVERY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
TASKS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 10_000.0)

OTHER = "other"
TYPES_MAX = 500  # pairs of type and outcome: a label whose values come from the user's code must end somewhere

Labels = tuple[str, ...]
Gauge = Callable[[], Mapping[Labels, float]]


class Count:
    """A number that only rises."""

    __slots__ = ("help", "name", "value")

    def __init__(self, name: str, help: str) -> None:
        self.name = name
        self.help = help
        self.value = 0

    def add(self, n: int = 1) -> None:
        self.value += n

    def sample(self) -> Metric:
        return CounterMetricFamily(self.name, self.help, value=self.value)


class Counts:
    """Numbers that only rise, one for each value of one label. The label's values must be few: never an id."""

    __slots__ = ("help", "label", "name", "values")

    def __init__(self, name: str, help: str, label: str, known: Iterable[str] = ()) -> None:
        self.name = name
        self.help = help
        self.label = label
        self.values = dict.fromkeys(known, 0)

    def add(self, of: str, n: int = 1) -> None:
        self.values[of] = self.values.get(of, 0) + n

    def sample(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=[self.label])
        for of, value in self.values.items():
            family.add_metric([of], value)
        return family


class Pairs:
    """Numbers that only rise, by the values of several labels; past `most` of them, what is new counts as "other"."""

    __slots__ = ("help", "labels", "most", "name", "values")

    def __init__(self, name: str, help: str, labels: Labels, most: int) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.most = most
        self.values: dict[Labels, int] = {}

    def add(self, of: Labels, n: int = 1) -> None:
        if of not in self.values and len(self.values) >= self.most:
            of = (OTHER, *of[1:])
        self.values[of] = self.values.get(of, 0) + n

    def sample(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for of, value in self.values.items():
            family.add_metric(of, value)
        return family


class Spread:
    """A histogram: how often a value fell at or below each bound."""

    __slots__ = ("bounds", "counts", "help", "name", "sum")

    def __init__(self, name: str, help: str, bounds: Sequence[float] = SECONDS) -> None:
        self.name = name
        self.help = help
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each counts all that is at or below its bound."""
        below = 0
        made: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            made.append((bound, below))
        return made

    def sample(self) -> Metric:
        return HistogramMetricFamily(self.name, self.help, buckets=self.buckets(), sum_value=self.sum)


class Spreads:
    """A histogram for each value of one label; all its values are known beforehand."""

    __slots__ = ("help", "label", "name", "of")

    def __init__(self, name: str, help: str, label: str, known: Iterable[str], bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self.label = label
        self.of = {value: Spread(name, help, bounds) for value in known}

    def sample(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=[self.label])
        for value, spread in self.of.items():
            family.add_metric([value], spread.buckets(), spread.sum)
        return family


class Metrics(Collector):
    """All counters of one node. Owners raise the fields; what is a state and not a count is read by `gauge`."""

    def __init__(self) -> None:
        self.accepted = Count("rumor_tasks_accepted", "New tasks stored by this gateway; repeats are not counted.")
        self.commits = Counts(
            "rumor_task_commits",
            "Outcomes written by this node, each delivery once.",
            "outcome",
            ("succeeded", "retrying", "dead", "released", "cancelled"),
        )
        self.commits_by_type = Pairs(
            "rumor_task_commits_by_type", "The same, by the type of the task.", ("type", "outcome"), TYPES_MAX
        )
        self.claims = Counts(
            "rumor_task_claims",
            "Deliveries to this node: from shards it looks after, from another's, or together with the submission.",
            "source",
            ("owned", "stolen", "submission"),
        )
        self.claim_calls = Counts(
            "rumor_claim_calls",
            "Calls to Redis for tasks to run, by what they brought.",
            "result",
            ("tasks", "empty", "failed"),
        )
        self.refused = Counts(
            "rumor_task_refused", "Outcomes of this node that Redis refused.", "reason", ("fenced", "gone", "cancelled")
        )
        self.reaped = Count("rumor_tasks_reaped", "Tasks of fenced sessions that this node queued again.")
        self.rejected = Counts("rumor_submissions_rejected", "Submissions this gateway did not accept.", "reason")
        self.forwarded = Counts(
            "rumor_submissions_forwarded",
            "Submissions handed to a peer as Redis was away.",
            "outcome",
            ("ok", "failed"),
        )
        self.wait_s = Spread("rumor_task_wait_seconds", "From queued (or due) to claimed, on Redis's clock.")
        self.run_s = Spread("rumor_task_run_seconds", "From handler start to its end, committed or not.")
        self.redis_s = Spread("rumor_redis_call_seconds", "Round trips of groups of calls to Redis, once each.")
        self.loop_lag_s = Spread("rumor_loop_lag_seconds", "How late a timer of the main loop fires.")
        self.batch_tasks = Spreads(
            "rumor_redis_batch_tasks",
            "Tasks in one script call (group commit).",
            "call",
            ("store", "claim", "settle"),
            TASKS,
        )
        self.recovery_s = Spread(
            "rumor_recovery_seconds",
            "From this node's first sign that a session is gone (suspected or held dead) to its tasks being queued "
            "again, where it held any.",
            RECOVERY,
        )
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._gauges: list[tuple[str, str, Labels, Gauge]] = []

    def gauge(self, name: str, help: str, labels: Labels, read: Gauge) -> None:
        """Export a state: `read` is called at each scrape and returns a value for each tuple of label values."""
        self._gauges.append((name, help, labels, read))

    def collect(self) -> Iterable[Metric]:
        for field in vars(self).values():
            if isinstance(field, Count | Counts | Pairs | Spread | Spreads):
                yield field.sample()
        for name, help, labels, read in self._gauges:
            # A name that ends in _total is a count that somebody else keeps (vitals, the pools).
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, help, labels=labels)
            for values, value in read().items():
                family.add_metric(values, value)
            yield family

    def described(self) -> list[tuple[str, str, Labels, str]]:
        """Every metric of this node's own as (name in a query, kind, labels, help): what docs/metrics.md shows."""
        rows: list[tuple[str, str, Labels, str]] = []
        for field in vars(self).values():
            match field:
                case Count():
                    rows.append((f"{field.name}_total", "counter", (), field.help))
                case Counts():
                    rows.append((f"{field.name}_total", "counter", (field.label,), field.help))
                case Pairs():
                    rows.append((f"{field.name}_total", "counter", field.labels, field.help))
                case Spread():
                    rows.append((field.name, "histogram", (), field.help))
                case Spreads():
                    rows.append((field.name, "histogram", (field.label,), field.help))
        for name, help, labels, _ in self._gauges:
            rows.append((name, "counter" if name.endswith("_total") else "gauge", labels, help))
        return sorted(rows)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
