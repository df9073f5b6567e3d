"""What `/metrics` says of states: members, queues, the node itself. Each is read at a scrape; nothing counts it.

GAUGES is the table of them. What describes the whole cluster, the leader alone tells: repeated by every node, it would
invite `sum`.

Does not know: how the engine and vitals come by their figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cluster import __version__
from cluster.config import Config
from cluster.keys import parked_of
from cluster.view import View
from node.observe.metrics import OTHER, Labels, Metrics
from node.observe.redis_memory import Memory

Labelled = Mapping[Labels, float]

# Metrics made of what the vitals thread counts: name -> (help, label, the label's values -> names in vitals). Counters
# without a row here are in rumor_vitals_events_total.
VITALS: dict[str, tuple[str, str, dict[str, str]]] = {
    "rumor_gossip_probes_total": ("Probe rounds begun.", "", {"": "swim_probes"}),
    "rumor_gossip_failed_rounds_total": (
        "Probe rounds in which the member answered neither directly nor by way of others.",
        "",
        {"": "swim_failed_rounds"},
    ),
    "rumor_gossip_suspicions_total": (
        "Suspicions of other members, this node's own and those it heard of.",
        "",
        {"": "swim_suspicions"},
    ),
    "rumor_gossip_refutations_total": (
        "Accusations refuted: by this node (self), or by other members as this node heard (others).",
        "of",
        {"self": "swim_refutations", "others": "swim_refuted"},
    ),
    "rumor_gossip_deaths_total": (
        "Members that this node began to hold dead, by the evidence.",
        "evidence",
        {kind: f"swim_deaths_{kind}" for kind in ("silent", "stalled", "refused", "superseded", "fenced")},
    ),
    "rumor_gossip_datagrams_total": (
        "Datagrams of gossip over UDP.",
        "direction",
        {"in": "swim_datagrams_in", "out": "swim_datagrams_out"},
    ),
    "rumor_gossip_bytes_total": (
        "Bytes of gossip over UDP.",
        "direction",
        {"in": "swim_bytes_in", "out": "swim_bytes_out"},
    ),
    "rumor_gossip_dropped_total": (
        "Gossip that this node dropped: no member had sent it, it was a repeat, a number in it lay far beyond what its "
        "owner had said (implausible), or Redis showed nothing of it (unconfirmed).",
        "reason",
        {
            kind: f"swim_dropped_{kind}"
            for kind in (
                *("malformed", "unsealed", "other_cluster", "replayed", "oversize"),
                *("implausible", "unconfirmed"),
            )
        },
    ),
}
NAMED = {name for _, _, names in VITALS.values() for name in names.values()}
FENCE = "fences_"
QUEUES_MAX = 100  # names of queues that are told one by one; the user's code makes them up, so they need a bound
CAUSES = ("refused", "silent", "stalled", "superseded", "lease", "left", "unknown")


class VitalsStats(Protocol):
    """What the gauges read of the vitals thread."""

    @property
    def stats(self) -> Mapping[str, int]: ...


class Watched(Protocol):
    """What the gauges read of the engine."""

    @property
    def view(self) -> View: ...
    @property
    def vitals(self) -> VitalsStats: ...
    @property
    def config(self) -> Config: ...
    @property
    def memory(self) -> Memory: ...
    def health(self) -> dict[str, Any]: ...
    def slots_taken(self) -> Mapping[str, int]: ...


class Counted:
    """The cluster's counts at the latest scrape; empty while Redis is away, since no number beats an old one."""

    def __init__(self) -> None:
        self.states: dict[Labels, float] = {}
        self.queued: dict[Labels, float] = {}
        self.oldest_s: dict[Labels, float] = {}

    def keep(self, counts: Mapping[str, Any], served: Iterable[str]) -> None:
        """Take over the counts. `served`: queues told at 0, too: a query cannot use a series that comes and goes."""
        self.states = {(name,): float(n) for name, n in counts.get("states", {}).items()}
        self.queued = {(name,): 0.0 for name in served}
        self.oldest_s = dict(self.queued)
        rows = sorted(counts.get("queues", {}).items(), key=lambda row: (-row[1]["queued"], row[0]))
        for name, row in rows:
            label = (name,) if (name,) in self.queued or len(self.queued) < QUEUES_MAX else (OTHER,)
            self.queued[label] = self.queued.get(label, 0.0) + row["queued"]
            if parked_of(name) is None:  # these wait for no slot
                self.oldest_s[label] = max(self.oldest_s.get(label, 0.0), row.get("oldest_s", 0.0))

    def forget(self) -> None:
        self.states, self.queued, self.oldest_s = {}, {}, {}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the gauges of one node are read."""

    engine: Watched
    counted: Counted
    answers: Labelled  # of the gateway, by operation and status


def register(metrics: Metrics, engine: Watched, answers: Labelled) -> Counted:
    """Export every row of GAUGES; returns the place for the cluster's counts, which the caller fills at each scrape."""
    sources = Sources(engine, Counted(), answers)
    for name, help, labels, read in GAUGES:
        metrics.gauge(name, help, labels, partial(read, sources))
    return sources.counted


