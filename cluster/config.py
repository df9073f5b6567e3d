"""The configuration: one frozen dataclass, checked when it is built, before any socket opens.

Each field is declared once, with its help text. Its flag (`--lease-s`), its environment variable (`RUMOR_LEASE_S`) and
its row in the docs come from that line. Names contain the unit.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_type_hints

from cluster import redis_address
from cluster.errors import ConfigError
from cluster.header_text import unfit
from cluster.hosts import hostport, is_host, is_loopback

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,62}\Z")
QUEUE_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}\Z")
SLOTS = re.compile(r"[0-9]{1,7}\Z")
SEED = re.compile(r"([^\s\[\]]+|\[[^\s\[\]]+\]):([0-9]{1,5})")
PUBLIC_URL = re.compile(r"(?=.{1,120}\Z)https?://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
UNSPECIFIED = ("0.0.0.0", "::")  # hosts that stand for every address and so name none at which peers reach this node
OTHER_VARIABLES = re.compile(  # of the client, launcher and tests, and those that Kubernetes sets for a service "rumor"
    r"RUMOR_((URL|CA_FILE|BASE_PORT|DATA_DIR|LAUNCH_ID|LAUNCHER|COMPLETE)|(TEST|SIM|BENCH)_.*"
    r"|(.*_)?SERVICE_(HOST|PORT.*)|(.*_)?PORT_\d+_.*)\Z"
)
KNOWN_TOKENS = ("demo-token", "change-me")  # those of docker-compose.yml and deploy/kubernetes
LONGEST_S = 315_360_000  # of any time in seconds: Redis and the system hold no time that is very much longer
SLOTS_MAX = 100_000
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("auto", "console", "json")
TRACE_ID = "{trace_id}"
SHARDS_MAX = 256


def option(default: Any, text: str, *, secret: bool = False) -> Any:
    """A configuration field: its default, and the one sentence that explains it everywhere."""
    return field(default=default, repr=not secret, metadata={"help": text, "secret": secret})


@dataclass(frozen=True)
class Config:
    """The settings of one node. Build it with `Config(...)`, `from_text` or `from_env`; all three check it."""

    # Who this node is
    cluster: str = option("rumor", "Name of the cluster; a node drops datagrams that carry another name.")
    node_id: str = option("", "Stable name of this node; default host:port.")
    host: str = option("127.0.0.1", "Address to bind for HTTP (TCP) and gossip (UDP).")
    port: int = option(5000, "Port for HTTP (TCP) and gossip (UDP); one number for both.")
    advertise_host: str = option("", "Address at which peers reach this node; default: the bound host.")
    public_url: str = option(
        "", "URL at which browsers and clients reach this node, if it differs from its address (published port, proxy)."
    )

    # How it finds the others
    redis_url: str = option(
        redis_address.EXAMPLE,
        "Redis or Valkey server that holds the queues: redis://, rediss:// (TLS) or unix://.",
        secret=True,
    )
    seeds: tuple[str, ...] = option(
        (), "Comma-separated HOST:PORT of members to join through; nodes also use the list in Redis."
    )
    gossip_keys: tuple[str, ...] = option(
        (), "Comma-separated base64 keys of 32 bytes; the first seals, all open. Required off loopback.", secret=True
    )
    gossip_key_file: str = option("", "File with one gossip key per line; it keeps keys out of the process list.")

    # What it runs
    tasks: tuple[str, ...] = option(
        (), "Comma-separated modules with @task handlers, found from the working directory."
    )
    queues: str = option("default:100,sync:2", "Queues this node serves and its slots for each: NAME:SLOTS,…")
    max_tasks_per_child: int = option(
        0, "Tasks after which a child process is replaced by a fresh one; 0: tasks alone never wear it out."
    )
    max_memory_per_child_mb: int = option(
        0,
        "Resident memory, in MiB, at which a child process is replaced after its task; 0: once it holds 512 MiB more "
        "than after its first task.",
    )
    child_idle_s: float = option(
        300.0,
        "Seconds after which an idle child process ends; the last one is only replaced by a fresh one. 0: never.",
    )
    shards: int = option(64, "Number of shards; the first node of a cluster fixes it.")
    max_attempts: int = option(5, "Attempts a task gets unless its type or submission says otherwise.")
    timeout_s: float = option(3600.0, "Seconds one attempt may run unless its type or submission says otherwise.")
    backoff_base_s: float = option(1.0, "Backoff after a failed attempt: full jitter over base x factor^(n-1).")
    backoff_factor: float = option(2.0, "Factor of the exponential backoff.")
    backoff_max_s: float = option(300.0, "Longest backoff, seconds.")
    priority_aging_s: float = option(60.0, "Seconds of waiting that count as much as one priority level.")
    retention_s: float = option(
        86_400.0, "Seconds that a succeeded or cancelled task stays readable, unless its submission says otherwise."
    )
    dead_retention_s: float = option(
        604_800.0,
        "Seconds that a dead task stays in the dead letter queue, unless its submission (retention_s) says otherwise.",
    )
    retention_max_bytes: int = option(
        1_073_741_824,
        "Memory use of Redis, in bytes, above which finished tasks are dropped before their time, oldest first (and "
        "always above 70 % of its maxmemory).",
    )
    idempotency_s: float = option(86_400.0, "Seconds for which an Idempotency-Key is answered with its first task.")
    queue_limit: int = option(1_000_000, "Tasks that may be queued in one shard before submissions get 429.")
    drain_s: float = option(
        30.0, "Seconds that running tasks have to finish after SIGTERM before the node hands them back."
    )

    # Redis: the second witness
    heartbeat_interval_s: float = option(0.25, "Seconds between heartbeats in Redis.")
    heartbeat_stale_s: float = option(1.0, "Seconds without a change, while watched, after which a heartbeat is stale.")
    lease_s: float = option(
        30.0, "Seconds a silent session keeps its tasks when gossip does not agree that it is dead."
    )
    leader_lease_s: float = option(5.0, "Length of the leader's lease, seconds; the leader renews it after a third.")
    redis_timeout_s: float = option(0.8, "Deadline of one call to Redis, seconds.")
    tombstone_s: float = option(86_400.0, "Seconds the tombstone of a fenced session is kept.")
    sweep_interval_s: float = option(1.0, "Seconds between housekeeping sweeps over the owned shards.")

    # Gossip: the first witness
    probe_interval_s: float = option(0.5, "Seconds between the starts of two probe rounds.")
    probe_timeout_s: float = option(0.4, "Seconds after which a probe round without an answer has failed.")
    gossip_interval_s: float = option(0.1, "Seconds between gossip messages while there is news.")
    indirect_probes: int = option(3, "Members that a node asks to probe on its behalf.")
    suspicion_min_s: float = option(
        1.2, "Seconds a silent suspect has to refute the suspicion once enough members confirm it."
    )
    suspicion_max_s: float = option(3.0, "Seconds a silent suspect has while nobody confirms the suspicion.")
    stalled_s: float = option(
        5.0, "Seconds a suspect has whose process hangs (its kernel accepts TCP, but nothing answers)."
    )
    push_pull_interval_s: float = option(15.0, "Seconds between full exchanges of the member table with a random peer.")
    forget_s: float = option(
        3600.0, "Seconds for which a dead member is remembered and tried again, so that cuts heal."
    )
    watch_peers: int = option(3, "Members to which each member holds a watch connection.")

    # The node's own health
    stall_after_s: float = option(5.0, "Seconds without a tick of the main loop after which a node says it is stalled.")
    stall_limit_s: float = option(60.0, "Seconds without a tick after which a node fences itself and exits.")

    # Limits of the gateway
    body_max_bytes: int = option(1_048_576, "Largest body of a request, bytes.")
    batch_max_bytes: int = option(16_777_216, "Largest body of a batch, bytes.")
    batch_max_tasks: int = option(10_000, "Most tasks in one batch.")
    nesting_max: int = option(64, "Deepest nesting of task data.")
    connections_max: int = option(
        10_000, "HTTP connections at once, if that many files may be open; a further one is answered 503 and closed."
    )

    # Security and operation
    api_token: str = option("", "Bearer token that every HTTP call must carry. Required off loopback.", secret=True)
    insecure: bool = option(
        False, "Allow addresses other than loopback without a key or a token, or with those of an example."
    )
    insecure_redis: bool = option(False, "Start although Redis may evict or lose tasks (maxmemory-policy).")
    tls_cert: str = option("", "Certificate chain (PEM) for HTTPS.")
    tls_key: str = option("", "Private key (PEM) for HTTPS.")
    trace_url: str = option(
        "",
        "URL of a page that shows a trace, with {trace_id} in it; tasks that have a trace link to it.",
    )
    log_level: str = option("info", "debug, info, warning or error.")
    log_format: str = option("auto", "console, json, or auto (console on a terminal).")

    def __post_init__(self) -> None:
        check(self)

    @cached_property
    def queue_slots(self) -> dict[str, int]:
        """Slots of each served queue, in the order given."""
        return parse_queues(self.queues)

    @property
    def database(self) -> int:
        """The number of the database in `redis_url`."""
        return redis_address.parse(self.redis_url).db

    @property
    def name(self) -> str:
        """The node's stable name."""
        if self.node_id:
            return self.node_id
        host = self.reachable_host.partition("%")[0]  # the zone of an IPv6 address names an interface of this machine
        return f"{'0' * host.startswith(':')}{host}:{self.port}"  # a name begins with a letter or digit: 0::1 is ::1

    @property
    def reachable_host(self) -> str:
        """The host that peers use."""
        return self.advertise_host or self.host

    @property
    def address(self) -> str:
        """What it binds, as URLs and people have it."""
        return hostport(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the node."""
        return is_loopback(self.host)


def parse_queues(text: str) -> dict[str, int]:
    """`default:100,sync:2` as a dict. Raises ConfigError naming the part that is wrong."""
    slots: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, colon, count = part.rpartition(":")
        if not colon or not QUEUE_NAME.match(name) or not SLOTS.match(count) or int(count) > SLOTS_MAX:
            raise ConfigError(
                f"queues is {text!r}: {part!r} is not NAME:SLOTS with 0 to {SLOTS_MAX} slots.",
                "Write it like default:100,sync:2",
            )
        if name in slots:
            raise ConfigError(f"queues is {text!r}: {name!r} appears twice.", "Name each queue once.")
        slots[name] = int(count)
    return slots


POSITIVE = [
    "timeout_s",
    "backoff_factor",
    "priority_aging_s",
    "retention_s",
    "dead_retention_s",
    "idempotency_s",
    "heartbeat_interval_s",
    "heartbeat_stale_s",
    "lease_s",
    "leader_lease_s",
    "redis_timeout_s",
    "tombstone_s",
    "sweep_interval_s",
    "probe_interval_s",
    "probe_timeout_s",
    "gossip_interval_s",
    "suspicion_min_s",
    "suspicion_max_s",
    "stalled_s",
    "push_pull_interval_s",
    "forget_s",
    "stall_after_s",
    "stall_limit_s",
    "max_attempts",
    "shards",
    "queue_limit",
    "body_max_bytes",
    "batch_max_bytes",
    "batch_max_tasks",
    "retention_max_bytes",
    "nesting_max",
    "connections_max",
]
NOT_NEGATIVE = [
    "backoff_base_s",
    "backoff_max_s",
    "drain_s",
    "indirect_probes",
    "watch_peers",
    *("max_tasks_per_child", "max_memory_per_child_mb", "child_idle_s"),
]
ORDERED = (  # (smaller, larger, why the other way round cannot work)
    ("probe_timeout_s", "probe_interval_s", "a probe would outlive its round"),
    ("suspicion_min_s", "suspicion_max_s", "confirmations can only shorten a suspicion"),
    ("heartbeat_interval_s", "heartbeat_stale_s", "a healthy heartbeat would count as stale"),
    ("heartbeat_stale_s", "lease_s", "the lease is the slow way out"),
    ("stall_after_s", "stall_limit_s", "a node says that it is stalled before it gives up"),
)


def check(config: Config) -> None:
    """Raise ConfigError with the values and the way out, if this configuration cannot work."""
    for rules in TABLES:
        for is_broken, message, hint in rules(config):
            if is_broken:
                raise ConfigError(message, hint)


# Each table below has the rows (whether the rule is broken, what is wrong, what to do). The first broken rule is the
# one that the user reads, so the order of the rows counts.
Rules = Iterator[tuple[bool, str, str]]


def _measures(c: Config) -> Rules:
    for name in POSITIVE:
        value = getattr(c, name)
        yield (
            not value > 0,
            f"{name} is {value!r}: it must be above 0.",
            f"Set {flag(name)} or {variable(name)} above 0.",
        )
    for name in NOT_NEGATIVE:
        value = getattr(c, name)
        yield (
            not value >= 0,
            f"{name} is {value!r}: it must not be negative.",
            f"Set {flag(name)} or {variable(name)} to 0 or more.",
        )
    for name in (f.name for f in dataclasses.fields(c) if f.name.endswith("_s")):
        value = getattr(c, name)
        yield (
            value > LONGEST_S,
            f"{name} is {value!r}: it must be at most {LONGEST_S:,} (ten years).",
            f"Set {flag(name)} or {variable(name)} lower.",
        )
    for small, large, why in ORDERED:
        low, high = getattr(c, small), getattr(c, large)
        yield low > high, f"{small} is {low} but {large} is {high}: {why}.", f"Set {small} below {large}."
    yield not 1 <= c.port <= 65_535, f"port is {c.port}: a port is 1 to 65535.", "Choose another port."
    yield c.shards > SHARDS_MAX, f"shards is {c.shards}: at most {SHARDS_MAX}.", "64 is right for most clusters."


def _names_and_addresses(c: Config) -> Rules:
    yield (
        c.host in UNSPECIFIED and not c.node_id and not c.advertise_host,
        f"host is {c.host}, so the default node_id would be {c.name} on every machine.",
        "Set node_id to a name that no other node has, or advertise_host to the address at which peers reach it.",
    )
    for field_name in ("host", "advertise_host"):
        host = getattr(c, field_name)
        yield (
            bool(host) and not is_host(host),
            f"{field_name} is {host!r}: not an address or a name.",
            "Write an IPv6 address without brackets, like ::1, and the port with --port.",
        )
    yield (
        not c.node_id and not NAME.match(c.name),
        f"{'advertise_host' if c.advertise_host else 'host'} is {c.reachable_host!r}, and the default node_id that it "
        f"makes, {c.name!r}, is no name: 1 to 63 of letters, digits, '_', '.', ':', '@', '-'.",
        "Set node_id to a plain name.",
    )
    yield (
        not NAME.match(c.name),
        f"node_id is {c.name!r}: 1 to 63 of letters, digits, '_', '.', ':', '@', '-', the first a letter or digit.",
        "Choose a plain name.",
    )
    yield (
        not NAME.match(c.cluster),
        f"cluster is {c.cluster!r}: not a plain name.",
        "Use letters, digits, '-' and '_'.",
    )
    yield (
        bool(c.public_url and not PUBLIC_URL.fullmatch(c.public_url)),
        f"public_url is {c.public_url!r}: not http://HOST[:PORT] or https://HOST[:PORT], at most 120 long.",
        "Give the node's origin as browsers show it, without a path.",
    )
    redis_address.parse(c.redis_url)  # raises by itself, in words that hold no secret
    for seed in c.seeds:
        yield not _is_seed(seed), f"seeds has {seed!r}: not HOST:PORT.", "For example: 10.0.0.1:5000 or [fd00::1]:5000"


def _operation(c: Config) -> Rules:
    parse_queues(c.queues)  # raises by itself, since the node also parses what it serves
    yield (
        bool(c.trace_url) and not (c.trace_url.startswith(("http://", "https://")) and TRACE_ID in c.trace_url),
        f"trace_url is {c.trace_url!r}: not a web address with {TRACE_ID} in it.",
        f"Write it like https://jaeger.example/trace/{TRACE_ID}",
    )
    yield (
        c.log_level not in LOG_LEVELS,
        f"log_level is {c.log_level!r}.",
        "Use debug, info, warning or error.",
    )
    yield c.log_format not in LOG_FORMATS, f"log_format is {c.log_format!r}.", "Use auto, console or json."


def _protection(c: Config) -> Rules:
    yield (
        bool(c.tls_cert) != bool(c.tls_key),
        "tls_cert and tls_key belong together, but only one is set.",
        "Set both or neither.",
    )
    yield (
        unfit(c.api_token) is not None,
        f"no header can carry the api_token: {unfit(c.api_token)}.",
        "Use printable characters without blanks around them.",
    )
    credentials = {
        "gossip key (gossip_keys or gossip_key_file)": c.gossip_keys or c.gossip_key_file,
        "api_token": c.api_token,
    }
    missing = [name for name, value in credentials.items() if not value]
    yield (
        bool(missing) and not c.is_loopback and not c.insecure,
        f"host is {c.host}, which others can reach, and there is no {' and no '.join(missing)}.",
        f"Set {'it' if len(missing) == 1 else 'them'} (rumor keygen makes a key), bind 127.0.0.1, or use --insecure.",
    )

    yield (
        c.api_token in KNOWN_TOKENS and not c.is_loopback and not c.insecure,
        f"host is {c.host}, which others can reach, and the api_token is that of an example.",
        "Draw one (rumor keygen does). For a demo in a network of its own, say --insecure.",
    )


TABLES = (_measures, _names_and_addresses, _operation, _protection)


def _is_seed(text: str) -> bool:
    match = SEED.fullmatch(text)
    return match is not None and 1 <= int(match[2]) <= 65_535


def variable(name: str) -> str:
    """The environment variable of a field."""
    return "RUMOR_" + name.upper()


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def from_text(values: Mapping[str, str]) -> Config:
    """A Config from field name -> text, as flags and variables give it. Raises ConfigError naming the field."""
    types = get_type_hints(Config)
    names = {f.name for f in dataclasses.fields(Config)}
    parsed: dict[str, Any] = {}
    for name, text in values.items():
        if name not in names:
            raise ConfigError(f"{name} is not a setting.", "rumor node --help lists them.")
        parsed[name] = parse(name, types[name], text)
    return Config(**parsed)


def strangers(environ: Mapping[str, str]) -> dict[str, str]:
    """RUMOR_… variables that nothing reads -> a hint for each."""
    settings = [f.name for f in dataclasses.fields(Config)]
    hints: dict[str, str] = {}
    for name in environ:
        setting = name.removeprefix("RUMOR_").lower()
        if name.startswith("RUMOR_") and setting not in settings and not OTHER_VARIABLES.match(name):
            near = difflib.get_close_matches(setting, settings, 1)
            hints[name] = f"Did you mean {variable(near[0])}?" if near else "rumor node --help names all settings."
    return hints


def from_env(environ: Mapping[str, str], over: Mapping[str, str] | None = None) -> Config:
    """A Config from RUMOR_… variables; `over` (field name -> text, from the flags) wins over them."""
    values = {f.name: environ[variable(f.name)] for f in dataclasses.fields(Config) if variable(f.name) in environ}
    return from_text({**values, **(over or {})})


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that hold the cluster's secrets. Handlers, and the programs they start, need none."""
    secret = {variable(f.name) for f in dataclasses.fields(Config) if f.metadata["secret"]}
    return {name: value for name, value in environ.items() if name not in secret}


def parse(name: str, kind: Any, text: str) -> Any:
    """One value from its text."""
    try:
        if kind is bool:
            if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
                raise ValueError("true or false")
            return text.lower() in ("1", "true", "yes", "on")
        if kind is int:
            return int(text)
        if kind is float:
            value = float(text)
            if value != value or value in (float("inf"), float("-inf")):
                raise ValueError("a finite number")
            return value
    except ValueError:
        raise ConfigError(
            f"{name} is {text!r}: not {'a boolean' if kind is bool else 'a number'}.",
            f"Fix {flag(name)} or {variable(name)}.",
        ) from None
    if kind is str:
        return text
    return tuple(part.strip() for part in text.split(",") if part.strip())


def as_text(value: Any) -> str:
    """A setting's value as `parse` reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
