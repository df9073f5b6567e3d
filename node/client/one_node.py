"""One node, asked exactly once: for the launcher, the cuts, benchmarks and tests, which talk with a node by itself.

`SyncClient` is for whoever means the cluster: its calls are typed, go to whichever node answers, and are tried again.
Here a path is asked as it stands, a refusal or a page is an answer like any other, and no other node steps in. Below
both lies the same `connection`.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from typing import Any

from node.client.asking import Answer, Request, decoded
from node.client.connection import connect, exchange, reason_of, tls_context
from node.client.errors import Unreachable, error_of
from node.client.nodes import address, bearer

Query = Mapping[str, Any] | None


class Remote:
    """One node's HTTP interface. Raises ConfigError for a URL that is none."""

    def __init__(self, url: str, token: str = "", ca_file: str = "", timeout_s: float = 10.0) -> None:
        self.url = address(url)
        self.token = token
        self.timeout_s = timeout_s
        self._tls = tls_context(ca_file) if self.url.startswith("https:") else None

    def call(
        self, method: str, path: str, body: Any = None, query: Query = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, JSON answer). Raises the node's own error for 4xx and 5xx, Unreachable if there is no answer."""
        status, text = self.request(method, path, body, query, headers)
        answer = decoded(text)
        if status >= 400:
            raise error_of(status, answer, self.url)
        return status, answer

    def request(
        self, method: str, path: str, body: Any = None, query: Query = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, body) as they come, within `timeout_s`. Raises Unreachable if there is no answer."""
        data = None if body is None else json.dumps(body).encode()
        answer = self._ask(Request(method, path, query or {}, data, headers or {}))
        return answer.status, answer.body

    def _ask(self, request: Request) -> Answer:
        deadline_s = time.monotonic() + self.timeout_s
        try:
            connection = connect(self.url, self._tls, self.timeout_s)
            try:
                return exchange(connection, self.url, request, bearer(self.token), deadline_s)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"{self.url} does not answer: {reason_of(error)}.",
                "Is a node running there? Give the URL of another one, by RUMOR_URL for example.",
            ) from None
