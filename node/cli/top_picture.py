"""The picture of `rumor top`: answers of a node and events of its stream in, text for a terminal out.

Pure: the time and the size of the terminal are handed in. Problems stand first. Does not know: HTTP, keys.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.keys import parked_of
from node.cli.output import MEMBER_STYLES, SEVERITY_STYLES, STATE_STYLES
from node.client.stream import Event
from node.plural import counted

EVENTS_KEPT = 200
RATES_KEPT = 60  # seconds
NARROW = 100  # columns; a narrower picture leaves out the host that all names share, and the bars
SPARK_MAX = RATES_KEPT
NEWS_S = 120.0  # the time for which a death stands among the problems, unless the node is back
GROWS_AFTER_S = 5  # seconds in a row in which the queues grew, before it is a problem
SEVERITIES = ("fatal", "error", "warning")  # the worst first
PROBLEMS_MAX = 4
EVENTS_MIN = 3
SUMS_FRESH_S = 3.0
BAR = 10
BLOCKS = "▁▂▃▄▅▆▇█"
STATES = ("queued", "running", "scheduled", "retrying", "waiting", "succeeded", "dead", "cancelled")
SILENT_AT_ZERO = ("scheduled", "retrying", "waiting", "cancelled")
REDIS_SAYS = {"live": "live", "stale": "silent", "gone": "gone", "unknown": "unknown"}
VERDICTS = {
    "healthy": "healthy",
    "cut_from_redis": "cut off from Redis",
    "cut_from_peers": "cut off from peers",
    "dead": "dead",
}
BECAUSE = {
    "refused": "its port refuses connections",
    "silent": "nothing answers",
    "stalled": "its machine answers, the process does not",
    "superseded": "a new life took its place",
    "lease": "its lease ran out",
}
SENTENCES = {  # kind of event -> (sentence, style)
    "member_dead": ("{node} is dead for its peers{because}", "red"),
    "member_suspect": ("{node} is suspected by {by}{because}", "yellow"),
    "member_alive": ("{node} answers again", "green"),
    "member_joined": ("{node} joined", "green"),
    "member_left": ("{node} left in good order", ""),
    "member_leaving": ("{node} finishes what it runs and leaves", ""),
    "node_draining": ("{node} finishes what it runs and leaves", ""),
    "node_started": ("{node} started", "green"),
    "connection_ended": ("connections to {node} ended, noticed by {by}", "yellow"),
    "connection_refused": ("{node} refuses connections, seen by {by}", "yellow"),
    "session_fenced": ("{node} is fenced by {by}: both witnesses hold it dead{because}", "red"),
    "fence_held_up": ("{by} holds {node} dead and does not fence it: {why}", "yellow"),
    "session_reaped": ("{tasks} queued again, by {by}", "bold"),
    "session_renewed": ("{node} goes on under a new session", "yellow"),
    "leader_elected": ("{node} leads, epoch {epoch}", "bold"),
    "leader_lost": ("there is no leader", "red"),
    "shards_moved": ("{shards} moved to {to}", ""),
    "main_stalled": ("{node}'s event loop does not tick", "red"),
    "main_recovered": ("{node}'s event loop ticks again", "green"),
    "redis_away": ("{node} gets no answer from Redis", "red"),
    "redis_refuses": ("Redis refuses {node}: {words}", "red"),
    "redis_back": ("Redis answers {node} again, after {after_s} s", "green"),
}
NO_OWNER = ("{shards} without an owner: no node is able to serve", "red")
UNKNOWN_EVENT = ("{kind} {node}", "")  # from a node of a later version


class Problem(NamedTuple):
    """A thing that is wrong: the parts of its line."""

    severity: str
    message: str
    hint: str


class Board:
    """All that the picture is drawn from."""

    def __init__(self) -> None:
        self.view: Mapping[str, Any] = {}
        self.health: Mapping[str, Any] = {}
        self.slots: Mapping[str, Mapping[str, Mapping[str, int]]] = {}  # node_id -> queue -> slots, running
        self.sums: Mapping[str, Any] = {}
        self.url = ""
        self.trouble = ""  # why no node answers; empty while one does
        self._summed_s = 0.0
        self._shared = ""  # the host and colon that the picture leaves out of all names
        self._events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._accepted: deque[int] = deque(maxlen=RATES_KEPT)
        self._ended: deque[int] = deque(maxlen=RATES_KEPT)
        self._queued: deque[int] = deque(maxlen=RATES_KEPT)

    def begin(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """Take in what was done before somebody looked: the answer of GET /sums."""
        for step in steps:
            seconds = int(step["window_s"])
            self._accepted.extend([round(step["accepted"] / seconds)] * seconds)
            self._ended.extend([round(sum(step["outcomes"].values()) / seconds)] * seconds)

    def take(self, event: Event, now_s: float) -> None:
        """Take in an event of the stream."""
        if event.name != "task":
            self._events.append(event.data)
            return
        if event.data.get("kind") != "task_sums":
            return
        self.sums, self._summed_s = event.data, now_s
        self._accepted.append(event.data.get("accepted", 0))
        self._ended.append(sum((event.data.get("outcomes") or {}).values()))
        if event.data.get("states"):
            self._queued.append(event.data["states"].get("queued", 0))

    def picture(
        self, now_s: float, clock: str, height: int, width: int = 2 * NARROW, events_max: int = EVENTS_KEPT
    ) -> Group:
        """The whole picture, cut to the height."""
        is_narrow = width < NARROW
        self._shared = shared([member["node_id"] for member in self.view.get("members", ())]) if is_narrow else ""
        wrong = self._wrong()
        members = self._members(is_narrow)
        tasks = self._tasks(now_s, min(SPARK_MAX, max(12, (width - 44) // 2)))
        queues = self._queues()
        rest = height - 9 - len(wrong) - members.row_count - queues.row_count
        parts: list[RenderableType] = [self._head(clock), *wrong, Text(), members, Text(), tasks, Text()]
        parts += [queues, Text(), self._happened(min(events_max, max(EVENTS_MIN, rest - 2)))]
        return Group(*parts)

    # ---- parts

    def _head(self, clock: str) -> Text:
        leader = self.view.get("leader")
        members = self.view.get("members", ())
        there = sum(not _is_gone(member) for member in members)
        head = Text.assemble(
            ("Rumor ", "bold"),
            f"{there} of {counted(len(members), 'node')}",
            ("  leader ", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
        if leader:
            head.append(self._name(leader["node_id"]), "bold")
            head.append(f" epoch {leader.get('epoch', '?')}", "dim")
        else:
            head.append("none", "bold red")
        head.append(f"  seen by {self._name(self.view.get('node_id', self.url))}  {clock}  q quits", "dim")
        return head

    def _wrong(self) -> list[Text]:
        """A line for each problem, the worst first."""
        problems = sorted(self._problems(), key=lambda problem: _rank(problem.severity))
        if not problems:
            return [Text("● nothing is wrong", "green")]
        lines = [_problem_line(problem) for problem in problems[:PROBLEMS_MAX]]
        if len(problems) > PROBLEMS_MAX:
            lines.append(Text(f"  and {len(problems) - PROBLEMS_MAX} more: rumor status", "dim"))
        return lines

    def _problems(self) -> Iterator[Problem]:
        if self.trouble:
            yield Problem("fatal", self.trouble, "The data below is old.")
        yield from self._deaths()
        if self._grows():
            message = f"Queues grow: {self._queued[-1]:,} tasks wait."
            yield Problem("warning", message, "More nodes or more slots drain them faster.")
        if dead := (self.sums.get("states") or {}).get("dead", 0):
            message = "1 task is dead." if dead == 1 else f"{dead:,} tasks are dead."
            yield Problem("warning", message, "rumor tasks --state dead lists them, rumor replay runs them again.")
        for row in self.health.get("problems", ()):
            yield Problem(str(row.get("severity")), str(row.get("message")), str(row.get("hint", "")))

    def _deaths(self) -> Iterator[Problem]:
        """Members that both witnesses hold dead, while that is news."""
        dead = {member.get("session") for member in self.view.get("members", ()) if member.get("verdict") == "dead"}
        fenced = {
            event["session"]: event
            for event in self._events
            if event.get("kind") == "session_fenced" and event.get("session") in dead
        }
        newest_ms = max([self.sums.get("at_ms", 0), *(event.get("at_ms", 0) for event in self._events)])
        for event in fenced.values():
            if newest_ms - event.get("at_ms", 0) < 1000 * NEWS_S:
                message = f"{self._name(event['node_id'])} is gone: both witnesses agree."
                yield Problem("error", message, "Other nodes have its shards and tasks.")

    def _name(self, node_id: str) -> str:
        return node_id.removeprefix(self._shared[:-1]) if self._shared else node_id

    def _named(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The event, with the short names of its nodes."""
        if not self._shared:
            return event
        names = {key: self._name(str(event[key])) for key in ("node_id", "by") if event.get(key)}
        to = {self._name(node): count for node, count in (event.get("to") or {}).items()}
        return {**event, **names, "to": to}

    def _grows(self) -> bool:
        last = list(self._queued)[-GROWS_AFTER_S - 1 :]
        return len(last) > GROWS_AFTER_S and all(b > a for a, b in pairwise(last))

    def _members(self, is_narrow: bool) -> Table:
        table = _table("node", "peers say", "Redis says", "verdict")
        for name in ("rtt ms", "running", *(() if is_narrow else ("",)), "shards", "queued"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        shards = Counter((self.view.get("shards") or {}).values())
        for member in self.view.get("members", ()):
            table.add_row(*self._beliefs(member), *_load(member, is_narrow, shards[member["node_id"]]))
        return table

    def _beliefs(self, member: Mapping[str, Any]) -> tuple[Text, Text, Text, Text]:
        """A member's name, what each witness says of it, and the verdict."""
        load = member.get("load") or {}
        state, is_gone = member["state"], _is_gone(member)
        redis, age_s = member.get("redis", "unknown"), member.get("redis_age_s")
        silent = f" {age_s:.1f} s" if redis == "stale" and age_s is not None else ""
        verdict = member.get("verdict", "")
        name = Text(self._name(member["node_id"]), "dim" if is_gone else "")
        if member["node_id"] == (self.view.get("leader") or {}).get("node_id"):
            name.append(" ★", "yellow")
        marks = [mark for mark in ("stalled", "leaving") if load.get(mark) and not is_gone]
        return (
            name,
            Text(state, MEMBER_STYLES[1].get(state, "")),
            Text(REDIS_SAYS.get(redis, redis) + silent, MEMBER_STYLES[2].get(redis, "")),
            Text(", ".join([VERDICTS.get(verdict, verdict), *marks]), MEMBER_STYLES[3].get(verdict, "")),
        )

    def _tasks(self, now_s: float, width: int) -> Group:
        is_fresh = now_s - self._summed_s < SUMS_FRESH_S
        return Group(self._states(), self._rates(is_fresh, width), self._times(is_fresh))

    def _states(self) -> Text:
        """How many tasks there are in each state."""
        line = Text(no_wrap=True, overflow="ellipsis")
        states = self.sums.get("states")
        if states is None:
            line.append("tasks: no counts" + ("" if self.sums else " yet"), "dim")
            return line
        for name in STATES:
            count = states.get(name, 0)
            if not count and name in SILENT_AT_ZERO:
                continue
            line.append(f"{count:,} ", f"bold {STATE_STYLES.get(name, '')}" if count else "dim")
            line.append(f"{name}   ", "" if count else "dim")
        return line

    def _rates(self, is_fresh: bool, width: int) -> Text:
        """How many tasks a second come and go, now and in the last minute."""
        line = Text(no_wrap=True, overflow="ellipsis")
        for name, values in (("accepted", self._accepted), ("ended", self._ended)):
            line.append(f"{name} ", "dim")
            line.append(f"{values[-1] if values and is_fresh else 0:,}/s ", "bold")
            line.append(f"{sparkline(values, width)}   ", "cyan")
        return line

    def _times(self, is_fresh: bool) -> Text:
        """How long tasks waited and ran."""
        line = Text(no_wrap=True, overflow="ellipsis")
        for name, field in (("waited", "wait_ms"), ("ran", "run_ms")):
            shares = self.sums.get(field) if is_fresh else None
            line.append(f"{name} ", "dim")
            times = [f"{share} {shares[share]:,.0f} ms" for share in ("p50", "p95", "p99")] if shares else ["–"]
            line.append(", ".join(times) + "   ")
        return line

    def _queues(self) -> Table:
        table = _table("queue")
        for name in ("queued", "running", "slots"):
            table.add_column(name, justify="right")
        table.add_column("nodes")
        running, slots, nodes = Counter[str](), Counter[str](), Counter[str]()
        for queues in self.slots.values():
            for name, queue in queues.items():
                running[name] += queue.get("running", 0)
                slots[name] += queue.get("slots", 0)
                nodes[name] += 1
        waiting = self.sums.get("queues") or {}
        for name in sorted({*nodes, *waiting}):
            queued, parked = waiting.get(name, {}).get("queued", 0), parked_of(name)
            table.add_row(
                Text(f"{parked[0]}, for a handler of {parked[1]}" if parked else name),
                Text(f"{queued:,}", "bold cyan" if queued else "dim"),
                str(running[name]),
                str(slots[name]),
                Text(f"served by {nodes[name]}") if nodes[name] else Text("served by nobody", "bold red"),
            )
        return table

    def _happened(self, rows: int) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim", min_width=12)
        table.add_column(no_wrap=True, overflow="ellipsis")
        shown: set[tuple[str, int]] = set()
        for event in sorted(self._events, key=lambda event: event.get("at_ms", 0), reverse=True):
            if len(shown) == rows:
                break
            # Every node tells of shards and members for itself; the picture shows it once.
            text, at_ms = in_words(self._named(event)), event.get("at_ms", 0)
            key = (text.plain, at_ms // 1000)
            if key not in shown:
                shown.add(key)
                table.add_row(datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S.%f")[:-3], text)
        if not shown:
            table.add_row("", Text("no events yet", "dim"))
        return table


def in_words(event: Mapping[str, Any]) -> Text:
    """One event for a reader who has never heard of gossip."""
    node, tasks = event.get("node_id", ""), event.get("tasks", 0)
    because = BECAUSE.get(str(event.get("evidence")), "")
    sentence, style = SENTENCES.get(str(event.get("kind")), UNKNOWN_EVENT)
    if event.get("kind") == "session_reaped" and not tasks:
        style = ""
    to = event.get("to") or {}
    if event.get("kind") == "shards_moved" and not to:
        sentence, style = NO_OWNER
    text = sentence.format(
        kind=event.get("kind"),
        node=node,
        by=event.get("by", ""),
        because=f": {because}" if because else "",
        tasks=f"{counted(tasks, 'task')} of {node} {'is' if tasks == 1 else 'are'}",
        epoch=event.get("epoch"),
        words=event.get("words"),
        after_s=event.get("after_s"),
        shards=counted(event.get("shards", 0), "shard"),
        to=", ".join(f"{owner} ({count})" for owner, count in to.items()),
    )
    return Text(text, style)


def _load(member: Mapping[str, Any], is_narrow: bool, shards: int) -> tuple[str | Text, ...]:
    """A member's load; nothing for one that is gone, since its last load is no news."""
    is_gone, load = _is_gone(member), member.get("load") or {}
    queues = load.get("queues", {}).values()
    running = load.get("running", 0)
    slots = running + sum(queue.get("free", 0) for queue in queues)
    return (
        "" if member.get("rtt_ms") is None or is_gone else f"{member['rtt_ms']:.1f}",
        "" if is_gone else f"{running}/{slots}",
        *(() if is_narrow else (Text() if is_gone else bar(running, slots),)),
        str(shards or ""),
        "" if is_gone else str(sum(queue.get("queued", 0) for queue in queues)),
    )


def _is_gone(member: Mapping[str, Any]) -> bool:
    return member.get("state") in ("dead", "left")


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _problem_line(problem: Problem) -> Text:
    style = SEVERITY_STYLES.get(problem.severity, "yellow")
    line = Text.assemble(("● ", style), (problem.message, style), "  ", (problem.hint, "dim"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def shared(node_ids: Sequence[str]) -> str:
    """The host and colon with which all these names begin; "" if they differ."""
    hosts = {node_id.rpartition(":")[0] for node_id in node_ids}
    host = hosts.pop() if len(hosts) == 1 and len(node_ids) > 1 else ""
    return f"{host}:" if host else ""


def bar(part: int, total: int) -> Text:
    """The share that is in use."""
    filled = 0 if total == 0 else min(BAR, -(-part * BAR // total))
    style = "green" if filled < BAR * 0.7 else "yellow" if filled < BAR else "red"
    return Text.assemble(("━" * filled, style), ("━" * (BAR - filled), "bright_black"))


def sparkline(values: deque[int], width: int) -> str:
    """The last values as blocks of different heights."""
    last = list(values)[-width:]
    top = max(last, default=0)
    line = "".join(BLOCKS[0] if not top else BLOCKS[round(value / top * (len(BLOCKS) - 1))] for value in last)
    return line.rjust(width)


def _table(*heads: str) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=True)
    return table
