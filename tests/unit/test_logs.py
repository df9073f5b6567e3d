"""Lines of the log: one form for structlog and `logging`, the task and its trace on them, and no flood."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SETUP = f"""
import logging, structlog, threading
from cluster.config import Config
from cluster.shards.task import Backoff, Claimed, Spec
from node.observe import logs
logs.configure(Config(log_format=FORMAT))
spec = Spec("t", "default", 5, 5, 60.0, Backoff(1.0, 2.0, 300.0), trace="00-{TRACE}-00f067aa0ba902b7-01 rojo=1")
claimed = Claimed("01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f", 31, 1, 1, spec, b"null")
"""


def logged(code: str, form: str = "json") -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"FORMAT = {form!r}" + SETUP + code],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert not done.stdout
    return done.stderr


def test_what_is_logged_in_an_attempt_carries_its_task_and_trace() -> None:
    lines = logged("""
logging.getLogger("shop").warning("%s outside", "said")
logs.attempt.set(claimed)
logging.getLogger("shop").warning("%s inside", "said")
structlog.get_logger().info("shown", by="hand", task="another")
logging.getLogger("shop").info("not shown: the libraries' chatter")
""").splitlines()
    outside, inside, shown = (json.loads(line) for line in lines)
    assert (outside["event"], outside["logger"], "task" in outside) == ("said outside", "shop", False)
    assert inside["event"] == "said inside"
    assert (inside["task"], inside["trace"]) == ("01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f", TRACE)
    assert (shown["task"], shown["trace"]) == ("another", TRACE), "what a line says itself stands"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_variables(form: str) -> None:
    text = logged(
        """
def work(token):
    raise ZeroDivisionError
for log in (logging.getLogger("shop"), structlog.get_logger()):
    try:
        work("s3cr" + "et")
    except ZeroDivisionError:
        log.exception("failed")
""",
        form,
    )
    assert text.count("Traceback") == 2
    assert "s3cret" not in text


def test_a_collector_that_is_away_is_no_flood() -> None:
    lines = logged("""
for n in range(1000):
    logging.getLogger("opentelemetry.exporter").warning("away, %d", n)
    logging.getLogger("shop").warning("busy, %d", n) if n < 3 else None
logging.getLogger("opentelemetry.exporter").warning("something else")
""").splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "away, 0",
        "busy, 0",
        "busy, 1",
        "busy, 2",
        "something else",
    ]
