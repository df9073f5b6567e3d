"""A node's life: check, start, serve, drain, end. It joins the parts together and decides nothing else."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Sequence

import redis.asyncio
import structlog

from cluster import __version__, output
from cluster.config import Config, strangers, without_secrets
from cluster.errors import ConfigError, RumorError, StoreUnsafe, bind_hint
from cluster.gossip.keyring import gossip_keys
from cluster.load import Meta, encode_meta
from cluster.redis_client import connect
from cluster.vitals.thread import Vitals
from cluster.vitals.told import Broken, GivingUp, Happened, NameTaken, NewView, Told, Woken
from node.gateway import server
from node.gateway.app import build
from node.leaving import END_S, LEAVE_S, Leaving, ToldToEnd
from node.observe import logs, tracing
from node.observe.metrics import Metrics
from node.queue import redis_checks
from node.queue.engine import Engine
from node.tasks import Registry, load
from node.work import fork_guard

EXIT_CONFIG = 2
EXIT_CONFLICT = 3
EXIT_BROKEN = 70
BROKEN_WITHIN_S = 3.0  # from a fault until the session is ended and the process over
SPANS_GRACE_S = 2.0  # time at the end of a node for spans that no collector has taken yet
log = structlog.get_logger("rumor.node")


class Relay:
    """Passes the news of the vitals thread on to the engine, once there is one. Some of it ends the node."""

    def __init__(self, stop: asyncio.Event) -> None:
        self.engine: Engine | None = None
        self.conflict = ""
        self._stop = stop
        self._early: list[Told] = []

    def attach(self, engine: Engine) -> None:
        """Pass everything on to the engine from now on; first the timeline so far."""
        self.engine = engine
        for told in self._early:
            engine.hear(told)

    def hear(self, told: Told) -> None:
        """One piece of news. Called on the main loop, in the order in which things happened."""
        match told:
            case Woken():
                pass  # The most frequent is looked for first; the engine alone needs it.
            case Happened(event):
                fields = {("event_kind" if name == "kind" else name): value for name, value in event.items()}
                log.info("event", **fields)
                if self.engine is None:
                    self._early.append(told)
            case NameTaken(message):
                self.conflict = message
                self._stop.set()
            case GivingUp(message):
                log.error("give_up", reason=message)
            case Broken():
                if self.engine is None:
                    self._early.append(told)
        if self.engine is not None:
            self.engine.hear(told)


def bind(config: Config) -> socket.socket:
    """The HTTP socket. Raises ConfigError when host and port cannot be bound."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(server.BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"port is {config.port}, and {config.address} cannot be bound: {error.strerror}.",
            bind_hint(error, config.port, "choose another --port"),
        ) from None
    return sock


async def _ask_redis(client: redis.asyncio.Redis, config: Config, keys: Sequence[bytes]) -> Sequence[dict[str, str]]:
    """Notes on what is unsafe about Redis, logged too. Raises RumorError where this node must not run with it."""
    try:
        async with asyncio.timeout(10):
            notes = await redis_checks.ready(client, config, keys)
    except TimeoutError:
        raise ConfigError(
            "Redis gives no answer within 10 s at start.", "Check redis_url, and whether the server runs."
        ) from None
    finally:
        await client.aclose()
    for note in notes:
        log.warning(note["code"], message=note["message"], hint=note["hint"])
    return notes


def _no_tasks_in(module: str) -> dict[str, str]:
    """The note for /health on a module of `tasks` that gives this node nothing to run, logged too."""
    message = f"tasks names {module!r}, which was imported and declares no task: this node runs no type of it."
    hint = "Decorate its functions with @task, or name the module that has them."
    log.warning("no_tasks_in_module", module=module, message=message, hint=hint)
    return {"code": "no_tasks_in_module", "message": message, "hint": hint}


def _warn(config: Config, registry: Registry, keys: Sequence[bytes]) -> None:
    """Log what works and may not be meant."""
    for name, origin in registry.replaced.items():
        log.warning(
            "builtin_replaced",
            type=name,
            by=origin,
            hint="Give it another name, unless you mean to replace the built-in type.",
        )
    if not keys and not config.is_loopback:
        log.warning("gossip_unsealed", hint="Anybody who reaches this port can join. Make a key: rumor keygen")


