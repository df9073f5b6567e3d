"""The plan of a batch under an Idempotency-Key: its tasks' ids, so that a repeat anywhere is the same tasks. Pure.

The first gateway proposes a plan, and plan.lua keeps whichever came first. All ids follow from it, and store.lua stores
an id once. So every gateway that handles the batch, then or later, stores the same tasks, in the same few chunks.
store.lua knows an id only as long as its task is kept. Therefore a gateway that has stored tasks marks their places in
the plan before it answers the client. A repeat stores no marked place again, although its task may be long gone.

A place of the request is in the plan, or it is on its own: its item then has an Idempotency-Key of its own. That too is
decided once, by the plan that stands: a place is on its own if its item could not be accepted then, has a unique name,
which may stand for another task, or is kept too briefly (`KEPT_MIN_S`).

Does not know: Redis, which shard is a good one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from struct import pack, unpack
from typing import Any

import msgspec
from msgspec import Raw

from cluster.shards.task import IdRun, run_from
from node.schema import Submission

# The shortest retention of a task in a plan: three times as long as a client waits for a gateway before it repeats the
# batch at another. If the first one died before it marked the plan, only the stored tasks themselves stop the other.
KEPT_MIN_S = 60.0
# The time for which a gateway that has read a plan may store by it. A gateway that was stopped for longer might store
# again what another stored, marked and saw ending meanwhile.
HOLDS_S = 20.0
ALONE = 0  # the digest of a place that is on its own
STORED, OPEN = b"s", b"."
PLACE_BYTES = 6  # of a plan for each place: its mark, its shard, its digest
ID_BYTES = 26

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode
_NULL = Raw(b"null")
_STORED = STORED[0]


class Fate(Enum):
    """What becomes of one item of a keyed batch."""

    ALONE = "alone"  # it has a key of its own
    STORE = "store"  # store it under its id; another gateway may have done so already
    REPEAT = "repeat"  # its task was stored
    CONFLICT = "conflict"  # its place stands for a task with another body


# Bound once, as every item needs one: `Enum.MEMBER` costs 0.1 us each time in Python 3.11.
_ALONE, _STORE, _REPEAT, _CONFLICT = Fate


@dataclass(frozen=True, slots=True)
class Plan:
    """What one Idempotency-Key stands for. All sequences go by place."""

    ids: IdRun
    marks: bytes
    shards: bytes
    digests: Sequence[int]

    def encoded(self) -> bytes:
        """The plan as Redis keeps it. The marks have a fixed place, and can be read by eye."""
        size = len(self.marks)
        return b"".join((self.ids.first.encode(), self.marks, b"\n", self.shards, pack(f">{size}I", *self.digests)))

    def fate(self, place: int, digest: int) -> Fate:
        """What becomes of the item with this digest in this place."""
        if not self.has(place):
            return _ALONE
        if self.digests[place] != digest:
            return _CONFLICT
        return _REPEAT if self.marks[place] == _STORED else _STORE

    def has(self, place: int) -> bool:
        """Whether the place is in the plan."""
        return place < len(self.digests) and self.digests[place] != ALONE


def proposal(ids: IdRun, places: Sequence[int], shards: Sequence[int], digests: Sequence[int]) -> Plan:
    """A plan for a request with items in these places, which rise; an item is on its own if its digest is ALONE."""
    size = places[-1] + 1 if places else 0
    if len(places) == size:
        return Plan(ids, OPEN * size, bytes(shards), digests)
    shard_of, digest_of = bytearray(size), [ALONE] * size
    for place, shard, digest in zip(places, shards, digests, strict=True):
        shard_of[place], digest_of[place] = shard, digest
    return Plan(ids, OPEN * size, bytes(shard_of), digest_of)


def decoded(value: bytes) -> Plan:
    """The plan that Redis keeps. Raises ValueError if that is none."""
    size, rest = divmod(len(value) - ID_BYTES - 1, PLACE_BYTES)
    end = ID_BYTES + size
    if rest or size < 0 or value[end : end + 1] != b"\n":
        raise ValueError(f"{len(value)} bytes are not a plan")
    shards_end = end + 1 + size
    digests = unpack(f">{size}I", value[shards_end:])
    return Plan(run_from(value[:ID_BYTES].decode()), value[ID_BYTES:end], value[end + 1 : shards_end], digests)


def runs(places: Iterable[int]) -> list[tuple[int, bytes]]:
    """The marks for these places, which rise, as mark.lua takes them."""
    found: list[list[int]] = []
    for place in places:
        if found and found[-1][1] == place:
            found[-1][1] = place + 1
        else:
            found.append([place, place + 1])
    return [(ID_BYTES + start, STORED * (end - start)) for start, end in found]


def beside(item: Submission) -> tuple[Any, ...] | None:
    """All that a submission says beside its data, to be compared; None where that cannot be."""
    if item.backoff is not None:
        return None
    return (
        item.type,
        item.queue,
        item.priority,
        item.key,
        item.delay_s,
        item.run_at,
        item.max_attempts,
        item.timeout_s,
        item.unique_for_s,
        item.unique_key,
        item.retention_s,
    )


def start_of(item: Submission) -> int:
    """The digest of what a submission says beside its data, to be gone on with by `digest`."""
    return zlib.crc32(_encode(msgspec.structs.replace(item, data=_NULL)))


def digest(item: Submission, start: int) -> int:
    """The digest of a submission's meaning, not of its spelling; never ALONE.

    32 bits tell a client that it made a mistake; nobody gains anything by a collision with himself.
    """
    return zlib.crc32(_encode(_decode(item.data)), start) or 1
