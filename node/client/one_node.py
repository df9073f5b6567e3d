"""A node over HTTP, as a command sees it: one blocking call at a time, with the standard library alone.

Commands should start fast, so this does not import aiohttp; and it ignores proxy variables, since a node is reached
directly. An error body of the gateway becomes a RumorError with the same code, message and hint.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from cluster.errors import ConfigError
from node.client.errors import Unreachable, error_of

__all__ = ["Remote", "Unreachable", "decode", "tls_context"]

Query = Mapping[str, Any] | None


class Remote:
    """One node's HTTP interface."""

    def __init__(self, url: str, token: str = "", ca_file: str = "", timeout_s: float = 10.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url is {url!r}: not an HTTP address.", "Write it like http://127.0.0.1:5000")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.token = token
        self.timeout_s = timeout_s
        self._parts = parts
        self._tls = tls_context(ca_file) if parts.scheme == "https" else None

    def call(
        self, method: str, path: str, body: Any = None, query: Query = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, JSON answer). Raises the node's own error for 4xx and 5xx, Unreachable if there is no answer."""
        status, raw = self.request(method, path, body, query, headers)
        answer = decode(raw)
        if status >= 400:
            raise error_of(status, answer, self.url)
        return status, answer

    def request(
        self, method: str, path: str, body: Any = None, query: Query = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body) as they come."""
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        target = self._parts.path.rstrip("/") + path + (f"?{urlencode(asked)}" if asked else "")
        connection = self._connect()
        try:
            connection.request(method, target, data, sent)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(
                f"{self.url} does not answer: {reason}.",
                "Is a node running there? Name another with --url or RUMOR_URL.",
            ) from None
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port or 443, timeout=self.timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port or 80, timeout=self.timeout_s)


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Trust the system's authorities, or exactly `ca_file`, which may be the node's own certificate."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if ca_file:
        # The certificate is pinned, so its name says nothing more; and a chain may begin below its root.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def decode(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None
