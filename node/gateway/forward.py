"""A submission that this node cannot store, handed to a peer that can: one hop, with ids fixed beforehand.

This node fixed the ids before its own call to Redis, and storing is idempotent on them. So it does not matter whether
Redis carried out that call, to which it gave no answer. The peer never forwards again. One deadline bounds all of it.

Does not know: what a task is; it carries bytes that `schema` describes.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import aiohttp
import msgspec
from msgspec import msgpack

from cluster.config import Config
from cluster.errors import SAME_KEY, Misdirected, RumorError, StoreUnavailable
from cluster.session import is_session
from cluster.swim.events import MemberState
from cluster.view import Peer, RedisWord, View
from node import trace_context
from node.schema import ABSENT, BatchKey, ErrorJson, Forward, Forwarded, IdempotencyKeys, Submission, Submitted

FORWARDED = "Rumor-Forwarded"  # header of a forwarded call, which goes one hop only: the session that is meant
PATH = "/gossip/submit"

NO_ANSWER = 0  # stands in place of a status

NOT_READY = StoreUnavailable(
    "this node cannot reach Redis and could not prepare this task; it was not stored.",
    "Send it again by itself; the answer then says what is wrong with it.",
    may_have_happened=False,
)

_encode_json = msgspec.json.Encoder().encode
_encode = msgpack.Encoder().encode
_answers = msgspec.json.Decoder(list[Forwarded]).decode
_refusal = msgspec.json.Decoder(ErrorJson).decode


class RemoteError(RumorError):
    """A peer's error for one task, in that peer's words. Whether the task may be stored is as the peer says."""

    def __init__(self, code: str, message: str, hint: str, status: int) -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = status


class Forwarder:
    """Hands requests to peers. Opens no connection before the first one."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: aiohttp.ClientSession | None = None

    async def submit(
        self, view: View, forward: Forward, error: StoreUnavailable, deadline_s: float
    ) -> list[Submitted | RumorError]:
        """The answers in order. Raises StoreUnavailable when no peer gave any before `deadline_s` (loop time)."""
        body = _encode(forward)
        headers = {"Content-Type": "application/msgpack", **trace_context.current()}
        may_have_happened = error.may_have_happened
        for peer in candidates(view):
            answer = await self._ask("POST", peer.url + PATH, {FORWARDED: peer.session, **headers}, body, deadline_s)
            if answer is None:
                continue
            may_have_happened = may_have_happened or _may_be_stored(*answer)
            if answer[0] != 200:
                continue
            try:
                results = _answers(answer[1])
            except msgspec.DecodeError:
                continue
            if len(results) == len(forward.ids):
                return [_result(result) for result in results]
        message = f"{error.message} No peer that reaches Redis took it over."
        hint = error.hint if error.refusal else SAME_KEY  # a refusal lasts until somebody mends Redis
        if may_have_happened and not error.may_have_happened:  # only a peer is in doubt; the words so far deny it
            message = "this node cannot store it, and a peer that was to do so gave no clear answer: it may be stored."
            hint = SAME_KEY
        raise StoreUnavailable(message, hint, may_have_happened)

    async def read(self, view: View, path: str, deadline_s: float) -> tuple[int, bytes] | None:
        """Status and body of a peer's answer to GET `path`, or None when there is none."""
        for peer in candidates(view):
            answer = await self._ask("GET", peer.url + path, {FORWARDED: peer.session}, None, deadline_s)
            if answer is not None and NO_ANSWER < answer[0] < 500 and answer[0] != Misdirected.status:
                return answer
        return None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, deadline_s: float
    ) -> tuple[int, bytes] | None:
        """Status and body; NO_ANSWER when the request may have arrived all the same; None when it was never sent."""
        try:
            async with (
                asyncio.timeout_at(deadline_s),
                self._client().request(
                    method, url, headers=headers, data=body and BytesIO(body), allow_redirects=False
                ) as response,
            ):
                return response.status, await response.read()
        except aiohttp.ClientConnectorError:
            return None
        except (TimeoutError, aiohttp.ClientError, OSError):
            return NO_ANSWER, b""

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            token = self._config.api_token
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {token}"} if token else {},
                connector=aiohttp.TCPConnector(limit_per_host=16, ssl=_tls(self._config)),
                trust_env=False,
            )
        return self._session


def refuse_misdirected(meant: str | None, session: str) -> None:
    """Raise Misdirected if a node's forwarded call is for another session than ours: one that had this port before.

    Without this, a node of another cluster that took over the port would store the task among its own. A node of an
    older version names no session.
    """
    if meant is not None and is_session(meant) and meant != session:
        raise Misdirected(f"this call is for {meant}, and this is {session}.", "Only nodes make such calls.")


def candidates(view: View) -> Iterator[Peer]:
    """Peers that may store for us, the best first: they say that they reach Redis, and Redis has not fenced them.

    A peer's own word suffices, because this node cannot reach Redis and so does not know Redis's word about the peer
    now. But Redis must have vouched for the peer once: a call carries the token, and its address must not be anybody's.
    """
    able = [
        peer
        for peer in view.members
        if peer.node_id != view.node_id
        and peer.state is MemberState.ALIVE
        and peer.is_vouched
        and peer.redis is not RedisWord.GONE
        and (peer.redis is RedisWord.LIVE or (peer.load is not None and peer.load.redis))
        and not (peer.load is not None and peer.load.stalled)
    ]
    yield from sorted(able, key=lambda peer: (math.inf if peer.rtt_s is None else peer.rtt_s, peer.node_id))


def outgoing(
    ids: Sequence[str], items: Sequence[Submission], idempotency_keys: IdempotencyKeys, trace: str | None
) -> Forward:
    """The request to a peer."""
    if isinstance(idempotency_keys, BatchKey):
        return Forward(list(ids), _as_sent(items), None, trace, idempotency_keys)
    keys = None if idempotency_keys is None else list(idempotency_keys)
    return Forward(list(ids), _as_sent(items), keys, trace)


def _as_sent(items: Sequence[Submission]) -> bytes:
    """The submissions as JSON; where one had no data, it has none on its way."""
    return _encode_json([item if item.data is not ABSENT else _without_data(item) for item in items])


def _without_data(item: Submission) -> dict[str, Any]:
    fields = msgspec.structs.asdict(item)
    del fields["data"]
    return fields


def _may_be_stored(status: int, body: bytes) -> bool:
    """Whether a peer that gave this answer, or none, may have stored the submission."""
    if NO_ANSWER < status < 500 and status != 200:
        return False
    try:
        return _refusal(body).error.may_have_happened is not False
    except msgspec.DecodeError:
        return True


def _result(result: Forwarded) -> Submitted | RumorError:
    if result.task is not None:
        return Submitted(result.task, result.is_new)
    if result.error is not None:
        return RemoteError(result.error.code, result.error.message, result.error.hint, result.status or 500)
    return RumorError(
        "a peer's answer has neither a task nor an error.", "Update that node: it speaks another version."
    )


def _tls(config: Config) -> ssl.SSLContext | bool:
    """Check peers' certificates against the usual authorities and this node's own chain."""
    if not config.tls_cert:
        return True
    context = ssl.create_default_context()
    context.load_verify_locations(config.tls_cert)
    return context
