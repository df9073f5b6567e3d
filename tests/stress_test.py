"""A storm of tasks from many clients through every node of a running cluster; at the end it counts everything.

    python tests/stress_test.py --url http://127.0.0.1:5000 --tasks 2000

Kill, pause and restart nodes while it runs, and let others use the cluster: it counts its own tasks alone, which carry
a tag of this run in their data. It compares the accepted tasks, those that the cluster's lists show under the tag, how
each of them ended at two readings, and what became of each delivery. With --alone it also compares the nodes' counters
on `/metrics`, which count everybody's tasks. Exit status: 0 when nothing was lost, stored twice or committed twice and
every task ended as it should; 1 otherwise; 2 when there was nothing to test (no node answers, or the command line makes
no sense).

A failed submission is of one of two kinds. *Definite*: it certainly did not happen (the connection was refused, the
node said no); the client sends it again to any node. *Indefinite*: it may have happened (the connection broke, no
answer in time, 5xx); the client sends it again only with the same Idempotency-Key. Without a key its fate is unknown.

pytest runs this file as a small test on a cluster of its own.
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

CALL_LIMIT_S = 10.0  # limit of one HTTP call, beyond its wait_s
WAIT_S = 5.0  # a watcher's long poll
AVOID_S = 1.0  # time without requests to a node that refused a connection
LOOK_INTERVAL_S = 2.0  # interval between looks at GET /workers for nodes that joined or left
PAUSE_S = 0.1  # pause before the next attempt
COUNTERS_LIMIT_S = 3.0  # time for the counters: a node counts a commit a little after others can read it
LINE_INTERVAL_S = 2.0  # interval of progress lines without a terminal
TERMINAL = ("succeeded", "dead", "cancelled")
PASSING = {
    "queue_full": False,
    "store_unavailable": True,
}  # errors that pass -> whether the submission may have happened
LIST_LIMIT = 500  # tasks on a page of the cluster's lists
LIST_SLACK_MS = 60_000  # how far the gateways' clocks may differ
HISTORY_MAX = 20  # lines of history after which a task forgets its oldest attempts
COUNTED = ("rumor_tasks_accepted_total", "rumor_task_commits_total", "rumor_task_refused_total")
SAMPLE = re.compile(r'^(\w+)(?:\{\w+="([^"]*)"\})? (\S+)$')


class NothingToTest(Exception):
    """No node answers."""


@dataclass(frozen=True)
class Plan:
    """The parameters of a run. Seconds are wall time."""

    url: str = os.environ.get("RUMOR_URL") or f"http://127.0.0.1:{os.environ.get('RUMOR_BASE_PORT', '5000')}"
    tasks: int = 2000
    clients: int = 32
    batch: int = 50  # tasks in a batch
    batch_share: float = 0.5  # share of the tasks that go in batches
    idempotency: bool = True
    is_alone: bool = False  # nobody else uses the cluster: its counters must say the same as this run
    limit_s: float = 300.0  # for the whole run
    seed: int = 0
    token: str = ""
    run: str = field(default_factory=lambda: f"stress-{uuid.uuid4().hex[:12]}")  # the tag of its tasks


# ---- the tasks


@dataclass(slots=True)
class PlannedTask:
    """One task: how it should end, and after how many deliveries if no node dies; then how it ended."""

    body: dict[str, Any]
    end: str
    deliveries: int
    ids: set[str] = field(default_factory=set)  # that the nodes answered; more than one: stored twice
    listed: set[str] = field(default_factory=set)  # that the cluster's lists show
    queued_at_ms: int | None = None  # time of its first queueing
    is_unknown: bool = False  # after an indefinite failure without a key
    refusal: str = ""
    last: dict[str, Any] | None = None  # the task as last read
    is_missing: bool = False  # accepted, but later no node knew it
    untraced: set[int] = field(default_factory=set)  # deliveries of which its history says nothing

    @property
    def is_accepted(self) -> bool:
        return bool(self.ids)

    @property
    def has_ended(self) -> bool:
        return self.last is not None and self.last["state"] in TERMINAL


KINDS: tuple[tuple[int, Callable[[random.Random, str], PlannedTask]], ...] = (  # (share in percent, maker)
    (50, lambda rng, tag: PlannedTask({"type": "noop", "data": {"tag": tag}}, "succeeded", 1)),
    (25, lambda rng, tag: PlannedTask({"type": "process", "data": tag}, "succeeded", 1)),
    (15, lambda rng, tag: PlannedTask(sleeping(tag, round(rng.uniform(0.005, 0.2), 3)), "succeeded", 1)),
    (7, lambda rng, tag: PlannedTask(failing(tag, 1, 5), "succeeded", 2)),
    (3, lambda rng, tag: PlannedTask(failing(tag, None, 2), "dead", 2)),
)
TYPES = ("noop", "process", "sleep", "fail")


def sleeping(tag: str, seconds: float) -> dict[str, Any]:
    return {"type": "sleep", "data": {"seconds": seconds, "tag": tag}}


def failing(tag: str, times: int | None, max_attempts: int) -> dict[str, Any]:
    """A task that fails the first `times` attempts (None: always)."""
    data = {"message": f"{tag} fails as asked", "times": times}
    return {"type": "fail", "data": data, "max_attempts": max_attempts, "backoff": {"base_s": 0.1, "max_s": 0.5}}


@dataclass(slots=True)
class Parcel:
    """The tasks of one POST."""

    items: list[PlannedTask]
    is_batch: bool
    key: str | None


def planned(plan: Plan) -> list[PlannedTask]:
    """The whole workload in the order of its tags; the same seed gives the same workload under another tag."""
    rng = random.Random(plan.seed)
    shares = [share for share, _ in KINDS]
    makers = rng.choices([make for _, make in KINDS], shares, k=plan.tasks)
    return [make(rng, f"{plan.run}-{n}") for n, make in enumerate(makers)]


def parcels(plan: Plan, tasks: Sequence[PlannedTask]) -> list[Parcel]:
    """The same tasks in singles and batches, mixed."""
    rng = random.Random(plan.seed)
    in_batches = int(plan.tasks * plan.batch_share)
    groups = [tasks[at : min(at + plan.batch, in_batches)] for at in range(0, in_batches, plan.batch)]
    mixed = [Parcel(group, True, None) for group in groups]
    mixed += [Parcel([task], False, None) for task in tasks[in_batches:]]
    rng.shuffle(mixed)
    if plan.idempotency:
        for n, parcel in enumerate(mixed):
            parcel.key = f"{plan.run}-{n}"
    return mixed


# ---- the nodes


class Nodes:
    """The nodes of the cluster that are known so far, and which of them to ask next."""

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
            reasons.append(f"{url}: {status} {error_text(answer)}")
        raise NothingToTest("no node answers GET /workers:\n  " + "\n  ".join(reasons))

    def next(self) -> str:
        """The next node in turn that did not just refuse a connection; any node if all did."""
        now_s = time.monotonic()
        for _ in self.urls:
            url = self.urls[next(self._turn) % len(self.urls)]
            if self._avoided.get(url, 0.0) <= now_s:
                return url
        return self.urls[next(self._turn) % len(self.urls)]

    def avoid(self, url: str) -> None:
        """Note that this node refuses connections or does not answer in time."""
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


def error_text(answer: Any) -> str:
    """The code and message of an error answer."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return f"{error['code']}: {error['message']}" if isinstance(error, dict) else str(answer)[:200]


