"""Who has to be heard before a session is fenced, and when this node says something at all."""

from __future__ import annotations

from math import inf
from typing import Any

from cluster.config import Config
from cluster.swim.events import Evidence, Identity, Member, MemberState, Sight
from cluster.vitals.jury import ASK_S, Ballot, Jury, Undecided
from cluster.vitals.witness import Belief, Witness
from cluster.vitals.words import Word

NOW_S = 50.0
CONFIG = Config()


def name(node: str, life: int = 1) -> str:
    return f"{node}/0190aaaaaa{life}-0badcafe"


OWN, TARGET, N3, N4 = name("n1"), name("n2"), name("n3"), name("n4")


class Table:
    """Gossip's table, as a test writes it."""

    is_synced = True

    def __init__(self) -> None:
        self.rows: dict[str, Member] = {}
        self.neighbours: set[str] = {TARGET}

    def put(self, session: str, state: MemberState = MemberState.ALIVE, **more: Any) -> None:
        address = ("127.0.0.1", 5000 + int(session[1]))
        identity = Identity(session.partition("/")[0], session, *address)
        evidence = more.pop("evidence", Evidence.NONE)
        self.rows[session] = Member(identity, 0, state, evidence, 0.0, "", None, b"", 0, 0.0, **more)

    def members(self) -> tuple[Member, ...]:
        return tuple(self.rows.values())

    def member(self, session: str) -> Member | None:
        return self.rows.get(session)

    def is_neighbour(self, session: str) -> bool:
        return session in self.neighbours


class Bench:
    """A jury of n1's with n2 to n4; n2 is refused since 10 ms."""

    def __init__(self) -> None:
        self.table = Table()
        self.ended: dict[str, str] = {}
        self.witness = Witness(CONFIG.heartbeat_stale_s, CONFIG.lease_s)
        swim: Any = self.table
        self.jury = Jury(CONFIG, swim, self.witness, self.ended, lambda: OWN)
        for session in (OWN, N3, N4):
            self.table.put(session)
        self.table.put(TARGET, MemberState.DEAD, evidence=Evidence.REFUSED, doubted_s=NOW_S - 0.01)

    def watch(self, session: str, value: bytes, since_s: float, until_s: float = NOW_S) -> None:
        at_s = since_s
        while at_s <= until_s:
            self.witness.read(session, value, at_s, at_s)
            at_s += 0.25

    def ballot(self, sight: Sight = Sight.REFUSED, *, is_hearing: bool = True) -> Ballot | None:
        return self.jury.ballot(TARGET, sight, NOW_S, is_hearing=is_hearing)

    def jurors(self, *, is_hearing: bool = True) -> tuple[str, ...]:
        ballot = self.ballot(is_hearing=is_hearing)
        assert ballot is not None
        return ballot.jury


def test_everybody_who_may_be_alive_has_to_be_heard() -> None:
    bench = Bench()
    assert bench.jurors() == (N3, N4)
    bench.jury.consider(name("n5"), NOW_S)  # It stands on the member list, and gossip does not know it.
    assert bench.jurors() == (N3, N4, name("n5"))


def test_who_is_fenced_or_left_or_was_seen_to_stand_still_is_not_waited_for() -> None:
    bench = Bench()
    bench.table.put(N3, MemberState.LEFT)
    assert bench.jurors() == (N4,)
    bench.watch(N4, b"7 votes", NOW_S - 1.5)
    assert bench.jurors() == ()
    bench = Bench()
    bench.ended[N3] = "lease"
    assert bench.jurors() == (N4,)


def test_an_older_version_that_says_no_words_is_not_waited_for() -> None:
    bench = Bench()
    bench.watch(N3, b"7", NOW_S, NOW_S)
    bench.watch(N4, b"7 votes", NOW_S, NOW_S)
    assert bench.jurors() == (N4,)


def test_who_is_refused_and_has_no_subscriber_is_not_waited_for_while_our_own_subscription_stands() -> None:
    bench = Bench()
    bench.table.put(N3, MemberState.DEAD, evidence=Evidence.REFUSED, doubted_s=NOW_S - 0.01)
    ballot = bench.jury.ballot(N3, Sight.REFUSED, NOW_S, is_hearing=True)
    assert ballot is not None
    assert not bench.jury.voted(ballot, Undecided(1, 0, (), ()), NOW_S)
    assert N3 in bench.jurors()
    assert bench.jury.voted(ballot, Undecided(0, 0, (), ()), NOW_S)
    assert bench.jurors() == (N4,)
    assert N3 in bench.jurors(is_hearing=False)
    assert not bench.jury.voted(ballot, Undecided(0, 0, (), ()), NOW_S), "no news"


def test_the_ways_to_a_fence_are_those_of_our_own_watch() -> None:
    bench = Bench()
    ballot = bench.ballot()
    assert ballot is not None
    assert (ballot.word, ballot.ways, ballot.seen) == (Word.REFUSED, "f", None)
    assert (bench.ballot(is_hearing=False) or ballot).ways == "n"
    bench.table.put(TARGET, MemberState.DEAD, evidence=Evidence.SILENT, doubted_s=NOW_S - 2.0)
    bench.watch(TARGET, b"7 votes", NOW_S - 2.0)
    ballot = bench.ballot(Sight.SILENT)
    assert ballot is not None
    assert (ballot.word, ballot.ways, ballot.seen) == (Word.DEAD, "fs", b"7 votes")


