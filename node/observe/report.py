"""What a node says of the cluster to people: members, workers, problems. Plain data for JSON.

Pure: all of it is made from one view. Does not know: HTTP, Redis, how the view came about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.keys import parked_of
from cluster.load import Load
from cluster.refusal import Refusal
from cluster.swim.events import MemberState
from cluster.view import Peer, Verdict, View

GONE = (MemberState.DEAD, MemberState.LEFT)
WARNING, ERROR, FATAL = "warning", "error", "fatal"
STATUS = {None: "ok", WARNING: "ok", ERROR: "degraded", FATAL: "unavailable"}  # severity of the worst problem -> status
CUT = {
    Verdict.CUT_FROM_REDIS: "cut off from Redis: its peers hold it alive, and its heartbeat in Redis does not move",
    Verdict.CUT_FROM_PEERS: "cut off from its peers: gossip holds it dead, and Redis holds it live",
}
CUT_HINT = {
    Verdict.CUT_FROM_REDIS: "It takes no new tasks, and keeps what it runs until its lease is over. "
    "Mend its connection to Redis, or stop it.",
    Verdict.CUT_FROM_PEERS: "It keeps working. Mend its connection to its peers: UDP and TCP on its port.",
}


def cluster(view: View, owners: Sequence[str], events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`GET /cluster`."""
    leader = view.leader
    return {
        "node_id": view.node_id,
        "session": view.session,
        "members": [_member(peer) for peer in view.members],
        "leader": {"node_id": leader.node_id, "session": leader.session, "epoch": leader.epoch} if leader else None,
        "epoch": view.epoch,
        "shards": {str(shard): node for shard, node in enumerate(owners)},
        "events": list(events),
    }


