"""Records of runs and of commits, and checks that compare them with the accepted tasks.

Two independent records: the file to which the workload's handlers append (every run), and what Redis publishes when a
task ends (every commit). Does not know: faults; the checks are the same whatever was broken.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

FINISHED = "{s*}:finished"
LISTEN_LIMIT_S = 5.0


@dataclass(slots=True)
class Run:
    """One start of a handler."""

    task_id: str
    delivery: int
    attempt: int
    node_id: str
    pid: int
    start_s: float
    end_s: float | None = None
    is_stopped: bool = False


class Ledger:
    """The file of runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def runs(self) -> list[Run]:
        """Every run so far, in order of their starts."""
        runs: dict[tuple[str, int, int], Run] = {}
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        # A line without its end is being written just now: a write that crosses a page is seen in two parts.
        for line in text[: text.rfind("\n") + 1].splitlines():
            row = json.loads(line)
            key = (row["id"], row["delivery"], row["pid"])
            if row["what"] == "start":
                assert key not in runs, f"one delivery started twice in one process: {row}"
                runs[key] = Run(*key[:2], row["attempt"], row["node"], row["pid"], row["at_s"])
            elif row["what"] == "end":
                runs[key].end_s = row["at_s"]
            else:
                runs[key].is_stopped = True
        return sorted(runs.values(), key=lambda run: run.start_s)

    def of(self, ids: Collection[str]) -> list[Run]:
        """The runs of these tasks."""
        chosen = set(ids)
        return [run for run in self.runs() if run.task_id in chosen]

    def open_on(self, node_id: str) -> set[str]:
        """Tasks that a node started and has not ended."""
        return {r.task_id for r in self.runs() if r.node_id == node_id and r.end_s is None and not r.is_stopped}

    def started(self, ids: Collection[str]) -> int:
        """How many of these tasks have run, or run now."""
        return len({run.task_id for run in self.of(ids)})


class Commits:
    """Counts how often Redis published the end of each task."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._counts: Counter[str] = Counter()
        self._listening = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Commits:
        self._thread.start()
        assert self._listening.wait(LISTEN_LIMIT_S), "no subscription"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def counts(self) -> Mapping[str, int]:
        return dict(self._counts)

    def _run(self) -> None:
        while not self._ending.is_set():
            with (
                contextlib.suppress(redis.RedisError, OSError),
                redis.Redis.from_url(self._url) as client,
                client.pubsub(ignore_subscribe_messages=True) as channel,
            ):
                channel.psubscribe(FINISHED)
                channel.get_message(timeout=1.0)
                self._listening.set()
                while not self._ending.is_set():
                    message = channel.get_message(timeout=0.1)
                    if message is not None:
                        self._counts.update(message["data"].decode().split())
            self._ending.wait(0.05)


def check_kept(tasks: Iterable[Mapping[str, Any]], ids: Collection[str], ledger: Ledger) -> None:
    """Every accepted task succeeded, with the outcome of a run that really ended under the delivery that counts."""
    by_id = {task["id"]: task for task in tasks}
    lost = sorted(set(ids) - set(by_id))
    assert not lost, f"accepted and gone: {lost}"
    states = Counter(by_id[task_id]["state"] for task_id in ids)
    assert states == {"succeeded": len(ids)}, f"not all succeeded: {dict(states)}"
    ended = {(run.task_id, run.delivery, run.pid) for run in ledger.runs() if run.end_s is not None}
    for task_id in ids:
        task = by_id[task_id]
        result = task["result"]
        assert result["delivery"] == task["delivery"], f"an outcome of another delivery: {task}"
        assert (task_id, result["delivery"], result["pid"]) in ended, f"an outcome of no run: {task}"


def check_committed_once(commits: Commits, ids: Collection[str]) -> None:
    """Redis published each task's end once. (Do not check where Redis restarted: it forgets its listeners.)"""
    end_s = time.monotonic() + LISTEN_LIMIT_S
    while len(commits.counts()) < len(ids) and time.monotonic() < end_s:
        time.sleep(0.02)
    counts = commits.counts()
    wrong = {task_id: counts.get(task_id, 0) for task_id in ids if counts.get(task_id, 0) != 1}
    assert not wrong, f"commits of a task: {wrong}"


def check_ran_once(ledger: Ledger, ids: Collection[str], again: Collection[str] = ()) -> None:
    """Each task ran once; those in `again` may have run twice."""
    runs = Counter(run.task_id for run in ledger.of(ids))
    wrong = {
        task_id: [run for run in ledger.of([task_id])]
        for task_id in ids
        if not 1 <= runs[task_id] <= (2 if task_id in again else 1)
    }
    assert not wrong, f"{len(wrong)} tasks did not run as often as they should: {dict(list(wrong.items())[:3])}"


def check_runs_do_not_overlap(ledger: Ledger, ids: Collection[str], is_gone: Collection[int] = ()) -> None:
    """No task ran in two places at the same time. Runs of processes in `is_gone` (pids) ended with them."""
    last: dict[str, Run] = {}
    for run in ledger.of(ids):
        before = last.get(run.task_id)
        if before is not None and before.pid not in is_gone:
            assert before.end_s is not None, f"two at a time: {before} and {run}"
            assert before.end_s <= run.start_s, f"two at a time: {before} and {run}"
        last[run.task_id] = run
