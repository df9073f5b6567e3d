"""Lists of every kind, all the time, beside work and a million finished tasks: nobody is hurt.

What hurts is counted: submissions that fail, leaders that change, sessions that are fenced, tasks that run twice. And
whatever Redis's own slow log shows of a script that only reads is asked again where nothing else runs: if it takes
long even then, the script does too much at once. (A script that the machine put aside for others is in that log too.)
Latencies are printed, for people; on a busy machine they say nothing about lists.
"""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster import scripts
from cluster.errors import RumorError
from cluster.shards.answers import SettleKind
from node.client.one_node import Remote
from tests.chaos.ledger import Commits, Ledger, check_committed_once, check_kept, check_ran_once
from tests.chaos.nodes import Fleet, Node
from tests.chaos.stream import Answer, Stream
from tests.integration.conftest import RedisServer
from tests.kept import FAILURE, fill
from tests.waiting import wait_until

pytestmark = pytest.mark.chaos

TASKS = 1_000_000
DEAD = 20_000
KEYED = 50_000
SUBMISSIONS = 1_000  # in each of two phases: without readers, and beside them
READS = 250
PHASE_MAX_S = 120.0
READERS = 4
SLOW_US = 2_000  # the longest time for which a script of a read may hold Redis
TRIES = 5

LISTS: Sequence[Mapping[str, Any]] = (
    {},
    {"limit": 500},
    {"fields": "data,result,error", "limit": 100},
    {"type": "nope"},
    {"type": "rare", "limit": 5},
    {"key": "user:1", "limit": 100},
    {"key": "user:1", "type": "nope"},
    {"key": "user:2"},
    *({"state": state} for state in ("queued", "running", "scheduled", "retrying", "succeeded", "dead", "cancelled")),
    {"state": "succeeded", "type": "nope"},
    {"state": "dead", "type": "old", "fields": "error"},
    {"state": "running", "type": "chaos.sleep"},
)
OTHERS = ("/workers", "/metrics", "/sums", "/cluster", "/health")


