"""Every error Rumor reports: a stable code, what happened (with the values), and what to do.

The gateway turns these into `{"error": {"code", "message", "hint"}}`, the command line into two lines on stderr.
Each class says whether the thing certainly did not happen or *may have happened*: that decides whether a caller may
simply try again.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.refusal import Refusal, refusal


class RumorError(Exception):
    """Base of all reported errors. `status` is the HTTP status a gateway answers with."""

    code = "internal"
    status = 500
    may_have_happened = False  # for what refuses: nothing was done. See StoreUnavailable, and the client's Unreachable

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f"\n  {self.hint}" if self.hint else "")


class ConfigError(RumorError):
    """The configuration cannot work. Nothing was started."""

    code = "bad_config"
    status = 500


class BadRequest(RumorError):
    """The request is malformed (400). Nothing happened."""

    code = "bad_request"
    status = 400


class Invalid(RumorError):
    """The request is well-formed and cannot be accepted as it stands (422). Nothing happened."""

    code = "invalid"
    status = 422


class UnknownType(Invalid):
    """No live or remembered node has a handler for this type. Nothing happened."""

    code = "unknown_type"


class IdempotencyConflict(Invalid):
    """The same Idempotency-Key came with another body. Nothing happened; the first task stands."""

    code = "idempotency_conflict"


class NotFound(RumorError):
    """No such task, or it is past its retention."""

    code = "not_found"
    status = 404


class Conflict(RumorError):
    """The task is not in a state that allows this. Nothing changed."""

    code = "conflict"
    status = 409


class TooLarge(RumorError):
    """The body or one of its parts is over its limit (413). Nothing happened."""

    code = "too_large"
    status = 413


class TooSlow(RumorError):
    """The head or the body of a request did not come in time (408). Nothing happened; of a stream, its rest."""

    code = "too_slow"
    status = 408


class QueueFull(RumorError):
    """A limit was reached or Redis is nearly out of memory (429). Nothing happened; try again later."""

    code = "queue_full"
    status = 429


class TooManyListeners(RumorError):
    """As many clients listen to this node's events as it takes (429). Nothing happened; another node takes more."""

    code = "too_many_listeners"
    status = 429


class TooManyConnections(RumorError):
    """A node has no room for another connection (503). Nothing happened; another node may have."""

    code = "too_many_connections"
    status = 503


class Unauthorized(RumorError):
    """No or a wrong bearer token (401). Nothing happened."""

    code = "unauthorized"
    status = 401


class Forbidden(RumorError):
    """The request comes from where it may not come from: another web origin, another host (403). Nothing happened."""

    code = "forbidden"
    status = 403


class MethodNotAllowed(RumorError):
    """The path exists and not for this method (405). Nothing happened."""

    code = "method_not_allowed"
    status = 405

    def __init__(self, message: str, hint: str = "", allowed: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.allowed = tuple(allowed)


class StoreUnavailable(RumorError):
    """Redis gave no answer in time, or refused the connection.

    `may_have_happened` tells the two apart: a call that left this node and got no answer may have been carried out.
    `refusal`: it did answer, and this is why it would not do it.
    `ids` are the ids that a submission had fixed before its first call, one for each task in order: with them another
    node can carry the same submission out without making two.
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
    ) -> None:
        super().__init__(message, hint)
        self.may_have_happened = may_have_happened
        self.ids = list(ids)
        self.refusal = refusal


def refused(error: Exception) -> StoreUnavailable:
    """Redis answered so: it did nothing."""
    why = refusal(str(error))
    return StoreUnavailable(f"Redis refuses: {why.words}.", why.hint, may_have_happened=False, refusal=why)


def away(storing: bool = False) -> StoreUnavailable:
    """Redis is known to be away, so nothing was sent to it."""
    message = "Redis does not answer; nothing was stored." if storing else "Redis does not answer."
    return StoreUnavailable(message, "Try again soon.", may_have_happened=False)


class StoreUnsafe(RumorError):
    """Redis is reachable but its settings would lose tasks, or it belongs to another kind of cluster."""

    code = "store_unsafe"
    status = 503
