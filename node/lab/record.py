"""The record of a launched cluster: its settings, its Redis and its nodes, with the identity of each process.

One file of the data directory, `cluster.json`, holds it all, so that any later command finds what runs. A process is
identified by its pid and the moment it began, so that the launcher never signals another process to which the kernel
has given the pid. The file holds secrets, so only its owner may read it, and a folder that is not this user's alone is
not used (`ownership`). Whoever changes the file holds the folder's lock.

A node's configuration follows from the record and the node's number alone: `node_config` decides it.

Does not know: how a process is started or ended, what a command prints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster import config as settings
from cluster.config import Config, as_text, variable
from cluster.errors import ConfigError, RumorError
from node.lab import ownership
from node.lab.network import Network
from node.lab.process import Process, wait_for

ROOT = Path(__file__).resolve().parents[2]
LOCK_LIMIT_S = 120.0

FIELDS = frozenset(item.name for item in dataclasses.fields(Config))
PER_NODE = ("port", "node_id")  # settings that the launcher derives from a node's number
# Settings on which the nodes of a cluster must agree: as at its start, whatever the shell of a later `add` holds.
PER_CLUSTER = (
    "cluster",
    "host",
    "redis_url",
    "gossip_keys",
    "gossip_key_file",
    "api_token",
    "shards",
    "tls_cert",
    "tls_key",
)
LAUNCH_ID = "RUMOR_LAUNCH_ID"  # marks the environment of every process that a launched cluster starts
LAUNCHER = "RUMOR_LAUNCHER"  # the program that the user called; for messages
OWN_VARIABLES = (LAUNCH_ID, LAUNCHER, "RUMOR_BASE_PORT", "RUMOR_DATA_DIR")  # the launcher's, beside the settings


class Usage(ConfigError):
    """The command line makes no sense. Nothing was done."""

    code = "usage"


class LaunchFailed(RumorError):
    """The command failed; the processes that it had started were ended again."""

    code = "launch_failed"


@dataclass
class NodeRecord:
    """One node. `over`: its settings beyond the cluster's."""

    number: int
    node_id: str
    url: str
    pid: int
    began: str
    over: dict[str, str] = field(default_factory=dict)
    log_from: int = 0  # where in its log this life begins

    @property
    def process(self) -> Process:
        return Process(self.pid, self.began)

    @property
    def label(self) -> str:
        return f"node {self.number}"


@dataclass
class RedisRecord:
    """The cluster's Redis. One without a pid was not started by the launcher, which leaves it alone."""

    url: str
    port: int = 0
    pid: int = 0
    began: str = ""

    number = 0
    label = "redis"

    @property
    def is_own(self) -> bool:
        return self.pid != 0

    @property
    def process(self) -> Process:
        return Process(self.pid, self.began)


@dataclass
class Record:
    """Everything about a launched cluster that a later command needs. `told`: the cluster's settings as text."""

    launch_id: str
    base_port: int
    told: dict[str, str]
    cwd: str
    python_path: str
    redis: RedisRecord
    nodes: list[NodeRecord] = field(default_factory=list)
    network: Network | None = None  # with --netns: where the nodes and Redis live
    otel: dict[str, str] = field(default_factory=dict)  # OTEL_… variables at the cluster's start

    @property
    def is_running(self) -> bool:
        return any(node.process.is_alive for node in self.nodes) or (self.redis.is_own and self.redis.process.is_alive)

    def put(self, node: NodeRecord) -> None:
        """Add a node, in place of its earlier life if it had one."""
        others = (other for other in self.nodes if other.number != node.number)
        self.nodes = sorted([*others, node], key=lambda node: node.number)


# The file


def load(folder: Path) -> Record | None:
    """The record of the cluster in this folder, None if there is none. Raises LaunchFailed if it cannot be read."""
    path = record_path(folder)
    try:
        text = ownership.read(path) if ownership.check(folder) else None
    except PermissionError:
        raise not_yours(path) from None
    if text is None:
        return None
    try:
        values = json.loads(text)
        redis = RedisRecord(**values.pop("redis"))
        nodes = [NodeRecord(**node) for node in values.pop("nodes")]
        network = values.pop("network", None)
        return Record(**values, redis=redis, nodes=nodes, network=Network(**network) if network else None)
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchFailed(
            f"{path} cannot be read: {error!r}.",
            "Another version may have written it. End that cluster, then remove the file.",
        ) from None


def save(folder: Path, record: Record) -> None:
    """Write it whole or not at all: a reader never meets half a record."""
    path = record_path(folder)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    ownership.write_new(temporary, json.dumps(dataclasses.asdict(record), indent=1))
    temporary.replace(path)


