"""Structured logs on stderr: an event name with fields; readable on a terminal, otherwise or on request as JSON.

Lines of the standard library's `logging` come out in the same form. Every line that an attempt's handler logs, or
anything that it calls, carries the id of the task and that of its trace.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog

from cluster import output
from cluster.config import Config
from cluster.shards.task import Claimed
from node import trace_context

LIBRARIES = ("asyncio", "aiohttp", "redis", "opentelemetry")  # loggers of what a node is built on
REPEAT_S = 60.0  # time between two equal complaints of OpenTelemetry

log = structlog.get_logger("rumor.loop")
attempt: ContextVar[Claimed | None] = ContextVar("attempt", default=None)  # of the code that logs


def configure(config: Config) -> None:
    """Set up structlog and the standard library's logging for this process."""
    level = getattr(logging, config.log_level.upper())
    readable = config.log_format == "console" or (config.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        # Plain, because the other forms of a traceback show the values of variables, and secrets with them.
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if readable
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    first: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        _of_attempt,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.types.Processor] = [
        *([] if readable else [structlog.processors.format_exc_info]),
        renderer,
    ]
    structlog.configure(
        processors=[*first, structlog.processors.StackInfoRenderer(), *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *first],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_Sparse())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in LIBRARIES:
        # Their lines must not meet the handlers that user code gives to the root: one that raises would raise in them.
        library = logging.getLogger(name)
        library.handlers, library.propagate = [handler], False
    if not readable:
        output.say_lost_as(lambda lost: f'{{"event": "log_lines_lost", "level": "warning", "writes": {lost}}}\n')


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what an event loop met outside of all that awaits it. It must not raise: that would end the loop."""
    error = context.get("exception")
    log.error("loop_error", message=str(context.get("message", "")), exc_info=error)


def ids_of(claimed: Claimed) -> dict[str, str]:
    """The fields of a line about a task."""
    context = claimed.spec.trace
    return {"task": claimed.id} if context is None else {"task": claimed.id, "trace": trace_context.trace_id(context)}


def _of_attempt(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    claimed = attempt.get()
    if claimed is not None:
        for name, value in ids_of(claimed).items():
            event.setdefault(name, value)
    return event


class _Sparse(logging.Filter):
    """Lets a complaint about a collector that is away through now and then, not once for each batch."""

    def __init__(self) -> None:
        super().__init__()
        self._again_s: dict[tuple[str, int], float] = {}  # by place in the code

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("opentelemetry."):
            return True
        now_s, place = time.monotonic(), (record.pathname, record.lineno)
        if now_s < self._again_s.get(place, 0.0):
            return False
        self._again_s[place] = now_s + REPEAT_S
        return True
