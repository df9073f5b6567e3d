"""A storm of tasks from many clients through every node of a running cluster; then everything is counted.

    python tests/stress_test.py --url http://127.0.0.1:5000 --tasks 2000

Kill, pause and restart nodes while it runs: that is what it is for. It holds four counts against each other: what was
accepted, what became of each accepted task, how often each was delivered, and what the nodes say on `/metrics`.
Exit status: 0 when nothing was lost, stored twice or committed twice and every task ended as it should; 1 when not;
2 when there was nothing to test (no node answers, or the command line makes no sense).

A failed submission is one of two kinds. *Definite*: it certainly did not happen (the connection was refused, the node
said no); it is made again anywhere. *Indefinite*: it may have happened (the connection broke, no answer in time, 5xx);
it is made again only under the same Idempotency-Key. Without keys such tasks are counted as of unknown fate.

pytest collects this file as a small test of the same on a cluster of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from tests.processes import LaunchedCluster

CALL_LIMIT_S = 10.0  # one HTTP call, beyond what it was asked to wait
WAIT_S = 5.0  # a watcher's long poll
AVOID_S = 1.0  # a node that refused a connection is left alone this long
LOOK_INTERVAL_S = 2.0  # between looks at GET /workers for nodes that came or went
PAUSE_S = 0.1  # before another try
COUNTERS_LIMIT_S = 3.0  # a commit is counted when its answer is in, a little after it can be read
LINE_INTERVAL_S = 2.0  # progress without a terminal
TERMINAL = ("succeeded", "dead", "cancelled")
PASSING = {
    "queue_full": False,
    "store_unavailable": True,
}  # errors that pass -> whether it may have happened all the same
COUNTED = ("rumor_tasks_accepted_total", "rumor_task_commits_total", "rumor_task_refused_total")
SAMPLE = re.compile(r'^(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$')


class NothingToTest(Exception):
    """No node answers, or none of them could be asked."""


@dataclass(frozen=True)
class Plan:
    """What to do. Seconds are wall time."""

    url: str = os.environ.get("RUMOR_URL") or f"http://127.0.0.1:{os.environ.get('RUMOR_BASE_PORT', '5000')}"
    tasks: int = 2000
    clients: int = 32
    batch: int = 50  # tasks in a batch
    batch_share: float = 0.5  # of the tasks, how many go in batches
    idempotency: bool = True
    is_shared: bool = False  # others use the cluster too: its counters say nothing about this run
    limit_s: float = 300.0  # for the whole run
    seed: int = 0
    token: str = ""


# ---- what is submitted


@dataclass(slots=True)
class Wanted:
    """One task, how it should end and after how many deliveries if no node dies; then what became of it."""

    body: dict[str, Any]
    end: str
    deliveries: int
    ids: set[str] = field(default_factory=set)  # more than one: stored twice
    queued_at_ms: int | None = None  # the first time
    is_unknown: bool = False  # an indefinite failure without a key to repeat it under
    refusal: str = ""
    last: dict[str, Any] | None = None  # the task as last read
    is_missing: bool = False  # accepted, and then no node knew it

    @property
    def is_accepted(self) -> bool:
        return bool(self.ids)

    @property
    def has_ended(self) -> bool:
        return self.last is not None and self.last["state"] in TERMINAL


KINDS: tuple[tuple[int, Callable[[random.Random, int], Wanted]], ...] = (  # (share in percent, what)
    (50, lambda rng, n: Wanted({"type": "noop", "data": {"n": n}}, "succeeded", 1)),
    (25, lambda rng, n: Wanted({"type": "process", "data": f"stress {n}"}, "succeeded", 1)),
    (15, lambda rng, n: Wanted({"type": "sleep", "data": round(rng.uniform(0.005, 0.2), 3)}, "succeeded", 1)),
    (7, lambda rng, n: Wanted(failing(n, 1, 5), "succeeded", 2)),
    (3, lambda rng, n: Wanted(failing(n, None, 2), "dead", 2)),
)


def failing(n: int, times: int | None, max_attempts: int) -> dict[str, Any]:
    """A task that fails the first `times` attempts (None: always)."""
    data = {"message": f"stress {n} fails as asked", "times": times}
    return {"type": "fail", "data": data, "max_attempts": max_attempts, "backoff": {"base_s": 0.1, "max_s": 0.5}}


@dataclass(slots=True)
class Parcel:
    """What goes in one POST."""

    items: list[Wanted]
    is_batch: bool
    key: str | None


def parcels(plan: Plan) -> list[Parcel]:
    """The whole workload, singles and batches mixed; the same for the same seed, but for the keys."""
    rng = random.Random(plan.seed)
    shares = [share for share, _ in KINDS]
    makers = rng.choices([make for _, make in KINDS], shares, k=plan.tasks)
    wanted = [make(rng, n) for n, make in enumerate(makers)]
    in_batches = int(plan.tasks * plan.batch_share)
    run = uuid.uuid4().hex[:12]
    groups = [wanted[at : min(at + plan.batch, in_batches)] for at in range(0, in_batches, plan.batch)]
    made = [Parcel(group, True, None) for group in groups] + [Parcel([one], False, None) for one in wanted[in_batches:]]
    rng.shuffle(made)
    if plan.idempotency:
        for n, parcel in enumerate(made):
            parcel.key = f"stress-{run}-{n}"
    return made


# ---- the nodes


class Nodes:
    """The nodes of the cluster as found so far, and which of them to ask next."""

    def __init__(self, http: aiohttp.ClientSession, first: str) -> None:
        self.http = http
        self.first = first.rstrip("/")
        self.urls: list[str] = []
        self._avoided: dict[str, float] = {}
        self._turn = itertools.count()

    async def find(self) -> list[dict[str, Any]]:
        """Ask any node for all of them; the rows of GET /workers. Raises NothingToTest if none answers."""
        reasons = []
        for url in dict.fromkeys((*self.urls, self.first)):
            try:
                status, answer = await call(self.http, "GET", f"{url}/workers")
            except (aiohttp.ClientError, TimeoutError) as error:
                reasons.append(f"{url}: {error or type(error).__name__}")
                continue
            if status == 200:
                rows: list[dict[str, Any]] = answer["workers"]
                self.urls = sorted({*(row["url"] for row in rows), *self.urls})
                return rows
            reasons.append(f"{url}: {status} {told(answer)}")
        raise NothingToTest("no node answers GET /workers:\n  " + "\n  ".join(reasons))

    def next(self) -> str:
        """The next one in turn that has not just refused a connection; any, if all have."""
        now_s = time.monotonic()
        for _ in self.urls:
            url = self.urls[next(self._turn) % len(self.urls)]
            if self._avoided.get(url, 0.0) <= now_s:
                return url
        return self.urls[next(self._turn) % len(self.urls)]

    def avoid(self, url: str) -> None:
        """This one does not take connections, or does not answer in time."""
        self._avoided[url] = time.monotonic() + AVOID_S

    async def keep_looking(self) -> None:
        """Notice nodes that are added while the storm blows."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            with contextlib.suppress(NothingToTest):
                await self.find()


