"""The cost of watching: the page with a large cluster, and the queue while somebody watches it.

    python scripts/bench/dashboard.py [--only page,drain] [--rounds 4] [--tasks 200000] [--seconds 12] [--json FILE]

- page: a node's gateway in front of a fake engine of 100 nodes and 100,000 tasks. Each second brings a sum of tasks;
  every third second a node dies or comes back, and five nodes report it. A real Chromium shows it: time to the first
  view, layout that shifted, CPU of the whole browser to open the page and for each second (beside an empty page), time
  between frames, bytes a second. Needs playwright and a Chromium; reads /proc.
- drain: a node drains N queued no-ops while nobody watches it; while a client reads /events and asks for /cluster and
  /health each second, as the page does; and while the page itself shows it. Rounds are interleaved. The page renders on
  the same cores as everything else here, so the client shows what watching costs the cluster, and the page what it
  costs this machine. A browser spends most of a second of CPU to open any page. So there are two rates: of the whole
  drain, the opening included, and of its last part, when the page is open.

It enforces nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

from bed import ROOT, Bed, Meter
from figures import levels, markdown, publish, say, spread
from throughput import queue_tasks, rate, times, wait_drained

from cluster.config import Config
from cluster.ring import owners
from node.client.errors import Unreachable
from node.client.one_node import Remote
from node.gateway import app, server
from node.lab.process import port_problem, wait_for
from node.schema import ListQuery, TaskJson, TaskList
from scripts.screenshots import browser, page_of, until
from tests.fake_engine import FakeEngine

NODES = 100
TASKS = 100_000
SHARDS = 64
SETTLE_S = 4.0
OPEN_S = 1.5  # time after the first view that still counts as opening the page
LATE = 0.6  # last part of a drain, when the page is open
PORT = next(port for port in range(31_100, 31_200) if not port_problem("127.0.0.1", port))

WATCHING = """
import asyncio, sys, aiohttp
async def main(base):
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(base + "/events") as stream:
                    async def ask():
                        while True:
                            for path in ("/cluster?events=0", "/health"):
                                async with http.get(base + path) as answer: await answer.read()
                            await asyncio.sleep(1)
                    asking = asyncio.create_task(ask())
                    async for _ in stream.content.iter_any(): pass
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)
asyncio.run(main(sys.argv[1]))
"""


# ---- the page


class LargeEngine(FakeEngine):
    """100 nodes, 100,000 tasks, none of them real."""

    def __init__(self) -> None:
        super().__init__(Config(node_id=_name(0), port=PORT))
        self._dead: dict[str, None] = {}
        self._listed = [
            TaskJson(id=f"01JDZ6M0X2R5T8V1W4{n:08X}-1f", type="process", state="succeeded", queue="sync", priority=5,
                     data=b"1", attempt=1, max_attempts=5, delivery=1, queued_at_ms=1, started_at_ms=2,
                     finished_at_ms=3, node_id=_name(n % NODES))  # type: ignore[arg-type]
            for n in range(500)
        ]  # fmt: skip

    def cluster(self, events: int = 500) -> dict[str, Any]:
        alive = {_name(n): 42 for n in range(NODES) if _name(n) not in self._dead}
        return {
            "node_id": _name(0),
            "session": f"{_name(0)}/1-1",
            "members": [_member(n, _name(n) in self._dead) for n in range(NODES)],
            "leader": {"node_id": _name(0), "session": f"{_name(0)}/1-1", "epoch": 7},
            "epoch": 7,
            "shards": {str(shard): node for shard, node in enumerate(owners(alive, SHARDS))},
            "events": self.timeline.own(events),
        }

    async def list_tasks(self, query: ListQuery) -> TaskList:
        return TaskList(self._listed[: query.limit], self._listed[query.limit - 1].id, query.limit)

    async def live(self) -> None:
        """Report a sum each second, and every third second a death, seen by five nodes, or a return."""
        victims = cycle(range(3, NODES, 7))
        for turn in range(1_000_000):
            await asyncio.sleep(1)
            at_ms = time.time_ns() // 1_000_000
            self.timeline.say("task", _sum(at_ms, turn))
            if turn % 6 == 2:
                node = _name(next(victims))
                self._dead[node] = None
                for kind in ("connection_refused", "member_suspect", "member_dead", "session_fenced", "session_reaped"):
                    for by in range(1 if kind == "session_fenced" else 5):
                        event = {"at_ms": at_ms + by, "kind": kind, "node_id": node, "session": f"{node}/1-{turn}"}
                        self.timeline.add({**event, "by": _name(by), "evidence": "refused", "tasks": 8})
            elif turn % 6 == 5:
                node = next(iter(self._dead))
                del self._dead[node]
                self.timeline.add(
                    {"at_ms": at_ms, "kind": "node_started", "node_id": node, "session": f"{node}/2-{turn}"}
                )


def _name(n: int) -> str:
    return f"10.0.{n // 10}.{n % 10}:5000"


def _member(n: int, is_dead: bool) -> dict[str, Any]:
    now = time.monotonic()
    queues = {"default": {"free": int(now * 7 + n) % 40, "queued": int(now * 3 + n) % 9, "shards": 1}}
    return {
        "node_id": _name(n), "session": f"{_name(n)}/018bcfe5680-00000001", "url": f"http://{_name(n)}",
        "state": "dead" if is_dead else "alive", "evidence": "refused" if is_dead else "none", "by": "",
        "incarnation": 2,
        "rtt_ms": round(0.4 + (now * 13 + n) % 3, 3), "redis": "gone" if is_dead else "live", "redis_age_s": 0.1,
        "verdict": "dead" if is_dead else "healthy", "slots": {"default": 40, "sync": 2},
        "load": {"redis": True, "stalled": False, "leaving": False, "running": int(now * 5 + n) % 42, "queues": queues},
    }  # fmt: skip


def _sum(at_ms: int, turn: int) -> dict[str, Any]:
    done = 900 + turn * 37 % 200
    spread_ms = {"p50": 4.0 + turn % 3, "p95": 30.0 + turn % 11, "p99": 80.0 + turn % 29}
    states = {
        "scheduled": 40,
        "waiting": 0,
        "succeeded": TASKS,
        "dead": 3,
        "cancelled": 1,
        "queued": 700,
        "running": 900,
    }
    return {
        "at_ms": at_ms, "kind": "task_sums", "node_id": _name(0), "window_s": 1.0, "nodes": NODES, "accepted": done,
        "outcomes": {"succeeded": done, "retrying": 3}, "refused": 0, "reaped": 0,
        "types": {f"type{n}": {"succeeded": done // 20} for n in range(20)}, "wait_ms": spread_ms, "run_ms": spread_ms,
        "states": states, "queues": {"default": {"queued": 700}},
    }  # fmt: skip


def serve_large() -> None:
    """Serve the gateway alone, forever."""

    async def run() -> None:
        engine = LargeEngine()
        await server.start(app.build(engine), engine.config)
        await engine.live()

    asyncio.run(run())


FRAMES = """
seconds => new Promise(done => {
  const gaps = []; const work = []; let last = performance.now(); const end = last + 1000 * seconds;
  const received = () => (typeof net === "undefined" ? 0 : net.bytes);
  const bytes = received(); const sizes = performance.getEntriesByType("resource").length;
  const note = list => work.push(...list.getEntries().map(one => one.duration));
  new PerformanceObserver(note).observe({entryTypes: ["longtask"]});
  let shifted = 0; // since the page was opened
  const add = list => list.getEntries().forEach(one => (shifted += one.value));
  new PerformanceObserver(add).observe({type: "layout-shift", buffered: true});
  const frame = now => {
    gaps.push(now - last); last = now;
    if (now < end) return requestAnimationFrame(frame);
    const asked = performance.getEntriesByType("resource").slice(sizes).reduce((sum, one) => sum + one.transferSize, 0);
    done({gaps, work, shift: shifted, events: (received() - bytes) / seconds, asked: asked / seconds});
  };
  requestAnimationFrame(frame);
})
"""


def page_rounds(seconds: float) -> tuple[str, dict[str, Any]]:
    """Watch each view for this long."""
    server = multiprocessing.get_context("spawn").Process(target=serve_large, daemon=True)
    server.start()
    rows, figures = [], {}
    try:
        base = f"http://127.0.0.1:{PORT}"
        wait_until_answers(base)
        with browser() as chrome:
            time.sleep(SETTLE_S)  # the browser has work of its own after its start
            for name, look, where in [
                ("nothing", "desktop-light", "/livez"),
                *(
                    (f"{view}, {look}", look, f"/#/{view}")
                    for look in ("desktop-light", "phone-light")
                    for view in ("cluster", "tasks")
                ),
            ]:
                figures[name] = seen = watch(chrome, look, base + where, seconds, server.pid)
                gaps = [seen["gap_ms"][level] for level in ("p50", "p99", "max")]
                ms = [seen["first_s"] * 1000, seen["open_cpu_s"] * 1000, seen["cpu"] * 1000, *gaps]
                rows.append([name, *(f"{value:,.0f} ms" for value in ms), str(seen["long"]), f"{seen['shift']:.3f}",
                             f"{seen['events']:,.0f}", f"{seen['asked']:,.0f}"])  # fmt: skip
    finally:
        server.kill()
        server.join()
    head = ["100 nodes, 100,000 tasks", "first view", "CPU to open", "CPU a second", "frame", "p99", "longest",
            "tasks over 50 ms", "layout shift", "events B/s", "other B/s"]  # fmt: skip
    return markdown(head, rows), figures


def watch(chrome: Any, look: str, url: str, seconds: float, server: int | None) -> dict[str, Any]:
    """Open a page and watch it: its cost, and how smoothly it moved."""
    is_ours = "#" in url
    before, began_s = browser_cpu_s(server), time.perf_counter()
    page = page_of(chrome, look, url) if is_ours else empty(chrome, url)
    if is_ours:
        until(page, "document.querySelectorAll(location.hash === '#/tasks' ? '#rows tr' : '#members tr').length")
    first_s = time.perf_counter() - began_s
    time.sleep(OPEN_S)
    opened, opened_s = browser_cpu_s(server), time.perf_counter()
    page.wait_for_timeout(seconds * 1000)  # ask for no frames: that alone would make the browser draw
    cpu = since(opened, browser_cpu_s(server)) / (time.perf_counter() - opened_s)
    seen = page.evaluate(FRAMES, seconds)
    page.context.close()
    gaps, long = levels(seen.pop("gaps")[1:]), len(seen.pop("work"))
    return {"first_s": first_s, "open_cpu_s": since(before, opened), "cpu": cpu, "gap_ms": gaps, "long": long, **seen}


def empty(chrome: Any, url: str) -> Any:
    page = chrome.new_context().new_page()
    page.goto(url)
    return page


def browser_cpu_s(*without: int | None) -> dict[int, float]:
    """CPU seconds of each descendant of this process (the browser has many), `without` and theirs left out."""
    spent: dict[int, tuple[int, float]] = {}  # pid -> (parent, CPU seconds)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text("utf-8").rpartition(")")[2].split()
            spent[int(path.parent.name)] = (
                int(fields[1]),
                (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            )
    family = {os.getpid()}
    while more := {pid for pid, (parent, _) in spent.items() if parent in family and pid not in without} - family:
        family |= more
    return {pid: spent[pid][1] for pid in family - {os.getpid()}}


def since(before: dict[int, float], now: dict[int, float]) -> float:
    """CPU seconds spent since `before`. Processes that have ended (of an earlier page) are not counted."""
    return sum(spent - before.get(pid, 0.0) for pid, spent in now.items())


# ---- the drain


@contextmanager
def nobody(url: str) -> Iterator[None]:
    yield


@contextmanager
def client(url: str) -> Iterator[None]:
    """A client that makes the page's requests without a browser."""
    process = subprocess.Popen([sys.executable, "-c", WATCHING, url], cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def dashboard(url: str) -> Iterator[None]:
    """The page in a browser, opened as soon as the node answers."""
    stop = threading.Event()

    def show() -> None:
        with browser() as chrome:
            page = chrome.new_context().new_page()
            wait_until_answers(url)
            page.goto(f"{url}/#/tasks")
            stop.wait()

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def drain_rounds(rounds: int, tasks: int) -> tuple[str, dict[str, Any]]:
    """Drain once for each way of watching, round after round."""
    ways: dict[str, Callable[[str], Any]] = {
        "nobody watches": nobody,
        "a client": client,
        "the page, same cores": dashboard,
    }
    rounds_of: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for n in range(rounds):
        for name, way in ways.items():
            with Bed() as bed:
                queue_tasks(bed, tasks)
                with way(f"http://127.0.0.1:{bed.base_port + len(bed.nodes)}"):
                    time.sleep(1.5 if way is dashboard else 0.3)
                    node = bed.node(queues="default:100")
                    meter = Meter(bed, node.child.pid)
                    others = [bed.redis_pid, *(other.child.pid for other in bed.nodes)]
                    wait_drained(node, tasks // 3)  # the page is open by then
                    spent, began_s = browser_cpu_s(*others), time.perf_counter()
                    wait_drained(node, tasks)
                    watching = since(spent, browser_cpu_s(*others)) / (time.perf_counter() - began_s)
                    rounds_of[name].append(meter.figures(tasks, 0.0) | {"watching_cpu": watching})
                at_s = sorted(started_s for started_s, _ in times(node))
                rounds_of[name][-1] |= {"per_s": rate(at_s), "late_per_s": rate(at_s[-int(tasks * LATE) :])}
            last = rounds_of[name][-1]
            say(f"drain {n + 1}, {name}: {last['per_s']:,.0f}/s, at the end {last['late_per_s']:,.0f}/s")
    rows = []
    for name, drains in rounds_of.items():
        cells = []
        for field in ("per_s", "late_per_s"):
            rates = spread([drain[field] for drain in drains])
            unwatched = rounds_of["nobody watches"]
            share = spread([drain[field] / base[field] for drain, base in zip(drains, unwatched, strict=True)])
            cells += [f"{rates['median']:,.0f}", f"{share['median']:.0%} ({share['min']:.0%} to {share['max']:.0%})"]
        cpu, redis, watching = (
            spread([drain[field] for drain in drains])["median"] for field in ("cpu_us", "redis_us", "watching_cpu")
        )
        rows.append([name, *cells, f"{cpu:.1f}", f"{redis:.1f}", f"{watching * 1000:.0f} ms"])
    head = ["drain while", "tasks/s", "of unwatched", f"its last {LATE:.0%}", "of unwatched", "node CPU µs a task"]
    return markdown([*head, "Redis CPU µs", "watcher's CPU a second"], rows), rounds_of


def wait_until_answers(url: str) -> None:
    def answers() -> bool:
        try:
            Remote(url, timeout_s=1.0).request("GET", "/livez")
        except Unreachable:
            return False
        return True

    if not wait_for(answers, 20.0, 0.01):
        raise RuntimeError(f"{url} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="page,drain", help="which parts (%(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="number of drains (%(default)s)")
    parser.add_argument("--tasks", type=int, default=200_000, help="tasks of a drain (%(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="time to watch each view (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    tables, figures = [], {}
    for name, measure in (
        ("page", lambda: page_rounds(options.seconds)),
        ("drain", lambda: drain_rounds(options.rounds, options.tasks)),
    ):
        if name in options.only.split(","):
            table, figures[name] = measure()
            tables.append(table)
    publish("Watching", "\n\n".join(tables), figures, options.json)


if __name__ == "__main__":
    main()
