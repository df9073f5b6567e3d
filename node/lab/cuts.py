"""Cuts: which packets a partition exercise drops, and the firewall rules that drop them.

A cut is given in words (`split 1,2 3,4,5`) and means pairs (from, to) whose packets are lost. Each pair is one rule in
the receiver's firewall. In the sender's firewall it would be no real cut: the kernel tells a program whose packet the
own firewall drops, and no network does that. Redis has no firewall here, so its node's firewall drops both ways.

Each rule carries the cut's words as its comment. So the firewalls themselves record which cuts are in force, and this
record can neither be lost nor be wrong.

Pure. Does not know: namespaces, containers, how a rule gets into a firewall.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.errors import ConfigError
from node.plural import counted

CHAIN = "RUMOR"
REDIS = 0  # number of Redis among the nodes, which count from 1
Pair = tuple[int, int]  # (from, to)

SILENT = ("-j", "DROP")
RESET = ("-j", "REJECT", "--reject-with", "tcp-reset")

USAGE = {
    "split": ("1,2 3,4,5", "no packet passes between nodes of different groups (a group may include `redis`)"),
    "isolate": ("3", "no packet passes between node 3 and anybody else: neither peers nor Redis"),
    "no-gossip": ("3", "no packet passes between node 3 and its peers, neither UDP nor TCP; it still reaches Redis"),
    "no-redis": ("3", "no packet passes between node 3 and Redis; it still reaches its peers"),
    "oneway": ("2 4", "packets from node 2 to node 4 are lost; those from 4 to 2 pass"),
    "loss": ("3 30%", "this share of all packets to and from node 3 is lost at random"),
    "reject": ("3", "TCP between node 3 and its peers is answered with a reset, as if nobody listened; UDP is lost"),
}


class BadCut(ConfigError):
    """The words mean no cut. Nothing was changed."""

    code = "usage"


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut, as its words give it."""

    verb: str
    groups: tuple[tuple[int, ...], ...]
    percent: float = 0.0

    def __str__(self) -> str:
        groups = [",".join("redis" if party == REDIS else str(party) for party in group) for group in self.groups]
        return " ".join([self.verb, *groups, *([f"{self.percent:g}%"] if self.percent else [])])

    def pairs(self, nodes: Collection[int]) -> Iterator[Pair]:
        """The pairs (from, to) whose packets it drops, each once."""
        first = self.groups[0][0]
        peers = [node for node in sorted(nodes) if node != first]
        match self.verb:
            case "split":
                for side, other_side in itertools.permutations(self.groups, 2):
                    yield from itertools.product(side, other_side)
            case "oneway":
                yield first, self.groups[1][0]
            case "no-redis":
                yield from ((first, REDIS), (REDIS, first))
            case "no-gossip" | "reject":
                for peer in peers:
                    yield from ((first, peer), (peer, first))
            case "isolate" | "loss":
                for other in (*peers, REDIS):
                    yield from ((first, other), (other, first))

    @property
    def effects(self) -> tuple[tuple[str, ...], ...]:
        """What happens to a packet of such a pair: the ends of its rules, one for each kind of packet."""
        if self.verb == "reject":
            # A reset must pass: the other side rejects too, and would drop it.
            return ("-p", "tcp", "!", "--tcp-flags", "RST", "RST", *RESET), ("!", "-p", "tcp", *SILENT)
        if self.verb == "loss":
            return (("-m", "statistic", "--mode", "random", "--probability", f"{self.percent / 100:.9f}", *SILENT),)
        return (SILENT,)


