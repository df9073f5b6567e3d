"""Every error Rumor reports: a stable code, what happened (with the values), and what to do.

The gateway turns an error into `{"error": {"code", "message", "hint"}}`, the command line into two lines on stderr.
Each class says whether what the caller asked for certainly did not happen or *may have happened*: that decides whether
the caller may simply try again.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from cluster.refusal import Refusal, refusal_in

AIRPLAY_PORTS = (5000, 7000)  # TCP ports of the AirPlay Receiver, which a Mac runs unless told otherwise


class RumorError(Exception):
    """Base of all reported errors. `status` is the HTTP status with which a gateway answers.

    `may_have_happened` is False where the error is a refusal: nothing was done. StoreUnavailable and the client's
    Unreachable are the two that may be raised after the thing was done; each says so by this.
    `idempotency_key`: where a client's submission may have been stored, the key under which to repeat it; else empty.
    """

    code = "internal"
    status = 500
    may_have_happened = False
    idempotency_key = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f"\n  {self.hint}" if self.hint else "")


class ConfigError(RumorError):
    """The configuration cannot work. The node did not start."""

    code = "bad_config"
    status = 500


class BadRequest(RumorError):
    """The request is malformed (400). Nothing happened."""

    code = "bad_request"
    status = 400


class Invalid(RumorError):
    """The request is well-formed, but cannot be accepted as it stands (422). Nothing happened."""

    code = "invalid"
    status = 422


class UnknownType(Invalid):
    """No node, live or remembered, has a handler for this type. Nothing happened."""

    code = "unknown_type"


class IdempotencyConflict(Invalid):
    """The same Idempotency-Key came before with another body. Nothing happened; the first task stands."""

    code = "idempotency_conflict"


class NotFound(RumorError):
    """There is no such task or path, or the task is past its retention (404). Nothing happened."""

    code = "not_found"
    status = 404


class Misdirected(RumorError):
    """A node's call for another session came to this one, which has its port now (421). Nothing happened."""

    code = "misdirected"
    status = 421


class Conflict(RumorError):
    """The task is in a state that does not allow this (409). Nothing happened."""

    code = "conflict"
    status = 409


class TooLarge(RumorError):
    """The body or one of its parts is over its limit (413).

    Nothing happened; where the body is a stream of lines, the lines before this one were carried out.
    """

    code = "too_large"
    status = 413


class TooSlow(RumorError):
    """The head or the body of a request did not arrive in time (408).

    Nothing happened; where the body is a stream of lines, the lines before the pause were carried out.
    """

    code = "too_slow"
    status = 408


class QueueFull(RumorError):
    """A limit is reached, or Redis is nearly out of memory (429). Nothing happened; try again later."""

    code = "queue_full"
    status = 429


class TooManyListeners(RumorError):
    """This node serves its events to as many clients as it may (429). Nothing happened; another node may take more."""

    code = "too_many_listeners"
    status = 429


class TooManyReads(RumorError):
    """This node makes as many lists as it may (429). Nothing happened; ask again, or ask another node."""

    code = "too_many_reads"
    status = 429


class TooManyBatches(RumorError):
    """This node works on as many bytes of batches as it may (429). Nothing happened; another node may have room."""

    code = "too_many_batches"
    status = 429


class TooManyConnections(RumorError):
    """This node has no room for another connection (503). Nothing happened; another node may have room."""

    code = "too_many_connections"
    status = 503


class Unauthorized(RumorError):
    """The request bears no token, or a wrong one (401). Nothing happened."""

    code = "unauthorized"
    status = 401


class Forbidden(RumorError):
    """The request comes from a web origin or a host that may not make it (403). Nothing happened."""

    code = "forbidden"
    status = 403


