"""The header of a script is its contract: it names each key and argument that the body uses, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from cluster.shards.task import APART_BYTES, Backoff, Spec

SCRIPTS = sorted((Path(__file__).resolve().parent.parent.parent / "cluster" / "lua").glob("*.lua"))
ONE = re.compile(r"\b(KEYS|ARGV)\[(\d+)\]")
COUNTED = re.compile(r"\bfor (\w+) = (\d+), (\d+) do\b")
DECLARED = re.compile(r"^-- (KEYS|ARGV)\[(\d+)(…?)\]\s+\S")


def split(text: str) -> tuple[list[str], str]:
    """(lines of the header, body without comments)."""
    lines = text.splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    return lines[:count], "\n".join(line.partition("--")[0] for line in lines[count:])


def complaints(name: str, text: str) -> list[str]:
    """The faults of one script's header. `ARGV[3…]` declares the third argument and any number after it."""
    header, body = split(text)
    wrong: list[str] = []
    if not header or not header[0].startswith(f"-- {name}: "):
        wrong.append(f"the first line is not '-- {name}: what it does'")
    declared: dict[str, set[int]] = {"KEYS": set(), "ARGV": set()}
    tails: dict[str, int] = {}
    for line in header:
        if match := DECLARED.match(line):
            kind, index = match[1], int(match[2])
            if match[3]:
                tails[kind] = index
            elif index in declared[kind]:
                wrong.append(f"{kind}[{index}] is declared twice")
            declared[kind].add(index)
    used: dict[str, set[int]] = {"KEYS": set(), "ARGV": set()}
    for kind, index_text in ONE.findall(body):
        used[kind].add(int(index_text))
    for variable, first, last in COUNTED.findall(body):  # for k = 3, 5 do … KEYS[k] …
        for kind in re.findall(rf"\b(KEYS|ARGV)\[{variable}\]", body):
            used[kind] |= set(range(int(first), int(last) + 1))
    for kind in ("KEYS", "ARGV"):
        tail = tails.get(kind)
        if declared[kind] and declared[kind] != set(range(1, max(declared[kind]) + 1)):
            wrong.append(f"{kind} are not numbered 1, 2, 3 …: {sorted(declared[kind])}")
        for index in sorted(used[kind] - declared[kind]):
            if tail is None or index < tail:
                wrong.append(f"{kind}[{index}] is used and not declared")
        guards = {int(i) for i in re.findall(r"^-- KEYS\[(\d+)\]\s+\{[^}]*\}:never\b", "\n".join(header), re.M)}
        # A body reads a tail by a computed index (`ARGV[i]`), and never uses the guard.
        unused = declared[kind] - used[kind] - ({tail} if tail else set()) - (guards if kind == "KEYS" else set())
        wrong += [f"{kind}[{index}] is declared and not used" for index in sorted(unused)]
        if tail is not None and not re.search(rf"\b{kind}\[[^\]\d]|#{kind}\b|unpack\({kind}", body):
            wrong.append(f"{kind}[{tail}…] is declared and the body reads no computed {kind}")
    contract = "\n".join(header)
    for word in ("Returns", "Keeps"):
        if not re.search(rf"^-- {word}\s+\S", contract, re.M):
            wrong.append(f"there is no line '-- {word}  …'")
    late = re.search(r"^-- Late     (refused|harmless): \S", contract, re.M)
    is_dated = "-- Uses     include/not_after.lua" in contract
    if late is None or is_dated != (late[1] == "refused"):
        wrong.append(
            "there is no line '-- Late     refused: what it would do' (if it uses not_after.lua), else 'harmless: why'"
        )
    if is_dated and not re.search(r"^-- ARGV\[1\] +not after\b", contract, re.M):
        wrong.append("ARGV[1] is not 'not after'")
    if is_dated and not re.search(r"\bif now > tonumber\(ARGV\[1\]\) then return late\(now\) end", body):
        wrong.append("the body does not refuse what comes too late")
    if ":never" not in contract:
        wrong.append("no `never` guard is declared")
    return wrong


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_does_what_its_header_says(path: Path) -> None:
    assert complaints(path.stem, path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_that_comes_too_late_looks_at_the_clock_before_it_writes(path: Path) -> None:
    _, body = split(path.read_text("utf-8"))
    if "late(now)" in body:
        assert "redis.call" not in body[: body.index("late(now)")]


def names_in(line_start: str) -> dict[str, int]:
    """Field -> position, from `local A, B = 1, 2` in include/spec.lua."""
    text = (SCRIPTS[0].parent / "include" / "spec.lua").read_text("utf-8")
    (row,) = re.findall(rf"^local ({line_start}[A-Z_, ]*) = ([\d, ]+)", text, re.M)
    return {name.lower(): int(at) for name, at in zip(row[0].split(", "), row[1].split(", "), strict=True)}


@pytest.mark.parametrize(("first", "struct"), [("TYPE", Spec), ("BASE_S", Backoff)])
def test_lua_reads_a_spec_by_the_positions_that_python_writes(first: str, struct: type[msgspec.Struct]) -> None:
    fields = struct.__struct_fields__
    assert names_in(first) == {name: n for n, name in enumerate(fields, 1)}


def test_lua_fills_in_what_python_leaves_out_of_a_spec() -> None:
    text = (SCRIPTS[0].parent / "include" / "spec.lua").read_text("utf-8")
    (row,) = re.findall(
        r"^local USUAL = \{\[MAX_ATTEMPTS\] = (.*), \[TIMEOUT_S\] = (.*), \[BACKOFF\] = \{(.*)\}\}", text, re.M
    )
    attempts, timeout_s, backoff = row
    assert (int(attempts), float(timeout_s), Backoff(*map(float, backoff.split(", ")))) == Spec.__struct_defaults__[:3]
    assert set(Spec.__struct_defaults__[3:]) == {None}


def test_lua_and_python_agree_on_what_is_apart() -> None:
    text = (SCRIPTS[0].parent / "include" / "bucket_write.lua").read_text("utf-8")
    assert re.findall(r"^local APART_BYTES = (\d+)", text, re.M) == [str(APART_BYTES)]


def test_only_one_place_in_lua_counts_the_fields_of_a_spec() -> None:
    for path in SCRIPTS:
        _, body = split(path.read_text("utf-8"))
        assert not re.search(r"\b(spec|backoff)\[\d", body), path.name


GOOD = """\
-- claim: move tasks.
--
-- KEYS[1]  {sNN}:ready   zset  queued ids
-- KEYS[2]  {sNN}:never   –     guard
-- ARGV[1]  session       claimant
-- ARGV[2…] ids           any number
--
-- Returns  what was moved
-- Keeps    an id is in one place
-- Late     harmless: ids are moved once
redis.call('ZREM', KEYS[1], ARGV[1]) -- not KEYS[7]
for i = 2, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
"""


def test_a_good_header_is_accepted() -> None:
    assert complaints("claim", GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("-- claim:", "-- claims:", "the first line"),
        ("KEYS[1], ARGV[1])", "KEYS[3], ARGV[1])", "KEYS[3] is used and not declared"),
        ("-- ARGV[1]  session       claimant\n", "", "not numbered"),
        ("'ZREM', KEYS[1], ARGV[1])", "'ZREM', KEYS[1], 1)", "ARGV[1] is declared and not used"),
        ("-- Returns  what was moved\n", "", "Returns"),
        ("-- Keeps    an id is in one place\n", "", "Keeps"),
        ("-- Late     harmless: ids are moved once\n", "", "Late"),
        ("-- Late     harmless", "-- Late     refused", "Late"),
        ("{sNN}:never", "{sNN}:other", "never"),
        ("for i = 2, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end", "", "no computed ARGV"),
    ],
)
def test_a_stale_header_is_found(old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    assert complaint in "\n".join(complaints("claim", GOOD.replace(old, new)))
