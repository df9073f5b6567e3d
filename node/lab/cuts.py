"""Cuts: which packets a partition exercise takes away, and the firewall rules that do it.

A cut is words (`split 1,2 3,4,5`); it comes down to pairs (from, to) whose packets are lost. Each pair is one rule, in
the firewall of the node that would receive: a sender whose own firewall drops what it sends is told so by its kernel,
and no real network does that. Redis has no firewall of its own here, so its pairs are cut at the node, both ways.

The rules carry the cut's words as their comment. So the firewalls themselves are the record of what is in force: it
cannot be lost or be wrong.

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
REDIS = 0  # as a party beside the nodes, which count from 1
Pair = tuple[int, int]  # (from, to)

SILENT = ("-j", "DROP")
RESET = ("-j", "REJECT", "--reject-with", "tcp-reset")

USAGE = {
    "split": ("1,2 3,4,5", "nodes of one group hear nothing of those of another (a group may name `redis`, too)"),
    "isolate": ("3", "node 3 hears nobody and nobody hears it: no peer, no Redis"),
    "no-gossip": ("3", "nothing passes between node 3 and its peers, on UDP or TCP; Redis stays"),
    "no-redis": ("3", "nothing passes between node 3 and Redis; its peers stay"),
    "oneway": ("2 4", "what node 2 sends to node 4 is lost; the other way is open"),
    "loss": ("3 30%", "of all that node 3 sends and gets, so much is lost at random"),
    "reject": ("3", "between node 3 and its peers TCP is answered with a reset, as if nobody listened; UDP is lost"),
}


class BadCut(ConfigError):
    """The words name no cut. Nothing was changed."""

    code = "usage"


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut, as its words say it."""

    verb: str
    groups: tuple[tuple[int, ...], ...]
    percent: float = 0.0

    def __str__(self) -> str:
        named = [",".join("redis" if one == REDIS else str(one) for one in group) for group in self.groups]
        return " ".join([self.verb, *named, *([f"{self.percent:g}%"] if self.percent else [])])

    def pairs(self, nodes: Collection[int]) -> Iterator[Pair]:
        """(from, to) of what it takes away, each once."""
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
        """What becomes of a packet of such a pair: the rest of a rule. Several: by what it is."""
        if self.verb == "reject":
            # A reset itself must arrive, or the other side, which resets too, would swallow it.
            return ("-p", "tcp", "!", "--tcp-flags", "RST", "RST", *RESET), ("!", "-p", "tcp", *SILENT)
        if self.verb == "loss":
            return (("-m", "statistic", "--mode", "random", "--probability", f"{self.percent / 100:.9f}", *SILENT),)
        return (SILENT,)


def parse(words: Sequence[str], nodes: Collection[int]) -> list[Cut]:
    """The cuts that a command line means: `no-redis 1,2` is one for each. Raises BadCut with what is wrong."""
    verb, rest = words[0], list(words[1:])
    if verb not in USAGE:
        raise BadCut(f"{verb!r} is no cut.", f"There are: {', '.join(USAGE)}.")
    wanted = len(USAGE[verb][0].split())
    if len(rest) < wanted or (len(rest) > wanted and verb != "split"):
        raise BadCut(f"{' '.join(words)!r}: {verb} takes {counted(wanted, 'word')}, not {len(rest)}.", example(verb))
    percent = 0.0
    if verb == "loss":
        percent = parse_percent(rest.pop())
    groups = [parse_group(word, nodes, with_redis=verb in ("split", "oneway")) for word in rest]
    if verb == "split":
        twice = [one for one, other in itertools.combinations(groups, 2) if set(one) & set(other)]
        if twice:
            raise BadCut(f"{' '.join(words)!r}: the groups overlap.", example(verb))
        return [Cut(verb, tuple(tuple(sorted(group, key=lambda one: (one == REDIS, one))) for group in groups))]
    cuts = [Cut(verb, tuple((one,) for one in chosen), percent) for chosen in itertools.product(*groups)]
    if any(len({*itertools.chain(*cut.groups)}) < len(cut.groups) for cut in cuts):
        raise BadCut(f"{' '.join(words)!r}: a node cannot be cut off from itself.", example(verb))
    return cuts


def merge(in_force: Iterable[Cut], more: Iterable[Cut]) -> list[Cut]:
    """All of them, each once. A new `loss` of a node takes the place of its earlier one."""
    found = {(cut.verb, cut.groups): cut for cut in (*in_force, *more)}
    return sorted(found.values(), key=str)


def rules(cuts: Iterable[Cut], addresses: Mapping[int, str], own: int) -> list[tuple[str, ...]]:
    """The rules of node `own`, in order. `addresses` are those of the parties that run, Redis's too.

    What any cut drops is dropped, whatever another would answer: so resets come last.
    """
    nodes = [number for number in addresses if number != REDIS]
    found = []
    for cut in cuts:
        comment = ("-m", "comment", "--comment", str(cut))
        for sender, receiver in cut.pairs(nodes):
            if own != (sender if receiver == REDIS else receiver) or not {sender, receiver} <= addresses.keys():
                continue
            match = ("-d", addresses[REDIS]) if receiver == REDIS else ("-s", addresses[sender])
            found += [(*match, *comment, *effect) for effect in cut.effects]
    return sorted(found, key=lambda rule: "REJECT" in rule)


def restore_text(chosen: Iterable[Sequence[str]]) -> str:
    """The chain with exactly these rules, for `iptables-restore --noflush`: filled anew in one step."""
    lines = [f"-A {CHAIN} {shlex.join(rule)}".replace("'", '"') for rule in chosen]
    return "\n".join(["*filter", f":{CHAIN} - [0:0]", *lines, "COMMIT", ""])


@dataclass(frozen=True, slots=True)
class Found:
    """What a firewall holds of ours: rules of each cut (by its words), and packets taken away so far."""

    rules: Mapping[str, int]
    packets: int


def read(saved: str) -> Found | None:
    """What stands in the output of `iptables-save -c`; None if our chain is not there."""
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
    return Found(counts, packets)


def parse_group(text: str, nodes: Collection[int], with_redis: bool) -> list[int]:
    found = []
    for part in text.split(","):
        if part == "redis" and with_redis:
            found.append(REDIS)
        elif part.isdecimal() and int(part) in nodes:
            found.append(int(part))
        else:
            listed = ", ".join(map(str, sorted(nodes))) or "none"
            raise BadCut(f"{part!r} is no node that runs here.", f"There are: {listed}.")
    return list(dict.fromkeys(found))


def parse_percent(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text)
    if match is None or not 0 < float(match[1]) <= 100:
        raise BadCut(f"{text!r} is not a part of all packets.", "Above 0 and up to 100, in percent: 30%")
    return float(match[1])


def example(verb: str) -> str:
    return f"For example: {verb} {USAGE[verb][0]}"