# ---- the storm


class Storm:
    """One run: submits, waits, and records what happened."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession, show: Callable[[str, int, int], None]) -> None:
        self.plan = plan
        self.nodes = Nodes(http, plan.url)
        self.tasks = planned(plan)
        self.parcels = parcels(plan, self.tasks)
        self.failures: Counter[str] = Counter()  # failed submissions by kind
        self.call_s: list[float] = []  # durations of answered submissions
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
                "submitting", self.parcels, self._submit, lambda parcel: len(parcel.items), len(self.tasks)
            )
            self.submit_s = time.monotonic() - began_s
            accepted = [task for task in self.tasks if task.is_accepted]
            await self._each("waiting for the end", accepted, self._watch, lambda task: 1, len(accepted))
            # Read all of them once more: a second commit would have changed how they ended.
            ended = [task for task in accepted if task.has_ended]
            await self._each("reading again", ended, self._read_again, lambda task: 1, len(ended))
            await self._each("listing", TYPES, self._list, lambda kind: 1, len(TYPES))
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
        """Call `act` on each, from as many clients at once as the plan says."""
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
        """Send it until it is accepted or refused for good, or its fate is unknown."""
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
        for task in left:
            task.refusal = "no answer before the time was up"

    async def _post(self, url: str, parcel: Parcel, items: list[PlannedTask]) -> tuple[int, Any]:
        headers = {"Idempotency-Key": parcel.key} if parcel.key else {}
        if parcel.is_batch:
            return await call(
                self._http, "POST", f"{url}/tasks/batch", json=[task.body for task in items], headers=headers
            )
        return await call(self._http, "POST", f"{url}/tasks", json=items[0].body, headers=headers)

    def _unsure(self, parcel: Parcel, items: list[PlannedTask]) -> list[PlannedTask]:
        """The tasks that may be sent again after an indefinite failure."""
        if parcel.key:
            return items
        for task in items:
            task.is_unknown = True
        return []

    def _heard(self, parcel: Parcel, items: list[PlannedTask], status: int, answer: Any) -> list[PlannedTask]:
        """Note a node's answer; the tasks that must be sent again."""
        if status in (200, 202):
            return self._take(parcel, items, answer["results"] if parcel.is_batch else [answer])
        if status == 429:
            self.failures["definite: 429"] += 1
            return items
        if status >= 500:
            self.failures[f"indefinite: {status}"] += 1
            return self._unsure(parcel, items)
        for task in items:
            task.refusal = f"{status} {error_text(answer)}"
        return []

    def _take(self, parcel: Parcel, items: list[PlannedTask], rows: list[dict[str, Any]]) -> list[PlannedTask]:
        """The same for an answer with a row for each task."""
        again = []
        for task, row in zip(items, rows, strict=True):
            if "id" in row:
                task.ids.add(row["id"])
                if task.queued_at_ms is None and row["delivery"] <= 1:
                    task.queued_at_ms = row["queued_at_ms"]
            elif row["error"]["code"] not in PASSING:
                task.refusal = error_text(row)
            else:
                self.failures[f"in a batch: {row['error']['code']}"] += 1
                again += self._unsure(parcel, [task]) if PASSING[row["error"]["code"]] else [task]
        # With a key, send the whole batch again, since a task's place in its batch is part of its key.
        return items if again and parcel.key else again

    # Waiting

    async def _watch(self, task: PlannedTask) -> None:
        """Wait until it has ended, is missing twice, or the time is up."""
        for task_id in sorted(task.ids):
            misses = 0
            while misses < 2:
                row = await self._read(task_id, min(WAIT_S, max(0.0, self.left_s)))
                if row is None:
                    misses += 1
                else:
                    task.last = row
                if task.has_ended or self.left_s <= 0:
                    break
            task.is_missing = task.is_missing or misses >= 2

    async def _read_again(self, task: PlannedTask) -> None:
        before = task.last
        assert before is not None
        row = await self._read(before["id"], 0.0)
        if row is None:
            task.is_missing = True
            return
        if any(row[name] != before[name] for name in ("state", "delivery", "finished_at_ms", "node_id", "result")):
            self.failures["ended twice"] += 1
        task.untraced = untraced(row)

    async def _list(self, kind: str) -> None:
        """Note which tasks of this run the cluster's lists show, as far back as its first."""
        times = [task.last["submitted_at_ms"] for task in self.tasks if task.last]
        if not times:
            return
        cursor: str | None = ""
        while cursor is not None:
            answer = await self._ask(
                "/tasks", 0.0, {"type": kind, "fields": "data", "limit": str(LIST_LIMIT), "cursor": cursor}
            )
            rows = answer["tasks"] if answer else []
            for row in rows:
                found = re.search(rf"{self.plan.run}-(\d+)", json.dumps(row["data"]))
                if found:
                    self.tasks[int(found[1])].listed.add(row["id"])
            is_past = bool(rows) and rows[-1]["submitted_at_ms"] < min(times) - LIST_SLACK_MS
            cursor = answer["cursor"] if answer and not is_past else None

    async def _read(self, task_id: str, wait_s: float) -> dict[str, Any] | None:
        """The task, from any node that answers; None if there is no such task."""
        return await self._ask(f"/tasks/{task_id}", wait_s, {"wait_s": f"{wait_s:.1f}"})

    async def _ask(self, path: str, wait_s: float, params: dict[str, str]) -> dict[str, Any] | None:
        """What any node answers to this call; None for 404."""
        while True:
            url = self.nodes.next()
            try:
                status, answer = await call(self._http, "GET", f"{url}{path}", wait_s, params=params)
            except (aiohttp.ClientError, TimeoutError):
                self.nodes.avoid(url)
            else:
                if status == 200:
                    body: dict[str, Any] = answer
                    return body
                if status == 404:
                    return None
            if self.left_s <= 0:
                raise NothingToTest("the time is up, and no node answers.")
            await asyncio.sleep(PAUSE_S)

    async def _read_counters(self, before: Samples) -> None:
        """Read the nodes' counters; wait a moment until they have counted the last commits."""
        ended = Counter(task.last["state"] for task in self.tasks if task.has_ended and task.last)
        end_s = time.monotonic() + COUNTERS_LIMIT_S
        while True:
            self.counters = Counters.between(before, await read_counters(self.nodes))
            enough = not self.plan.is_alone or all(
                self.counters.commits[state] >= ended[state] for state in ("succeeded", "dead")
            )
            if enough or self.counters.is_partial or time.monotonic() > end_s:
                return
            await asyncio.sleep(PAUSE_S)