async def call(http: aiohttp.ClientSession, method: str, url: str, wait_s: float = 0.0, **more: Any) -> tuple[int, Any]:
    """(status, answer as JSON or text)."""
    limit = aiohttp.ClientTimeout(total=CALL_LIMIT_S + wait_s, sock_connect=2.0)
    async with http.request(method, url, timeout=limit, **more) as response:
        body = await response.read()
        is_json = response.content_type == "application/json"
        return response.status, json.loads(body) if is_json else body.decode("utf-8", "replace")


def told(answer: Any) -> str:
    """What an error answer says."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return f"{error['code']}: {error['message']}" if isinstance(error, dict) else str(answer)[:200]


# ---- the storm


class Storm:
    """One run: submits, waits, and knows what happened."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession, show: Callable[[str, int, int], None]) -> None:
        self.plan = plan
        self.nodes = Nodes(http, plan.url)
        self.parcels = parcels(plan)
        self.wanted = [one for parcel in self.parcels for one in parcel.items]
        self.failures: Counter[str] = Counter()  # of submissions, by kind
        self.call_s: list[float] = []  # answered submissions
        self.submit_s = 0.0
        self.counters: Counters | None = None
        self._http = http
        self._show = show
        self._end_s = time.monotonic() + plan.limit_s

    async def run(self) -> None:
        """Raises NothingToTest if there is no cluster."""
        before = await read_counters(self.nodes)
        looking = asyncio.create_task(self.nodes.keep_looking())
        try:
            began_s = time.monotonic()
            await self._each(
                "submitting", self.parcels, self._submit, lambda parcel: len(parcel.items), len(self.wanted)
            )
            self.submit_s = time.monotonic() - began_s
            accepted = [one for one in self.wanted if one.is_accepted]
            await self._each("waiting for the end", accepted, self._watch, lambda one: 1, len(accepted))
            # What was run again is read once more: a second commit would have changed how it ended.
            again = [one for one in accepted if one.has_ended and one.last and one.last["delivery"] > one.deliveries]
            await self._each("reading again", again, self._read_again, lambda one: 1, len(again))
            await self._read_counters(before)
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    async def _each(
        self,
        what: str,
        things: Sequence[Any],
        act: Callable[[Any], Awaitable[None]],
        weight: Callable[[Any], int],
        total: int,
    ) -> None:
        """`act` on each, from as many clients at once as the plan says."""
        left = iter(things)
        done = 0
        self._show(what, 0, total)

        async def client() -> None:
            nonlocal done
            for thing in left:
                await act(thing)
                done += weight(thing)
                self._show(what, done, total)

        async with asyncio.TaskGroup() as clients:
            for _ in range(min(self.plan.clients, len(things))):
                clients.create_task(client())

    # Submitting

    async def _submit(self, parcel: Parcel) -> None:
        """Until it is accepted or refused for good, or its fate is unknown."""
        left = parcel.items
        while left and self.left_s > 0:
            url = self.nodes.next()
            began_s = time.monotonic()
            try:
                status, answer = await self._post(url, parcel, left)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                self.failures["definite: no connection"] += 1
                self.nodes.avoid(url)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failures[f"indefinite: {type(error).__name__}"] += 1
                self.nodes.avoid(url)
                left = self._unsure(parcel, left)
            else:
                self.call_s.append(time.monotonic() - began_s)
                left = self._heard(parcel, left, status, answer)
            if left:
                await asyncio.sleep(PAUSE_S)
        for one in left:
            one.refusal = "no answer before the time was up"

    async def _post(self, url: str, parcel: Parcel, items: list[Wanted]) -> tuple[int, Any]:
        headers = {"Idempotency-Key": parcel.key} if parcel.key else {}
        if parcel.is_batch:
            return await call(
                self._http, "POST", f"{url}/tasks/batch", json=[one.body for one in items], headers=headers
            )
        return await call(self._http, "POST", f"{url}/tasks", json=items[0].body, headers=headers)

    def _unsure(self, parcel: Parcel, items: list[Wanted]) -> list[Wanted]:
        """After an indefinite failure: what may be sent again."""
        if parcel.key:
            return items
        for one in items:
            one.is_unknown = True
        return []

    def _heard(self, parcel: Parcel, items: list[Wanted], status: int, answer: Any) -> list[Wanted]:
        """Note what a node said; what must be sent again."""
        if status in (200, 202):
            return self._take(parcel, items, answer["results"] if parcel.is_batch else [answer])
        if status == 429:
            self.failures["definite: 429"] += 1
            return items
        if status >= 500:
            self.failures[f"indefinite: {status}"] += 1
            return self._unsure(parcel, items)
        for one in items:
            one.refusal = f"{status} {told(answer)}"
        return []

    def _take(self, parcel: Parcel, items: list[Wanted], rows: list[dict[str, Any]]) -> list[Wanted]:
        """The same for an answer that speaks of each task."""
        again = []
        for one, row in zip(items, rows, strict=True):
            if "id" in row:
                one.ids.add(row["id"])
                if one.queued_at_ms is None and row["delivery"] <= 1:
                    one.queued_at_ms = row["queued_at_ms"]
            elif row["error"]["code"] not in PASSING:
                one.refusal = told(row)
            else:
                self.failures[f"in a batch: {row['error']['code']}"] += 1
                again += self._unsure(parcel, [one]) if PASSING[row["error"]["code"]] else [one]
        # With a key the whole of it, since a task's place in its batch is part of its key.
        return items if again and parcel.key else again

    # Waiting

    async def _watch(self, one: Wanted) -> None:
        """Until it has ended, is missing twice, or the time is up."""
        for task_id in sorted(one.ids):
            misses = 0
            while misses < 2:
                row = await self._read(task_id, min(WAIT_S, max(0.0, self.left_s)))
                if row is None:
                    misses += 1
                else:
                    one.last = row
                if one.has_ended or self.left_s <= 0:
                    break
            one.is_missing = one.is_missing or misses >= 2

    async def _read_again(self, one: Wanted) -> None:
        before = one.last
        assert before is not None
        row = await self._read(before["id"], 0.0)
        if row is None:
            one.is_missing = True
        elif any(row[name] != before[name] for name in ("state", "finished_at_ms", "node_id", "result")):
            self.failures["ended twice"] += 1

    async def _read(self, task_id: str, wait_s: float) -> dict[str, Any] | None:
        """The task from whichever node answers; None if there is no such task."""
        while True:
            url = self.nodes.next()
            try:
                status, answer = await call(
                    self._http, "GET", f"{url}/tasks/{task_id}", wait_s, params={"wait_s": f"{wait_s:.1f}"}
                )
            except (aiohttp.ClientError, TimeoutError):
                self.nodes.avoid(url)
            else:
                if status == 200:
                    found: dict[str, Any] = answer
                    return found
                if status == 404:
                    return None
            if self.left_s <= 0:
                raise NothingToTest("the time is up, and no node answers any more.")
            await asyncio.sleep(PAUSE_S)

    async def _read_counters(self, before: Samples) -> None:
        """What the nodes counted meanwhile; waits a moment for the last commits to be counted."""
        ended = Counter(one.last["state"] for one in self.wanted if one.has_ended and one.last)
        end_s = time.monotonic() + COUNTERS_LIMIT_S
        while True:
            self.counters = Counters.between(before, await read_counters(self.nodes))
            enough = all(self.counters.commits[state] >= ended[state] for state in ("succeeded", "dead"))
            if enough or self.counters.is_partial or time.monotonic() > end_s:
                return
            await asyncio.sleep(PAUSE_S)