def _health(name: str) -> Callable[[Sources], Labelled]:
    """A reader of one number in the engine's health."""
    return lambda of: {(): float(of.engine.health().get(name, 0))}


def _healths(name: str) -> Callable[[Sources], Labelled]:
    """A reader of several numbers in the engine's health."""
    return lambda of: {(label,): float(n) for label, n in of.engine.health().get(name, {}).items()}


def _vitals(names: Mapping[str, str], of: Sources) -> Labelled:
    stats = of.engine.vitals.stats
    return {(label,) if label else (): float(stats.get(name, 0)) for label, name in names.items()}


def _other_vitals(of: Sources) -> Labelled:
    stats = of.engine.vitals.stats
    return {(name,): float(n) for name, n in stats.items() if name not in NAMED and not name.startswith(FENCE)}


def _fences(of: Sources) -> Labelled:
    stats = of.engine.vitals.stats
    fences: dict[Labels, float] = {(cause,): 0.0 for cause in CAUSES}
    fences.update({(name.removeprefix(FENCE),): float(n) for name, n in stats.items() if name.startswith(FENCE)})
    return fences


def _members(of: Sources) -> Labelled:
    verdicts = Counter(peer.verdict.value for peer in of.engine.view.members)
    return {(verdict,): float(n) for verdict, n in verdicts.items()}


def _running(of: Sources) -> Labelled:
    return {(peer.node_id,): float(peer.load.running) for peer in of.engine.view.members if peer.load is not None}


def _problems(of: Sources) -> Labelled:
    codes = Counter((problem["code"], problem["severity"]) for problem in of.engine.health().get("problems", ()))
    return {code: float(n) for code, n in codes.items()}


def _unhandled(of: Sources) -> Labelled:
    rows = [row for row in of.engine.health().get("problems", ()) if row["code"] == "type_unhandled"]
    return {(row["queue"], row["type"]): float(row["count"]) for row in rows}


def leads(view: View) -> bool:
    """Whether the node with this view tells what describes the whole cluster."""
    return view.leader is not None and view.leader.session == view.session


def served_by(view: View, config: Config) -> list[str]:
    """The queues that some member serves, this node's own first."""
    metas = (peer.meta for peer in view.members if peer.is_able and peer.meta is not None)
    return list(dict.fromkeys([*config.queue_slots, *(queue for meta in metas for queue in sorted(meta.queues))]))


def _of_cluster(read: Callable[[Sources], Labelled]) -> Callable[[Sources], Labelled]:
    """The same reader, for the leader alone."""
    return lambda of: read(of) if leads(of.engine.view) else {}