def untraced(row: dict[str, Any]) -> set[int]:
    """The deliveries before the last of which the task's history says nothing: one of them may have been committed."""
    history = row.get("history", ())
    if len(history) >= HISTORY_MAX:
        return set()
    return set(range(1, row["delivery"])) - {line["delivery"] for line in history}


# ---- the nodes' counters

Samples = dict[tuple[str, int], dict[tuple[str, str], float]]  # (url, pid) -> (name, label) -> value


async def read_counters(nodes: Nodes) -> Samples:
    """The counters of every node that answers, by process: a node that restarts counts from 0."""
    readings: Samples = {}
    for row in await nodes.find():
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            status, text = await call(nodes.http, "GET", f"{row['url']}/metrics")
            if status != 200:
                continue
            samples = (SAMPLE.match(line) for line in text.splitlines())
            readings[row["url"], row["pid"]] = {
                (match[1], match[2] or ""): float(match[3]) for match in samples if match and match[1] in COUNTED
            }
    return readings


@dataclass
class Counters:
    """The sums over all nodes between two readings."""

    accepted: int = 0
    commits: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    is_partial: bool = False  # a node ended, and its counters with it

    @staticmethod
    def between(before: Samples, after: Samples) -> Counters:
        sums = Counters(is_partial=not set(before) <= set(after))
        for process, samples in after.items():
            earlier = before.get(process, {})
            for (name, label), value in samples.items():
                more = round(value - earlier.get((name, label), 0.0))
                if name == "rumor_tasks_accepted_total":
                    sums.accepted += more
                elif name == "rumor_task_commits_total":
                    sums.commits[label] += more
                else:
                    sums.refused[label] += more
        return sums


