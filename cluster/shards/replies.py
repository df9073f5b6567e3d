"""From the replies of the shards' scripts to answers, in the order of the headers in `lua/`. Pure.

Only this module knows the positions in a reply. Does not know: what was asked for beside it, what an answer is for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.errors import TaskUnreadable
from cluster.shards.answers import (
    Cancellation,
    Claims,
    Listed,
    Noted,
    QueueHead,
    Reaped,
    Requeued,
    SettleCode,
    Settled,
    ShardCounts,
    StoreCode,
    Stored,
    Swept,
    TaskFields,
    Unparked,
)
from cluster.shards.task import NO_SPEC, Claimed, Lost, State, is_apart, spec_of, unpack

_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_STORE_CODES = {code.value.encode(): code for code in StoreCode}
_NAMES_FIRST = StoreCode.REPEAT  # stands for REPEAT and MISMATCH until their letter is read
_COMMITTED, _REFUSED = SettleCode.COMMITTED, SettleCode.REFUSED
_SETTLE_CODES = {code.value.encode(): code for code in SettleCode if code is not _REFUSED}
_COUNTED = (State.SCHEDULED, State.RETRYING, State.WAITING, State.SUCCEEDED, State.DEAD, State.CANCELLED)


def _heads(flat: Sequence[Any]) -> list[QueueHead]:
    return [QueueHead(flat[n].decode(), flat[n + 1], int(float(flat[n + 2]))) for n in range(0, len(flat), 3)]


def numbers(flat: Sequence[bytes]) -> dict[str, int]:
    return {flat[n].decode(): int(flat[n + 1]) for n in range(0, len(flat), 2)}


def _state(raw: bytes) -> State | None:
    return State(raw.decode()) if raw else None


def deliveries(flat: Sequence[bytes]) -> dict[str, int]:
    """id -> delivery, of an in-flight hash: `attempt delivery …` (`lua/include/token.lua`)."""
    return {flat[n].decode(): int(flat[n + 1].split(b" ", 2)[1]) for n in range(0, len(flat), 2)}


def stored(tasks: int, reply: Any) -> Stored:
    now_ms, raws, heads = reply
    if isinstance(raws, bytes):  # one code for all
        raws = [raws] * tasks
    codes = [_STORE_CODES.get(raw, _NAMES_FIRST) for raw in raws]
    firsts: dict[int, str] = {}
    if _NAMES_FIRST in codes:  # a letter followed by the first task's id
        firsts = {n: raws[n][1:].decode() for n, code in enumerate(codes) if code is _NAMES_FIRST}
        codes = [_STORE_CODES[raw[:1]] for raw in raws]
    return Stored(now_ms, codes, firsts, _heads(heads))


def noted(reply: bytes) -> Noted | None:
    first, _, fingerprint = reply.decode("utf-8", "replace").partition(" ")
    return Noted(first, fingerprint) if reply else None


def plan(reply: bytes | list[bytes]) -> bytes | Noted:
    if isinstance(reply, bytes):
        return reply
    return noted(reply[0]) or Noted("", "")


def claims(shard: int, session: str, reply: Any) -> Claims:
    now_ms, left, head_score, ids, tokens, bodies = reply
    tasks: list[Claimed] = []
    waits: list[tuple[int, float]] = []
    unreadable: list[tuple[str, str]] = []
    spec, head, size = NO_SPEC, b"", 0  # of the task before: most of a claim have the same
    first = 0
    for n in range(0, len(tokens), 2):
        attempt, delivery, lost, _, wait_ms = map(int, tokens[n].split())
        past = first + tokens[n + 1]
        before = len(tasks)
        for raw_id, stored in zip(ids[first:past], bodies[first:past], strict=True):
            if not size or not stored.startswith(head):
                try:
                    spec, head = spec_of(stored)
                except msgspec.DecodeError as error:
                    unreadable.append((raw_id.decode(), str(error)))
                    continue
                size = len(head)
            tasks.append(Claimed(raw_id.decode(), shard, delivery, attempt, spec, stored[size:], session, lost))
        waits.append((len(tasks) - before, max(0.0, wait_ms / 1000)))
        first = past
    return Claims(now_ms, left, int(float(head_score)), tasks, waits, unreadable)


def settled(reply: int | Sequence[bytes]) -> Settled:
    if isinstance(reply, int):  # so many, all of them committed
        return Settled([_COMMITTED] * reply, {})
    codes = [_SETTLE_CODES.get(raw, _REFUSED) for raw in reply]
    refused: dict[int, str] = {}
    if _REFUSED in codes:
        refused = {n: reply[n].decode() for n, code in enumerate(codes) if code is _REFUSED}
    return Settled(codes, refused)


def reaped(shard: int, session: str, reply: Any) -> Reaped:
    left, queued, scheduled, dead_types, heads, rows = reply
    lost: list[Lost] = []
    for n in range(0, len(rows), 6):
        task_id, delivery, attempt, ran_ms, stored, outcome = rows[n : n + 6]
        # A spec that cannot be decoded costs its task's span, and not the rest of the answer.
        with contextlib.suppress(msgspec.DecodeError):
            claimed = Claimed(task_id.decode(), shard, delivery, attempt, unpack(stored)[0], b"null", session)
            lost.append(Lost(claimed, ran_ms / 1000, State(outcome.decode())))
    dead = [raw.decode() for raw in dead_types]
    return Reaped(left, queued, scheduled, dead, _heads(heads), lost)


def swept(reply: Any) -> Swept:
    now_ms, promoted, dropped, next_due_ms, sessions, heads, is_all = reply
    names = [raw.decode() for raw in sessions]
    return Swept(now_ms, promoted, dropped, next_due_ms, names, _heads(heads), bool(is_all))


def cancellation(reply: Any) -> Cancellation:
    was, session, delivery = reply
    return Cancellation(_state(was), session.decode(), delivery)


def requeued(reply: Any) -> Requeued:
    codes, heads = reply
    refused = {n: _state(code) for n, code in enumerate(codes) if code != b"1"}
    return Requeued(len(codes) - len(refused), refused, _heads(heads))


def unparked(reply: Any) -> Unparked:
    left, heads = reply
    return Unparked(left, _heads(heads))


def counts(reply: Any) -> ShardCounts:
    *numbers, queues, flights = reply
    states = dict(zip(_COUNTED, numbers, strict=True))
    states[State.RUNNING] = sum(flights[1::2])
    names = [raw.decode() for raw in queues[0::3]]
    waits = {name: ms / 1000 for name, ms in zip(names, queues[2::3], strict=True)}
    return ShardCounts(states, dict(zip(names, queues[1::3], strict=True)), waits)


def running(reply: Any) -> dict[str, list[str]]:
    flights = reply[-1]
    return {flights[n].decode(): [raw.decode() for raw in flights[n + 1]] for n in range(0, len(flights), 2)}


def listed(reply: Any) -> Listed:
    reached, searched, flat = reply
    rows = [(_text(flat[n]), _text(flat[n + 1])) for n in range(0, len(flat), 2)]
    return Listed(_text(reached), searched, rows)


def _text(raw: bytes) -> str:
    """A member of a set, which another program may have put there."""
    return raw.decode("utf-8", "backslashreplace")


def _ms(word: bytes) -> int | None:
    return None if word == b"-" else int(word)


_FIRST_STATE = b"queued 0 0 0 - - - - -"  # of a task that was never moved since it was stored
_APART_MARK = b"+"  # a payload that has a field of its own


def fields_of_rows(aging_ms: int, reply: Sequence[Sequence[bytes]]) -> list[TaskFields | TaskUnreadable | None]:
    """The rows of a list; in the place of one that cannot be read stands its error."""
    rows: list[TaskFields | TaskUnreadable | None] = []
    for row in reply:
        try:
            rows.append(fields(row, aging_ms) if row else None)
        except TaskUnreadable as error:
            rows.append(error)
    return rows


def fields_of_one(aging_ms: int, reply: Sequence[Sequence[bytes]]) -> TaskFields | None:
    """One task. Raises TaskUnreadable for a task that cannot be read."""
    (row,) = reply
    return fields(row, aging_ms) if row else None


def fields(row: Sequence[bytes], aging_ms: int) -> TaskFields:
    """One row of read.lua's answer. Raises TaskUnreadable for anything that this version did not write."""
    try:
        return _fields(row, aging_ms)
    except (msgspec.DecodeError, ValueError, IndexError) as error:
        raise TaskUnreadable(
            f"what Redis holds of this task cannot be read: {error}.",
            "Something else writes into this database: give the cluster one of its own.",
        ) from error