async def run(config: Config, leaving: Leaving) -> int:
    """Run one node until a signal; the exit status. Raises RumorError when it cannot start."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    registry = load(config.tasks)
    keys = gossip_keys(config)
    _warn(config, registry, keys)
    scheme = "https" if config.tls_cert else "http"
    meta = encode_meta(Meta(config.queue_slots, os.getpid(), __version__, scheme, config.public_url))
    client = connect(config.redis_url)
    await redis_checks.loaded(client)  # before it listens, so that clients meet no port that accepts and never answers
    sock = bind(config)
    notes = [*map(_no_tasks_in, registry.empty), *await _ask_redis(client, config, keys)]
    fork_guard.guard(client, config.port)
    relay = Relay(stop)
    metrics = Metrics()
    for handler in registry:  # a first death shows as a rise only if 0 was told before it
        metrics.commits_by_type.add((handler.name, "dead"), 0)
    spans = tracing.start(config.name)
    engine = Engine(config, registry, metrics, notes, spans)
    vitals = Vitals(config, keys, meta, relay.hear, loop)

    def broken(message: str) -> None:
        log.critical("node_broken", reason=message, hint="Its supervisor starts it again; others run its tasks.")
        leaving.by(BROKEN_WITHIN_S if vitals.give_up(message) else 0.0, EXIT_BROKEN)

    engine.on_broken = broken
    leaving.last = vitals.end_session
    ToldToEnd(leaving, config.drain_s, engine.draining.hand_back_s, stop, engine.draining.hurry)
    await engine.upkeep.announce()
    await vitals.start()
    await engine.start(vitals)
    relay.attach(engine)
    engine.hear(NewView(vitals.view))
    runner = await server.start(build(engine), config, sock)
    gc.collect()
    gc.freeze()  # The objects that are here now stay for good: no collection need look at them again.
    log.info("started", node=config.name, session=vitals.session, url=f"{scheme}://{config.address}")

    try:
        await stop.wait()
    except asyncio.CancelledError:
        broken("the node's own task was cancelled: a handler cancelled all tasks of the loop")
        raise
    if relay.conflict:
        log.error("conflict", reason=relay.conflict)
    else:
        await engine.drain()
    status = EXIT_CONFLICT if relay.conflict else 0
    leaving.by(END_S, status)
    engine.is_stopping = True
    await vitals.stop()
    await runner.cleanup()
    await engine.close()
    spans.close(SPANS_GRACE_S)
    log.info("stopped", node=config.name)
    leaving.by(LEAVE_S, status)
    return status


def forget_secrets() -> None:
    """Take the cluster's secrets out of the environment, now that they are read.

    Handlers on the loop, the programs that they start, and whatever shows the environment in a report need none.
    """
    for name in os.environ.keys() - without_secrets(os.environ).keys():
        del os.environ[name]


def main_node(config: Config) -> int:
    """Run one node in this process; the exit status."""
    output.shield()
    logs.configure(config)
    leaving = Leaving()
    for name, hint in strangers(os.environ).items():
        log.warning("variable_ignored", variable=name, hint=hint)
    forget_secrets()
    gc.set_threshold(25_000, 20, 50)  # Tasks come and go by the ten thousand, and few objects here are in a cycle.
    sys.setswitchinterval(0.001)  # The vitals thread shares the interpreter with handlers: 5 ms is long for a turn.
    try:
        return _to_its_end(config, leaving)
    except RumorError as error:
        print(error, file=sys.stderr)
        status = EXIT_CONFIG if isinstance(error, ConfigError | StoreUnsafe) else 1
        leaving.by(LEAVE_S, status)
        return status
    except BaseException as error:
        leaving.by(LEAVE_S, 130 if isinstance(error, KeyboardInterrupt) else 1)
        raise


def _to_its_end(config: Config, leaving: Leaving) -> int:
    """`run`, to its end. Code that a handler left behind may call exit: that stops the loop, and not the node."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        loop.set_exception_handler(logs.on_loop_error)
        node = loop.create_task(run(config, leaving))
        while True:
            try:
                return loop.run_until_complete(node)
            except SystemExit as error:
                if node.done():
                    raise
                log.error("exit_ignored", status=error.code, hint="Something that a handler left behind called exit.")
            except asyncio.CancelledError:
                leaving.wait()  # The vitals thread ends the session, then the process.