# ---- what the nodes counted

Samples = dict[tuple[str, int], dict[tuple[str, str], float]]  # (url, pid) -> (name, label) -> value


async def read_counters(nodes: Nodes) -> Samples:
    """The counters of every node that answers, by process: a node that was started again counts from 0."""
    found: Samples = {}
    for row in await nodes.find():
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            status, text = await call(nodes.http, "GET", f"{row['url']}/metrics")
            if status != 200:
                continue
            samples = (SAMPLE.match(line) for line in text.splitlines())
            found[row["url"], row["pid"]] = {
                (match[1], match[2] or ""): float(match[3]) for match in samples if match and match[1] in COUNTED
            }
    return found


@dataclass
class Counters:
    """What all nodes together counted between two readings."""

    accepted: int = 0
    commits: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    is_partial: bool = False  # a node went and took its counters along

    @staticmethod
    def between(before: Samples, after: Samples) -> Counters:
        made = Counters(is_partial=not set(before) <= set(after))
        for process, samples in after.items():
            earlier = before.get(process, {})
            for (name, label), value in samples.items():
                more = round(value - earlier.get((name, label), 0.0))
                if name == "rumor_tasks_accepted_total":
                    made.accepted += more
                elif name == "rumor_task_commits_total":
                    made.commits[label] += more
                else:
                    made.refused[label] += more
        return made


