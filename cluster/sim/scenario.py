"""Scenarios for the simulator: faults as text, the timeline of a run, and the verdict on it.

    python -m cluster.sim --nodes 50 --seed 7 --faults crash:n3@5,loss:0.3@8-20,cut:n1+n2@25-60

A fault is `KIND[:WHAT]@WHEN[-UNTIL]`, with times in seconds:

    crash:n3@5[-8]        kill -9, and a new life at 8
    dying:n3@5[-8]        the same, but its sockets close over 30 ms and drop SYNs meanwhile
    vanish:n3@5           its host is gone: nothing comes back
    pause:n3@5-8          SIGSTOP, SIGCONT
    slow:n3:0.3@5-20      everything it does happens up to 0.3 s late
    port:n3@5             its TCP port is closed, its process lives
    cut:n1+n2@5-65        these two hear nothing of the others, and the others nothing of them
    oneway:n2+n3@5-65     the others hear nothing of these two
    loss:0.3@5-65         this share of all datagrams and all TCP handshakes is lost
    icmp@5                kernels no longer say that a UDP port is closed
    join:late@5           one more node, which joins by n1
    leave:n3@5            it leaves in good order
    random:20@5-35        this many faults, drawn by the seed

What must hold: all know in time that a killed node is dead; nobody holds a living node dead, except across a cut,
after a pause of more than 3 s and while more than 30 % is lost; all views are equal within `CONVERGE_S` after the last
fault; nobody sends more than `TRAFFIC_MAX_BYTES_S`. Everything follows from the seed and the text.

Does not know: real time, sockets.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from cluster.config import Config
from cluster.session import node_of
from cluster.sim.network import (
    ClosePort,
    Crash,
    Cut,
    Fault,
    Heal,
    Link,
    Pause,
    Resume,
    SetLink,
    Sim,
    Slow,
    Start,
    Tell,
    Vanish,
)
from cluster.swim.events import Leave, MemberState

SETTLE_S = 3.0  # time from the start until the first fault may come
CONVERGE_S = 12.0  # time after the last fault: the dead are asked every second, full tables are exchanged every 15 s
REFUSED_BOUND_S = 1.0  # time in which all know that a process was killed, on a good network
TRAFFIC_MAX_BYTES_S = 16_384
PAUSE_MAX_S = 3.0  # longest hang for which nobody is held dead
LOSS_MAX = 0.3
SLOW_MAX_S = 0.3
DYING_S, DYING_SYN_LOSS = (0.001, 0.030), 0.5
GOOD = Link()
RANDOM_KINDS = ("crash", "dying", "pause", "slow", "cut", "oneway", "loss", "port")


class Malformed(ValueError):
    """The text is not a scenario."""


@dataclass(frozen=True, slots=True)
class Doing:
    """One fault as the text asks for it."""

    kind: str
    what: str
    at_s: float
    until_s: float | None

    def __str__(self) -> str:
        what = f":{self.what}" if self.what else ""
        until = "" if self.until_s is None else f"-{self.until_s:g}"
        return f"{self.kind}{what}@{self.at_s:g}{until}"

    @property
    def over_s(self) -> float:
        """When the fault is over."""
        return self.at_s if self.until_s is None else self.until_s


# ---- text


def parse(text: str, names: Sequence[str], seed: int) -> list[Doing]:
    """The faults of a text, with those that `random` draws. Raises Malformed naming the part that is wrong."""
    doings: list[Doing] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        doing = _parse_part(part)
        if doing.kind == "random":
            doings += _drawn(doing, names, Random(f"scenario {seed} {part}"))
        else:
            _check_names(doing, names)
            doings.append(doing)
    return sorted(doings, key=lambda doing: doing.at_s)


def _parse_part(part: str) -> Doing:
    what, sign, when = part.rpartition("@")
    kind, _, what = what.partition(":")
    at, _, until = when.partition("-")
    try:
        doing = Doing(kind, what, float(at), float(until) if until else None)
    except ValueError:
        raise Malformed(f"{part!r}: {when!r} is not a time") from None
    if not sign or kind not in KINDS:
        raise Malformed(f"{part!r}: not KIND[:WHAT]@WHEN[-UNTIL] with one of {', '.join(sorted(KINDS))}")
    if doing.at_s < SETTLE_S or (doing.until_s is not None and doing.until_s <= doing.at_s):
        raise Malformed(f"{part!r}: a fault comes at {SETTLE_S:g} s or later, and ends after it begins")
    if kind in ("pause", "slow", "cut", "oneway", "loss", "random") and doing.until_s is None:
        raise Malformed(f"{part!r}: when does it end? {kind}:{what}@{at}-UNTIL")
    if kind in ("loss", "slow", "random"):
        try:
            number = float(what.rpartition(":")[2])
        except ValueError:
            number = -1.0
        if number < 0 or (kind == "loss" and number >= 1):
            raise Malformed(f"{part!r}: {what!r} is not a number that fits")
    return doing


def _check_names(doing: Doing, names: Sequence[str]) -> None:
    if doing.kind in ("loss", "icmp", "join"):
        return
    for name in nodes_of(doing):
        if name not in names:
            raise Malformed(f"{doing}: there is no node {name!r}")


def nodes_of(doing: Doing) -> tuple[str, ...]:
    """The nodes that the fault names."""
    return () if doing.kind in ("loss", "icmp") else tuple(doing.what.partition(":")[0].split("+"))


def _drawn(doing: Doing, names: Sequence[str], dice: Random) -> list[Doing]:
    drawn: list[Doing] = []
    assert doing.until_s is not None
    busy: set[str] = {names[0]}  # All others join by the first node, so it stays.
    for _ in range(int(float(doing.what))):
        at_s = round(dice.uniform(doing.at_s, doing.until_s), 3)
        until_s = round(at_s + dice.uniform(0.2, 6.0), 3)
        kind = dice.choice(RANDOM_KINDS)
        if kind == "loss":
            drawn.append(Doing(kind, f"{dice.uniform(0.01, LOSS_MAX):.2f}", at_s, until_s))
            continue
        free = [name for name in names if name not in busy]
        if not free:
            continue
        name = dice.choice(free)
        busy.add(name)
        if kind == "pause":
            until_s = min(until_s, round(at_s + PAUSE_MAX_S, 3))
        what = f"{name}:{dice.uniform(0.01, SLOW_MAX_S):.2f}" if kind == "slow" else name
        drawn.append(Doing(kind, what, at_s, None if kind == "port" else until_s))
    return drawn


# ---- faults


def stage(sim: Sim, doings: Iterable[Doing]) -> None:
    """Put the faults into the simulator's time."""
    for doing in doings:
        for at_s, fault in KINDS[doing.kind](sim, doing):
            sim.at(at_s, fault)


