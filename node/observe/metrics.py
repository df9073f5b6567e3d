"""What a node counts, and `/metrics`.

Counting is on the hot path, so a counter is a plain int that its owner raises with `add`. One collector, in a registry
of this node's own, makes the Prometheus samples at each scrape. Only the main loop's thread counts here; the vitals
thread keeps counters of its own, and this module reads them without ever writing them.

Does not know: the engine, Redis, HTTP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bounds from a loopback round trip to the longest run that is not yet a stuck task.
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
# Bounds from a killed process to a lease that ran out.
RECOVERY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
TASKS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0, 10_000.0)

OTHER = "other"
TYPES_MAX = 1000  # pairs of type and outcome; the user's code makes up the types, so their number needs a bound

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

    def __init__(self, name: str, help: str, label: str, values: Iterable[str] = ()) -> None:
        self.name = name
        self.help = help
        self.label = label
        self.values = dict.fromkeys(values, 0)  # shown at 0 before the first count

    def add(self, value: str, n: int = 1) -> None:
        self.values[value] = self.values.get(value, 0) + n

    def sample(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=[self.label])
        for value, n in self.values.items():
            family.add_metric([value], n)
        return family


class Pairs:
    """Numbers that only rise, by the values of several labels; past `most` of them a new first value is "other"."""

    __slots__ = ("help", "labels", "most", "name", "values")

    def __init__(self, name: str, help: str, labels: Labels, most: int) -> None:
        self.name = name
        self.help = help
        self.labels = labels
        self.most = most
        self.values: dict[Labels, int] = {}

    def add(self, values: Labels, n: int = 1) -> None:
        if values not in self.values and len(self.values) >= self.most:
            values = (OTHER, *values[1:])
        self.values[values] = self.values.get(values, 0) + n

    def sample(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for values, n in self.values.items():
            family.add_metric(values, n)
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

    def add(self, value: float, n: int = 1) -> None:
        """Add one value, `n` times."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.sum += value * n

    def buckets(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus has them: each counts every value at or below its bound."""
        below = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            below += count
            buckets.append((bound, below))
        return buckets

    def sample(self) -> Metric:
        return HistogramMetricFamily(self.name, self.help, buckets=self.buckets(), sum_value=self.sum)


class Spreads:
    """A histogram for each value of one label; the values are fixed beforehand."""

    __slots__ = ("help", "label", "name", "of")

    def __init__(self, name: str, help: str, label: str, values: Iterable[str], bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self.label = label
        self.of = {value: Spread(name, help, bounds) for value in values}

    def sample(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=[self.label])
        for value, spread in self.of.items():
            family.add_metric([value], spread.buckets(), spread.sum)
        return family


class Metrics(Collector):
    """All counters of one node. Owners raise the fields; `gauge` adds what is a state and not a count."""

    def __init__(self) -> None:
        # The gateway
        self.accepted = Count("rumor_tasks_accepted", "New tasks stored by this gateway; repeats are not counted.")
        self.rejected = Counts("rumor_submissions_rejected", "Submissions that this gateway did not accept.", "reason")
        self.forwarded = Counts(
            "rumor_submissions_forwarded",
            "Submissions handed to a peer because Redis was away.",
            "outcome",
            ("ok", "failed"),
        )

        # Claiming and running
        self.claims = Counts(
            "rumor_task_claims",
            "Deliveries to this node: from shards that it owns, from another's, or together with the submission.",
            "source",
            ("owned", "stolen", "submission"),
        )
        self.claim_calls = Counts(
            "rumor_claim_calls",
            "Calls to Redis for tasks to run, by their result.",
            "result",
            ("tasks", "empty", "failed"),
        )
        self.wait_s = Spread("rumor_task_wait_seconds", "From queued (or due) to claimed, by the clock of Redis.")
        self.run_s = Spread("rumor_task_run_seconds", "From a handler's start to its end, committed or not.")

        # Outcomes
        self.commits = Counts(
            "rumor_task_commits",
            "Outcomes that this node wrote, each delivery once.",
            "outcome",
            ("succeeded", "retrying", "dead", "released", "cancelled"),
        )
        by_type = "Outcomes that this node wrote, by the type of the task."
        self.commits_by_type = Pairs("rumor_task_commits_by_type", by_type, ("type", "outcome"), TYPES_MAX)
        refusals = "Outcomes of this node that Redis refused."
        self.refused = Counts("rumor_task_refused", refusals, "reason", ("fenced", "gone", "cancelled"))

        # Recovery
        self.reaped = Count("rumor_tasks_reaped", "Tasks of fenced sessions that this node queued again.")
        self.recovery_s = Spread(
            "rumor_recovery_seconds",
            "From this node's first sign that a session is gone (suspected or held dead) to the moment when the tasks "
            "that it held are queued again.",
            RECOVERY,
        )

        # Redis and the main loop
        self.redis_s = Spread("rumor_redis_call_seconds", "Round trips to Redis, one for each group of calls.")
        batches = "Tasks in one script call (group commit)."
        self.batch_tasks = Spreads("rumor_redis_batch_tasks", batches, "call", ("store", "claim", "settle"), TASKS)
        self.loop_lag_s = Spread("rumor_loop_lag_seconds", "How late a timer of the main loop fires.")

        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        self._gauges: list[tuple[str, str, Labels, Gauge]] = []

    def gauge(self, name: str, help: str, labels: Labels, read: Gauge) -> None:
        """Export a state: `read` is called at each scrape and returns a value for each tuple of label values."""
        self._gauges.append((name, help, labels, read))

    def collect(self) -> Iterable[Metric]:
        for metric in vars(self).values():
            if isinstance(metric, Count | Counts | Pairs | Spread | Spreads):
                yield metric.sample()
        for name, help, labels, read in self._gauges:
            # A name that ends in _total is a count that another part keeps (vitals, the gateway).
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(name, help, labels=labels)
            for values, value in read().items():
                family.add_metric(values, value)
            yield family

    def described(self) -> list[tuple[str, str, Labels, str]]:
        """Every metric of Rumor's own as (name in a query, kind, labels, help), as docs/metrics.md shows them."""
        rows: list[tuple[str, str, Labels, str]] = []
        for metric in vars(self).values():
            match metric:
                case Count():
                    rows.append((f"{metric.name}_total", "counter", (), metric.help))
                case Counts():
                    rows.append((f"{metric.name}_total", "counter", (metric.label,), metric.help))
                case Pairs():
                    rows.append((f"{metric.name}_total", "counter", metric.labels, metric.help))
                case Spread():
                    rows.append((metric.name, "histogram", (), metric.help))
                case Spreads():
                    rows.append((metric.name, "histogram", (metric.label,), metric.help))
        for name, help, labels, _ in self._gauges:
            rows.append((name, "counter" if name.endswith("_total") else "gauge", labels, help))
        return sorted(rows)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
