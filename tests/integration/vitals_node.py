"""A node that is nothing but vitals and the two gossip routes: in this process, or as a child that can be killed.

`python -m tests.integration.vitals_node <JSON of Config fields>` prints most of what it is told, one JSON a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.load import Load, Meta, QueueLoad, encode_meta
from cluster.view import View
from cluster.vitals.thread import Vitals
from cluster.vitals.told import (
    Disowned,
    GivingUp,
    Happened,
    NameTaken,
    NewSession,
    NewView,
    RedisReach,
    SessionEnded,
    Told,
    Woken,
)

KEY = b"k" * 32
TICK_S = 0.1


class VitalsNode:
    """One node. What its vitals told is kept in lists, with the time."""

    def __init__(self, config: Config, on_news: Callable[[str, Any], None] | None = None) -> None:
        self.config = config
        self.views: list[View] = []
        self.dead: dict[str, tuple[str, float]] = {}  # session -> (cause, when)
        self.disowned: list[str] = []
        self.fenced: list[str] = []
        self.wakes: list[bytes] = []
        self.events: list[dict[str, Any]] = []
        self.redis: list[tuple[bool, float]] = []
        self.conflicts: list[str] = []
        self._on_news = on_news or (lambda kind, value: None)
        self._ticking: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        meta = encode_meta(Meta({"default": 4}, pid=1, version="0"))
        self.vitals = Vitals(config, [KEY], meta, self.hear, asyncio.get_running_loop())

    async def start(self) -> VitalsNode:
        app = web.Application()
        app.router.add_get("/gossip/watch", self._watch)
        app.router.add_post("/gossip", self._gossip)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.config.host, self.config.port, backlog=4096).start()
        try:
            await self.vitals.start()
        except ConfigError:
            await self._runner.cleanup()
            raise
        self.vitals.set_load(Load(True, False, False, {"default": QueueLoad(4, 0, 0)}))
        self._ticking = asyncio.get_running_loop().create_task(self._tick())
        return self

    async def stop(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        await self.vitals.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    def state_of(self, node_id: str) -> tuple[str, str]:
        peer = self.vitals.view.get(node_id)
        return ("unknown", "") if peer is None else (peer.state.value, peer.verdict.value)

    def hear(self, told: Told) -> None:
        """What vitals tells, by its kind."""
        match told:
            case NewView(view):
                self.views.append(view)
            case SessionEnded(session, cause):
                self.dead.setdefault(session, (cause, time.monotonic()))
                self._on_news("dead", session)
            case Disowned(session):
                self.disowned.append(session)
            case NewSession(session):
                self.fenced.append(session)
                self._on_news("fenced", session)
            case Woken(message):
                self.wakes.append(message)
            case Happened(event):
                self.events.append(event)
                self._on_news("event", event)
            case RedisReach(is_ok):
                self.redis.append((is_ok, time.monotonic()))
                self._on_news("redis", is_ok)
            case NameTaken(message):
                self.conflicts.append(message)
            case GivingUp(message):
                self._on_news("give_up", message)

    # ---- the gateway's part

    async def _tick(self) -> None:
        while True:
            self.vitals.tick()
            await asyncio.sleep(TICK_S)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if not self.vitals.accepts_watch(request.headers.get("Rumor-Watch", "")):
            return web.Response(status=403)
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async def _gossip(self, request: web.Request) -> web.Response:
        reply = await self.vitals.push_pull(await request.read())
        return web.Response(status=403) if reply is None else web.Response(body=reply)


async def main(fields: dict[str, Any], hang_s: float) -> None:
    def show(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), flush=True)

    node = await VitalsNode(Config(**fields), show).start()
    show("ready", node.vitals.session)
    if hang_s:
        await asyncio.sleep(1.0)
        time.sleep(hang_s)  # noqa: ASYNC251 - the main loop hangs, on purpose.
    while True:
        show("view", {p.node_id: [p.state, p.verdict] for p in node.vitals.view.members})
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    asyncio.run(main(fields, fields.pop("hang_s", 0.0)))
