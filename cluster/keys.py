"""Every key in Redis: one function each, with its type, its hash tag and how long it lives.

All keys of a shard share the tag `{sNN}`, so that a shard lives whole on one master of a Redis Cluster. A session's
key and channel share `{<session>}`. The leader's lease and what the whole cluster shares have `{leader}`. No other
module writes a key name.

Two keys have no use yet: no script adds to `waiting`, and nothing reads `{leader}:snapshot`.
"""

from __future__ import annotations

WORKERS_ACTIVE = "workers:active"  # set: node_ids that live; each node adds its own, a leave or a fencer removes it

LEADER_LEASE = "{leader}:lease"  # string <session>|<epoch>, PX leader_lease_s
LEADER_EPOCH = "{leader}:epoch"  # string int, only rises; for ever
LEADER_CONFIG = "{leader}:config"  # hash: shards, cluster, min_schema; for ever
LEADER_CATALOG = "{leader}:catalog"  # hash: type -> msgpack of its queue, defaults, schema; for ever
LEADER_MEMBERS = "{leader}:members"  # hash: node_id -> msgpack address record, by each node itself; until forget.lua
LEADER_NEVER = "{leader}:never"  # never exists: the guard of the scripts in this slot (see `never`)
LEADER_KEYS = "{leader}:keys"  # hash: node_id -> fingerprints of its gossip keys; as long as the row in members
PARKED = "@"  # begins the name of a queue in which tasks wait for a node with a handler; no other queue's name has it
LEADER_SNAPSHOT = "{leader}:snapshot"  # string: the leader's member table, JSON; PX forget_s; nothing reads it yet


def handlers(node_id: str) -> str:
    """String: the types for which this node has handlers, msgpack; the node writes it again and again. PX."""
    return f"{{leader}}:handlers:{node_id}"


TIMELINE = "{timeline}:events"  # list: the last events that nodes told the cluster, JSON; PX TIMELINE_TTL_MS
TIMELINE_NEVER = "{timeline}:never"  # never exists: the guard of the script in this slot


def timeline_channel(database: int) -> str:
    """Channel: each event as a node tells it; sums of tasks while anybody listens.

    A server has one space of channels for all its databases, so the name tells them apart: two clusters that share the
    server must not hear each other. Database 0 has the plain name.
    """
    return "{timeline}:told" + _of_database(database)


def timeline_sum(step: int) -> str:
    """Hash: counter -> its sum over the whole cluster in one step of time; PX."""
    return f"{{timeline}}:sum:{step}"


def tag(shard: int) -> str:
    """The hash tag of a shard, braces included: `{s1f}`."""
    return f"{{s{shard:02x}}}"


def shard_of(key: str) -> int | None:
    """The shard whose tag the key carries; None for a key that belongs to no shard."""
    return int(key[2:4], 16) if key.startswith("{s") and key[4:6] == "}:" else None


def bucket_prefix(shard: int) -> str:
    """Prefix to which scripts append the name of a bucket: a hash with the fields of all tasks made within some 32 ms.

    `lua/include/bucket.lua` and `state.lua` say what the fields hold. A bucket lives until the retention of its last
    task ends.
    """
    return f"{tag(shard)}:tasks:"


def buckets(shard: int) -> str:
    """Sorted set: the names of the shard's buckets at score 0. Redis then lists them in the order of time."""
    return f"{tag(shard)}:buckets"


def old_task_prefix(shard: int) -> str:
    """Prefix of the hashes in which schema 1 kept each task. `migrate.lua` empties them; nothing else reads them."""
    return f"{tag(shard)}:task:"


def old_index(shard: int) -> str:
    """Sorted set of schema 1: the ids of the tasks that have such a hash."""
    return f"{tag(shard)}:index"


def ready(shard: int, queue: str) -> str:
    """Sorted set: queued ids by queued-at ms - 1,000 x level x priority_aging_s. Exists while anything is queued."""
    return f"{tag(shard)}:ready:{queue}"


def ready_prefix(shard: int) -> str:
    """Prefix to which scripts append a queue's name."""
    return f"{tag(shard)}:ready:"


def parked(queue: str, type_: str) -> str:
    """Name of the queue in which tasks of another queue wait for a node that has a handler for their type.

    Its scores are the times at which each began to wait, ms.
    """
    return f"{PARKED}{queue}{PARKED}{type_}"


def parked_of(name: str) -> tuple[str, str] | None:
    """(queue, type) of such a name; None for any other queue's."""
    if not name.startswith(PARKED):
        return None
    queue, _, type_ = name.removeprefix(PARKED).partition(PARKED)
    return queue, type_


def queues(shard: int) -> str:
    """Set: names of the queues in which something is queued. A sweep takes out others that its node does not serve."""
    return f"{tag(shard)}:queues"


