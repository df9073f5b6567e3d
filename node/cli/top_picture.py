"""What `rumor top` shows: answers of a node and events of its stream in, a picture for a terminal out.

What is wrong stands first. Pure: the time and the size of the terminal are handed in. Does not know: HTTP, keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node.cli.output import MEMBER_STYLES, SEVERITY_STYLES, STATE_STYLES
from node.client.stream import Event
from node.plural import counted

EVENTS_KEPT = 200
RATES_KEPT = 60  # seconds
NARROW = 100  # columns; below, names go without the host that all of them share, and what can be spared is left out
SPARK_MAX = RATES_KEPT
NEWS_S = 120.0  # a death is told among what is wrong for so long, while the node is not back
GROWS_AFTER_S = 5  # a queue that grew in each of the last seconds grows
PROBLEMS_MAX = 4
EVENTS_MIN = 3
SUMS_FRESH_S = 3.0
BAR = 10
BLOCKS = "▁▂▃▄▅▆▇█"
STATES = ("queued", "running", "scheduled", "waiting", "succeeded", "dead", "cancelled")
SILENT_AT_ZERO = ("scheduled", "waiting", "cancelled")
REDIS_SAYS = {"live": "live", "stale": "silent", "gone": "gone", "unknown": "not known"}
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


class Board:
    """What is known so far."""

    def __init__(self) -> None:
        self.view: Mapping[str, Any] = {}
        self.health: Mapping[str, Any] = {}
        self.slots: Mapping[str, Mapping[str, Mapping[str, int]]] = {}  # node_id -> queue -> slots, running
        self.sums: Mapping[str, Any] = {}
        self.url = ""
        self.trouble = ""  # why there is nothing new
        self._summed_s = 0.0
        self._shared = ""  # the host and colon with which all names begin, where they are not shown
        self._events: deque[Mapping[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._accepted: deque[int] = deque(maxlen=RATES_KEPT)
        self._ended: deque[int] = deque(maxlen=RATES_KEPT)
        self._queued: deque[int] = deque(maxlen=RATES_KEPT)

    def begin(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """What was done before somebody looked: the answer of GET /sums."""
        for step in steps:
            seconds = int(step["window_s"])
            self._accepted.extend([round(step["accepted"] / seconds)] * seconds)
            self._ended.extend([round(sum(step["outcomes"].values()) / seconds)] * seconds)

    def take(self, event: Event, now_s: float) -> None:
        """An event of the stream."""
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
        """All of it, cut to the height."""
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
        there = sum(member.get("state") not in ("dead", "left") for member in members)
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
        head.append(f"  seen by {self._name(self.view.get('node_id', self.url))}  {clock}  q ends", "dim")
        return head

    def _wrong(self) -> list[Text]:
        found: list[tuple[str, str, str]] = []
        if self.trouble:
            found.append(("fatal", self.trouble, "What stands below is old."))
        found += self._died()
        if self._grows():
            found.append(
                (
                    "warning",
                    f"Queues grow: {self._queued[-1]:,} tasks wait.",
                    "More nodes, or more slots, drain faster.",
                )
            )
        dead = (self.sums.get("states") or {}).get("dead", 0)
        if dead:
            found.append(
                (
                    "warning",
                    "1 task is dead." if dead == 1 else f"{dead:,} tasks are dead.",
                    "rumor tasks --state dead shows, rumor replay runs again.",
                )
            )
        for one in self.health.get("problems", ()):
            found.append((str(one.get("severity")), str(one.get("message")), str(one.get("hint", ""))))
        order = ["fatal", "error", "warning"]
        found.sort(key=lambda one: order.index(one[0]) if one[0] in order else len(order))
        if not found:
            return [Text("● nothing is wrong", "green")]
        lines = []
        for severity, message, hint in found[:PROBLEMS_MAX]:
            style = SEVERITY_STYLES.get(severity, "yellow")
            line = Text.assemble(("● ", style), (message, style), "  ", (hint, "dim"))
            line.no_wrap, line.overflow = True, "ellipsis"
            lines.append(line)
        if len(found) > PROBLEMS_MAX:
            lines.append(Text(f"  and {len(found) - PROBLEMS_MAX} more: rumor status", "dim"))
        return lines

    def _died(self) -> list[tuple[str, str, str]]:
        """Members that both witnesses hold dead, while that is news."""
        gone = {member.get("session") for member in self.view.get("members", ()) if member.get("verdict") == "dead"}
        told = {}
        for event in self._events:
            if event.get("kind") == "session_fenced" and event.get("session") in gone:
                told[event["session"]] = event
        newest = max([self.sums.get("at_ms", 0), *(event.get("at_ms", 0) for event in self._events)])
        return [
            (
                "error",
                f"{self._name(event['node_id'])} is gone: both witnesses agree.",
                "Others have its shards and tasks.",
            )
            for event in told.values()
            if newest - event.get("at_ms", 0) < 1000 * NEWS_S
        ]

    def _name(self, node_id: str) -> str:
        return node_id.removeprefix(self._shared[:-1]) if self._shared else node_id

    def _named(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """The event, its nodes by their short names."""
        if not self._shared:
            return event
        names = {key: self._name(str(event[key])) for key in ("node_id", "by") if event.get(key)}
        to = {self._name(node): count for node, count in (event.get("to") or {}).items()}
        return {**event, **names, "to": to}

    def _grows(self) -> bool:
        last = list(self._queued)[-GROWS_AFTER_S - 1 :]
        return len(last) > GROWS_AFTER_S and all(b > a for a, b in pairwise(last))

    def _members(self, is_narrow: bool) -> Table:
        table = _table("node", "peers say", "Redis says", "so it is")
        for name in ("rtt ms", "running", *(() if is_narrow else ("",)), "shards", "queued"):
            table.add_column(name, justify="left" if not name else "right", no_wrap=True)
        leader = (self.view.get("leader") or {}).get("node_id")
        shards: dict[str, int] = {}
        for owner in (self.view.get("shards") or {}).values():
            shards[owner] = shards.get(owner, 0) + 1
        for member in self.view.get("members", ()):
            load = member.get("load") or {}
            free = sum(queue.get("free", 0) for queue in load.get("queues", {}).values())
            running = load.get("running", 0)
            is_gone = member["state"] in ("dead", "left")
            redis, age_s = member.get("redis", "unknown"), member.get("redis_age_s")
            silent = f" {age_s:.1f} s" if redis == "stale" and age_s is not None else ""
            verdict = member.get("verdict", "")
            who = Text(self._name(member["node_id"]), "dim" if is_gone else "")
            if member["node_id"] == leader:
                who.append(" ★", "yellow")
            marks = [word for word in ("stalled", "leaving") if load.get(word) and not is_gone]
            table.add_row(
                who,
                Text(member["state"], MEMBER_STYLES[1].get(member["state"], "")),
                Text(REDIS_SAYS.get(redis, redis) + silent, MEMBER_STYLES[2].get(redis, "")),
                Text(", ".join([VERDICTS.get(verdict, verdict), *marks]), MEMBER_STYLES[3].get(verdict, "")),
                "" if member.get("rtt_ms") is None or is_gone else f"{member['rtt_ms']:.1f}",
                "" if is_gone else f"{running}/{running + free}",
                *(() if is_narrow else (Text() if is_gone else bar(running, running + free),)),
                str(shards.get(member["node_id"], 0) or ""),
                "" if is_gone else str(sum(queue.get("queued", 0) for queue in load.get("queues", {}).values())),
            )
        return table

    def _tasks(self, now_s: float, width: int) -> Group:
        states = self.sums.get("states")
        line = Text(no_wrap=True, overflow="ellipsis")
        if states is None:
            line.append("tasks: no counts" + ("" if self.sums else " yet"), "dim")
        else:
            for name in STATES:
                count = states.get(name, 0)
                if not count and name in SILENT_AT_ZERO:
                    continue
                line.append(f"{count:,} ", f"bold {STATE_STYLES.get(name, '')}" if count else "dim")
                line.append(f"{name}   ", "" if count else "dim")
        rates = Text(no_wrap=True, overflow="ellipsis")
        is_fresh = now_s - self._summed_s < SUMS_FRESH_S
        for name, values in (("accepted", self._accepted), ("ended", self._ended)):
            rates.append(f"{name} ", "dim")
            rates.append(f"{values[-1] if values and is_fresh else 0:,}/s ", "bold")
            rates.append(f"{sparkline(values, width)}   ", "cyan")
        times = Text(no_wrap=True, overflow="ellipsis")
        for name, field in (("waited", "wait_ms"), ("ran", "run_ms")):
            found = self.sums.get(field) if is_fresh else None
            times.append(f"{name} ", "dim")
            told = [f"{share} {found[share]:,.0f} ms" for share in ("p50", "p95", "p99")] if found else ["–"]
            times.append(", ".join(told) + "   ")
        return Group(line, rates, times)

    def _queues(self) -> Table:
        table = _table("queue")
        for name in ("queued", "running", "slots"):
            table.add_column(name, justify="right")
        table.add_column("nodes")
        slots: dict[str, list[int]] = {}
        for queues in self.slots.values():
            for name, queue in queues.items():
                told = slots.setdefault(name, [0, 0, 0])
                told[0] += queue.get("running", 0)
                told[1] += queue.get("slots", 0)
                told[2] += 1
        waiting = self.sums.get("queues") or {}
        for name in sorted({*slots, *waiting}):
            running, total, nodes = slots.get(name, [0, 0, 0])
            queued = waiting.get(name, {}).get("queued", 0)
            table.add_row(
                Text(name),
                Text(f"{queued:,}", "bold cyan" if queued else "dim"),
                str(running),
                str(total),
                Text(f"served by {nodes}") if nodes else Text("served by nobody", "bold red"),
            )
        return table

    def _happened(self, rows: int) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim", min_width=12)
        table.add_column(no_wrap=True, overflow="ellipsis")
        seen: set[tuple[Any, ...]] = set()
        told = []
        for event in sorted(self._events, key=lambda event: event.get("at_ms", 0), reverse=True):
            # Every node computes shards and hears of members for itself: once is enough here.
            text = in_words(self._named(event))
            key = (text.plain, event.get("at_ms", 0) // 1000)
            if key not in seen:
                seen.add(key)
                told.append((event.get("at_ms", 0), text))
            if len(told) == rows:
                break
        for at_ms, text in told:
            table.add_row(datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S.%f")[:-3], text)
        if not told:
            table.add_row("", Text("no events yet", "dim"))
        return table


def in_words(event: Mapping[str, Any]) -> Text:
    """One event for somebody who has never heard of gossip."""
    node, by = str(event.get("node_id", "")), str(event.get("by", ""))
    because = BECAUSE.get(str(event.get("evidence")), "")
    tail = f": {because}" if because else ""
    match event.get("kind"):
        case "member_dead":
            return Text(f"{node} is dead for its peers{tail}", "red")
        case "member_suspect":
            return Text(f"{node} is suspected by {by}{tail}", "yellow")
        case "member_alive":
            return Text(f"{node} answers again", "green")
        case "member_joined":
            return Text(f"{node} joined", "green")
        case "member_left":
            return Text(f"{node} left in good order")
        case "member_leaving" | "node_draining":
            return Text(f"{node} finishes what it runs and leaves")
        case "node_started":
            return Text(f"{node} started", "green")
        case "connection_ended":
            return Text(f"connections to {node} ended, noticed by {by}", "yellow")
        case "connection_refused":
            return Text(f"{node} refuses connections, seen by {by}", "yellow")
        case "session_fenced":
            return Text(f"{node} is fenced by {by}: both witnesses hold it dead{tail}", "red")
        case "session_reaped":
            tasks = event.get("tasks", 0)
            are = "is" if tasks == 1 else "are"
            return Text(f"{counted(tasks, 'task')} of {node} {are} queued again, by {by}", "bold" if tasks else "")
        case "session_renewed":
            return Text(f"{node} goes on under a new session", "yellow")
        case "leader_elected":
            return Text(f"{node} leads, epoch {event.get('epoch')}", "bold")
        case "leader_lost":
            return Text("there is no leader", "red")
        case "shards_moved":
            to = event.get("to") or {}
            return Text(f"{event.get('shards')} shards moved to " + ", ".join(f"{k} ({n})" for k, n in to.items()))
        case "main_stalled":
            return Text(f"{node}'s event loop does not tick", "red")
        case "main_recovered":
            return Text(f"{node}'s event loop ticks again", "green")
        case kind:
            return Text(f"{kind} {node}")


def shared(node_ids: Sequence[str]) -> str:
    """The host and colon with which all these names begin; "" where they differ."""
    hosts = {node_id.rpartition(":")[0] for node_id in node_ids}
    host = hosts.pop() if len(hosts) == 1 and len(node_ids) > 1 else ""
    return f"{host}:" if host else ""


def bar(part: int, whole: int) -> Text:
    """How much of it is in use."""
    filled = 0 if whole == 0 else min(BAR, -(-part * BAR // whole))
    style = "green" if filled < BAR * 0.7 else "yellow" if filled < BAR else "red"
    return Text.assemble(("━" * filled, style), ("━" * (BAR - filled), "bright_black"))


def sparkline(values: deque[int], width: int) -> str:
    """The last values as a line of blocks."""
    last = list(values)[-width:]
    top = max(last, default=0)
    line = "".join(BLOCKS[0] if not top else BLOCKS[round(value / top * (len(BLOCKS) - 1))] for value in last)
    return line.rjust(width)


def _table(*heads: str) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for head in heads:
        table.add_column(head, no_wrap=True)
    return table