# ---- the reckoning


@dataclass
class Report:
    """The result. `problems` lists what must not happen; empty: the cluster kept its promises."""

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
    """Compare all counts."""
    tasks = storm.tasks
    accepted = [task for task in tasks if task.is_accepted]
    ended = [(task, task.last) for task in accepted if task.last is not None and task.has_ended]
    as_intended = [(task, last) for task, last in ended if last["state"] == task.end]
    report = Report(
        submitted=len(tasks),
        accepted=len(accepted),
        unknown=sum(task.is_unknown for task in tasks),
        refused=sum(bool(task.refusal) and not task.is_accepted for task in tasks),
        succeeded=sum(last["state"] == "succeeded" for _, last in ended),
        dead_as_intended=sum(last["state"] == "dead" for _, last in as_intended),
        ended_otherwise=len(ended) - len(as_intended),
        lost=sum(task.is_missing for task in accepted),
        unfinished=sum(not task.has_ended and not task.is_missing for task in accepted),
        stored_twice=sum(len(task.ids | task.listed) > 1 for task in tasks),
        run_again=sum(last["delivery"] > task.deliveries for task, last in ended),
        by_node=dict(sorted(Counter(str(last["node_id"]) for _, last in ended).items())),
        failures=dict(storm.failures),
        submit_per_s=len(accepted) / storm.submit_s if storm.submit_s else 0.0,
    )
    queued = [task.queued_at_ms for task, _ in ended if task.queued_at_ms is not None]
    if queued:
        span_ms = max(last["finished_at_ms"] for _, last in ended) - min(queued)
        report.complete_per_s = len(ended) / max(span_ms, 1) * 1000
    report.latency_ms = {
        "queue wait": percentiles(
            [last["started_at_ms"] - last["queued_at_ms"] for _, last in ended if last["delivery"] == 1]
        ),
        "end to end": percentiles(
            [last["finished_at_ms"] - task.queued_at_ms for task, last in ended if task.queued_at_ms is not None]
        ),
        "POST answered": percentiles([call_s * 1000 for call_s in storm.call_s]),
    }
    find_problems(report, storm, [task for task, last in ended if last["state"] != task.end])
    return report


