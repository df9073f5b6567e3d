"""The catalog: every task type that the cluster knows, with its queue and defaults.

Each node writes the types that it has handlers for into Redis and reads the types of the others. So any gateway accepts
any type, whether or not its own node has the handler.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

import msgspec
import redis.asyncio

from cluster import keys
from cluster.config import Config
from cluster.errors import UnknownType
from cluster.shards.task import LEVELS, Backoff, Spec, packed
from node.tasks import Handler

OWN_MAX = 256  # specs of one type that are kept made


class TypeEntry(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway must know of a type. Add fields at the end only, and remove none: other versions read them."""

    queue: str
    level: int
    max_attempts: int
    timeout_s: float
    backoff: Backoff
    schema: str = ""  # JSON schema of data, as JSON; "" when any JSON will do


class TaskType:
    """A type's entry, and the spec that all its plain submissions share, made and packed once."""

    __slots__ = ("_own", "entry", "packed", "spec")

    def __init__(self, name: str, entry: TypeEntry) -> None:
        self.entry = entry
        self.spec = Spec(name, entry.queue, entry.level, entry.max_attempts, entry.timeout_s, entry.backoff)
        self.packed = packed(self.spec)  # as Redis stores it
        self._own: dict[tuple[Any, ...], tuple[Spec, bytes]] = {}

    def own(self, *options: Any) -> tuple[Spec, bytes]:
        """The spec of submissions with these options of their own (queue, level, …), and as Redis stores it."""
        made = self._own.get(options)
        if made is None:
            spec = Spec(self.spec.type, *options)
            if len(self._own) >= OWN_MAX:
                self._own.clear()
            made = self._own[options] = spec, packed(spec)
        return made


def entry_of(handler: Handler, config: Config) -> TypeEntry:
    """The entry of a handler's type; this node's configuration fills in what the handler leaves open."""
    return TypeEntry(
        queue=handler.queue,
        level=LEVELS["normal"] if handler.priority is None else handler.priority,
        max_attempts=config.max_attempts if handler.max_attempts is None else handler.max_attempts,
        timeout_s=config.timeout_s if handler.timeout_s is None else handler.timeout_s,
        backoff=handler.backoff or Backoff(config.backoff_base_s, config.backoff_factor, config.backoff_max_s),
        schema="" if handler.schema is None else msgspec.json.encode(handler.schema).decode(),
    )


class Catalog:
    """This node's copy of the catalog."""

    def __init__(self, handlers: Iterable[Handler], config: Config) -> None:
        self._own = {handler.name: entry_of(handler, config) for handler in handlers}
        self._types = {name: TaskType(name, entry) for name, entry in self._own.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._types))

    @property
    def own(self) -> Iterable[str]:
        """The types for which this node has handlers."""
        return self._own.keys()

    def entries(self) -> dict[str, TypeEntry]:
        """All types by name."""
        return {name: self._types[name].entry for name in self}

    def get(self, name: str) -> TaskType | None:
        """The type of that name."""
        return self._types.get(name)

    def unknown(self, name: str) -> UnknownType:
        """The error for a type that is not in the catalog, with the names nearest to it."""
        near = get_close_matches(name, self._types, n=3, cutoff=0.5)
        have = ", ".join(near) if near else ", ".join(list(self)[:20])
        return UnknownType(
            f"type is {name!r}, and no node of this cluster ever had a handler for it.",
            f"{'Near' if near else 'Known'} types: {have}. Start a node with --tasks and the module that has it.",
        )

    async def publish(self, client: redis.asyncio.Redis) -> None:
        """Write this node's own types into Redis."""
        if self._own:
            mapping: dict[Any, Any] = {name: msgspec.msgpack.encode(entry) for name, entry in self._own.items()}
            await client.hset(keys.LEADER_CATALOG, mapping=mapping)

    async def refresh(self, client: redis.asyncio.Redis) -> bool:
        """Read the other nodes' types; returns whether all of this node's own types are in Redis.

        This node's own types stay as its handlers declare them.
        """
        rows: Any = await client.hgetall(keys.LEADER_CATALOG)
        for name, row in rows.items():
            try:
                entry, text = msgspec.msgpack.decode(row, type=TypeEntry), name.decode()
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # written by a node of another version, whose own gateway accepts the type
            if text not in self._own:
                before = self._types.get(text)
                if before is None or before.entry != entry:
                    self._types[text] = TaskType(text, entry)
        return all(name.encode() in rows for name in self._own)
