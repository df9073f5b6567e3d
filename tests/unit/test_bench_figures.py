"""The arithmetic of the benchmarks' reports, and what they say to a wrong --beside. Nothing here is timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.bench.figures import Figures, at, in_turn, lines, play, ratios

ROOT = Path(__file__).resolve().parents[2]


def drain(per_s: float, **more: float) -> Figures:
    return {"drain": {"per_s": per_s, **more}}


def test_the_order_of_two_checkouts_alternates() -> None:
    assert list(in_turn("AB", 3)) == [(0, "A"), (0, "B"), (1, "B"), (1, "A"), (2, "A"), (2, "B")]


def test_each_checkout_keeps_the_figures_of_its_own_rounds() -> None:
    rates = iter([1.0, 2.0, 3.0, 4.0])
    played = play("AB", 2, lambda _: drain(next(rates)), "drain")
    assert played == {"A": [drain(1.0), drain(4.0)], "B": [drain(2.0), drain(3.0)]}


def test_a_ratio_compares_the_two_halves_of_one_round() -> None:
    # The machine was fast in the first round and slow in the last. The ratio of the medians is 1.
    ours, theirs = [drain(400), drain(20), drain(10)], [drain(200), drain(20), drain(5)]
    assert lines({"A": ours, "B": theirs}) == [
        ["drain: tasks/s", "20.0", "10.0..400", "20.0", "5.00..200", "2.00", "1.00..2.00"]
    ]


def test_a_figure_that_one_checkout_lacks_has_no_ratio() -> None:
    ours, theirs = {"one request": {"p50_ms": 0.9}}, {"two requests": {"p50_ms": 1.8}}
    assert lines({"A": [ours], "B": [theirs]}) == [
        ["one request: p50 ms", "0.90", "0.90..0.90", "-", "-", "-", "-"],
        ["two requests: p50 ms", "-", "-", "1.80", "1.80..1.80", "-", "-"],
    ]


def test_one_checkout_alone_has_no_ratio_columns_and_figures_stand_in_one_order() -> None:
    assert lines({"A": [{"drain": {"busy": 1.5, "per_s": 12_345.0}}]}) == [
        ["drain: tasks/s", "12,345", "12,345..12,345"],
        ["drain: cores busy, node and Redis", "1.50", "1.50..1.50"],
    ]


def test_rounds_without_a_value_or_with_nothing_to_divide_by_are_left_out() -> None:
    assert ratios([1.0, None, 3.0, 4.0], [2.0, 2.0, 0.0, None]) == [0.5]


@pytest.mark.parametrize(
    ("moment", "value"), [(0.0, 10.0), (1.0, 10.0), (1.5, 15.0), (2.0, 20.0), (3.0, 60.0), (9.0, 100.0)]
)
def test_a_value_between_two_readings_lies_on_the_line_between_them(moment: float, value: float) -> None:
    assert at([(1.0, 10.0), (2.0, 20.0), (4.0, 100.0)], moment) == value


def beside(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "throughput.py"), "--beside", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 2, told
    return told.stderr


def test_a_second_checkout_that_cannot_run_nodes_is_refused_in_words(tmp_path: Path) -> None:
    assert f"{tmp_path} is no checkout of Rumor" in beside(tmp_path)
    package = tmp_path / "node"
    package.mkdir()
    for name in ("__init__", "__main__"):
        (package / f"{name}.py").touch()
    (package / "main.py").write_text("import not_installed\n")
    assert f"{tmp_path} has no .venv/bin/python" in beside(tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert "No module named 'not_installed'" in beside(tmp_path)