def find_problems(report: Report, storm: Storm, otherwise: Sequence[PlannedTask]) -> None:
    """Put what must not happen into `problems`, and what a reader should know into `notes`."""
    say = report.problems.append
    if report.lost:
        say(f"{report.lost} accepted tasks are gone: {some(task.ids for task in storm.tasks if task.is_missing)}")
    if report.unfinished:
        left = (task.ids for task in storm.tasks if task.is_accepted and not task.has_ended and not task.is_missing)
        say(f"{report.unfinished} accepted tasks have not ended within {storm.plan.limit_s:g} s: {some(left)}")
    if report.stored_twice:
        twice = (task.ids | task.listed for task in storm.tasks if len(task.ids | task.listed) > 1)
        say(f"{report.stored_twice} tasks were stored twice: {some(twice)}")
    if otherwise:
        what = Counter(f"{task.body['type']} is {task.last and task.last['state']}" for task in otherwise)
        say(f"{len(otherwise)} tasks did not end as they should, {dict(what)}: {some(task.ids for task in otherwise)}")
    if report.refused:
        reasons = Counter(task.refusal for task in storm.tasks if task.refusal and not task.is_accepted)
        say(f"{report.refused} tasks were refused: {dict(reasons.most_common(3))}")
    if report.failures.get("ended twice"):
        say(f"{report.failures['ended twice']} tasks were committed again after they had ended")
    hidden = [task for task in storm.tasks if task.untraced]
    if hidden:
        say(
            f"{len(hidden)} tasks do not say how a delivery ended, so it may have been committed twice: "
            f"{some(task.ids for task in hidden)}"
        )
    if storm.counters is not None and storm.plan.is_alone:
        compare_counters(report, storm, storm.counters)


def compare_counters(report: Report, storm: Storm, counted: Counters) -> None:
    """Compare with what the nodes counted. They count all tasks of the cluster: there must be no others."""
    say = report.problems.append
    report.counted = {name: dict(of) if isinstance(of, Counter) else of for name, of in vars(counted).items()}
    # A gateway that died during a call counted nothing: the counters may show fewer tasks, but never more.
    if counted.accepted > report.accepted + report.unknown:
        say(f"the gateways stored {counted.accepted} tasks, but accepted {report.accepted} from here")
    dead = sum(1 for task in storm.tasks if task.last and task.last["state"] == "dead")
    for state, here in (("succeeded", report.succeeded), ("dead", dead)):
        commits = counted.commits[state]
        if commits > here + report.unknown:
            say(f"{commits} commits of {state} are counted, but {here} tasks are {state}: some committed twice")
        elif commits < here and not counted.is_partial:
            report.notes.append(f"{commits} commits of {state} are counted, but {here} tasks are {state}")
    if counted.is_partial:
        report.notes.append("a node ended, and its counters with it: the nodes' counts are lower bounds")


def some(ids: Iterator[Collection[str]] | Any) -> str:
    """A few ids to look up."""
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


