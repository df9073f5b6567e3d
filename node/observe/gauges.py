"""What `/metrics` says of states: members, queues, the node itself. Read when somebody scrapes, counted by nobody.

Does not know: how any of it comes about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from cluster import __version__
from cluster.config import Config
from cluster.view import View
from node.observe.metrics import Metrics
from node.observe.redis_memory import Memory

Labelled = dict[tuple[str, ...], float]

# What the vitals count, as metrics of their own: name -> (help, label, its values -> names there). What is not named
# here is in rumor_vitals_events_total.
VITALS: dict[str, tuple[str, str, dict[str, str]]] = {
    "rumor_gossip_probes_total": ("Probe rounds begun.", "", {"": "swim_probes"}),
    "rumor_gossip_failed_rounds_total": (
        "Probe rounds without an answer, also by way of others.",
        "",
        {"": "swim_failed_rounds"},
    ),
    "rumor_gossip_suspicions_total": ("Suspicions of others, own and heard.", "", {"": "swim_suspicions"}),
    "rumor_gossip_refutations_total": (
        "Accusations refuted: of this node by itself, of others as this node heard.",
        "of",
        {"self": "swim_refutations", "others": "swim_refuted"},
    ),
    "rumor_gossip_deaths_total": (
        "Members this node came to hold dead, by the evidence.",
        "evidence",
        {kind: f"swim_deaths_{kind}" for kind in ("silent", "stalled", "refused", "superseded", "fenced")},
    ),
    "rumor_gossip_datagrams_total": (
        "Gossip over UDP.",
        "direction",
        {"in": "swim_datagrams_in", "out": "swim_datagrams_out"},
    ),
    "rumor_gossip_bytes_total": (
        "Bytes of gossip over UDP.",
        "direction",
        {"in": "swim_bytes_in", "out": "swim_bytes_out"},
    ),
    "rumor_gossip_dropped_total": (
        "Datagrams that were not taken: no member sent them, or not just now.",
        "reason",
        {kind: f"swim_dropped_{kind}" for kind in ("malformed", "unsealed", "other_cluster", "replayed", "oversize")},
    ),
}
NAMED = {name for _, _, names in VITALS.values() for name in names.values()}
FENCE = "fences_"
CAUSES = ("refused", "silent", "stalled", "superseded", "lease", "left", "unknown")


class Watched(Protocol):
    """What the gauges read."""

    @property
    def view(self) -> View: ...
    @property
    def vitals(self) -> Any: ...
    @property
    def config(self) -> Config: ...
    @property
    def memory(self) -> Memory: ...
    def health(self) -> dict[str, Any]: ...


class Counted:
    """The cluster's counts as this scrape finds them; none while Redis is away: better no number than an old one."""

    def __init__(self, queues: Iterable[str]) -> None:
        self._served = tuple(queues)  # shown as 0 too: a series that comes and goes is no use in a query
        self.states: Labelled = {}
        self.queued: Labelled = {}

    def keep(self, counts: Mapping[str, Any]) -> None:
        self.states = {(name,): float(n) for name, n in counts.get("states", {}).items()}
        self.queued = {(name,): 0.0 for name in self._served}
        self.queued.update({(name,): float(queue["queued"]) for name, queue in counts.get("queues", {}).items()})

    def forget(self) -> None:
        self.states, self.queued = {}, {}


