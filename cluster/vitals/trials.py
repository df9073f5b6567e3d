"""The sessions that this node looks at because they are silent: one task each, which looks, says a word, and waits.

A look is this node's own (`cluster.swim.looks`); what it says about the session is `words`; who else has to say
something is `jury`; Redis compares, and the call of the last juror fences. While nothing is decided, each node looks
and speaks once in a beat.

Decides nothing. Does not know: who reads heartbeats, what follows from a fence.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cluster.config import Config
from cluster.errors import StoreUnavailable
from cluster.kept_tasks import Nursery, wait_for
from cluster.swim.events import Look, Looked, Sight
from cluster.vitals.calls import FenceReply, Pulse
from cluster.vitals.jury import JURY_AT_ONCE_MAX, Ballot, Jury, Undecided
from cluster.vitals.words import Word

TRIALS_MAX = 32  # sessions looked at in one moment; the names decide which come first, so that all nodes take the same
ROUNDS_MAX = 8  # looks at one session, after which it gives way to another that waits
LOOK_LIMIT_S = 1.0  # time for one look; there is no outcome when this node was away meanwhile
RETRIES_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1)  # waits: Redis may see a process end later than its peers do


class Court(Protocol):
    """What a trial needs of its node."""

    @property
    def redis_ok(self) -> bool:
        """Whether Redis takes this node's heartbeats."""

    @property
    def is_hearing(self) -> bool:
        """Whether its own subscription stands."""

    def redis_ms(self, at_s: float) -> int:
        """Redis's clock at that moment of the monotonic one."""

    def cause(self, name: str) -> str:
        """One word for the tombstone of this session."""

    def fenced(self, name: str, reply: FenceReply, cause: str) -> None:
        """The session's tombstone stands."""

    def held_up(self, name: str, ballot: Ballot, reply: Undecided) -> None:
        """The session is not fenced yet, although this node would."""


@dataclass(slots=True)
class _Trial:
    rounds: int = 0
    quick: int = 0  # quick repetitions so far
    has_spoken: bool = False  # whether a word of ours may stand in Redis
    now: asyncio.Event = field(default_factory=asyncio.Event)
    looked: asyncio.Future[Sight] | None = None


class Trials:
    """One node's looks and words."""

    def __init__(
        self,
        config: Config,
        pulse: Pulse,
        jury: Jury,
        look: Callable[[Look], object],
        nursery: Nursery,
        court: Court,
        stats: Counter[str],
    ) -> None:
        self._config = config
        self._pulse = pulse
        self._jury = jury
        self._look_at = look
        self._nursery = nursery
        self._court = court
        self._stats = stats
        self._trials: dict[str, _Trial] = {}
        self._waiting: dict[str, None] = {}
        self._rounds: Counter[str] = Counter()  # session -> looks in trials that gave way
        self.missing: dict[str, tuple[str, ...]] = {}  # session -> jurors who were not heard; their heartbeats matter

    def open(self, names: Iterable[str]) -> None:
        """Look at these sessions: at once, or as soon as there is room."""
        self._waiting = {name: None for name in names if name not in self._trials}
        self._fill()

    def hurry(self, name: str) -> None:
        """Look at this session now, and not at its next turn."""
        trial = self._trials.get(name)
        if trial is not None:
            trial.now.set()
        else:
            self._waiting[name] = None
            self._fill()

    def gone(self, name: str) -> None:
        """This session is fenced, or proven gone: wherever its word was missing, one juror fewer has to be heard."""
        for other, missing in self.missing.items():
            if name in missing:
                self.hurry(other)

    def looked(self, looked: Looked) -> None:
        """A look has ended."""
        trial = self._trials.get(looked.session)
        if trial is not None and trial.looked is not None and not trial.looked.done():
            trial.looked.set_result(looked.sight)

    def _fill(self) -> None:
        for name in sorted(self._waiting, key=lambda name: (self._rounds[name], name)):
            if len(self._trials) >= TRIALS_MAX:
                return
            del self._waiting[name]
            self._trials[name] = _Trial()
            self._nursery.spawn(self._try(name, self._trials[name]))

    async def _try(self, name: str, trial: _Trial) -> None:
        try:
            while self._jury.is_open(name, time.monotonic()) and self._court.redis_ok:
                if trial.rounds >= ROUNDS_MAX and self._waiting:
                    self._rounds[name] += trial.rounds
                    return
                trial.rounds += 1
                sight = await self._look(name, trial)
                wait_s = self._config.heartbeat_interval_s
                if sight is not None:
                    try:
                        wait_s = await self._say(name, sight, trial)
                    except StoreUnavailable:
                        self._stats["votes_failed"] += 1
                await wait_for(trial.now, wait_s)
            self._rounds.pop(name, None)
        finally:
            del self._trials[name]
            self.missing.pop(name, None)
            self._fill()

    async def _look(self, name: str, trial: _Trial) -> Sight | None:
        """None: the look had no outcome."""
        trial.looked = asyncio.get_running_loop().create_future()
        self._stats["looks"] += 1
        self._look_at(Look(name, self._jury.address_of(name)))
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                return await trial.looked
        except TimeoutError:
            return None

    async def _say(self, name: str, sight: Sight, trial: _Trial) -> float:
        """Say this node's word, if there is one. Returns the seconds until the next look."""
        beat_s = self._config.heartbeat_interval_s
        ballot = self._jury.ballot(name, sight, time.monotonic(), is_hearing=self._court.is_hearing)
        if ballot is None:
            self._stats["vetoes"] += 1
            return 2 * beat_s
        is_large = len(ballot.jury) > JURY_AT_ONCE_MAX and trial.rounds % 4 != 0
        reply = await self._vote(ballot.counting() if is_large else ballot)
        if is_large and isinstance(reply, Undecided) and reply.words - trial.has_spoken >= len(ballot.jury):
            reply = await self._vote(ballot)
        trial.has_spoken = True
        if not isinstance(reply, Undecided):
            return 0.0
        if self._jury.voted(ballot, reply, time.monotonic()):
            self.gone(name)
        self.missing[name] = reply.missing
        if names := list(self._jury.to_ask(ballot, reply, time.monotonic())):
            self._stats["asked_to_look"] += len(names)
            await self._pulse.ask_to_look(names, name)
        if ballot.word is not Word.VETO:
            self._court.held_up(name, ballot, reply)
        is_last = bool(ballot.ways) and not reply.missing and not reply.alibis and not is_large
        if is_last and reply.subscribers and sight is Sight.REFUSED and trial.quick < len(RETRIES_S):
            trial.quick += 1
            return RETRIES_S[trial.quick - 1]
        return beat_s

    async def _vote(self, ballot: Ballot) -> FenceReply | Undecided:
        config, cause = self._config, self._court.cause(ballot.session)
        reply = await self._pulse.vote(
            ballot,
            self._court.redis_ms(ballot.said_s),
            config.heartbeat_interval_s,
            cause,
            int(config.tombstone_s * 1000),
            config.name,
        )
        self._stats["votes"] += 1
        if isinstance(reply, FenceReply):
            self._court.fenced(ballot.session, reply, cause)
        return reply
