"""Tasks as plain data, and the rules about them: ids, states, levels, backoff. Pure.

The caller hands in the time and the randomness. Does not know: Redis, handlers, clocks.
"""

from __future__ import annotations

import secrets
from enum import StrEnum
from random import Random

import msgspec


class State(StrEnum):
    """Where a task is. The last three are terminal."""

    SCHEDULED = "scheduled"
    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED})
# Over HTTP and in declarations a task has a `priority`: one of these names, or a number. Here and in Redis it has the
# number alone, its `level`: 0 to LEVEL_MAX, and a higher one starts earlier.
LEVELS = {"low": 2, "normal": 5, "high": 8}
LEVEL_MAX = 9


class Backoff(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Exponential backoff with full jitter, in seconds."""

    base_s: float
    factor: float
    max_s: float


class Spec(msgspec.Struct, array_like=True, frozen=True):
    """A submission with its defaults filled in and without its data. Stored once as msgpack, never changed.

    The scripts read it by position: `lua/include/spec.lua` names the positions, and a test compares them with this. The
    defaults here are no settings: fields that have these values at the end of a spec are left out of what is stored, so
    they never change.
    """

    type: str
    queue: str
    level: int
    max_attempts: int = 5
    timeout_s: float = 3600.0
    backoff: Backoff = Backoff(1.0, 2.0, 300.0)
    key: str | None = None
    retention_s: float | None = None
    trace: str | None = None  # W3C traceparent, followed by a space and the tracestate if there is one


# Data of a task that was submitted without any. It is JSON's null, spelled as no gateway spells a null that was sent:
# so a handler's default counts for the one and not for the other, and whoever does not know of it reads null.
NO_DATA = b" null"
_HEAD = 3  # bytes before a stored spec: its length in two, its level in one
_APART = 0x8000  # bit of the length: the data has a field of its own
NO_SPEC = Spec("", "", 0, 1, 1.0, Backoff(0, 1, 0))  # stands where the spec of a task is not known
BUCKET_MS = 32  # ids made within that time begin alike, and their tasks share a bucket (`lua/include/bucket.lua`)
APART_BYTES = 512  # largest data that stands behind its spec, as in `lua/include/bucket_write.lua`
_USUAL_ATTEMPTS, _USUAL_TIMEOUT_S, _USUAL_BACKOFF = Spec.__struct_defaults__[:3]
_encode = msgspec.msgpack.Encoder().encode
_SPECS_MAX = 4_096  # specs that are kept decoded
_decode_spec = msgspec.msgpack.Decoder(Spec).decode
_specs: dict[bytes, Spec] = {}  # packed -> decoded: the tasks of one type have the same bytes


def packed(spec: Spec) -> bytes:
    """A spec as it is stored: its length, its level, then msgpack. `lua/include/stored.lua` reads it.

    Every task has one, so the usual fields at its end are left out.
    """
    plain = (spec.type, spec.queue, spec.level)
    if spec.key is not None or spec.retention_s is not None or spec.trace is not None:
        body = _encode(spec)
    elif spec.backoff != _USUAL_BACKOFF:
        body = _encode((*plain, spec.max_attempts, spec.timeout_s, spec.backoff))
    elif spec.timeout_s != _USUAL_TIMEOUT_S:
        body = _encode((*plain, spec.max_attempts, spec.timeout_s))
    elif spec.max_attempts != _USUAL_ATTEMPTS:
        body = _encode((*plain, spec.max_attempts))
    else:
        body = _encode(plain)
    return len(body).to_bytes(2, "little") + bytes((spec.level,)) + body


def apart(packed: bytes) -> bytes:
    """The same spec, with the mark that the task's data has a field of its own."""
    return bytes((packed[0], packed[1] | _APART >> 8)) + packed[2:]


def is_apart(stored: bytes) -> bool:
    """Whether the data has a field of its own."""
    return bool(stored[1] & _APART >> 8)


def unpack(stored: bytes) -> tuple[Spec, bytes]:
    """The spec and the data of a stored spec with its data behind it. Raises msgspec.DecodeError."""
    spec, head = spec_of(stored)
    return spec, stored[len(head) :]


def spec_of(stored: bytes) -> tuple[Spec, bytes]:
    """The spec with which the bytes begin, and those bytes. Raises msgspec.DecodeError."""
    head = stored[: _HEAD + (int.from_bytes(stored[:2], "little") & ~_APART)]
    spec = _specs.get(head)
    if spec is None:
        spec = _decode_spec(head[_HEAD:])
        if len(_specs) >= _SPECS_MAX:
            _specs.clear()
        _specs[head] = spec
    return spec, head


class Claimed(msgspec.Struct, frozen=True, gc=False):
    """One delivery of a task to this session: the right to settle it."""

    id: str
    shard: int
    delivery: int
    attempt: int
    spec: Spec
    data: bytes  # JSON, as submitted
    session: str = ""  # the session that claimed it
    lost: int = 0  # workers that died while they ran it


class Lost(msgspec.Struct, frozen=True, gc=False):
    """A traced delivery whose session was fenced while it ran, and where its task went."""

    claimed: Claimed
    ran_s: float  # from the claim until the task was taken from its session, by Redis's clock
    outcome: State  # queued, retrying or dead


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt failed; `type` is the exception's class name or one of ours (Timeout, WorkerLost, …)."""

    type: str
    message: str
    traceback: str | None = None


class Kind(StrEnum):
    """How an attempt ended, as the worker saw it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # counts; the task backs off, or is dead when its attempts are used up
    RETRY = "retry"  # the handler asks for another attempt after retry_after_s; counts
    REJECTED = "rejected"  # the handler gives the task up, or the data does not fit: straight to dead
    RELEASED = "released"  # handed back unstarted or by a drain; does not count
    STOPPED = "stopped"  # the attempt had lost its right to commit (cancelled, fenced): nothing to settle


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The worker's report of one delivery, made exactly once."""

    claimed: Claimed
    kind: Kind
    result: bytes | None = None  # JSON
    failure: Failure | None = None
    retry_after_s: float = 0.0  # with RETRY and RELEASED
    run_s: float = 0.0  # from start to end, by the worker's monotonic clock


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base32, as ULIDs use
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


class Ids:
    """Makes task ids: 10 characters of time, 10 drawn once per process, 6 that count up, then the shard in hex.

    Ids of one process rise strictly; across nodes they sort by time as exactly as the clocks agree. Each ends in its
    shard, so that any node finds any task in one step.
    """

    def __init__(self, seed: int | None = None) -> None:
        bits = secrets.randbits(80) if seed is None else Random(seed).getrandbits(80)
        self._process = _base32(bits >> 30, 10)
        self._count = bits & (1 << 29) - 1
        self._at_ms = -1
        self._prefix = ""

    def next(self, wall_ms: int, shard: int) -> str:
        """The next id. If the wall clock steps back, ids still rise."""
        if wall_ms > self._at_ms:
            self._at_ms = wall_ms
            self._prefix = _base32(wall_ms, 10) + self._process
        self._count = count = (self._count + 1) & (1 << 30) - 1
        return f"{self._prefix}{_PAIRS[count >> 20]}{_PAIRS[count >> 10 & 1023]}{_PAIRS[count & 1023]}-{shard:02x}"

    def reserve(self, wall_ms: int, count: int) -> IdRun:
        """So many ids in a row, whose shards are chosen later; `next` goes on behind them."""
        self.next(wall_ms, 0)
        run = IdRun(self._prefix, self._count)
        self._count = self._count + count - 1 & (1 << 30) - 1
        return run


class IdRun(msgspec.Struct, frozen=True, gc=False):
    """Ids in a row."""

    prefix: str  # what they begin with, 20 characters
    start: int  # the count of the first

    def nth(self, n: int, shard: int) -> str:
        """The n-th of these ids, counted from 0."""
        count = self.start + n & (1 << 30) - 1
        return f"{self.prefix}{_PAIRS[count >> 20]}{_PAIRS[count >> 10 & 1023]}{_PAIRS[count & 1023]}-{shard:02x}"

    @property
    def first(self) -> str:
        """The first id without its shard, which is enough to know all."""
        return self.prefix + _base32(self.start, 6)


def run_from(first: str) -> IdRun:
    """The ids in a row that begin with this one, which has no shard. Raises ValueError if it is no id."""
    if len(first) != 26 or not all(letter in _VALUES for letter in first):
        raise ValueError(f"{first!r} is not an id without its shard")
    start = 0
    for letter in first[20:]:
        start = start << 5 | _VALUES[letter]
    return IdRun(first[:20], start)


def _base32(value: int, width: int) -> str:
    return "".join(_ALPHABET[value >> 5 * place & 31] for place in reversed(range(width)))


def shard_of(task_id: str, shards: int) -> int | None:
    """The shard that the id names; None for a text that is no id of a cluster with this many shards."""
    head, dash, tail = task_id.rpartition("-")
    if not dash or len(head) != 26 or len(tail) != 2 or not all(letter in _VALUES for letter in head):
        return None
    try:
        shard = int(tail, 16)
    except ValueError:
        return None
    return shard if shard < shards and tail == f"{shard:02x}" else None


def made_at_ms(task_id: str) -> int:
    """When the id was made, by the clock of the gateway that made it. Hand in only what has the form of an id."""
    at_ms = 0
    for letter in task_id[:10]:
        at_ms = at_ms << 5 | _VALUES[letter]
    return at_ms


def backoff_s(backoff: Backoff, failures: int, rng: Random) -> float:
    """Seconds to wait after the n-th failure: uniform over [0, min(max_s, base_s x factor^(n-1))].

    Full jitter, so that tasks that failed together do not come back as one wave.
    """
    try:
        ceiling = backoff.base_s * backoff.factor ** max(0, failures - 1)
    except OverflowError:
        ceiling = backoff.max_s if backoff.base_s else 0.0
    return rng.uniform(0.0, min(backoff.max_s, ceiling))