def register(metrics: Metrics, engine: Watched, answers: Mapping[tuple[str, ...], float]) -> Counted:
    """Export the view, vitals' own counters, the gateway's answers, and what the cluster holds."""
    counted = Counted(engine.config.queue_slots)
    gauge = metrics.gauge
    gauge(
        "rumor_node_info",
        "1; which node this is.",
        ("node_id", "version"),
        lambda: {(engine.config.name, __version__): 1.0},
    )
    gauge("rumor_members", "Members this node knows, by verdict.", ("verdict",), lambda: _members(engine.view))
    gauge("rumor_redis_ok", "1 while this node reaches Redis.", (), lambda: {(): float(engine.view.redis_ok)})
    gauge(
        "rumor_redis_memory_used_bytes",
        "What Redis says that it uses (used_memory), up to a second old.",
        (),
        lambda: {(): float(engine.memory.used_bytes)},
    )
    gauge(
        "rumor_redis_memory_limit_bytes",
        "Redis's maxmemory; 0: none is set.",
        (),
        lambda: {(): float(engine.memory.limit_bytes)},
    )
    gauge("rumor_is_leader", "1 while this node's session leads.", (), lambda: {(): float(_leads(engine.view))})
    gauge("rumor_leader_epoch", "Highest epoch heard of.", (), lambda: {(): float(engine.view.epoch)})
    gauge(
        "rumor_problems",
        "What /health says is wrong, by its code: 1 for each, more where several members have it.",
        ("code", "severity"),
        lambda: _problems(engine.health()),
    )
    gauge("rumor_ready", "1 while this node takes work (/readyz).", (), lambda: _of(engine.health(), "ready"))
    gauge("rumor_shards_owned", "Shards this node looks after.", (), lambda: _of(engine.health(), "shards_owned"))
    gauge(
        "rumor_slots",
        "Slots this node has for a queue.",
        ("queue",),
        lambda: {(name,): float(n) for name, n in engine.config.queue_slots.items()},
    )
    gauge("rumor_slots_taken", "Tasks this node runs.", (), lambda: _of(engine.health(), "running"))
    gauge(
        "rumor_lingering_runs",
        "Runs that were stopped and whose thread goes on: they hold their slot and may not commit.",
        (),
        lambda: _of(engine.health(), "lingering"),
    )
    gauge("rumor_running_tasks", "Tasks a member runs, by its word.", ("node_id",), lambda: _running(engine.view))
    gauge(
        "rumor_tasks",
        "Tasks of the whole cluster by state, from Redis, up to a second old; every node says the same.",
        ("state",),
        lambda: counted.states,
    )
    gauge(
        "rumor_queued_tasks",
        "Tasks waiting for a slot in the whole cluster, from Redis; every node says the same.",
        ("queue",),
        lambda: counted.queued,
    )
    gauge("rumor_http_requests_total", "Requests answered.", ("operation", "status"), lambda: answers)
    gauge("rumor_fences_total", "Sessions that this node fenced.", ("cause",), lambda: _fences(engine.vitals.stats))
    for name, (help, label, names) in VITALS.items():
        gauge(name, help, (label,) if label else (), partial(_named, engine, names))
    gauge(
        "rumor_vitals_events_total",
        "What else membership and heartbeats counted.",
        ("event",),
        lambda: _others(engine.vitals.stats),
    )
    return counted


def _members(view: View) -> Labelled:
    return {(verdict,): float(n) for verdict, n in Counter(peer.verdict.value for peer in view.members).items()}


def _fences(stats: Mapping[str, int]) -> Labelled:
    found: Labelled = {(cause,): 0.0 for cause in CAUSES}
    found.update({(name.removeprefix(FENCE),): float(n) for name, n in stats.items() if name.startswith(FENCE)})
    return found


def _named(engine: Watched, names: Mapping[str, str]) -> Labelled:
    stats = engine.vitals.stats
    return {(of,) if of else (): float(stats.get(name, 0)) for of, name in names.items()}


def _others(stats: Mapping[str, int]) -> Labelled:
    return {(name,): float(n) for name, n in stats.items() if name not in NAMED and not name.startswith(FENCE)}


def _of(health: Mapping[str, Any], name: str) -> Labelled:
    return {(): float(health.get(name, 0))}


def _problems(health: Mapping[str, Any]) -> Labelled:
    return {key: float(n) for key, n in Counter((p["code"], p["severity"]) for p in health.get("problems", ())).items()}


def _leads(view: View) -> bool:
    return view.leader is not None and view.leader.session == view.session


def _running(view: View) -> Labelled:
    return {(peer.node_id,): float(peer.load.running) for peer in view.members if peer.load is not None}
