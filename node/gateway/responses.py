"""Answers: values as JSON, and the one place where an error becomes a response.

Does not know: routes, the engine.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import hdrs, web

from cluster.errors import MethodNotAllowed, RumorError, StoreUnavailable
from node.schema import ErrorBody, ErrorJson

JSON_HEADERS: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "rumor"}
STATUS_HEADERS: dict[int, dict[str, str]] = {
    401: {hdrs.WWW_AUTHENTICATE: "Bearer"},
    429: {hdrs.RETRY_AFTER: "1"},
    503: {hdrs.RETRY_AFTER: "1"},
}

encode = msgspec.json.Encoder().encode


def as_json(value: Any, status: int = 200) -> web.Response:
    """The value, encoded in one go."""
    return web.Response(body=json_line(value), status=status, headers=JSON_HEADERS)


def json_line(value: Any) -> bytes:
    """The value as JSON and a line break, which a terminal needs before its prompt."""
    return encode(value) + b"\n"


def error_json(error: RumorError) -> ErrorJson:
    """The error in the one form that all errors have."""
    may_have_happened = error.may_have_happened if isinstance(error, StoreUnavailable) else msgspec.UNSET
    return ErrorJson(ErrorBody(error.code, error.message, error.hint, may_have_happened))


def error_response(error: RumorError) -> web.Response:
    """The response to a request that failed with this error."""
    headers: dict[str, str] = {**JSON_HEADERS, **STATUS_HEADERS.get(error.status, {})}
    if isinstance(error, MethodNotAllowed):
        headers[hdrs.ALLOW] = ", ".join(error.allowed)
    return web.Response(body=json_line(error_json(error)), status=error.status, headers=headers)


def error_bytes(error: RumorError) -> bytes:
    """The same response as bytes, for a connection that has no request to answer."""
    body = json_line(error_json(error))
    headers = {
        **JSON_HEADERS,
        **STATUS_HEADERS.get(error.status, {}),
        hdrs.CONTENT_LENGTH: str(len(body)),
        hdrs.CONNECTION: "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{head}\r\n".encode() + body