@dataclass(slots=True)
class Reads:
    """What became of all reads."""

    outcomes: Counter[str] = field(default_factory=Counter)  # "200", or an error's code
    took_s: list[float] = field(default_factory=list)
    unfinished: int = 0  # pages that ended at their bound
    searched_max: int = 0

    def told(self) -> str:
        """For people."""
        took_ms = [1000 * took_s for took_s in sorted(self.took_s)]
        p50, p99 = took_ms[len(took_ms) // 2], took_ms[int(len(took_ms) * 0.99)]
        pages = f"up to {self.searched_max} tasks a page"
        return f"reads: {dict(self.outcomes)}, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {pages}"


class Readers:
    """Ask for lists of every kind without a pause, each reader through all nodes in turn.

    They are threads of a process of their own, so that decoding their answers does not hold up the submissions.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.reads = Reads()
        self._answered = spawn.Value("i", 0)
        self._ending = spawn.Event()
        self._told: Any = spawn.Queue()
        urls = [node.remote.url for node in nodes]
        self._process = spawn.Process(target=read_on, args=(urls, self._answered, self._ending, self._told))

    @property
    def answered(self) -> int:
        """Reads that were carried out so far."""
        assert self._process.is_alive()
        return int(self._answered.value)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._process.start()
        try:
            yield
        finally:
            self._ending.set()
            self.reads = self._told.get(timeout=30)
            self._process.join()


def read_on(urls: Sequence[str], answered: Any, ending: Any, told: Any) -> None:
    """The process of the readers: reads until `ending`, counts in `answered`, and tells all at the end."""
    reads = Reads()
    lock = threading.Lock()

    def run(number: int) -> None:
        remotes = [Remote(url, timeout_s=10.0) for url in urls]
        cursors: dict[int, str | None] = {}
        for turn in itertools.count(number):
            if ending.is_set():
                return
            kind = turn % (len(LISTS) + len(OTHERS))
            remote = remotes[turn % len(remotes)]
            began_s = time.monotonic()
            outcome, page = "200", {"cursor": None, "complete": True, "searched": 0}
            try:
                if kind < len(LISTS):
                    page = remote.call("GET", "/tasks", query={**LISTS[kind], "cursor": cursors.get(kind)})[1]
                    cursors[kind] = page["cursor"]
                else:
                    remote.request("GET", OTHERS[kind - len(LISTS)])
            except RumorError as error:
                outcome = error.code
            with lock:
                reads.took_s.append(time.monotonic() - began_s)
                reads.outcomes[outcome] += 1
                reads.unfinished += not page["complete"]
                reads.searched_max = max(reads.searched_max, page["searched"])
                answered.value = reads.outcomes["200"]

    threads = [threading.Thread(target=run, args=(n,)) for n in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put(reads)


def reads_only() -> dict[bytes, str]:
    """The scripts whose header says that they only read, by their digest."""
    names = [path.stem for path in (Path(scripts.__file__).parent / "lua").glob("*.lua")]
    return {
        scripts.script(name).sha.encode(): name
        for name in names
        if "-- Keeps    reads only" in scripts.script(name).text
    }


def slow_reads(client: redis.Redis) -> list[tuple[str, list[bytes]]]:
    """What the slow log holds of scripts that only read, as (name, words)."""
    connection = client.connection_pool.get_connection()
    connection.send_command("SLOWLOG", "GET", 10_000)
    rows = connection.read_response()
    client.connection_pool.release(connection)
    names = reads_only()
    return [(names[row[3][1]], row[3]) for row in rows if row[3][0] == b"EVALSHA" and row[3][1] in names]


def least_us(client: redis.Redis, words: Sequence[bytes]) -> float:
    """The least time, of some, for which this command holds a Redis that has nothing else to do."""
    least = float("inf")
    for _ in range(TRIES):
        client.config_resetstat()
        client.execute_command(*words)
        least = min(least, client.info("commandstats")["cmdstat_evalsha"]["usec"])
    return least


def p99_ms(answers: Sequence[Answer]) -> float:
    took_s = sorted(answer.took_s for answer in answers)
    return 1000 * took_s[int(len(took_s) * 0.99)] if took_s else 0.0


def leaders(fleet: Fleet) -> set[tuple[str, int]]:
    rows = [node.get("/cluster")["leader"] for node in fleet.nodes]
    return {(row["node_id"], row["epoch"]) for row in rows}


@pytest.mark.timeout(400)  # a million tasks take a while to make
def test_lists_of_every_kind_hurt_nobody_beside_a_million_finished_tasks(
    make_fleet: Callable[..., Fleet], ledger: Ledger, redis_server: RedisServer
) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("appendonly", "no")  # a gigabyte, and rewriting it would slow down all that this test compares
    fill(redis_server.url, 10, kind="rare")
    fill(redis_server.url, KEYED, kind="keyed", key="user:1", first_ms=1_710_000_000_000)
    fill(redis_server.url, DEAD, outcome=SettleKind.DEAD, payload=FAILURE, first_ms=1_720_000_000_000)
    fill(redis_server.url, TASKS - KEYED - DEAD - 10, first_ms=1_730_000_000_000)
    fleet = make_fleet(3)
    before = leaders(fleet), [node.session for node in fleet.nodes]
    work = {"ledger": str(ledger.path), "seconds": 0.01}
    readers = Readers(fleet.nodes)
    client.config_set("slowlog-log-slower-than", SLOW_US)
    client.config_set("slowlog-max-len", 10_000)
    client.slowlog_reset()
    with Commits(redis_server.url) as commits:
        with Stream(fleet.nodes, "chaos.sleep", work, pause_s=0.005) as stream:
            wait_until(lambda: len(stream.answers) >= SUBMISSIONS, PHASE_MAX_S, "submissions to compare with")
            alone = len(stream.answers)
            with readers.reading():
                wait_until(
                    lambda: len(stream.answers) >= alone + SUBMISSIONS and readers.answered >= READS,
                    PHASE_MAX_S,
                    "as many beside the readers",
                )
        slow = slow_reads(client)
        assert {answer.status for answer in stream.answers} == {202}
        tasks = [fleet.nodes[0].task(task_id, wait_s=20) for task_id in stream.accepted]
        check_committed_once(commits, stream.accepted)
    check_kept(tasks, stream.accepted, ledger)
    check_ran_once(ledger, stream.accepted)
    assert (leaders(fleet), [node.session for node in fleet.nodes]) == before
    assert fleet.fences() == 0
    assert set(readers.reads.outcomes) <= {"200", "too_many_reads"}, readers.reads.outcomes
    assert readers.reads.unfinished > 0, "some searches ended at their bound"
    for node in fleet.nodes:
        node.kill()
    lasting = {(name, b" ".join(words)): us for name, words in slow if (us := least_us(client, words)) > SLOW_US}
    print(f"submissions: p99 {p99_ms(stream.answers[:alone]):.1f} ms alone")
    print(f"submissions: p99 {p99_ms(stream.answers[alone:]):.1f} ms beside reads")
    print(readers.reads.told())
    print(f"reads above {SLOW_US} us: {len(slow)} in the slow log, {len(lasting)} of them also on a Redis at rest")
    assert not lasting
