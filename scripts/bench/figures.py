"""Figures: how rounds alternate, what many of them come to, and how they are shown.

A round of a benchmark gives `Figures`. With a second checkout beside this one, both play each round, in alternating
order: a machine that slows down slows both, and neither checkout always plays first. A ratio compares the two halves of
one round; the two medians may come from different minutes.

Does not know: what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Figures = dict[str, dict[str, float]]  # of one round: name of the row -> name of the figure -> value
T = TypeVar("T")

WORDS = {  # the figures of a row, in the order of the table
    "per_s": "tasks/s",
    "of_ceiling": "share of the ceiling",
    "cpu_us": "CPU us a task",
    "redis_us": "Redis CPU us a task",
    "life_us": "Redis CPU us for a task's whole life",
    "busy": "cores busy, node and Redis",
    "queued_bytes": "bytes of a queued task",
    "finished_bytes": "bytes of a finished task",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "requests": "requests",
}


# ---- rounds


def in_turn(names: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """(round, name) in the order of play: A B, then B A, and so on."""
    for n in range(rounds):
        for name in names if n % 2 == 0 else reversed(names):
            yield n, name


def play(names: Sequence[T], rounds: int, measure: Callable[[T], Figures], what: str) -> dict[T, list[Figures]]:
    """The figures of each, round by round."""
    played: dict[T, list[Figures]] = {name: [] for name in names}
    for n, name in in_turn(names, rounds):
        figures = measure(name)
        played[name].append(figures)
        rows = (f"{row} {shown(next(iter(values.values())))}" for row, values in figures.items())
        say(f"{what} {n + 1}, {name}: {', '.join(rows)}")
    return played


# ---- what rounds come to


def series(rounds: Sequence[Figures], row: str, figure: str) -> list[float | None]:
    """One figure, round by round; None where a round lacks it."""
    return [figures.get(row, {}).get(figure) for figures in rounds]


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float]:
    """Ours to theirs of the same round, where both have the figure and theirs is not 0."""
    return [a / b for a, b in zip(ours, theirs, strict=True) if a is not None and b]


def lines(rounds: Mapping[T, Sequence[Figures]]) -> list[list[str]]:
    """One line for each figure: median and spread of each name; for two names also the ratio, first to second."""
    of_each = list(rounds.values())
    names = dict.fromkeys(
        (row, figure) for figures in (of_one[0] for of_one in of_each) for row in figures for figure in figures[row]
    )
    rows = {row: n for n, (row, _) in enumerate(names)}
    order = {figure: n for n, figure in enumerate(WORDS)}
    table = []
    for row, figure in sorted(names, key=lambda name: (rows[name[0]], order[name[1]])):
        values = [series(of_one, row, figure) for of_one in of_each]
        cells = [cell for one in values for cell in cells_of([value for value in one if value is not None])]
        if len(values) == 2:
            cells += cells_of(ratios(*values))
        table.append([f"{row}: {WORDS[figure]}", *cells])
    return table


def cells_of(values: Sequence[float]) -> list[str]:
    """Median and spread as text; dashes for none."""
    if not values:
        return ["-", "-"]
    found = spread(values)
    return [shown(found["median"]), f"{shown(found['min'])}..{shown(found['max'])}"]


def shown(value: float) -> str:
    """Two digits or more, whatever the size."""
    places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:,.{places}f}"


def table(what: str, rounds: Mapping[T, Sequence[Figures]]) -> str:
    """`lines` as a table; the names head the columns."""
    head = [what, *(part for name in rounds for part in (str(name), "spread"))]
    if len(rounds) == 2:
        head += ["ratio", "spread"]
    return markdown(head, lines(rounds))


def by_name(rounds: Mapping[T, Sequence[Figures]]) -> dict[str, Sequence[Figures]]:
    """The same for JSON."""
    return {str(name): figures for name, figures in rounds.items()}


def at(points: Sequence[tuple[float, float]], moment: float) -> float:
    """The value at a moment, on the straight line between the two points beside it; at an end, that end's value."""
    after = bisect_right(points, moment, key=lambda point: point[0])
    if after in (0, len(points)):
        return points[min(after, len(points) - 1)][1]
    (begin, low), (end, high) = points[after - 1 : after + 1]
    return low + (high - low) * (moment - begin) / (end - begin)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def levels(values: Sequence[float]) -> dict[str, float]:
    """min, median, p99 and max."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"min": ordered[0], "p50": statistics.median(ordered), "p99": p99, "max": ordered[-1]}


# ---- paper


def machine() -> dict[str, Any]:
    """The machine and the command behind the figures."""
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is aligned left, figures are aligned right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def publish(title: str, table: str, figures: dict[str, Any], path: Path | None) -> None:
    """Print the table; write everything as JSON to `path`, if there is one."""
    host = machine()
    print(f"\n## {title}\n\n{table}\n\n`{host['command']}`, {host['cores']} cores, Python {host['python']}, "
          f"{host['at']}, load {host['load']}", flush=True)  # fmt: skip
    if path is not None:
        path.write_text(json.dumps({"machine": host, **figures}, indent=1) + "\n", "utf-8")


def say(text: str) -> None:
    """Print progress to stderr: stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)