# ---- the reckoning


@dataclass
class Report:
    """What came of it. `problems` are what must not be; empty: the cluster kept its word."""

    submitted: int
    accepted: int = 0
    unknown: int = 0
    refused: int = 0
    succeeded: int = 0
    dead_as_intended: int = 0
    ended_otherwise: int = 0
    lost: int = 0
    unfinished: int = 0
    stored_twice: int = 0
    run_again: int = 0
    by_node: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    counted: dict[str, Any] = field(default_factory=dict)
    submit_per_s: float = 0.0
    complete_per_s: float = 0.0
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def reckon(storm: Storm) -> Report:
    """Hold everything against everything."""
    wanted = storm.wanted
    accepted = [one for one in wanted if one.is_accepted]
    ended = [(one, one.last) for one in accepted if one.last is not None and one.has_ended]
    as_wished = [(one, last) for one, last in ended if last["state"] == one.end]
    report = Report(
        submitted=len(wanted),
        accepted=len(accepted),
        unknown=sum(one.is_unknown for one in wanted),
        refused=sum(bool(one.refusal) and not one.is_accepted for one in wanted),
        succeeded=sum(last["state"] == "succeeded" for _, last in ended),
        dead_as_intended=sum(last["state"] == "dead" for _, last in as_wished),
        ended_otherwise=len(ended) - len(as_wished),
        lost=sum(one.is_missing for one in accepted),
        unfinished=sum(not one.has_ended and not one.is_missing for one in accepted),
        stored_twice=sum(len(one.ids) > 1 for one in accepted),
        run_again=sum(last["delivery"] > one.deliveries for one, last in ended),
        by_node=dict(sorted(Counter(str(last["node_id"]) for _, last in ended).items())),
        failures=dict(storm.failures),
        submit_per_s=len(accepted) / storm.submit_s if storm.submit_s else 0.0,
    )
    queued = [one.queued_at_ms for one, _ in ended if one.queued_at_ms is not None]
    if queued:
        span_ms = max(last["finished_at_ms"] for _, last in ended) - min(queued)
        report.complete_per_s = len(ended) / max(span_ms, 1) * 1000
    report.latency_ms = {
        "queue wait": percentiles(
            [last["started_at_ms"] - last["queued_at_ms"] for _, last in ended if last["delivery"] == 1]
        ),
        "end to end": percentiles(
            [last["finished_at_ms"] - one.queued_at_ms for one, last in ended if one.queued_at_ms is not None]
        ),
        "POST answered": percentiles([call_s * 1000 for call_s in storm.call_s]),
    }
    find_problems(report, storm, [one for one, last in ended if last["state"] != one.end])
    return report


