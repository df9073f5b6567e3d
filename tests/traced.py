"""Handlers that make spans of their own: `--tasks tests.traced`. What is logged on the way carries task and trace."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any

import structlog
from opentelemetry import trace

from node import Context, task

tracer = trace.get_tracer("tests.traced")


def work(name: str) -> None:
    with tracer.start_as_current_span(name), tracer.start_as_current_span(f"{name} deeper"):
        logging.getLogger("tests.traced").warning("said by %s", name)
        structlog.get_logger().warning("shown by", by=name)


@task
async def on_loop(data: Any, ctx: Context) -> str | None:
    trace.get_current_span().set_attribute("app.seen", True)
    await asyncio.gather(asyncio.to_thread(work, "in a thread of its own"), asyncio.sleep(0))
    work("on the loop")
    return ctx.trace


@task(executor="thread", queue="default")
def in_thread(data: Any) -> None:
    work("in a thread")


@task
def in_child(data: Any) -> int:
    work("in a child")
    return os.getpid()


@task(max_attempts=3, backoff={"base_s": 0.01})
async def flaky(data: Any, ctx: Context) -> None:
    if ctx.attempt < 3:
        raise ValueError("not yet " + "…" * 5000)


@task
async def slow(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task(timeout_s=1.5)
def stuck(data: Any) -> None:
    work("before it hung")
    time.sleep(30)
