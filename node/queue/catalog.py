"""The catalog: every task type the cluster knows, with its queue and defaults, kept in Redis by the nodes that have it.

Any gateway accepts any type by it, whether or not it has the handler itself.
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
from cluster.shards.task import LEVELS, Backoff, Spec
from node.tasks import Handler


class TypeEntry(msgspec.Struct, array_like=True, frozen=True):
    """What a gateway must know of a type. Fields are only ever added, at the end."""

    queue: str
    level: int
    max_attempts: int
    timeout_s: float
    backoff: Backoff
    schema: str = ""  # JSON schema of data, as JSON; "" when any JSON will do


class Known:
    """An entry with what every plain submission of it shares, made once."""

    __slots__ = ("entry", "spec", "spec_bytes")

    def __init__(self, name: str, entry: TypeEntry) -> None:
        self.entry = entry
        self.spec = Spec(name, entry.queue, entry.level, entry.max_attempts, entry.timeout_s, entry.backoff)
        self.spec_bytes = msgspec.msgpack.encode(self.spec)


def entry_of(handler: Handler, config: Config) -> TypeEntry:
    """A handler's entry; what it leaves open comes from this node's configuration."""
    return TypeEntry(
        queue=handler.queue,
        level=LEVELS["normal"] if handler.priority is None else handler.priority,
        max_attempts=config.max_attempts if handler.max_attempts is None else handler.max_attempts,
        timeout_s=config.timeout_s if handler.timeout_s is None else handler.timeout_s,
        backoff=handler.backoff or Backoff(config.backoff_base_s, config.backoff_factor, config.backoff_max_s),
        schema="" if handler.schema is None else msgspec.json.encode(handler.schema).decode(),
    )


class Catalog:
    """This node's copy."""

    def __init__(self, handlers: Iterable[Handler], config: Config) -> None:
        self._own = {handler.name: entry_of(handler, config) for handler in handlers}
        self._known = {name: Known(name, entry) for name, entry in self._own.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known))

    def entries(self) -> dict[str, TypeEntry]:
        """All types by name."""
        return {name: self._known[name].entry for name in self}

    def get(self, name: str) -> Known | None:
        """What is known of a type."""
        return self._known.get(name)

    def unknown(self, name: str) -> UnknownType:
        """The error for a type that nobody has, with near names."""
        near = get_close_matches(name, self._known, n=3, cutoff=0.5)
        have = ", ".join(near) if near else ", ".join(list(self)[:20])
        return UnknownType(
            f"type is {name!r}, and no node of this cluster ever had a handler for it.",
            f"{'Near' if near else 'Known'} types: {have}. Start a node with --tasks naming the module that has it.",
        )

    async def publish(self, client: redis.asyncio.Redis) -> None:
        """Write this node's own types into Redis."""
        if self._own:
            mapping: dict[Any, Any] = {name: msgspec.msgpack.encode(entry) for name, entry in self._own.items()}
            await client.hset(keys.LEADER_CATALOG, mapping=mapping)

    async def refresh(self, client: redis.asyncio.Redis) -> bool:
        """Read what the others wrote. This node's own types stay as it has them; whether all of them stand there."""
        rows: Any = await client.hgetall(keys.LEADER_CATALOG)
        for name, packed in rows.items():
            try:
                entry = msgspec.msgpack.decode(packed, type=TypeEntry)
            except msgspec.DecodeError:
                continue  # written by a node of another version; its own gateway takes it
            if (text := name.decode()) not in self._own:
                known = self._known.get(text)
                if known is None or known.entry != entry:
                    self._known[text] = Known(text, entry)
        return all(name.encode() in rows for name in self._own)
