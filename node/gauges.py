"""What `/metrics` says of states: members, queues, the node itself. Read when somebody scrapes, counted by nobody.

Does not know: how any of it comes about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from cluster.view import View
from node.metrics import Metrics

Labelled = dict[tuple[str, ...], float]


class Watched(Protocol):
    """What the gauges read."""

    @property
    def view(self) -> View: ...
    @property
    def vitals(self) -> Any: ...


def register(
    metrics: Metrics, engine: Watched, answers: Mapping[tuple[str, ...], float], queued: Mapping[tuple[str, ...], float]
) -> None:
    """Export the view, vitals' own counters, the gateway's answers and the last counts of the queues."""
    metrics.gauge("rumor_members", "Members this node knows, by verdict.", ("verdict",), lambda: _members(engine.view))
    metrics.gauge("rumor_redis_ok", "1 while this node reaches Redis.", (), lambda: {(): float(engine.view.redis_ok)})
    metrics.gauge("rumor_is_leader", "1 while this node's session leads.", (), lambda: {(): float(_leads(engine.view))})
    metrics.gauge("rumor_leader_epoch", "Highest epoch heard of.", (), lambda: {(): float(engine.view.epoch)})
    metrics.gauge(
        "rumor_running_tasks", "Tasks a member runs, by its word.", ("node_id",), lambda: _running(engine.view)
    )
    metrics.gauge("rumor_queued_tasks", "Tasks waiting for a slot, all shards.", ("queue",), lambda: queued)
    metrics.gauge("rumor_http_requests_total", "Requests answered.", ("operation", "status"), lambda: answers)
    metrics.gauge(
        "rumor_fences_total", "Sessions that this node fenced.", ("cause",), lambda: _fences(engine.vitals.stats)
    )
    metrics.gauge(
        "rumor_vitals_events_total",
        "What membership and heartbeats counted.",
        ("event",),
        lambda: {(name,): float(value) for name, value in engine.vitals.stats.items()},
    )


def keep_counts(queued: Labelled, counts: Mapping[str, Any]) -> None:
    """Take over the engine's counts, for the scrape that follows."""
    queued.clear()
    queued.update({(name,): float(queue["queued"]) for name, queue in counts.get("queues", {}).items()})


def _members(view: View) -> Labelled:
    return {(verdict,): float(n) for verdict, n in Counter(peer.verdict.value for peer in view.members).items()}


def _fences(stats: Mapping[str, int]) -> Labelled:
    prefix = "fences_"
    return {(name.removeprefix(prefix),): float(n) for name, n in stats.items() if name.startswith(prefix)}


def _leads(view: View) -> bool:
    return view.leader is not None and view.leader.session == view.session


def _running(view: View) -> Labelled:
    return {(peer.node_id,): float(peer.load.running) for peer in view.members if peer.load is not None}
