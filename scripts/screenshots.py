"""Takes screenshots of the dashboard of a real cluster at work: healthy, 200 ms after a kill, with a node cut off from
Redis, its tasks, a failed task, and the dead letters.

    python scripts/screenshots.py [--out docs/screenshots] [--only cluster,kill,cut,…] [--looks phone-dark,…]

Needs the package playwright and a Chromium (RUMOR_TEST_CHROMIUM, or else the one on PATH); `cut` also needs root on
Linux. Starts a cluster of its own on free ports, puts a steady load on it, and ends it; `cut` starts another one, whose
nodes have network namespaces. tests/browser and scripts/bench/dashboard.py use `browser()`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.processes import LaunchedCluster  # noqa: E402

VIEWS = ("cluster", "kill", "cut", "tasks", "task", "dead")
SIZES = {"desktop": (1280, 1000), "phone": (390, 844)}
LOOKS = tuple(f"{size}-{scheme}" for size in SIZES for scheme in ("light", "dark"))
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
AFTER_KILL_S = 0.2
AFTER_CUT_S = 4.0
HISTORY_S = 20.0  # a pause in which the charts fill


def chromium() -> str | None:
    """The path of the browser to use, or None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("RUMOR_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched_browser = playwright.chromium.launch(executable_path=chromium(), args=[*QUIET, "--disable-sync"])
        try:
            yield launched_browser
        finally:
            launched_browser.close()


def page_of(within: Any, look: str, url: str, token: str = "") -> Any:
    """Open a page in a browser, at this address and with this look (`phone-dark`), and wait until it is live."""
    size, _, scheme = look.partition("-")
    width, height = SIZES[size]
    context = within.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        device_scale_factor=2 if size == "phone" else 1,
    )
    if token:
        context.add_init_script(f"sessionStorage.setItem('rumor-token', {json.dumps(token)})")
    page = context.new_page()
    page.goto(url)
    until(page, "net.isLive && cluster.view !== null")
    return page


def until(page: Any, expression: str, limit_s: float = 10.0) -> Any:
    """Wait for a true value of an expression in the page. Playwright's own wait needs eval, which the page forbids."""
    end_s = time.monotonic() + limit_s
    while not (value := page.evaluate(expression)):
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {limit_s:g} s: {expression}")
        time.sleep(0.02)
    return value


class Load:
    """Submits a mix of tasks until it is stopped: most succeed, some fail."""

    def __init__(self, cluster: LaunchedCluster, fails: bool = True) -> None:
        self.fails = fails
        self._remote = cluster.remote(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        batch = [{"type": "sleep", "data": 1.2} for _ in range(9)]
        batch += [{"type": "process", "data": f"order {n}"} for n in range(12)]
        batch += [{"type": "noop"} for _ in range(20)]
        failing = {"type": "fail", "data": {"message": "mail server said 451: try again later"}, "max_attempts": 1}
        turn = 0
        while not self._stop.wait(0.2):
            turn += 1
            self._remote.call("POST", "/tasks/batch", batch + ([failing] if self.fails and turn % 12 == 0 else []))


def take(cluster: LaunchedCluster, out: Path, views: list[str], looks: list[str]) -> None:
    """Take each view in each look, as VIEW-LOOK.png; the healthy cluster first, before anything has failed."""
    with Load(cluster, fails=False) as load, browser() as chromium_browser:
        for look in looks if "cluster" in views else []:
            page = page_of(chromium_browser, look, cluster.url(1) + "/#/cluster")
            time.sleep(2.0)
            page.screenshot(path=out / f"cluster-{look}.png", full_page=True)
            print(out / f"cluster-{look}.png", flush=True)
            page.context.close()
        views = [view for view in views if view != "cluster"]
        load.fails = True
        failed = fail_badly(cluster) if views else ""
        for look in looks if views else []:
            page = page_of(chromium_browser, look, cluster.url(1) + "/#/tasks")
            time.sleep(HISTORY_S if "tasks" in views else 0)

            def shoot(view: str, page: Any = page, look: str = look) -> None:
                page.screenshot(path=out / f"{view}-{look}.png", full_page=view == "task")
                print(out / f"{view}-{look}.png", flush=True)

            for view in views:
                if view == "kill":
                    page.goto(cluster.url(1) + "/#/cluster")
                    time.sleep(1.5)
                    os.kill(cluster.node(3)["pid"], signal.SIGKILL)
                    time.sleep(AFTER_KILL_S)
                    shoot(view)
                    cluster.restart(3)
                    continue
                where = f"tasks/{failed}" if view == "task" else view
                page.goto(f"{cluster.url(1)}/#/{where}")
                time.sleep(1.5)
                shoot(view)
            page.context.close()


def take_cut(cluster: LaunchedCluster, out: Path, looks: list[str]) -> None:
    """Take the page of a node that sees a peer cut off from Redis."""
    with Load(cluster, fails=False), browser() as chromium_browser:
        for look in looks:
            page = page_of(chromium_browser, look, cluster.url(1) + "/#/cluster", cluster.token)
            time.sleep(1.5)
            partition(cluster, "no-redis", "3")
            until(page, "cluster.view.members.some(member => member.verdict === 'cut_from_redis')")
            time.sleep(AFTER_CUT_S)
            page.screenshot(path=out / f"cut-{look}.png", full_page=True)
            print(out / f"cut-{look}.png", flush=True)
            partition(cluster, "heal")
            until(page, "cluster.view.members.every(member => member.verdict === 'healthy')")
            page.context.close()


def partition(cluster: LaunchedCluster, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "node", "partition", *words], cwd=ROOT, env=cluster.environ, check=True)


def fail_badly(cluster: LaunchedCluster) -> str:
    """The id of a task that loses its node, and then exceeds its time in each attempt until it is dead."""
    remote = cluster.remote(1)
    submission = {"type": "sleep", "data": 60, "timeout_s": 1.5, "max_attempts": 3, "backoff": {"base_s": 0.1}}
    victim = cluster.node(5)
    while True:
        answer = remote.call("POST", "/tasks/batch", [submission] * 10)[1]
        for task in answer["results"]:
            now = remote.call("GET", f"/tasks/{task['id']}")[1]
            if now["state"] == "running" and now["node_id"] == victim["node_id"]:
                os.kill(victim["pid"], signal.SIGKILL)
                cluster.restart(5)
                remote.call("GET", f"/tasks/{task['id']}?wait_s=30")
                return str(task["id"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--only", default=",".join(VIEWS), help="which views (%(default)s)")
    parser.add_argument("--looks", default=",".join(LOOKS), help="which sizes and schemes (%(default)s)")
    options = parser.parse_args()
    if chromium() is None:
        sys.exit("No Chromium on PATH. Install one, or set RUMOR_TEST_CHROMIUM.")
    options.out.mkdir(parents=True, exist_ok=True)
    views, looks = options.only.split(","), options.looks.split(",")
    if plain := [view for view in views if view != "cut"]:
        with launched() as cluster:
            take(cluster, options.out, plain, looks)
    if "cut" in views:
        with launched(netns=True) as cluster:
            take_cut(cluster, options.out, looks)


@contextmanager
def launched(netns: bool = False) -> Iterator[LaunchedCluster]:
    folder = Path(tempfile.mkdtemp(prefix="rumor-screenshots-"))
    cluster = LaunchedCluster(folder, 5, queues="default:40,sync:2", netns=netns)
    try:
        yield cluster
    finally:
        cluster.launch("stop", check=False)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