def _check_json(text: bytes) -> None:
    """Raise DecodeError or ValueError for what would spoil the answer that shows it."""
    if text:
        _decode_raw(text)
        if not text.isascii():
            text.decode()


def _fields(row: Sequence[bytes], aging_ms: int) -> TaskFields:
    stored, text, session, token, score, *rest = row
    data_apart, end, progress, history = rest or (b"", b"", b"", b"")
    spec, data = unpack(stored)
    state, attempt, delivery, _, queued, wait, ran, _, node, *payload = (text or _FIRST_STATE).split(b" ", 9)
    if session:
        state, node = b"running", session.rpartition(b"/")[0]
        attempt, delivery, _, queued, wait = token.split()
    queued_ms, wait_ms, ran_ms = _ms(queued), _ms(wait), _ms(ran)
    due_ms = None
    if score and text:
        due_ms = int(float(score))
    elif score:
        queued_ms = int(float(score)) + spec.level * aging_ms
    started_ms = None if wait_ms is None else (queued_ms or 0) + wait_ms
    reported = payload[0] if payload else b""
    if reported == _APART_MARK:
        reported = end
    for text in (data_apart, reported, progress):
        _check_json(text)
    if data and not is_apart(stored):
        _check_json(data)
    has_ended_well = state == b"succeeded"
    return TaskFields(
        spec=spec,
        data=(data_apart or None) if is_apart(stored) else data,
        state=State(state.decode()),
        attempt=int(attempt),
        delivery=int(delivery),
        queued_at=queued_ms,
        due=due_ms,
        started_at=started_ms,
        finished_at=None if ran_ms is None else (queued_ms or 0) + (wait_ms or 0) + ran_ms,
        node_id=None if node == b"-" else node.decode(),
        result=reported or None if has_ended_well else None,
        error=reported or None if not has_ended_well else None,
        progress=progress or None,
        history=history,
    )
