"""Exchange: how two tables become equal. Digests differ: pull at once; now and then: push and pull everything.

A Pull names the rows one holds by short hashes, and the answer is the rows that differ, in datagrams while the cluster
is small enough for that, else by TCP. Full tables also go to members held dead, so that cuts merge by themselves.

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

PULL_SPACING_S = 0.05  # between pulls from the same member
ROWS_PIECES_MAX = 8  # datagrams in one answer to a Pull; what is left goes over TCP
SYNC_SPACING_S = 1.0  # between pushes and pulls over TCP that a difference asked for
SYNC_WITH_DEAD_EVERY = 4  # one periodic exchange in this many is tried with a member held dead


class Exchange:
    """What one node asks of others' tables, and shows of its own."""

    def __init__(self, table: Table, outbox: Outbox, rng: Random, stats: dict[str, int]) -> None:
        self._table = table
        self._outbox = outbox
        self._rng = rng
        self._stats = stats
        self._sync_s = -inf
        self._exchanges = 0

    def compare(self, theirs: Digest, entry: Entry, source: Address, now_s: float) -> bool:
        """Pull at once if the table of this member differs from ours. True: it does not."""
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
        """Send what they lack, and ask for what we do."""
        size = wire.HASH_BYTES
        theirs = {pull.hashes[i : i + size] for i in range(0, len(pull.hashes), size)}
        mine = self._table.hashes()
        lacking = [entry for short_hash, entry in mine.items() if short_hash not in theirs]
        self.send_rows(source, lacking, now_s, is_final=False)
        if not pull.is_back and not theirs <= mine.keys():
            self._send_pull(source, is_back=True)

    def send_rows(self, target: Address, entries: Sequence[Entry], now_s: float, *, is_final: bool) -> None:
        """Rows of the table in as many datagrams as are allowed."""
        rows = [entry.aged(now_s) for entry in entries]
        for piece in range(ROWS_PIECES_MAX):
            is_last = piece == ROWS_PIECES_MAX - 1
            sent = self._outbox.send(target, Rows(is_last, is_final), rows, with_news=False)
            rows = rows[sent:]
            if not rows:
                return

    def anti_entropy(self, others: Sequence[Entry], now_s: float) -> None:
        """The full table with one of these (live) others, now and then with one held dead."""
        self._exchanges += 1
        dead = self._table.dead()
        if dead and self._exchanges % SYNC_WITH_DEAD_EVERY == 0:
            self.sync_with(self._rng.choice(dead), now_s)
        elif others:
            self.sync_with(self._rng.sample(others, 1)[0], now_s)

    def sync_with(self, entry: Entry, now_s: float) -> None:
        """Push and pull everything over TCP, unless that was done a moment ago."""
        if now_s - self._sync_s >= SYNC_SPACING_S:
            self._sync_s = now_s
            self._stats["push_pulls"] += 1
            self._outbox.out.append(PushPull(entry.address, self._outbox.full_table(now_s)))

    def _send_pull(self, target: Address, *, is_back: bool) -> None:
        hashes = list(self._table.hashes())[: wire.PULL_MAX_ROWS]
        self._outbox.send(target, Pull(b"".join(hashes), is_back))