def parse(words: Sequence[str], nodes: Collection[int]) -> list[Cut]:
    """The cuts that a command line means: `no-redis 1,2` is one for each node. Raises BadCut with the reason."""
    verb, rest = words[0], list(words[1:])
    if verb not in USAGE:
        raise BadCut(f"{verb!r} is no cut.", f"The cuts are: {', '.join(USAGE)}.")
    count = len(USAGE[verb][0].split())
    if len(rest) < count or (len(rest) > count and verb != "split"):
        raise BadCut(f"{' '.join(words)!r}: {verb} takes {counted(count, 'word')}, not {len(rest)}.", example(verb))
    percent = 0.0
    if verb == "loss":
        percent = parse_percent(rest.pop())
    groups = [parse_group(word, nodes, with_redis=verb in ("split", "oneway")) for word in rest]
    if verb == "split":
        if any(set(group) & set(other) for group, other in itertools.combinations(groups, 2)):
            raise BadCut(f"{' '.join(words)!r}: the groups overlap.", example(verb))
        return [Cut(verb, tuple(tuple(sorted(group, key=lambda party: (party == REDIS, party))) for group in groups))]
    cuts = [Cut(verb, tuple((party,) for party in parties), percent) for parties in itertools.product(*groups)]
    if any(len({*itertools.chain(*cut.groups)}) < len(cut.groups) for cut in cuts):
        raise BadCut(f"{' '.join(words)!r}: a node cannot be cut off from itself.", example(verb))
    return cuts


def merge(in_force: Iterable[Cut], more: Iterable[Cut]) -> list[Cut]:
    """All of them, each once. A new `loss` of a node replaces its earlier one."""
    merged = {(cut.verb, cut.groups): cut for cut in (*in_force, *more)}
    return sorted(merged.values(), key=str)


def rules(cuts: Iterable[Cut], addresses: Mapping[int, str], own: int) -> list[tuple[str, ...]]:
    """The rules of node `own`, in order. `addresses`: those of the nodes that run, and of Redis.

    Resets come last: a packet that one cut drops is lost, although another cut would answer it.
    """
    nodes = [number for number in addresses if number != REDIS]
    own_rules = []
    for cut in cuts:
        comment = ("-m", "comment", "--comment", str(cut))
        for sender, receiver in cut.pairs(nodes):
            if own != (sender if receiver == REDIS else receiver) or not {sender, receiver} <= addresses.keys():
                continue
            match = ("-d", addresses[REDIS]) if receiver == REDIS else ("-s", addresses[sender])
            own_rules += [(*match, *comment, *effect) for effect in cut.effects]
    return sorted(own_rules, key=lambda rule: "REJECT" in rule)


def restore_text(chosen: Iterable[Sequence[str]]) -> str:
    """The chain with exactly these rules, for `iptables-restore --noflush`, which replaces all of them in one step."""
    lines = [f"-A {CHAIN} {shlex.join(rule)}".replace("'", '"') for rule in chosen]
    return "\n".join(["*filter", f":{CHAIN} - [0:0]", *lines, "COMMIT", ""])


@dataclass(frozen=True, slots=True)
class Chain:
    """Our chain in a firewall: the number of rules of each cut (by its words), and of packets dropped so far."""

    rules: Mapping[str, int]
    packets: int


def read(saved: str) -> Chain | None:
    """Our chain in the output of `iptables-save -c`; None if there is none."""
    if f":{CHAIN} " not in saved:
        return None
    counts: dict[str, int] = {}
    packets = 0
    for line in saved.splitlines():
        match = re.match(rf"\[(\d+):\d+\] -A {CHAIN} (.*)", line)
        if match is None:
            continue
        words = shlex.split(match[2])
        comment = words[words.index("--comment") + 1] if "--comment" in words else "?"
        counts[comment] = counts.get(comment, 0) + 1
        packets += int(match[1])
    return Chain(counts, packets)


def parse_group(text: str, nodes: Collection[int], with_redis: bool) -> list[int]:
    parties = []
    for part in text.split(","):
        if part == "redis" and with_redis:
            parties.append(REDIS)
        elif part.isdecimal() and int(part) in nodes:
            parties.append(int(part))
        else:
            listed = ", ".join(map(str, sorted(nodes))) or "none"
            raise BadCut(f"{part!r} is no node that runs here.", f"The nodes are: {listed}.")
    return list(dict.fromkeys(parties))


def parse_percent(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise BadCut(f"{text!r} is not a share of all packets.", "Give a percentage above 0 and up to 100, like 30%.")
    return float(match[1])


def example(verb: str) -> str:
    return f"For example: {verb} {USAGE[verb][0]}"