def find_problems(report: Report, storm: Storm, otherwise: Sequence[Wanted]) -> None:
    """What must not be goes into `problems`, what a reader should know into `notes`."""
    say = report.problems.append
    if report.lost:
        say(f"{report.lost} accepted tasks are gone: {some(one.ids for one in storm.wanted if one.is_missing)}")
    if report.unfinished:
        left = (one.ids for one in storm.wanted if one.is_accepted and not one.has_ended and not one.is_missing)
        say(f"{report.unfinished} accepted tasks have not ended within {storm.plan.limit_s:g} s: {some(left)}")
    if report.stored_twice:
        say(f"{report.stored_twice} tasks were stored twice: {some(o.ids for o in storm.wanted if len(o.ids) > 1)}")
    if otherwise:
        what = Counter(f"{one.body['type']} is {one.last and one.last['state']}" for one in otherwise)
        say(f"{len(otherwise)} tasks did not end as they should, {dict(what)}: {some(one.ids for one in otherwise)}")
    if report.refused:
        reasons = Counter(one.refusal for one in storm.wanted if one.refusal and not one.is_accepted)
        say(f"{report.refused} tasks were refused: {dict(reasons.most_common(3))}")
    if report.failures.get("ended twice"):
        say(f"{report.failures['ended twice']} tasks were committed again after they had ended")
    counted = storm.counters
    if counted is None:
        return
    report.counted = {name: dict(of) if isinstance(of, Counter) else of for name, of in vars(counted).items()}
    if storm.plan.is_shared:
        report.notes.append("others use this cluster too: its counters are not held against this run")
        return
    # A gateway that died in the middle of a call counts nothing; so fewer is possible, more is not.
    if counted.accepted > report.accepted + report.unknown:
        say(f"the gateways stored {counted.accepted} tasks, and {report.accepted} were accepted from here")
    for state, here in (("succeeded", report.succeeded), ("dead", None)):
        here = here if here is not None else sum(1 for o in storm.wanted if o.last and o.last["state"] == "dead")
        if counted.commits[state] > here + report.unknown:
            say(f"{counted.commits[state]} commits of {state}, and {here} tasks are: some were committed twice")
        elif counted.commits[state] < here and not counted.is_partial:
            report.notes.append(f"{counted.commits[state]} commits of {state} are counted, and {here} tasks are")
    if counted.is_partial:
        report.notes.append("a node went and took its counters along: the nodes' counts are lower bounds")


