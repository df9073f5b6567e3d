"""A node's view, put together: gossip's members beside the second witness's word, and the verdict of both.

Pure: everything comes in as values, and rows of the View go out. Decoded loads and metas are kept: they rarely change.

Does not know: clocks, Redis, asyncio; whom to fence (see `witness`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from cluster.load import Load, Meta, decode_load, decode_meta
from cluster.session import node_of
from cluster.swim.events import Evidence, Member, MemberState
from cluster.view import VERDICT, Leader, Peer, RedisWord, View
from cluster.vitals.lease import Term

REMEMBERED = 1024  # decoded loads, and as many metas

_load: Callable[[bytes], Load | None] = lru_cache(REMEMBERED)(decode_load)
_meta: Callable[[bytes], Meta | None] = lru_cache(REMEMBERED)(decode_meta)


def peer(member: Member, redis: RedisWord, age_s: float | None) -> Peer:
    """One member with both witnesses' words.

    The second witness counts as live unless it says otherwise: only an agreement is a death. A live member is believed
    at once when it says that Redis does not answer it, and a tombstone needs no second word.
    """
    is_dead = member.state in (MemberState.DEAD, MemberState.LEFT) or redis is RedisWord.GONE
    load = _load(member.load) if member.load else None
    is_live = redis not in (RedisWord.STALE, RedisWord.GONE) and (is_dead or load is None or load.redis)
    identity = member.identity
    return Peer(
        node_id=identity.node_id,
        session=identity.session,
        host=identity.host,
        port=identity.port,
        state=member.state,
        evidence=member.evidence,
        by=member.by,
        incarnation=member.incarnation,
        rtt_s=member.rtt_s,
        redis=redis,
        redis_age_s=age_s,
        verdict=VERDICT[is_dead, is_live],
        load=load,
        meta=_meta(identity.meta),
        is_vouched=member.is_vouched,
    )


def own_row(me: Member, redis_ok: bool, age_s: float) -> Peer:
    """This node's own row: it knows by itself whether Redis takes its heartbeats."""
    return peer(me, RedisWord.LIVE if redis_ok else RedisWord.STALE, age_s)


def word(member: Member, watched: RedisWord) -> RedisWord:
    """Redis's word on another member: as watched here, unless a tombstone was seen elsewhere.

    A node that gossips FENCED has seen the tombstone; this node's own reading of it is on its way.
    """
    return RedisWord.GONE if member.evidence is Evidence.FENCED else watched


def leader(term: Term | None) -> Leader | None:
    """A term as the view names it."""
    return None if term is None else Leader(node_of(term.session), term.session, term.epoch)


def essence(view: View) -> tuple[object, ...]:
    """All of a view that is worth telling: everything but ages and round trip times, which never stand still."""
    rows = tuple(
        (p.session, p.state, p.evidence, p.incarnation, p.redis, p.verdict, p.load, p.host, p.port, p.is_vouched)
        for p in view.members
    )
    return view.session, rows, view.leader, view.epoch, view.redis_ok, view.refusal, view.is_synced
