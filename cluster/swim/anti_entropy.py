"""Anti-entropy: how two tables become equal. A node pulls at once if digests differ; now and then it exchanges all.

A Pull names the rows that its sender holds by short hashes, and the answer is the rows that differ: in datagrams while
the cluster is small enough for that, else by TCP. A node also exchanges full tables with members that it holds dead, so
that healed cuts merge by themselves.

Does not know: how claims are merged, who is suspected, timers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from cluster.swim import wire
from cluster.swim.events import Address, PushPull
from cluster.swim.outbox import Outbox
from cluster.swim.table import Entry, Table
from cluster.swim.wire import Digest, Pull, Rows

PULL_SPACING_S = 0.05  # time between two pulls from the same member
ROWS_PIECES_MAX = 8  # datagrams in one answer to a Pull; the last of them says that there is more to pull
SYNC_SPACING_S = 1.0  # time between two exchanges of full tables over TCP
SYNC_WITH_DEAD_EVERY = 4  # periodic exchanges of which one is tried with a member held dead


class Exchange:
    """What one node asks of others' tables, and what it shows of its own."""

    def __init__(self, table: Table, outbox: Outbox, rng: Random, stats: dict[str, int]) -> None:
        self._table = table
        self._outbox = outbox
        self._rng = rng
        self._stats = stats
        self._sync_s = -inf
        self._exchanges = 0

    def compare(self, theirs: Digest, entry: Entry, source: Address, now_s: float) -> bool:
        """Pull at once if the table of this member differs from ours. Returns whether the tables are equal."""
        if theirs == self._table.digest:
            return True
        if now_s - entry.pulled_s < PULL_SPACING_S:
            return False
        entry.pulled_s = now_s
        self._stats["pulls"] += 1
        if max(theirs.count, len(self._table.live)) > wire.PULL_MAX_ROWS:
            self.sync_with(entry, now_s)
        else:
            self._send_pull(source, is_back=False)
        return False

    def answer_pull(self, pull: Pull, source: Address, now_s: float) -> None:
        """Send the rows that they lack, and ask for those that we lack."""
        size = wire.HASH_BYTES
        theirs = {pull.hashes[i : i + size] for i in range(0, len(pull.hashes), size)}
        mine = self._table.hashes()
        lacking = [entry for short_hash, entry in mine.items() if short_hash not in theirs]
        self.send_rows(source, lacking, now_s, is_final=False)
        if not pull.is_back and not theirs <= mine.keys():
            self._send_pull(source, is_back=True)

    def send_rows(self, target: Address, entries: Sequence[Entry], now_s: float, *, is_final: bool) -> None:
        """Send these rows in as many datagrams as needed, at most ROWS_PIECES_MAX."""
        rows = [entry.aged(now_s) for entry in entries]
        for piece in range(ROWS_PIECES_MAX):
            is_last = piece == ROWS_PIECES_MAX - 1
            sent = self._outbox.send(target, Rows(is_last, is_final), rows, with_news=False)
            rows = rows[sent:]
            if not rows:
                return

    def anti_entropy(self, others: Sequence[Entry], now_s: float) -> None:
        """Exchange full tables with one of these (live) others, now and then with a member held dead."""
        self._exchanges += 1
        dead = self._table.dead()
        if dead and self._exchanges % SYNC_WITH_DEAD_EVERY == 0:
            self.sync_with(self._rng.choice(dead), now_s)
        elif others:
            self.sync_with(self._rng.sample(others, 1)[0], now_s)

    def sync_with(self, entry: Entry, now_s: float) -> None:
        """Push and pull everything over TCP, unless the last exchange was a moment ago."""
        if now_s - self._sync_s >= SYNC_SPACING_S:
            self._sync_s = now_s
            self._stats["push_pulls"] += 1
            self._outbox.out.append(PushPull(entry.address, self._outbox.full_table(now_s)))

    def _send_pull(self, target: Address, *, is_back: bool) -> None:
        hashes = list(self._table.hashes())[: wire.PULL_MAX_ROWS]
        self._outbox.send(target, Pull(b"".join(hashes), is_back))