def some(ids: Iterator[Collection[str]] | Any) -> str:
    """A few ids to look at."""
    first = list(itertools.islice((" = ".join(sorted(group)) for group in ids), 4))
    return ", ".join(first[:3]) + (", …" if len(first) > 3 else "")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max; {} of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {name: ordered[min(len(ordered) - 1, int(len(ordered) * p))] for name, p in PERCENTILES}
    return {**at, "max": ordered[-1]}


PERCENTILES = (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))


# ---- showing it


def render(report: Report, console: Console) -> None:
    """The tables and the verdict."""
    table = Table("tasks", "count", title="Stress test", title_justify="left")
    table.columns[1].justify = "right"
    rows: list[tuple[str, int]] = [
        ("submitted", report.submitted),
        ("accepted", report.accepted),
        ("succeeded", report.succeeded),
        ("dead, as intended", report.dead_as_intended),
        ("ended otherwise than intended", report.ended_otherwise),
        ("lost", report.lost),
        ("not ended in time", report.unfinished),
        ("stored twice", report.stored_twice),
        ("delivered again (their node died)", report.run_again),
        ("refused", report.refused),
        ("of unknown fate (no key, no answer)", report.unknown),
    ]
    rows += [(f"executed by {node}", count) for node, count in report.by_node.items()]
    rows += [(f"failed submissions, {kind}", count) for kind, count in sorted(report.failures.items())]
    for name, of in report.counted.items():
        if isinstance(of, dict):
            rows += [(f"nodes counted, {name} {label}", count) for label, count in of.items()]
        elif name == "accepted":
            rows.append(("nodes counted, accepted", of))
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    console.print(table)

    speed = Table("", "p50", "p95", "p99", "max", title="Milliseconds", title_justify="left")
    for column in speed.columns[1:]:
        column.justify = "right"
    for name, values in report.latency_ms.items():
        speed.add_row(name, *(f"{values[level]:,.1f}" for level in ("p50", "p95", "p99", "max") if values))
    console.print(speed)
    console.print(f"submitted {report.submit_per_s:,.0f} tasks/s, completed {report.complete_per_s:,.0f} tasks/s")
    for note in report.notes:
        console.print(f"note: {note}", highlight=False)
    for problem in report.problems:
        console.print(f"PROBLEM: {problem}", style="red", highlight=False)
    if not report.problems:
        console.print("Nothing was lost, stored twice or committed twice.", style="green", highlight=False)