Faults = list[tuple[float, Fault]]


def _crash(sim: Sim, doing: Doing) -> Faults:
    crash = Crash(doing.what) if doing.kind == "crash" else Crash(doing.what, DYING_S, DYING_SYN_LOSS)
    back: Faults = [] if doing.until_s is None else [(doing.until_s, Start(doing.what, tuple(sim.nodes)[:3]))]
    return [(doing.at_s, crash), *back]


def _cut(sim: Sim, doing: Doing) -> Faults:
    names = nodes_of(doing)
    others = tuple(name for name in sim.nodes if name not in names)
    return [(doing.at_s, Cut(names, others, doing.kind == "oneway")), (doing.over_s, Heal())]


def _slow(sim: Sim, doing: Doing) -> Faults:
    name, _, lag = doing.what.partition(":")
    return [(doing.at_s, Slow(name, float(lag or SLOW_MAX_S))), (doing.over_s, Slow(name, 0.0))]


def _loss(sim: Sim, doing: Doing) -> Faults:
    share = float(doing.what)
    return [(doing.at_s, SetLink(Link(loss=share, tcp_loss=share))), (doing.over_s, SetLink(sim.link))]


def _join(sim: Sim, doing: Doing) -> Faults:
    sim.add(doing.what)
    return [(doing.at_s, Start(doing.what, tuple(sim.nodes)[:1]))]


KINDS: dict[str, Callable[[Sim, Doing], Faults]] = {
    "crash": _crash,
    "dying": _crash,
    "vanish": lambda sim, doing: [(doing.at_s, Vanish(doing.what))],
    "pause": lambda sim, doing: [(doing.at_s, Pause(doing.what)), (doing.over_s, Resume(doing.what))],
    "slow": _slow,
    "port": lambda sim, doing: [(doing.at_s, ClosePort(doing.what))],
    "cut": _cut,
    "oneway": _cut,
    "loss": _loss,
    "icmp": lambda sim, doing: [(doing.at_s, SetLink(Link(icmp=False)))],
    "join": _join,
    "leave": lambda sim, doing: [
        (doing.at_s, Tell(doing.what, Leave(False))),
        (doing.at_s + 0.1, Tell(doing.what, Leave(True))),
        (doing.at_s + 0.2, Crash(doing.what)),
    ],
    "random": lambda sim, doing: [],
}


