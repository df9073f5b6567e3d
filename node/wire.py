"""What crosses HTTP, as types: requests are parsed into these and answers rendered from them, by msgspec."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct

Priority = Literal["low", "normal", "high"] | Annotated[int, Meta(ge=0, le=9)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]


class BackoffJson(Struct, forbid_unknown_fields=True):
    """`backoff` of a submission; full jitter over min(max_s, base_s x factor^(n-1))."""

    base_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    factor: Annotated[float, Meta(ge=1, le=100)] | None = None
    max_s: Annotated[float, Meta(ge=0, le=604_800)] | None = None


class Submission(Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /tasks`. What is left out comes from the type's declaration, then from the configuration."""

    type: Annotated[str, Meta(min_length=1, max_length=200)]
    data: Raw = Raw(b"null")
    queue: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,47}$")] | None = None
    priority: Priority | None = None
    key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    delay_s: Seconds | None = None
    run_at: Annotated[str, Meta(max_length=64)] | None = None  # RFC 3339, with an offset
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    backoff: BackoffJson | None = None
    unique_for_s: Annotated[float, Meta(gt=0, le=2_592_000)] | None = None
    unique_key: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    retention_s: Seconds | None = None


class TaskJson(Struct, kw_only=True):
    """A task as every call shows it."""

    id: str
    type: str
    state: str
    queue: str
    priority: int
    data: Raw
    attempt: int
    max_attempts: int
    delivery: int
    queued_at_ms: int | None = None
    run_at_ms: int | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    node_id: str | None = None
    result: Raw = Raw(b"null")
    error: Raw = Raw(b"null")
    progress: Raw = Raw(b"null")
    key: str | None = None


class ListQuery(Struct, kw_only=True, frozen=True):
    """`GET /tasks`: filters and page."""

    state: str | None = None
    type: str | None = None
    key: str | None = None
    limit: int = 50
    cursor: str | None = None
