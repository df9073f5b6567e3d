"""In which order what happens on the vitals thread is told to the main loop: one scripted life, on a real thread.

Redis is kept in a dict and nobody else gossips, so that every line below has one cause. Views are left out of the
sequence, since several changes may share one; each step waits for the view that shows what it did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cluster import session
from cluster.config import Config
from cluster.load import Meta, encode_meta
from cluster.swim.events import Changed, Evidence, Identity, Member, MemberState, NameConflict, Unconfirmed
from cluster.view import View
from cluster.vitals.lease import Term
from cluster.vitals.thread import Vitals
from cluster.vitals.told import (
    Disowned,
    GivingUp,
    Happened,
    NameTaken,
    NewSession,
    NewView,
    RedisReach,
    SessionEnded,
    Told,
    Woken,
)
from tests.fake_pulse import FakePulse
from tests.integration.conftest import free_port
from tests.waiting import wait_until_async

LIMIT_S = 20.0
LEADER = "n9/018bcfe5680-00000009"
OTHER = "n2/018bcfe5680-00000002"
GHOST = "n3/018bcfe5680-00000003"
OTHERS_KEY = b"k" * 32


class Recorder:
    """Keeps what the main loop is told, as lines of text, with this node's sessions named by their number."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.views: list[View] = []
        self.own: list[str] = []

    def _line(self, *words: object) -> None:
        self.lines.append(" ".join(self._name(str(word)) for word in words))

    def _name(self, word: str) -> str:
        return f"own{self.own.index(word) + 1}" if word in self.own else word

    def hear(self, told: Told) -> None:
        match told:
            case NewView(view):
                self._meet(view.session)
                self.views.append(view)
            case SessionEnded(session, cause):
                self._line("dead", session, cause)
            case Disowned(session):
                self._line("disowned", session)
            case NewSession(session):
                self._meet(session)
                self._line("fenced", session)
            case Woken(message):
                self._line("wake", message.decode())
            case Happened(event):
                if event["kind"] == "session_renewed":
                    self._meet(event["session"])
                self._line("event", event["kind"], event.get("session", ""), event.get("evidence", ""))
            case RedisReach(is_ok):
                self._line("redis", is_ok)
            case NameTaken(message):
                self._line("conflict", message)
            case GivingUp():
                self._line("give_up")

    def _meet(self, session: str) -> None:
        if session not in self.own:
            self.own.append(session)


class Script:
    """A node's vitals on their thread, and what to do to them."""

    def __init__(self, config: Config, pulses: list[FakePulse]) -> None:
        self.recorder = Recorder()
        meta = encode_meta(Meta({"default": 4}, pid=1, version="0"))
        self.vitals = Vitals(config, [OTHERS_KEY], meta, self.recorder.hear, asyncio.get_running_loop())
        self._pulses = pulses

    @property
    def pulse(self) -> FakePulse:
        return self._pulses[-1]

    async def do(self, work: Callable[[Any], Any]) -> Any:
        """Do this with the life, on the vitals loop."""

        async def there() -> Any:
            answer = work(self.vitals._life)
            return await answer if asyncio.iscoroutine(answer) else answer

        return await self.vitals._call(there())

    async def tells(self, *lines: str) -> None:
        """Until exactly these lines were told since the last step."""
        try:
            await wait_until_async(lambda: len(self.recorder.lines) >= len(lines), LIMIT_S, lines[-1])
        finally:
            assert [line.strip() for line in self.recorder.lines] == list(lines)
        self.recorder.lines.clear()

    async def shows(self, condition: Callable[[View], Any], why: str) -> None:
        """Until the latest view says so."""
        views = self.recorder.views
        await wait_until_async(lambda: views and condition(views[-1]), LIMIT_S, why)


def member(name: str, state: MemberState, evidence: Evidence) -> Member:
    return Member(
        Identity(session.node_of(name), name, "127.0.0.1", 9), 0, state, evidence, 0.0, "n1", None, b"", 0, 0.0
    )