def test_a_veto_is_not_said_unless_something_else_was_said_before() -> None:
    bench = Bench()
    assert bench.ballot(Sight.ANSWERED) is None
    said = bench.ballot()
    assert said is not None
    bench.jury.voted(said, Undecided(1, 0, (), ()), NOW_S)
    taken_back = bench.ballot(Sight.ANSWERED)
    assert taken_back is not None
    assert (taken_back.word, taken_back.ways, taken_back.jury) == (Word.VETO, "", ())
    bench.jury.voted(taken_back, Undecided(1, 1, (), ()), NOW_S)
    assert bench.ballot(Sight.ANSWERED) is None


def test_a_neighbour_that_hears_a_session_whose_heartbeat_stands_still_testifies() -> None:
    bench = Bench()
    bench.table.put(TARGET, answered_s=NOW_S)
    assert not bench.jury.is_open(TARGET, NOW_S), "calm costs nothing"
    bench.watch(TARGET, b"7 votes", NOW_S - 0.75)
    assert bench.jury.is_open(TARGET, NOW_S)
    ballot = bench.ballot(Sight.ANSWERED)
    assert ballot is not None
    assert (ballot.word, ballot.alibi_s, ballot.ways) == (Word.VETO, CONFIG.suspicion_min_s, "")
    bench.table.neighbours.clear()
    assert not bench.jury.is_open(TARGET, NOW_S)


def test_nobody_looks_at_one_that_was_cut_off_and_whose_heartbeat_moves_until_somebody_asks() -> None:
    bench = Bench()
    bench.table.put(TARGET, MemberState.DEAD, evidence=Evidence.SILENT, doubted_s=NOW_S - 20.0)
    bench.watch(TARGET, b"80 votes", NOW_S - 0.25)
    assert bench.jury.open_cases({TARGET: Belief.DEAD, N3: Belief.ALIVE}, NOW_S) == []
    bench.jury.asked(TARGET, NOW_S)
    assert bench.jury.is_open(TARGET, NOW_S)
    ballot = bench.ballot(Sight.SILENT)
    assert ballot is not None
    assert ballot.word is Word.ABSTAINS


def test_one_that_left_is_looked_at_only_if_it_did_not_end_its_session_itself() -> None:
    bench = Bench()
    bench.table.put(TARGET, MemberState.LEFT, doubted_s=NOW_S)
    assert not bench.jury.is_open(TARGET, NOW_S)
    bench.watch(TARGET, b"7 votes", NOW_S - 1.25)
    assert bench.jury.is_open(TARGET, NOW_S)


def test_who_speaks_first_asks_those_whom_no_gossip_reaches_and_later_a_neighbour_asks_all_who_are_missing() -> None:
    bench = Bench()
    bench.table.put(N4, MemberState.DEAD, evidence=Evidence.SILENT, doubted_s=NOW_S - 20.0)
    ballot = bench.ballot()
    assert ballot is not None
    nobody, some = Undecided(0, 0, (N3, N4), ()), Undecided(0, 2, (N3, N4), ())
    assert list(bench.jury.to_ask(ballot, nobody, NOW_S)) == [N4]
    assert list(bench.jury.to_ask(ballot, nobody, NOW_S + ASK_S / 2)) == []
    assert list(bench.jury.to_ask(ballot, some, NOW_S + ASK_S)) == [N3, N4]
    bench.table.neighbours.clear()
    assert list(bench.jury.to_ask(ballot, some, NOW_S + 2 * ASK_S)) == []


def test_a_later_life_makes_gossip_hold_the_earlier_one_gone_and_is_a_juror_itself() -> None:
    bench = Bench()
    later = name("n2", 2)
    bench.jury.met(bench.table.rows[TARGET])
    del bench.table.rows[TARGET]
    bench.table.put(later)
    assert bench.jury.met(bench.table.rows[later]) == TARGET
    assert bench.jury.belief(TARGET, None) is Belief.GONE
    bench.jury.consider(TARGET, NOW_S)
    assert bench.jurors() == (N3, N4, later)
    silent = bench.ballot(Sight.SILENT)
    assert silent is None or silent.word is not Word.REFUSED, "a name alone proves nothing: its address has to answer"


def test_what_the_table_says_of_a_silence() -> None:
    bench = Bench()
    bench.table.put(TARGET, MemberState.SUSPECT, evidence=Evidence.SILENT, doubted_s=40.0, answered_s=45.0)
    assert bench.jury.silence(TARGET, NOW_S).since_s == 45.0
    bench.table.put(
        TARGET, MemberState.DEAD, evidence=Evidence.SILENT, doubted_s=40.0, answered_s=30.0, accepted_s=41.0
    )
    silence = bench.jury.silence(TARGET, NOW_S)
    assert (silence.since_s, silence.is_accepted) == (40.0, True)
    bench.table.put(TARGET, MemberState.DEAD, evidence=Evidence.STALLED, doubted_s=40.0)
    assert bench.jury.silence(TARGET, NOW_S).is_accepted, "another member saw its kernel accept"
    assert bench.jury.silence("n9/0190aaaaaaaa-0badcafe", NOW_S).answered_s == -inf