# ---- showing


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
    """Show a bar for each stage on a terminal, a line now and then elsewhere."""
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
    shown_s = 0.0

    def say(what: str, done: int, total: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if done == total or now_s > shown_s + LINE_INTERVAL_S:
            shown_s = now_s
            console.print(f"{what}: {done}/{total}", highlight=False)

    yield say


async def stress(plan: Plan, show: Callable[[str, int, int], None] = lambda what, done, total: None) -> Report:
    """Run the plan against a running cluster. Raises NothingToTest if there is none."""
    headers = {"Authorization": f"Bearer {plan.token}"} if plan.token else {}
    connector = aiohttp.TCPConnector(limit=plan.clients * 2)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        storm = Storm(plan, http, show)
        try:
            # Every loop ends at the plan's own limit; this limit ends a call that hangs beyond it.
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
    parser.add_argument("--url", default=Plan.url, help="any node; it names the others (%(default)s)")
    parser.add_argument("--tasks", type=int, default=Plan.tasks, help="number of tasks (%(default)s)")
    parser.add_argument("--clients", type=int, default=Plan.clients, help="concurrent calls (%(default)s)")
    parser.add_argument("--batch", type=int, default=Plan.batch, help="tasks in a batch (%(default)s)")
    parser.add_argument(
        "--batch-share", type=float, default=Plan.batch_share, help="share of tasks sent in batches (%(default)s)"
    )
    parser.add_argument(
        "--idempotency",
        action=argparse.BooleanOptionalAction,
        default=Plan.idempotency,
        help="send an Idempotency-Key with each call, so that the client may repeat it after any failure",
    )
    parser.add_argument("--alone", action="store_true", help="nobody else uses the cluster: compare its counters, too")
    parser.add_argument("--limit-s", type=float, default=Plan.limit_s, help="limit of the whole run (%(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="seed of the mix (%(default)s)")
    parser.add_argument("--token", default=os.environ.get("RUMOR_API_TOKEN", ""), help="[env: RUMOR_API_TOKEN]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report to this file")
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
            is_alone=options.alone,
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
    nodes = cluster(nodes=3, drain_s=1)
    report = await stress(Plan(url=nodes.url(2), tasks=300, clients=16, batch=20, limit_s=60, is_alone=True))
    assert report.problems == [], report
    assert report.accepted == 300, report
    assert report.counted["accepted"] == 300, report
    assert report.run_again == 0, report
    assert len(report.by_node) == 3, report


async def test_a_node_that_is_killed_in_the_storm_takes_nothing_along(cluster: Callable[..., LaunchedCluster]) -> None:
    nodes = cluster(nodes=3, drain_s=1)
    is_killed = asyncio.Event()

    def show(what: str, done: int, total: int) -> None:
        if done > 100:
            is_killed.set()

    async def kill() -> None:
        await is_killed.wait()
        await asyncio.to_thread(nodes.kill, 2)

    killing = asyncio.create_task(kill())
    plan = Plan(url=nodes.url(1), tasks=1000, clients=16, batch=20, limit_s=60, is_alone=True)
    report = await stress(plan, show)
    await killing
    assert report.problems == [], report
    assert report.accepted == 1000, report


async def test_tasks_of_others_do_not_count(cluster: Callable[..., LaunchedCluster]) -> None:
    nodes = cluster(nodes=2, drain_s=1)
    is_over = asyncio.Event()

    async def others(http: aiohttp.ClientSession) -> None:
        """Submit tasks of every outcome for as long as the storm blows."""
        for n in itertools.count():
            kinds = [{"type": "noop", "data": n}, {"type": "sleep", "data": 0.01}, failing("theirs", None, 1)]
            await call(http, "POST", f"{nodes.url(1 + n % 2)}/tasks/batch", json=kinds * 10)
            if is_over.is_set():
                return

    async with aiohttp.ClientSession() as http:
        busy = asyncio.create_task(others(http))
        report = await stress(Plan(url=nodes.url(1), tasks=300, clients=16, batch=20, limit_s=60))
        is_over.set()
        await busy
    assert report.problems == [], report
    assert report.accepted == 300, report


def test_what_was_stored_or_committed_twice_is_told() -> None:
    plan = Plan(tasks=4)
    storm = Storm(plan, None, lambda what, done, total: None)  # type: ignore[arg-type]
    for n, task in enumerate(storm.tasks):
        task.ids = {f"id-{n}"}
        task.last = {"id": f"id-{n}", "state": task.end, "delivery": 1, "node_id": "n1"}
        task.last |= {"queued_at_ms": 1, "started_at_ms": 2, "finished_at_ms": 3}
    assert reckon(storm).problems == []
    storm.tasks[0].listed = {"id-0", "id-9"}  # nobody was told of the second
    storm.tasks[1].untraced = untraced({"delivery": 3, "history": [{"delivery": 2}]})
    storm.failures["ended twice"] += 1
    problems = "; ".join(reckon(storm).problems)
    for words in (
        "1 tasks were stored twice: id-0 = id-9",
        "1 tasks do not say how a delivery",
        "after they had ended",
    ):
        assert words in problems, problems


async def test_without_a_node_that_answers_there_is_a_clear_error() -> None:
    import pytest  # as a script this needs aiohttp and rich alone

    with pytest.raises(NothingToTest, match=r"http://127\.0\.0\.1:9: "):
        await stress(Plan(url="http://127.0.0.1:9", tasks=1, limit_s=5))


if __name__ == "__main__":
    sys.exit(main())