async def test_what_happens_is_told_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pulses: list[FakePulse] = []
    exits: list[int] = []

    def made(*args: Any) -> FakePulse:
        pulses.append(FakePulse(*args))
        pulses[-1].leader = Term(LEADER, 7)
        return pulses[-1]

    def exit_now(status: int) -> None:
        exits.append(status)
        raise asyncio.CancelledError

    monkeypatch.setattr("cluster.vitals.life.Pulse", made)
    monkeypatch.setattr("os._exit", exit_now)
    config = Config(node_id="n1", port=free_port(), stall_after_s=0.6, stall_limit_s=1.5)
    script = Script(config, pulses)
    vitals, told = script.vitals, script.tells
    ticks = asyncio.get_running_loop().create_task(tick(vitals))
    await vitals.start()
    try:
        # A birth.
        await told("redis True", f"event leader_elected {LEADER}")
        await script.shows(lambda view: view.redis_ok and view.leader and view.leader.session == LEADER, "its leader")
        first = vitals.session

        # A message on its own channel.
        await script.do(lambda life: script.pulse.publish(first, b"w1"))
        await told("wake w1")

        # Another joins, is suspected, is held dead by gossip, and this node fences it.
        for state, evidence in ((MemberState.ALIVE, Evidence.NONE), (MemberState.SUSPECT, Evidence.SILENT)):
            change = Changed(
                member(OTHER, state, evidence), None if state is MemberState.ALIVE else MemberState.ALIVE, False
            )
            await script.do(lambda life, change=change: life._on_changed(change))
        await told(f"event member_joined {OTHER} none", f"event member_suspect {OTHER} silent")
        gone = Changed(member(OTHER, MemberState.DEAD, Evidence.REFUSED), MemberState.SUSPECT, False)
        await script.do(lambda life: life._on_changed(gone))
        await told(
            f"event member_dead {OTHER} refused", f"dead {OTHER} unknown", f"event session_fenced {OTHER} unknown"
        )

        # Another's tombstone, found; and asked about once more.
        script.pulse.heartbeats[GHOST] = b"fenced left 1 n2"
        vitals.consider([GHOST])
        await told(f"dead {GHOST} left")
        vitals.consider([GHOST])
        await told(f"dead {GHOST} left")

        # Its own tombstone.
        script.pulse.heartbeats[first] = b"fenced lease 1 n2"
        await told("disowned own1", "event session_renewed own2 lease", "fenced own2", "dead own1 lease")
        await script.shows(lambda view: view.session == vitals.session != first, "its new session")
        second = vitals.session

        # Its name was used by a later life that has ended: the clock was set back.
        later = f"n1/{session.order(second)[0] + 60_000:011x}-00000001"
        script.pulse.heartbeats[later] = b"fenced refused 1 n2"
        await script.do(lambda life: life._contest(NameConflict(Identity("n1", later, "127.0.0.1", 1))))
        await told(
            "disowned own2",
            "disowned own2",
            "event session_renewed own3 superseded",
            "fenced own3",
            "dead own2 superseded",
        )
        third = vitals.session
        assert session.is_newer(third, than=later)

        # Gossip says first that it was fenced: it asks Redis, and then it is true.
        rumor = Unconfirmed(Identity("n1", third, "127.0.0.1", 1), True)
        await script.do(lambda life: life._vouching.hear(rumor))
        script.pulse.heartbeats[third] = b"fenced lease 1 n2"
        await told("disowned own3", "event session_renewed own4 lease", "fenced own4", "dead own3 lease")

        # What its sockets saw of another.
        await script.do(lambda life: [life._on_seen("connection_ended", OTHER) for _ in range(2)])
        await told(f"event connection_ended {OTHER}")

        # Redis goes away and comes back.
        await script.do(lambda life: script.pulse.go_away())
        await told("redis False", "event leader_lost")
        await script.shows(lambda view: not view.redis_ok and view.leader is None, "Redis is away")
        await script.do(lambda life: setattr(script.pulse, "failure", None))
        await told("redis True", f"event leader_elected {LEADER}")
        await script.shows(lambda view: view.redis_ok and view.leader, "Redis is back")

        # Its name is used by a life that goes on.
        script.pulse.moving["n1/11111111111-00000001"] = 1
        await script.do(
            lambda life: life._contest(NameConflict(Identity("n1", "n1/11111111111-00000001", "10.0.0.9", 1)))
        )
        await told(
            "conflict node_id n1 is used twice: also at 10.0.0.9:1, as session n1/11111111111-00000001.",
        )

        # Its main loop no longer ticks, ticks again, and then never again.
        ticks.cancel()
        await told("event main_stalled")
        ticks = asyncio.get_running_loop().create_task(tick(vitals))
        await told("event main_recovered")
        ticks.cancel()
        await told("event main_stalled", "give_up")
        await wait_until_async(lambda: exits, LIMIT_S, "the process ends")
        assert exits == [70]
        assert script.pulse.calls[-1] == f"fence {vitals.session} stalled"
    finally:
        ticks.cancel()
        await vitals.stop()


async def tick(vitals: Vitals) -> None:
    """What the main loop of a node does."""
    while True:
        if vitals._started_life is not None:
            vitals.tick()
        await asyncio.sleep(0.1)


async def test_a_birth_while_redis_is_away_says_so_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pulses: list[FakePulse] = []

    def made(*args: Any) -> FakePulse:
        pulses.append(FakePulse(*args))
        pulses[-1].go_away()
        return pulses[-1]

    monkeypatch.setattr("cluster.vitals.life.Pulse", made)
    script = Script(Config(node_id="n1", port=free_port(), redis_timeout_s=0.1), pulses)
    await script.vitals.start()
    try:
        await script.tells("redis False")
        await script.shows(lambda view: not view.redis_ok, "a first view")
        pulses[-1].leader = Term(LEADER, 7)
        pulses[-1].failure = None
        await script.tells("redis True", f"event leader_elected {LEADER}")
    finally:
        await script.vitals.stop()