@contextlib.contextmanager
def progress_on(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on a terminal, a line now and then elsewhere."""
    if console.is_terminal:
        columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as bars:
            stages: dict[str, Any] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in stages:
                    stages[what] = bars.add_task(what, total=total)
                bars.update(stages[what], completed=done)

            yield show
        return
    said_s = 0.0

    def say(what: str, done: int, total: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if done == total or now_s > said_s + LINE_INTERVAL_S:
            said_s = now_s
            console.print(f"{what}: {done}/{total}", highlight=False)

    yield say


async def stress(plan: Plan, show: Callable[[str, int, int], None] = lambda what, done, total: None) -> Report:
    """Run the plan against a running cluster. Raises NothingToTest if there is none."""
    headers = {"Authorization": f"Bearer {plan.token}"} if plan.token else {}
    connector = aiohttp.TCPConnector(limit=plan.clients * 2)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        storm = Storm(plan, http, show)
        try:
            # Every loop ends at the plan's own limit; this one is for a call that hangs beyond it.
            async with asyncio.timeout(plan.limit_s + CALL_LIMIT_S + WAIT_S):
                await storm.run()
        except ExceptionGroup as group:
            nothing = group.subgroup(NothingToTest)
            if nothing is None:
                raise
            raise nothing.exceptions[0] from None
        return reckon(storm)


def arguments(argv: Sequence[str] | None) -> tuple[Plan, Path | None]:
    """The plan, and where to write the report as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=Plan.url, help="any node; the others are found through it (%(default)s)")
    parser.add_argument("--tasks", type=int, default=Plan.tasks, help="how many (%(default)s)")
    parser.add_argument("--clients", type=int, default=Plan.clients, help="calls at a time (%(default)s)")
    parser.add_argument("--batch", type=int, default=Plan.batch, help="tasks in a batch (%(default)s)")
    parser.add_argument(
        "--batch-share", type=float, default=Plan.batch_share, help="tasks sent in batches (%(default)s)"
    )
    parser.add_argument(
        "--idempotency",
        action=argparse.BooleanOptionalAction,
        default=Plan.idempotency,
        help="send an Idempotency-Key with each call, so that it can be repeated after any failure",
    )
    parser.add_argument("--shared", action="store_true", help="others use the cluster too: do not check its counters")
    parser.add_argument("--limit-s", type=float, default=Plan.limit_s, help="for the whole run (%(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of the mix (%(default)s)")
    parser.add_argument("--token", default=os.environ.get("RUMOR_API_TOKEN", ""), help="[env: RUMOR_API_TOKEN]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there, too")
    options = parser.parse_args(argv)
    if min(options.tasks, options.clients, options.batch) < 1 or not 0 <= options.batch_share <= 1:
        parser.error("--tasks, --clients and --batch are at least 1, and --batch-share is between 0 and 1")
    return (
        Plan(
            url=options.url if "://" in options.url else f"http://{options.url}",
            tasks=options.tasks,
            clients=options.clients,
            batch=options.batch,
            batch_share=options.batch_share,
            idempotency=options.idempotency,
            is_shared=options.shared,
            limit_s=options.limit_s,
            seed=options.seed,
            token=options.token,
        ),
        options.json,
    )


def main(argv: Sequence[str] | None = None) -> int:
    plan, path = arguments(argv)
    console = Console()
    try:
        with progress_on(console) as show:
            report = asyncio.run(stress(plan, show))
    except NothingToTest as error:
        print(f"stress test: {error}\n  Start a cluster: scripts/launch_cluster.sh 3 --detach", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    render(report, console)
    if path is not None:
        path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", "utf-8")
    return 1 if report.problems else 0


# ---- as a test


async def test_a_storm_through_all_nodes_loses_nothing_and_commits_once(
    cluster: Callable[..., LaunchedCluster],
) -> None:
    one = cluster(nodes=3, drain_s=1)
    report = await stress(Plan(url=one.url(2), tasks=300, clients=16, batch=20, limit_s=60))
    assert report.problems == [], report
    assert report.accepted == 300, report
    assert report.counted["accepted"] == 300, report
    assert report.run_again == 0, report
    assert len(report.by_node) == 3, report


async def test_a_node_that_is_killed_in_the_storm_takes_nothing_along(cluster: Callable[..., LaunchedCluster]) -> None:
    one = cluster(nodes=3, drain_s=1)
    is_killed = asyncio.Event()

    def show(what: str, done: int, total: int) -> None:
        if done > 100:
            is_killed.set()

    async def kill() -> None:
        await is_killed.wait()
        await asyncio.to_thread(one.kill, 2)

    killing = asyncio.create_task(kill())
    report = await stress(Plan(url=one.url(1), tasks=1000, clients=16, batch=20, limit_s=60), show)
    await killing
    assert report.problems == [], report
    assert report.accepted == 1000, report


async def test_without_a_node_that_answers_there_is_a_clear_error() -> None:
    import pytest  # as a script this needs aiohttp and rich alone

    with pytest.raises(NothingToTest, match=r"http://127\.0\.0\.1:9: "):
        await stress(Plan(url="http://127.0.0.1:9", tasks=1, limit_s=5))


if __name__ == "__main__":
    sys.exit(main())