GAUGES: tuple[tuple[str, str, Labels, Callable[[Sources], Labelled]], ...] = (
    (
        "rumor_node_info",
        "Always 1; the labels say which node this is.",
        ("node_id", "version"),
        lambda of: {(of.engine.config.name, __version__): 1.0},
    ),
    ("rumor_members", "Members that this node has in its table, by verdict.", ("verdict",), _members),
    ("rumor_redis_ok", "1 while this node reaches Redis.", (), lambda of: {(): float(of.engine.view.redis_ok)}),
    (
        "rumor_redis_memory_used_bytes",
        "Memory that Redis uses by its own count (used_memory), up to a second old. The leader tells it.",
        (),
        _of_cluster(lambda of: {(): float(of.engine.memory.used_bytes)}),
    ),
    (
        "rumor_redis_memory_limit_bytes",
        "Redis's maxmemory; 0 when none is set. The leader tells it.",
        (),
        _of_cluster(lambda of: {(): float(of.engine.memory.limit_bytes)}),
    ),
    (
        "rumor_is_leader",
        "1 while this node's session leads.",
        (),
        lambda of: {(): float(leads(of.engine.view))},
    ),
    (
        "rumor_leader_epoch",
        "Highest epoch that this node has heard of.",
        (),
        lambda of: {(): float(of.engine.view.epoch)},
    ),
    (
        "rumor_problems",
        "Problems that /health names, by code: 1 for each, more where several members have it.",
        ("code", "severity"),
        _problems,
    ),
    ("rumor_ready", "1 while this node takes work (/readyz).", (), _health("ready")),
    ("rumor_shards_owned", "Shards that this node owns.", (), _health("shards_owned")),
    (
        "rumor_slots",
        "Slots that this node has for a queue.",
        ("queue",),
        lambda of: {(name,): float(n) for name, n in of.engine.config.queue_slots.items()},
    ),
    (
        "rumor_slots_taken",
        "Slots of a queue in which this node runs a task.",
        ("queue",),
        lambda of: {(name,): float(n) for name, n in of.engine.slots_taken().items()},
    ),
    (
        "rumor_lingering_runs",
        "Runs that were stopped but whose thread goes on: they hold their slot and may not commit.",
        (),
        _health("lingering"),
    ),
    (
        "rumor_children",
        "Child processes of this node that run a task, wait for one, or start or end just now (other).",
        ("state",),
        _healths("children"),
    ),
    (
        "rumor_children_replaced_total",
        "Child processes that ended in good order, by the limit that they had reached.",
        ("reason",),
        _healths("children_replaced"),
    ),
    (
        "rumor_running_tasks",
        "Tasks that a member says it runs. The leader tells it.",
        ("node_id",),
        _of_cluster(_running),
    ),
    (
        "rumor_tasks",
        "Tasks of the whole cluster by state, from Redis, up to a second old. The leader tells it.",
        ("state",),
        lambda of: of.counted.states,
    ),
    (
        "rumor_queued_tasks",
        "Tasks waiting for a slot in the whole cluster, from Redis. The leader tells it.",
        ("queue",),
        lambda of: of.counted.queued,
    ),
    (
        "rumor_oldest_queued_seconds",
        "Wait of the oldest task of a queue, of the first eight in each shard, for a slot. The leader tells it.",
        ("queue",),
        lambda of: of.counted.oldest_s,
    ),
    (
        "rumor_unhandled_tasks",
        "Tasks waiting because no live node that serves their queue has a handler for their type. The leader tells it.",
        ("queue", "type"),
        _of_cluster(_unhandled),
    ),
    ("rumor_http_requests_total", "Requests answered.", ("operation", "status"), lambda of: of.answers),
    ("rumor_fences_total", "Sessions that this node fenced.", ("cause",), _fences),
    *(
        (name, help, (label,) if label else (), partial(_vitals, names))
        for name, (help, label, names) in VITALS.items()
    ),
    ("rumor_vitals_events_total", "Everything else that the vitals thread counts.", ("event",), _other_vitals),
)