def scheduled(shard: int) -> str:
    """Sorted set: ids that are scheduled or wait for a retry, by due time, ms."""
    return f"{tag(shard)}:scheduled"


def retrying(shard: int) -> str:
    """Set: the ids in `scheduled` that wait for a retry. It is only counted: a task's state says which it is."""
    return f"{tag(shard)}:retrying"


def waiting(shard: int) -> str:
    """Sorted set: ids that wait for other tasks, by creation time, ms. No script adds to it yet: it is always empty."""
    return f"{tag(shard)}:waiting"


def inflight(shard: int, session: str) -> str:
    """Hash: task id -> token (attempt, delivery, …; `lua/include/token.lua`) of what the session runs: the fence.

    Exists while something is in flight.
    """
    return f"{tag(shard)}:inflight:{session}"


def inflight_prefix(shard: int) -> str:
    """Prefix to which scripts append a session."""
    return f"{tag(shard)}:inflight:"


def sessions(shard: int) -> str:
    """Set: sessions with something in flight in this shard, the list of record for reaping."""
    return f"{tag(shard)}:sessions"


def done(shard: int) -> str:
    """Sorted set: succeeded ids by the time at which their retention ends, ms."""
    return f"{tag(shard)}:done"


def dead(shard: int) -> str:
    """Sorted set: dead ids by the time at which their retention ends, ms: the dead letter queue."""
    return f"{tag(shard)}:dead"


def cancelled(shard: int) -> str:
    """Sorted set: cancelled ids by the time at which their retention ends, ms."""
    return f"{tag(shard)}:cancelled"


def idempotency(shard: int, key: str) -> str:
    """String: `<task id> <fingerprint>` for an Idempotency-Key or `unique_for_s`. PX idempotency_s / unique_for_s.

    It stands beside the task; and for an Idempotency-Key whose task or batch is elsewhere, in the key's own shard too.
    """
    return f"{tag(shard)}:idem:{key}"


def batch(shard: int, key: str) -> str:
    """String: the plan of a batch under this Idempotency-Key: its ids, and which of its tasks are stored. PX."""
    return f"{tag(shard)}:batch:{key}"


def never(shard: int) -> str:
    """Never exists: scripts declare it, so that a slot that moves answers TRYAGAIN before a script writes anything."""
    return f"{tag(shard)}:never"


def finished_channel(shard: int, database: int) -> str:
    """Channel: settles publish there the ids that became terminal (for `wait_s`). `database`: as `timeline_channel`."""
    return f"{tag(shard)}:finished{_of_database(database)}"


def _of_database(database: int) -> str:
    return f"@{database}" if database else ""


def heartbeat(session: str) -> str:
    """String: a counter while the session lives (PX), or `fenced <cause> <ms> <by>` (PX tombstone_s): the tombstone."""
    return f"{{{session}}}:heartbeat"


def words(session: str) -> str:
    """Hash: a session -> its word on whether this one is gone (see `lua/vote.lua`). PX, some seconds."""
    return f"{{{session}}}:words"


def wake(session: str) -> str:
    """Channel: wake-ups for the session, and its heartbeat's echo. Same slot as its heartbeat."""
    return f"{{{session}}}:wake"


def session_never(session: str) -> str:
    """Never exists: the guard of the scripts in this session's slot (see `never`)."""
    return f"{{{session}}}:never"


UNDATED_MS = 1 << 53  # stands for the time of a tombstone that names none: later than all that was ever claimed
FENCED = "fenced "  # first characters of a tombstone
VOTES = " votes"  # last characters of the heartbeat of a session that says its word on others


def heartbeat_value(beat: int) -> str:
    """What a living session's heartbeat says: a number that rises, and that the session votes."""
    return f"{beat}{VOTES}"


def votes(value: bytes | None) -> bool:
    """Whether the session of this heartbeat says words, or may do so. Older versions of Rumor do not."""
    return value is None or value.endswith(VOTES.encode())


def is_tombstone(value: bytes | None) -> bool:
    """Whether this value of a heartbeat says that its session was fenced."""
    return value is not None and value.startswith(FENCED.encode())


def fenced_ms(value: bytes | None) -> int | None:
    """When the tombstone was written, by Redis's clock; None if this value of a heartbeat is no tombstone."""
    if not is_tombstone(value):
        return None
    assert value is not None
    _, _, at_ms, *_ = [*value.split(b" "), b"", b""]
    return int(at_ms) if at_ms.isdigit() else UNDATED_MS


def tombstone(value: bytes) -> tuple[str, str]:
    """Cause and fencer (a node_id) in a tombstone; "" for each that it does not name."""
    _, cause, _, by, *_ = [*value.decode("utf-8", "replace").split(" "), "", "", ""]
    return cause, by
