"""The names under which a client can repeat a submission, and the shard that they choose. Pure.

There are two. A *unique name* (`unique_for_s`) says which task is meant: by its type, and by `unique_key` or its data.
It leads to the first task whatever else a second submission says. An *Idempotency-Key* says which submission is meant:
by all that it says, as a fingerprint. A second one that says something else, in any field, is a conflict.

One script writes a task and the mappings to it, so they stand in one shard. The unique name chooses that shard; where
there is none, the task's `key` does; else the Idempotency-Key. Where another name than the Idempotency-Key chooses, the
key's own shard is asked first (`key_homes`): a second submission under it may go to any other shard.

Does not know: Redis, load.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from cluster.errors import IdempotencyConflict, Invalid
from node.schema import Submission

BATCH = "batch"  # stands for the fingerprint of a submission where the Idempotency-Key is that of a whole batch
NO_ID = "-"  # stands for the id in a note about a stream of lines
LINES = "lines"  # the same for a stream of lines, each of which has a key of its own

_encode_json = msgspec.json.Encoder(order="deterministic").encode
_NULL = Raw(b"null")


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one submission."""

    place: str  # the name that chooses the shard, so that all names stand beside the task; "" if load chooses
    key: str  # the Idempotency-Key, else the unique name
    key_ms: int
    fingerprint: str = ""  # of what the Idempotency-Key stands for; "" without one
    unique: str = ""  # the unique name of a submission that has an Idempotency-Key as well
    unique_ms: int = 1


_UNNAMED = Names("", "", 1)


def names_of(item: Submission, idempotency_key: str | None, idempotency_ms: int) -> Names:
    """The names of a submission. Raises Invalid."""
    if item.unique_for_s is None and item.unique_key is None and idempotency_key is None:
        return _UNNAMED if item.key is None else Names(item.key, "", 1)
    unique = ""
    if item.unique_for_s is not None:
        unique = _unique(item)
    elif item.unique_key is not None:
        raise Invalid("unique_key is given and unique_for_s is not.", "Give unique_for_s too, in seconds.")
    unique_ms = max(1, int((item.unique_for_s or 0.0) * 1000))
    if idempotency_key is None:
        return Names(unique, unique, unique_ms)
    place = unique or item.key or idempotency_key
    return Names(place, idempotency_key, idempotency_ms, _fingerprint(item), unique, unique_ms)


def note(task_id: str, fingerprint: str) -> str:
    """What stands under an Idempotency-Key, as store.lua and reserve.lua write it."""
    return f"{task_id} {fingerprint}"


def conflict(first: str, fingerprint: str = "") -> IdempotencyConflict:
    """The error for a submission whose Idempotency-Key stands for another one, made under this id."""
    what = f"task {first}, with another body"
    if fingerprint == BATCH:
        what = f"a batch, which begins with task {first}"
    elif first == NO_ID:
        what = "a stream of lines"
    return IdempotencyConflict(f"this Idempotency-Key already stands for {what}.", "Use a new key for a new task.")


def _fingerprint(item: Submission) -> str:
    """A hash of a submission's meaning, not of its spelling: equal for two submissions that ask for the same."""
    rest = msgspec.structs.replace(item, data=_NULL)
    canonical = _encode_json([rest, msgspec.json.decode(item.data)])
    return hashlib.blake2b(canonical, digest_size=12).hexdigest()


def _unique(item: Submission) -> str:
    """The unique name of a submission. It has a line break, which no Idempotency-Key of a client has."""
    key = item.unique_key if item.unique_key is not None else _encode_json(msgspec.json.decode(item.data)).decode()
    return "unique:\n" + hashlib.blake2b(f"{item.type}\0{key}".encode(), digest_size=16).hexdigest()