def remove(folder: Path) -> None:
    record_path(folder).unlink(missing_ok=True)


def not_yours(path: Path) -> LaunchFailed:
    return LaunchFailed(
        f"This user may not read {path}.", "Root owns the cluster that it started: use sudo, or set RUMOR_DATA_DIR."
    )


# The folder


def folder_of(data_dir: str | None) -> Path:
    """Where a cluster's data and record are: `data_dir`, else RUMOR_DATA_DIR, else the default."""
    return Path(data_dir or os.environ.get("RUMOR_DATA_DIR") or default_folder()).expanduser().absolute()


def default_folder() -> Path:
    """`.rumor` in the project when run from its source tree, else in the working directory."""
    return (ROOT if (ROOT / "setup.cfg").exists() else Path.cwd()) / ".rumor"


def redis_folder(folder: Path) -> Path:
    return folder / "redis"


def record_path(folder: Path) -> Path:
    return folder / "cluster.json"


def token_path(folder: Path) -> Path:
    return folder / "api.token"


def key_path(folder: Path) -> Path:
    return folder / "gossip.key"


def log_path(folder: Path, number: int) -> Path:
    """The log of a node; that of Redis for 0."""
    return folder / (f"node-{number}.log" if number else "redis/redis.log")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one command at a time; the kernel frees it when the command ends, however it ends."""
    try:
        ownership.make(folder)
        file = os.fdopen(ownership.opener(str(folder / "lock"), os.O_WRONLY | os.O_CREAT), "w")
    except PermissionError:
        raise not_yours(folder) from None
    except OSError as error:
        raise LaunchFailed(
            f"{folder} cannot be made: {error.strerror}.", "Set RUMOR_DATA_DIR to another folder."
        ) from None
    with file as lock:

        def is_mine() -> bool:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        if not wait_for(is_mine, LOCK_LIMIT_S):
            raise LaunchFailed(
                f"Another command has been at work in {folder} for {LOCK_LIMIT_S:.0f} s.", "Wait until it ends."
            )
        yield


# Settings


def from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings in RUMOR_… variables, as field name -> text."""
    return {name: environ[variable(name)] for name in sorted(FIELDS) if variable(name) in environ}


def otel_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of tracing: OpenTelemetry has variables of its own."""
    return {name: value for name, value in environ.items() if name.startswith("OTEL_")}


def overrides(flags: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The settings of a later node beyond its cluster's."""
    for name in PER_CLUSTER:
        if name in flags:
            raise Usage(
                f"{settings.flag(name)} is the same for a whole cluster.", "Give it when you start the cluster."
            )
    texts = from_environment(environ) | dict(flags)
    return {name: text for name, text in texts.items() if name not in PER_CLUSTER and name not in PER_NODE}


def node_config(record: Record, folder: Path, number: int, over: Mapping[str, str]) -> Config:
    """The checked configuration of one node."""
    texts = record.told | dict(over)
    if not texts.get("gossip_keys") and not texts.get("gossip_key_file"):
        texts["gossip_key_file"] = str(key_path(folder))
    if texts.get("host") in ("0.0.0.0", "::") and not texts.get("advertise_host"):
        texts["advertise_host"] = "127.0.0.1"
    if record.redis.url:
        texts["redis_url"] = record.redis.url
    elif not texts.get("redis_url"):
        texts.pop("redis_url", None)  # an empty variable asks for a Redis of the launcher's own
    port = record.base_port + number - 1
    if record.network is not None:
        # Each node has an address of its own, so all have one port, as machines of a real cluster would.
        port = record.base_port
        texts |= {"host": record.network.address(number), "node_id": f"node{number}"}
    return settings.from_text(texts | {"port": str(port)})


def node_environ(record: Record, config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """A node's environment: the caller's `environ` with this node's settings and no others.

    Settings travel here rather than as arguments: secrets never show in `ps`.
    """
    made = record.otel | {name: value for name, value in environ.items() if not is_ours(name)}
    for item in dataclasses.fields(Config):
        value = getattr(config, item.name)
        if value != item.default:
            made[variable(item.name)] = as_text(value)
    made[LAUNCH_ID] = record.launch_id
    made["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), record.python_path)))
    return made


def is_ours(name: str) -> bool:
    """Whether an environment variable is a setting or the launcher's own: a node gets none of them from the shell."""
    return name in OWN_VARIABLES or (name.startswith("RUMOR_") and name[6:].lower() in FIELDS)
