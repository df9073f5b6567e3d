"""A connection to a node, and one HTTP request over it, with the standard library alone.

`SyncClient` and `one_node` stand on it. It imports no HTTP library, so that commands start fast, and it ignores proxy
variables, since a client reaches a node directly.

Does not know: which node to ask, what an answer means, when to try again.
"""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Mapping
from urllib.parse import urlencode, urlsplit

from cluster.errors import ConfigError
from cluster.header_text import as_bytes
from node.client.asking import Answer, Request

READ_BYTES = 65_536
# Reasons of OpenSSL for an answer that is no TLS at all, as a node without a certificate gives it.
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")

Connection = http.client.HTTPConnection


def connect(url: str, tls: ssl.SSLContext | None, within_s: float) -> Connection:
    """A new connection; `tls` counts for https only. Raises OSError, or ValueError for a URL without a good port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        connection: Connection = http.client.HTTPSConnection(host, parts.port or 443, timeout=within_s, context=tls)
    else:
        connection = http.client.HTTPConnection(host, parts.port or 80, timeout=within_s)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(
    connection: Connection, url: str, request: Request, headers: Mapping[str, str], deadline_s: float
) -> Answer:
    """Send the request and read its whole answer, of any status. `headers`: those of every request to this cluster.

    Raises OSError (TimeoutError at the deadline) or HTTPException; the connection is closed then. It is also closed
    (`sock` is None) where the node said that this answer is its last.
    """
    headers = {**headers, **request.headers}
    if request.body is not None:
        headers["Content-Type"] = "application/json"
    query = {name: value for name, value in request.query.items() if value is not None}
    target = urlsplit(url).path + request.path + (f"?{urlencode(query)}" if query else "")
    try:
        _limit(connection, deadline_s)
        connection.request(request.method, target, request.body, as_bytes(headers))
        if request.meanwhile is not None:
            request.meanwhile()
        _limit(connection, deadline_s)
        response = connection.getresponse()
        parts = []
        while part := response.read1(READ_BYTES):
            parts.append(part)
            _limit(connection, deadline_s)
        response.read()  # marks the response as done, so that the connection can be used again
    except BaseException:
        connection.close()
        raise
    return Answer(response.status, b"".join(parts), response.getheader("Retry-After"))


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Trust the system's authorities, or exactly `ca_file`, which may be the node's own certificate.

    Raises ConfigError for a file that cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        why = reason_of(error)
        raise ConfigError(
            f"ca_file is {ca_file!r}: {why}.", "Name a file of PEM certificates, in RUMOR_CA_FILE for example."
        ) from None
    if ca_file:
        # The certificate is pinned, so its name says nothing more; and a chain may begin below its root.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def reason_of(error: BaseException) -> str:
    """Why there was no answer, in few words."""
    if isinstance(error, TimeoutError):
        return "timed out"
    # aiohttp's errors wrap the one of the ssl module.
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}): ca_file names the one to trust"
    if isinstance(cause, ssl.SSLError) and cause.reason in NO_TLS:
        return "what listens there speaks no TLS: such a URL begins with http://"
    return getattr(cause, "strerror", None) or str(error) or type(error).__name__


def _limit(connection: Connection, deadline_s: float) -> None:
    """Give the next sending or receiving until this deadline."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    if connection.sock is not None:  # None: the response was the connection's last
        connection.sock.settimeout(left_s)
