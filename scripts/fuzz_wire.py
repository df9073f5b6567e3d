"""A coverage-guided fuzz run of the code that reads foreign bytes: the datagram decoder, the core, watch tokens, HTTP.

    pip install atheris && python scripts/fuzz_wire.py [--seconds 60] [--corpus FOLDER] [-seed=1 …]

Unknown options go to libFuzzer. Each input goes unsealed through `wire.decode`, and as a datagram and a full exchange
into a node that knows three members; each packet that this node sends must fit into a datagram and decode. The same
bytes are read as a watch token, as a load and a meta, as the agent's HTTP request and as a peer's answer. Nothing may
raise: libFuzzer prints what does, and keeps its input in the working directory as crash-…. The run starts from packets
of every kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris")

with atheris.instrument_imports(
    include=["cluster.swim", "cluster.session", "cluster.gossip.http1", "cluster.gossip.watch_token", "cluster.load"]
):
    from cluster.config import Config
    from cluster.gossip import watch_token
    from cluster.gossip.http1 import parse_request, parse_response
    from cluster.load import decode_load, decode_meta
    from cluster.swim import wire
    from cluster.swim.core import Swim
    from cluster.swim.events import (
        Datagram,
        Evidence,
        Identity,
        Join,
        MemberState,
        PushPullRequest,
        PushPullResponse,
        Send,
        Tcp,
        Tick,
    )

SESSIONS = [f"n{n}/0190aaaaaaa{n}-0badcaf{n}" for n in range(5)]
LIVES = 2_000  # inputs for one node; a fresh one then takes its place, so that its memory does not grow forever


def packets() -> list[bytes]:
    """One packet of every kind, to start from."""
    row = wire.Row(SESSIONS[1], 3, MemberState.SUSPECT, Evidence.REFUSED, "n2", "10.0.0.1", 5000, b"meta", 7)
    load = wire.LoadRow(SESSIONS[2], 9, b"load")
    bodies: list[wire.Body] = [
        wire.Ping(1, SESSIONS[0]),
        wire.PingReq(2, SESSIONS[1], "10.0.0.1", 5000, True),
        wire.Ack(3, SESSIONS[1]),
        wire.Nack(4, SESSIONS[1], Tcp.REFUSED),
        wire.Gossip(),
        wire.Pull(b"abcdefgh", False),
        wire.Rows(True, False),
        wire.Sync(),
    ]
    head = wire.Head(SESSIONS[1], 0, MemberState.ALIVE, 1, wire.Digest(4, 12345), 2, 1, b"load")
    rows, loads = [wire.encode_row(row)], [wire.encode_row(load)]
    return [wire.pack("rumor", head, body, rows, loads) for body in bodies]


class Target:
    """A node among three, and the clock that the inputs move."""

    def __init__(self) -> None:
        self.count = 0
        self.renew()

    def renew(self) -> None:
        self.now_s = 1000.0
        me = Identity("n0", SESSIONS[0], "10.0.0.9", 5000)
        self.swim = Swim(Config(), me, (), Random(1), self.now_s)
        self.swim.handle(Join((("10.0.0.1", 5000),)), self.now_s)
        for n in (1, 2, 3):
            self.swim._learn(wire.Row(SESSIONS[n], 0, MemberState.ALIVE, host=f"10.0.0.{n}", port=5000))

    def take(self, data: bytes) -> None:
        """One input."""
        self.count += 1
        if self.count % LIVES == 0:
            self.renew()
        self.now_s += 0.001
        wire.decode(data)
        source = (f"10.0.0.{len(data) % 5}", 5000)
        for event in (
            Datagram(source, wire.PLAIN + data),
            PushPullRequest(1, wire.PLAIN + data),
            PushPullResponse(wire.PLAIN + data),
            Tick(),
        ):
            for action in self.swim.handle(event, self.now_s):
                if isinstance(action, Send):
                    assert len(action.data) <= wire.DATAGRAM_MAX_BYTES
                    assert wire.decode(action.data[1:]) is not None
        self.swim.members()
        watch_token.is_valid((), data.decode("latin-1"), "rumor", "n0", 0)
        decode_load(data)
        decode_meta(data)
        parse_request(data)
        parse_response(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="inputs found earlier; new ones are added")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        for n, packet in enumerate(packets()):
            (corpus / f"packet-{n}").write_bytes(packet)
        bounds = [f"-max_total_time={options.seconds}", f"-max_len={wire.DATAGRAM_MAX_BYTES}", "-print_final_stats=1"]
        target = Target()
        atheris.Setup([sys.argv[0], str(corpus), *bounds, *rest], target.take)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
