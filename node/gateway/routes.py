"""The route table: every call of the gateway once, with what it takes and answers.

To add a call, add its Route to ROUTES, and to `task_calls`, `cluster_calls` or `peer_calls` a method whose name is the
route's `operation`. Add a new struct of an answer to `openapi.TYPES`, and a new call of the engine to the protocol
beside the handlers and to tests/fake_engine.py. Then run `python scripts/docs_reference.py`: docs/http.md and
`/openapi.json` are made from this table, and so is the answer to a wrong path or method.

Does not know: handlers, aiohttp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from node import schema

EVERYBODY = "everybody"  # needs no token: an orchestrator's probes, and the pages, which contain no data
PEERS = "peers"  # needs the seal of the gossip key instead of a token
CALLERS = "callers"  # needs the API token; where none is set, any caller but a web page of another origin

COMMON_ERRORS = (400, 401, 403)
EXAMPLE_TASK = {
    "id": "01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f",
    "type": "process",
    "state": "queued",
    "queue": "sync",
    "priority": 5,
    "data": "Hello World",
    "attempt": 0,
    "max_attempts": 5,
    "delivery": 0,
    "submitted_at_ms": 1_800_000_000_000,
    "queued_at_ms": 1_800_000_000_000,
    "run_at_ms": None,
    "started_at_ms": None,
    "finished_at_ms": None,
    "node_id": None,
    "result": None,
    "error": None,
    "progress": None,
    "key": None,
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "rojo=00f067aa0ba902b7",
    "trace_url": "https://jaeger.example/trace/4bf92f3577b34da6a3ce929d0e0e4736",
    "history": [
        {
            "outcome": "retrying",
            "at_ms": 1_800_000_002_345,
            "started_at_ms": 1_800_000_002_000,
            "node_id": "10.0.0.2:5000",
            "session": "10.0.0.2:5000/01a3185c500-5e6f7a8b",
            "attempt": 1,
            "delivery": 1,
            "error": {"type": "Timeout", "message": "ran longer than 30 s"},
        }
    ],
}


@dataclass(frozen=True)
class Route:
    """One call. `answers` maps a status to a type; None is JSON of no fixed form, a string is a media type."""

    method: str
    path: str
    operation: str
    summary: str
    answers: Mapping[int, Any]
    query: type | None = None
    body: Any = None
    body_example: Any = None
    errors: tuple[int, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    for_whom: str = CALLERS
    is_public: bool = True  # described in /openapi.json

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the paths of this route."""
        return re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", self.path))


_SUBMIT = {
    "Idempotency-Key": "The same key gives the same task, whichever node the call reaches, for `idempotency_s`; with "
    "another body, or in a call of another kind, 422. 1 to 255 characters. Characters beyond ASCII are sent as UTF-8; "
    "HTTP takes away blanks at both ends.",
    "traceparent": "W3C trace context that the task belongs to; a malformed one is ignored.",
    "tracestate": "The W3C tracestate that goes with traceparent.",
}

_SUBMIT_BATCH = {
    **_SUBMIT,
    "Idempotency-Key": "The same key gives the same tasks, each known by its place in the body, whichever node the "
    "call reaches; 1 to 255 characters, as for one task. Repeat an array as an array and lines as lines: anything else "
    "is 422.",
}

ROUTES = (
    Route(
        "POST",
        "/tasks",
        "submit",
        "Submit a task; with wait_s, answer when it is finished",
        {202: schema.TaskJson, 200: schema.TaskJson},
        schema.SubmitQuery,
        body=schema.Submission,
        body_example={"type": "process", "data": "Hello World"},
        errors=(408, 413, 422, 429, 503),
        headers=_SUBMIT,
    ),
    Route(
        "POST",
        "/tasks/batch",
        "submit_batch",
        "Submit many tasks; an NDJSON body is streamed, and answered in NDJSON",
        {200: schema.BatchJson},
        body=list[schema.Submission],
        body_example=[{"type": "process", "data": n} for n in (1, 2)],
        errors=(408, 413, 422, 429, 503),
        headers=_SUBMIT_BATCH,
    ),
    Route(
        "GET",
        "/tasks",
        "list_tasks",
        "List tasks, newest first",
        {200: schema.TaskList},
        schema.ListQuery,
        errors=(429, 503),
    ),
    Route(
        "GET",
        "/tasks/{id}",
        "get_task",
        "Read a task, now or when it is finished",
        {200: schema.TaskJson},
        schema.TaskQuery,
        errors=(404, 503),
    ),
    Route(
        "DELETE",
        "/tasks/{id}",
        "cancel",
        "Cancel a task, running or not",
        {200: schema.TaskJson},
        errors=(404, 409, 503),
    ),
    Route(
        "POST",
        "/tasks/{id}/retry",
        "retry",
        "Queue a dead or cancelled task again, with a fresh budget of attempts",
        {200: schema.TaskJson},
        errors=(404, 409, 503),
    ),
    Route(
        "POST",
        "/dead/replay",
        "replay",
        "Queue dead tasks again: all of them, those of one type, or up to a number",
        {200: schema.Replayed},
        body=schema.Replay,
        body_example={"type": "process", "limit": 100},
        errors=(408, 413, 422, 503),
    ),
    Route("DELETE", "/dead", "purge_dead", "Remove all dead tasks", {200: schema.Removed}, errors=(503,)),
    Route("GET", "/workers", "workers", "The live nodes and the tasks that they run", {200: None}, errors=(503,)),
    Route(
        "GET",
        "/cluster",
        "cluster",
        "The cluster as this node sees it: members, leader, shards",
        {200: None},
        schema.ClusterQuery,
    ),
    Route(
        "GET",
        "/events",
        "events",
        "Server-sent events: the cluster's timeline so far and as it goes on; task sums once a second",
        {200: "text/event-stream"},
        errors=(429,),
        headers={
            "Last-Event-ID": "Continue after this event of the same node; without it, begin with all that are kept."
        },
    ),
    Route(
        "GET",
        "/sums",
        "sums",
        "Task sums of the last ten minutes in steps of five seconds: outcomes, waiting times and run times",
        {200: None},
        errors=(503,),
    ),
    Route("GET", "/health", "health", "Whether this node is usable, and what is wrong", {200: None, 503: None}),
    Route("GET", "/livez", "livez", "Whether the process works", {200: None, 503: None}, for_whom=EVERYBODY),
    Route("GET", "/readyz", "readyz", "Whether the node takes work", {200: None, 503: None}, for_whom=EVERYBODY),
    Route("GET", "/metrics", "metrics", "Prometheus metrics", {200: "text/plain"}),
    Route("GET", "/openapi.json", "openapi", "This description", {200: None}),
    Route("GET", "/docs", "docs", "This description, for people", {200: "text/html"}, for_whom=EVERYBODY),
    Route("GET", "/", "page", "A page about this cluster", {200: "text/html"}, for_whom=EVERYBODY),
    Route("POST", "/gossip", "gossip", "Exchange member tables", {200: bytes}, for_whom=PEERS, is_public=False),
    Route("GET", "/gossip/watch", "watch", "Hold a connection", {200: bytes}, for_whom=PEERS, is_public=False),
    Route("POST", "/gossip/submit", "take_over", "Store for a peer", {200: bytes}, is_public=False),
)


def methods_of(path: str) -> tuple[str, ...]:
    """The methods that this path takes; none if there is no such path.

    A path that stands in the table is never read as another route's path with an id in it.
    """
    routes = [route for route in ROUTES if route.path == path]
    routes = routes or [route for route in ROUTES if route.pattern.fullmatch(path)]
    return tuple(route.method for route in routes)