def workers(view: View, running: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of `GET /workers`; `running` maps a session to the ids that it has in flight."""
    rows = []
    for peer in view.members:
        if peer.state in GONE or peer.meta is None:
            continue
        ids = sorted(running.get(peer.session, ()))
        queues: dict[str, dict[str, int]] = {}
        for queue, slots in peer.meta.queues.items():
            load = peer.load.queues.get(queue) if peer.load else None
            queues[queue] = {"slots": slots, "running": max(0, slots - load.free) if load else 0}
        rows.append(
            {
                "node_id": peer.node_id,
                "session": peer.session,
                "url": peer.public_url,
                "pid": peer.meta.pid,
                "version": peer.meta.version,
                "state": peer.state,
                "verdict": peer.verdict,
                "queues": queues,
                "running": len(ids),
                "tasks": ids,
            }
        )
    return rows


def head_count(view: View) -> dict[str, int]:
    """How many members are there, and how many this node knows."""
    return {"alive": sum(peer.state not in GONE for peer in view.members), "known": len(view.members)}


def problems(
    view: View,
    is_redis_up: bool,
    waiting_queues: Iterable[str],
    redis_notes: Iterable[Mapping[str, str]],
    refusal: Refusal | None = None,
    unhandled: Iterable[Unhandled] = (),
) -> list[dict[str, Any]]:
    """What is wrong, worst first: code, severity, message, hint.

    `refusal`: why Redis refuses the work of this node. `unhandled`: what waits and no live node can run.
    """
    return [
        *_redis_problems(view, is_redis_up, view.refusal or refusal),
        *_member_problems(view, is_redis_up),
        *_queue_problems(view, waiting_queues),
        *map(_handler_problem, unhandled),
        *({"severity": WARNING, **note} for note in redis_notes),
    ]


def _redis_problems(view: View, is_redis_up: bool, refusal: Refusal | None) -> Iterator[dict[str, str]]:
    """Whether Redis takes what nodes write, and whether there is a leader."""
    if refusal is not None and refusal.is_of_all:
        yield _problem(
            "redis_refuses",
            FATAL,
            f"Redis answers and refuses to write: {refusal.words}.",
            f"{refusal.hint} Meanwhile no task is accepted and none starts; running tasks go on, and nothing is lost.",
        )
    elif refusal is not None:
        yield _problem(
            "redis_refuses",
            FATAL,
            f"Redis answers and refuses this node: {refusal.words}.",
            f"{refusal.hint} Meanwhile this node starts no task and hands submissions to nodes that Redis serves.",
        )
    elif not is_redis_up:
        yield _problem(
            "redis_away",
            FATAL,
            "This node gets no answer from Redis.",
            "Check that Redis runs and that this node can reach it. Meanwhile submissions are forwarded or get 503.",
        )
    if view.leader is None:
        yield _problem(
            "no_leader", ERROR, "There is no leader.", "The nodes elect one as soon as Redis takes what they write."
        )


def _member_problems(view: View, is_redis_up: bool) -> Iterator[dict[str, str]]:
    """Members that are cut off or stalled."""
    for peer in view.members:
        if peer.verdict in CUT and is_redis_up:
            yield _problem(peer.verdict.value, ERROR, f"{peer.node_id} is {CUT[peer.verdict]}.", CUT_HINT[peer.verdict])
        if peer.load is not None and peer.load.stalled and peer.state not in GONE:
            yield _problem(
                "stalled",
                ERROR,
                f"{peer.node_id}'s event loop does not tick: a handler blocks it.",
                "Use a plain def (a child process) or executor='thread' for code that blocks.",
            )


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Tasks of a type and a queue that no live node can run; the first began to wait at `since_ms`."""

    queue: str
    type: str
    count: int
    since_ms: int


def unhandled(view: View, own: Mapping[str, tuple[int, int]], lacks: Callable[[str, str], bool]) -> list[Unhandled]:
    """What waits over the whole cluster, as gossip tells it, and no live node can run.

    `own`: what waits for a handler in this node's shards, by the queue's name (count, since). `lacks`: whether no live
    node can run tasks of this queue and type.
    """
    rows = [(name, count, since_ms) for name, (count, since_ms) in own.items()]
    for peer in view.members:
        if peer.node_id != view.node_id and peer.load is not None and peer.state not in GONE:
            rows += ((name, load.queued, load.head) for name, load in peer.load.queues.items() if load.queued)
    counts, since = Counter[tuple[str, str]](), dict[tuple[str, str], int]()
    for name, count, since_ms in rows:
        if (what := parked_of(name)) is not None:
            counts[what] += count
            since[what] = min(since_ms, since.get(what, since_ms))
    return [Unhandled(*what, counts[what], since[what]) for what in sorted(counts) if lacks(*what)]


def _handler_problem(row: Unhandled) -> dict[str, Any]:
    since = datetime.fromtimestamp(row.since_ms / 1000, UTC).isoformat(timespec="seconds")
    wait = f"{row.count:,} tasks of type {row.type!r} wait" if row.count > 1 else f"1 task of type {row.type!r} waits"
    problem = _problem(
        "type_unhandled",
        ERROR,
        f"{wait} since {since}: no live node that serves queue {row.queue!r} has a handler for it.",
        f"Start a node with --tasks and the module that has it, or cancel them (rumor tasks --type {row.type}).",
    )
    return {**problem, "type": row.type, "queue": row.queue, "count": row.count, "since_ms": row.since_ms}


def _queue_problems(view: View, waiting_queues: Iterable[str]) -> Iterator[dict[str, str]]:
    """Queues in which tasks wait and which no live node serves."""
    peers = [peer for peer in view.members if peer.is_able and peer.meta is not None]
    served = {queue for peer in peers if peer.meta for queue, slots in peer.meta.queues.items() if slots > 0}
    waiting = {name for peer in view.members if peer.load for name, load in peer.load.queues.items() if load.queued}
    for queue in sorted(waiting.union(waiting_queues)):
        if queue not in served and parked_of(queue) is None:
            yield _problem(
                "queue_unserved",
                ERROR,
                f"Tasks wait in queue {queue!r}, which no live node serves.",
                f"Start a node with --queues {queue}:SLOTS.",
            )


def _problem(code: str, severity: str, message: str, hint: str) -> dict[str, str]:
    return {"code": code, "severity": severity, "message": message, "hint": hint}


def status(problems: Iterable[Mapping[str, Any]]) -> str:
    """One word for all problems."""
    severities = (problem["severity"] for problem in problems)
    return STATUS[max(severities, key=[WARNING, ERROR, FATAL].index, default=None)]


def _member(peer: Peer) -> dict[str, Any]:
    return {
        "node_id": peer.node_id,
        "session": peer.session,
        "url": peer.public_url,
        "address": peer.url.partition("://")[2],
        "state": peer.state,
        "evidence": peer.evidence,
        "by": peer.by,
        "incarnation": peer.incarnation,
        "rtt_ms": None if peer.rtt_s is None else round(peer.rtt_s * 1000, 3),
        "redis": peer.redis,
        "redis_age_s": None if peer.redis_age_s is None else round(peer.redis_age_s, 2),
        "verdict": peer.verdict,
        "slots": None if peer.meta is None else dict(peer.meta.queues),
        "load": None if peer.load is None else _load(peer.load),
    }


def _load(load: Load) -> dict[str, Any]:
    return {
        "redis": load.redis,
        "stalled": load.stalled,
        "leaving": load.leaving,
        "running": load.running,
        "queues": {
            name: {"free": q.free, "queued": q.queued, "shards": q.shards.bit_count()}
            for name, q in load.queues.items()
        },
    }