class MethodNotAllowed(RumorError):
    """The path exists, but not for this method (405). Nothing happened."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, hint: str = "", allowed: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.allowed = tuple(allowed)


class StoreUnavailable(RumorError):
    """Redis gave no answer in time, refused the connection, or refused the call (503).

    `may_have_happened`: True if a call left this node and got no answer, so that Redis may have carried it out. False
    if no call left this node, or if Redis refused it.
    `refusal`: why Redis, which did answer, refused.
    `why`: in a few words, why there is no answer.
    `ids`: the ids that the submission fixed before its first call, one for each task in order. With them another node
    can carry out the same submission without storing a task twice.
    `plan`: what the Idempotency-Key of a batch stands for, to be handed on with the ids.
    """

    code = "store_unavailable"
    status = 503

    def __init__(
        self,
        message: str,
        hint: str = "",
        may_have_happened: bool = True,
        ids: Sequence[str] = (),
        refusal: Refusal | None = None,
        plan: bytes = b"",
        why: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.why = why
        self.may_have_happened = may_have_happened
        self.plan = plan
        self.ids = list(ids)
        self.refusal = refusal


def refused(error: Exception) -> StoreUnavailable:
    """The error for a refusal that Redis answered: Redis did nothing."""
    return _refused(refusal_in(error))


def _refused(why: Refusal) -> StoreUnavailable:
    return StoreUnavailable(f"Redis refuses: {why.words}.", why.hint, may_have_happened=False, refusal=why)


def away(storing: bool = False, why: Refusal | None = None) -> StoreUnavailable:
    """The error while this node knows that Redis is away, and sends it nothing: nothing happened.

    `why`: Redis answers, and lets this node do nothing, for this reason.
    """
    if why is not None:
        return _refused(why)
    message = "Redis does not answer; nothing was stored." if storing else "Redis does not answer."
    return StoreUnavailable(message, "Try again soon.", may_have_happened=False)


SAME_KEY = "Send it again with the same Idempotency-Key: it cannot be stored twice."


def without_key(error: StoreUnavailable) -> StoreUnavailable:
    """The same error for a caller who sent no Idempotency-Key."""
    if error.hint != SAME_KEY:
        return error
    hint = "Send it again in a moment."
    if error.may_have_happened:
        hint = "Look before you send it again. Under an Idempotency-Key, a submission can be repeated safely."
    return StoreUnavailable(error.message, hint, error.may_have_happened, why=error.why)


def unanswered(why: str, is_sent: bool) -> StoreUnavailable:
    """The error for a call to which Redis gave no answer; `is_sent`: whether it left this node."""
    return StoreUnavailable(
        f"Redis: {why}; the call {'may have been' if is_sent else 'was not'} carried out.",
        SAME_KEY,
        may_have_happened=is_sent,
        why=why,
    )


def too_late() -> StoreUnavailable:
    """The error for a call that Redis refused, again and again, as too late by its clock: nothing happened."""
    return StoreUnavailable(
        "Redis holds this call late: its clock jumps.", "Send it again in a moment.", may_have_happened=False
    )


def unread(error: StoreUnavailable) -> StoreUnavailable:
    """The same error in a reader's words: a read changes nothing, so nothing may have happened."""
    if error.refusal is not None:
        return error
    message = f"Redis: {error.why}; nothing was read." if error.why else error.message
    hint = "Ask again in a moment, or ask another node."
    return StoreUnavailable(message, hint, may_have_happened=False, why=error.why)


class TaskUnreadable(RumorError):
    """Something else stands in Redis where a task should (500). It stays as it is; other tasks are not concerned."""

    code = "task_unreadable"
    status = 500


class StoreUnsafe(RumorError):
    """Redis answers, but it is no safe place for tasks (503). A node finds this when it starts; it stored nothing.

    The server is too old, its settings would lose tasks, or it refuses to store.
    """

    code = "store_unsafe"
    status = 503


def bind_hint(error: OSError, port: int, elsewhere: str = "choose another port") -> str:
    """What to do about a port that cannot be bound. `elsewhere`: how to choose another."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"Another process has it, perhaps an older node: end that one, or {elsewhere}.{likely_holder(port)}"
        case errno.EACCES:
            return f"This user may not open ports as low as {port}: {elsewhere}."
        case _:
            return (
                "host must be an address of this machine, or a name of one; 0.0.0.0 and :: stand for all that it has."
            )


def likely_holder(port: int) -> str:
    """A sentence for the hint about a port that cannot be bound: who holds it, where that is known beforehand."""
    if sys.platform != "darwin" or port not in AIRPLAY_PORTS:
        return ""
    return (
        f" On macOS the AirPlay Receiver holds {port}: use another port,"
        " or switch it off in System Settings, General, AirDrop & Handoff."
    )
