"""What each node believes about each other node, as a table in text: one row for each node that was asked.

Pure. Does not know: how the nodes were asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from node.escapes import one_line

NO_ANSWER = "no answer"
GREEN, YELLOW, RED, OFF = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
COLOUR = {"healthy": GREEN, "cut_from_redis": YELLOW, "cut_from_peers": YELLOW, "dead": RED}
SHARDS = "shards of "
LEGEND = "gossip/Redis: what the row's node hears about the column's node from peers and from Redis (? = cannot tell)"


def table(views: Mapping[int, Mapping[str, Any] | None], names: Mapping[int, str], colour: bool = False) -> str:
    """`views`: number -> the answer to `GET /cluster`, None for no answer. `names`: number -> node_id."""
    numbers = {name: number for number, name in names.items()}
    columns = sorted(names)
    head = ["", *(f"node {number}" for number in columns), "leader", SHARDS + in_row(columns)]
    rows, colours = [head], [[""] * len(head)]
    for observer in sorted(views):
        view = views[observer]
        if view is None:
            rows.append([f"node {observer}", NO_ANSWER, *[""] * (len(head) - 2)])
            colours.append(["", RED, *[""] * (len(head) - 2)])
            continue
        members = {row["node_id"]: row for row in view["members"]}
        seen = [members.get(names[number]) for number in columns]
        owned = [list(view["shards"].values()).count(names[number]) for number in columns]
        rows.append([f"node {observer}", *map(belief, seen), led(view, numbers), " " * len(SHARDS) + in_row(owned)])
        colours.append(["", *(COLOUR.get(row["verdict"], "") if row else "" for row in seen), "", ""])
    return "\n".join([*lay_out(rows, colours, colour), LEGEND])


def belief(member: Mapping[str, Any] | None) -> str:
    """Both witnesses' words on one member."""
    if member is None:
        return "unknown"
    redis = {"unknown": "?"}.get(member["redis"], member["redis"])
    return one_line(f"{member['state']}/{redis}")


def led(view: Mapping[str, Any], numbers: Mapping[str, int]) -> str:
    leader = view.get("leader")
    return (
        one_line(f"{numbers.get(leader['node_id'], leader['node_id'])} (epoch {leader['epoch']})") if leader else "none"
    )


def in_row(counts: Iterable[int]) -> str:
    return " ".join(f"{count:>2}" for count in counts)


def lay_out(rows: Sequence[Sequence[str]], colours: Sequence[Sequence[str]], colour: bool) -> list[str]:
    """The lines of a table whose columns are as wide as their widest cell; colours take no width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, shades in zip(rows, colours, strict=True):
        cells = [
            f"{shade}{cell:<{width}}{OFF}" if colour and shade else f"{cell:<{width}}"
            for cell, width, shade in zip(row, widths, shades, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