# ---- a run


def play(nodes: int, seed: int, text: str, link: Link = GOOD, config: Config | None = None) -> tuple[Sim, list[Doing]]:
    """Run a scenario to its end, and then until it has converged, for at most CONVERGE_S."""
    sim = Sim(seed, nodes, link, config)
    doings = parse(text, tuple(sim.nodes), seed)
    stage(sim, doings)
    over_s = max((doing.over_s for doing in doings), default=SETTLE_S)
    deaths = any(doing.kind in ("crash", "dying", "vanish") for doing in doings)
    sim.run_until(over_s + 0.5 + (silent_bound_s(sim.config, nodes) if deaths else 0.0))
    sim.run_while(lambda: not sim.is_converged(), CONVERGE_S, step_s=0.05)
    return sim, doings


def problems(sim: Sim, doings: Sequence[Doing]) -> list[str]:
    """What should not have happened; empty if all is well."""
    texts: list[str] = []
    excused = _excused(doings)
    for death in sim.false_deaths():
        subject, evidence = death.change.member.identity.node_id, death.change.member.evidence
        if excused is not None and not {subject, death.observer, death.change.member.by} & excused:
            texts.append(f"{death.at_s:.3f} s: {death.observer} held {subject} dead ({evidence}), which was running")
    for took_s, bound_s, session in detections(sim, doings):
        if took_s is None or took_s > bound_s:
            shown = "never" if took_s is None else f"after {took_s:.3f} s"
            texts.append(f"the end of {session} was known to all {shown}; bound {bound_s:.3f} s")
    if not sim.is_converged():
        texts.append(f"views differ {CONVERGE_S:g} s after the last fault")
    for name, count in sim.sent.items():
        if count / sim.now_s > TRAFFIC_MAX_BYTES_S:
            texts.append(f"{name} sent {count / sim.now_s:.0f} B/s")
    return texts


def _excused(doings: Sequence[Doing]) -> set[str] | None:
    """Nodes that others may hold dead while they run, and that may hold others dead; None: all nodes."""
    names: set[str] = set()
    for doing in doings:
        length_s = doing.over_s - doing.at_s
        if doing.kind == "loss" and float(doing.what) > LOSS_MAX:
            return None
        is_long = doing.kind == "pause" and length_s > PAUSE_MAX_S
        is_slow = doing.kind == "slow" and float(doing.what.partition(":")[2] or SLOW_MAX_S) > SLOW_MAX_S
        if doing.kind in ("cut", "oneway", "vanish") or is_long or is_slow:
            names.update(nodes_of(doing))
    return names


def detections(sim: Sim, doings: Sequence[Doing]) -> list[tuple[float | None, float, str]]:
    """(how long until all knew, the bound, the session) of each process that ended. None: somebody never knew.

    All: the nodes that run at the end and were not cut, paused or away meanwhile.
    """
    rows: list[tuple[float | None, float, str]] = []
    alone = len([doing for doing in doings if doing.kind not in ("crash", "dying", "icmp")]) == 0
    for doing in doings:
        if doing.kind not in ("crash", "dying", "vanish"):
            continue
        sessions = [ended for ended in sim.ended if ended.name == doing.what and ended.at_s == doing.at_s]
        for ended in sessions:
            absent = {name for other in doings if other.kind not in ("loss", "icmp") for name in nodes_of(other)}
            known_s = {name: at_s for name, at_s in sim.known_dead_s(ended.session).items() if name not in absent}
            others = [node.name for node in sim.running() if node.name not in absent]
            bound_s = silent_bound_s(sim.config, len(sim.nodes)) + (CONVERGE_S if not alone else 0.0)
            if doing.kind != "vanish" and alone:
                bound_s = REFUSED_BOUND_S
            took_s = max(known_s.values()) - doing.at_s if known_s and all(name in known_s for name in others) else None
            if others:
                rows.append((took_s, bound_s, ended.session))
    return rows


