"""CPU that the worker adds to one no-op async task, from `start` to `on_outcome`, without Redis or HTTP.

    python scripts/bench/worker_overhead.py [--tasks 200000] [--batch 100] [--repeats 5]

The claims are made beforehand. As in a worker that claims in batches, each round starts one batch, and the loop runs
until all its outcomes are in.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop

from cluster.config import Config
from cluster.shards.task import Backoff, Claimed, Kind, Outcome, Spec
from node.tasks import load
from node.work.worker import Worker


async def measure(tasks: int, batch: int, data: bytes, type_: str) -> float:
    """Microseconds of this process's CPU a task."""
    spec = Spec(type_, "default", 5, 5, 3600.0, Backoff(1.0, 2.0, 300.0))
    claims = [
        [Claimed(f"01JDZ6M0X2{n:016d}-1f", 31, 1, 1, spec, data) for n in range(first, first + batch)]
        for first in range(0, tasks, batch)
    ]
    left = 0
    drained = asyncio.Event()

    def on_outcome(outcome: Outcome) -> None:
        nonlocal left
        assert outcome.kind is Kind.SUCCEEDED, outcome
        left -= 1
        if not left:
            drained.set()

    config = Config(queues=f"default:{batch},sync:0")
    worker = Worker(config, load([]), "bench", on_outcome, lambda claimed, value: None)
    begin = time.process_time()
    for claim in claims:
        left = batch
        drained.clear()
        worker.start(claim)
        await drained.wait()
    spent = time.process_time() - begin
    await worker.close()
    return spent / tasks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"python {sys.version.split()[0]}, uvloop {version('uvloop')}, {os.cpu_count()} cores, batch {options.batch}")
    for type_, data in (("noop", b'{"payload": "' + b"x" * 86 + b'"}'), ("process", b'"Hello World"')):
        runs = []
        for _ in range(options.repeats):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runs.append(runner.run(measure(options.tasks, options.batch, data, type_)))
        print(f"{type_}: {statistics.median(runs):.2f} us a task (spread {min(runs):.2f}..{max(runs):.2f})")


if __name__ == "__main__":
    main()
