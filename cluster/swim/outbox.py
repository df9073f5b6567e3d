"""Outbox: packs, seals, numbers and counts what leaves this node; opens what comes, and drops what is not ours.

A datagram carries the sender's account of itself, a body, the rows that the body is about, and in the room that is left
news and loads.

Does not know: who is told what and why, time, what a row means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cluster.swim import wire
from cluster.swim.dissemination import Loads, News, retransmit_limit
from cluster.swim.events import Action, Address, Send
from cluster.swim.table import Table
from cluster.swim.wire import Body, Freshness, Head, Packet, Row, Sync


class Outbox:
    """The sealed side of one node. `out` holds the actions for the driver, until the core takes them away."""

    def __init__(
        self,
        cluster: str,
        node_id: str,
        keys: Sequence[bytes],
        nonce: Callable[[], bytes],
        table: Table,
        stats: dict[str, int],
    ) -> None:
        self.out: list[Action] = []
        self.news = News()
        self.loads = Loads()
        self.epoch = 0  # the highest that this node believes
        self.load = b""  # this node's own
        self.load_seq = 0
        self._cluster = cluster
        self._node_id = node_id
        self._table = table
        self._stats = stats
        self._seal = wire.Seal(keys, nonce)
        self._window = wire.ReplayWindow()
        self._seq = 0

    def send(self, target: Address, body: Body, rows: Sequence[Row] = (), *, with_news: bool = True) -> int:
        """Send one datagram: these rows first, then news and loads in the room that is left.

        Returns how many of these rows fitted.
        """
        head = self._head()
        size = len(wire.pack(self._cluster, head, body))
        if size > wire.PLAIN_MAX_BYTES - wire.LIST_BYTES:  # Only a Pull in a large cluster: it goes without the load.
            head = msgspec.structs.replace(head, load_seq=0, load=b"")
            size = len(wire.pack(self._cluster, head, body))
        room_bytes = wire.PLAIN_MAX_BYTES - wire.LIST_BYTES - size
        encoded: list[bytes] = []
        for row in rows:
            data = wire.encode_row(row)
            if len(data) > room_bytes:
                break
            room_bytes -= len(data)
            encoded.append(data)
        fitted = len(encoded)
        loads: list[bytes] = []
        if with_news:
            news = self.news.take(room_bytes, retransmit_limit(len(self._table.live)), besides=encoded)
            room_bytes -= sum(map(len, news))
            encoded += news
            loads = self.loads.take(room_bytes)
        data = self._seal.seal(wire.pack(self._cluster, head, body, encoded, loads))
        self._stats["datagrams_out"] += 1
        self._stats["bytes_out"] += len(data)
        self.out.append(Send(target, data))
        return fitted

    def full_table(self, now_s: float) -> bytes:
        """The whole table, sealed, for TCP: the live members first."""
        entries = sorted(self._table, key=lambda entry: not entry.is_live)
        rows = [wire.encode_row(entry.aged(now_s)) for entry in entries]
        return self._seal.seal(wire.pack(self._cluster, self._head(), Sync(), rows))

    def open(self, data: bytes) -> Packet | None:
        """The packet in sealed bytes. None for anything else, which is counted by its reason."""
        plain = self._seal.open(data)
        packet = wire.decode(plain) if plain is not None else None
        if plain is None:
            self._stats["dropped_unsealed"] += 1
        elif packet is None:
            self._stats["dropped_malformed"] += 1
        elif packet.cluster != self._cluster:
            self._stats["dropped_other_cluster"] += 1
        else:
            return packet
        return None

    def freshness(self, head: Head, *, is_first_hand: bool) -> Freshness:
        """How new a datagram is, counted if it is to be dropped; `is_first_hand` as in `ReplayWindow.take`."""
        freshness = self._window.take(head.session, head.seq, is_first_hand=is_first_hand)
        if freshness is Freshness.FAR:
            self._stats["dropped_implausible"] += 1
        elif freshness is not Freshness.NEW:
            self._stats["dropped_replayed"] += 1
        return freshness

    def _head(self) -> Head:
        self._seq += 1
        me = self._table[self._node_id]
        return Head(
            session=me.row.session,
            incarnation=me.row.incarnation,
            state=me.row.state,
            seq=self._seq,
            digest=self._table.digest,
            epoch=self.epoch,
            load_seq=self.load_seq,
            load=self.load,
        )