def timeline(sim: Sim, doings: Sequence[Doing]) -> list[str]:
    """Faults and what the nodes saw: one line for each change of one member, with its first and last observer."""
    lines: list[tuple[float, str]] = [(doing.at_s, f"** {doing}") for doing in doings]
    groups: dict[tuple[str, MemberState, str], list[tuple[float, str]]] = {}
    for seen in sim.seen:
        member = seen.change.member
        if seen.at_s >= SETTLE_S and member.state is not seen.change.was and seen.observer != member.identity.node_id:
            key = (member.identity.session, member.state, str(member.evidence))
            groups.setdefault(key, []).append((seen.at_s, seen.observer))
    for (session, state, evidence), observers in groups.items():
        (first_s, first), (last_s, last) = observers[0], observers[-1]
        why = "" if evidence == "none" else f" ({evidence})"
        count = f"{len(observers)} times, " if len(observers) > 1 else ""
        until = f", last {last} at {last_s:.3f}" if len(observers) > 1 else ""
        lines.append((first_s, f"{node_of(session)} {state}{why}: {count}first {first}{until}"))
    return [f"{at_s:9.3f} s  {text}" for at_s, text in sorted(lines, key=lambda line: line[0])]


# ---- bounds


def silent_bound_s(config: Config, nodes: int) -> float:
    """Seconds until all know of a host that answers nothing.

    Somebody probes it within two turns of one prober at the very latest (SWIM §4.3), in practice one of `nodes - 1`
    probers within a few intervals: the chance that all of them miss eight intervals is e^-8. Then the round fails, and
    the suspicion lasts its longest.
    """
    intervals = min(2 * nodes - 1, 8)
    return intervals * config.probe_interval_s + config.probe_timeout_s + config.suspicion_max_s + 0.2


def stalled_bound_s(config: Config, nodes: int) -> float:
    """Seconds until all know of a process that hangs: somebody finds it as above, then it has `stalled_s`."""
    return silent_bound_s(config, nodes) - config.suspicion_max_s + config.stalled_s


# ---- the command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run one seed and show it, or many seeds and show those that fail. 1: something was not as it must be."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1, help="the first seed; the same seed gives the same run")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run this many seeds, from --seed on")
    parser.add_argument("--faults", default="random:8@5-30", metavar="A,B,…", help="default: %(default)s")
    parser.add_argument("--loss", type=float, default=0.0, help="share of datagrams and handshakes lost all the time")
    parser.add_argument("--delay-ms", type=float, nargs=2, default=(0.2, 1.0), metavar=("MIN", "MAX"))
    options = parser.parse_args(argv)
    low_s, high_s = (ms / 1000 for ms in options.delay_ms)
    link = Link(loss=options.loss, tcp_loss=options.loss, delay_s=(low_s, high_s))
    failed = 0
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            sim, doings = play(options.nodes, seed, options.faults, link)
        except Malformed as error:
            parser.error(str(error))
        wrong = problems(sim, doings)
        failed += bool(wrong)
        if options.seeds == 1:
            print("\n".join(timeline(sim, doings)))
            print(summary(sim, doings))
        if wrong or options.seeds == 1:
            print(f"seed {seed}: {'WRONG' if wrong else 'all is as it must be'}", *wrong[:10], sep="\n  ", flush=True)
            if wrong and options.seeds > 1:
                words = f"--nodes {options.nodes} --seed {seed} --faults '{options.faults}' --loss {options.loss:g}"
                print(f"  replay: python -m cluster.sim {words} --delay-ms {low_s * 1000:g} {high_s * 1000:g}")
    if options.seeds > 1:
        print(f"{options.seeds} seeds, {failed} of them wrong")
    return 1 if failed else 0


def summary(sim: Sim, doings: Sequence[Doing]) -> str:
    """How long deaths took, and what it cost."""
    lines = [
        f"{session}: its end was known to all {'never' if took_s is None else f'after {took_s:.3f} s'}"
        for took_s, _, session in detections(sim, doings)
    ]
    sent = sum(sim.sent.values()) / len(sim.nodes) / sim.now_s
    counts = ("probes", "failed_rounds", "suspicions", "refutations")
    totals = ", ".join(f"{sim.total(name)} {name.replace('_', ' ')}" for name in counts)
    return "\n".join([*lines, f"{sim.now_s:.1f} s, {sent:.0f} bytes a node and second, {totals}"])
