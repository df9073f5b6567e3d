"""What `vote.lua` and `fence.lua` do, said once more in Python: for the simulator, for fakes, and to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.keys import is_tombstone
from cluster.vitals.calls import WORDS_TTL_MS, FenceReply, Vote
from cluster.vitals.jury import Undecided
from cluster.vitals.words import Word


@dataclass(slots=True)
class Said:
    word: Word
    said_ms: int
    alibi_ms: int
    about: bytes


@dataclass(slots=True)
class Slot:
    """All that stands in one session's slot."""

    heartbeat: bytes | None = None
    subscribers: int = 0
    words: dict[str, Said] = field(default_factory=dict)
    words_until_ms: int = 0

    def fence(self, path: str, seen: bytes, cause: str, by: str, now_ms: int) -> FenceReply:
        """`fence.lua`."""
        if self.heartbeat is not None and is_tombstone(self.heartbeat):
            return FenceReply(True, False, self.heartbeat)
        if path != "own" and (self.heartbeat or b"") != seen:
            return FenceReply(False, False, self.heartbeat or b"")
        return self._bury(cause, by, now_ms)

    def vote(
        self,
        voter: str,
        word: Word,
        said_ms: int,
        seen: bytes | None,
        alibi_for_ms: int,
        ways: str,
        jury: tuple[str, ...],
        *,
        stands_ms: int,
        fresh_ms: int,
        cause: str,
        by: str,
        now_ms: int,
    ) -> Vote:
        """`vote.lua`. `seen` None: "*"."""
        if self.heartbeat is not None and is_tombstone(self.heartbeat):
            return FenceReply(True, False, self.heartbeat)
        if now_ms >= self.words_until_ms:
            self.words.clear()
        heartbeat, said_ms = self.heartbeat or b"", min(said_ms, now_ms)
        count = len(self.words)
        nothing = Undecided(self.subscribers, count, (), ())
        if said_ms < now_ms - stands_ms:
            return nothing
        if word is not Word.ABSTAINS and seen is not None and seen != heartbeat:
            word = Word.VETO
        if word is Word.VETO and not alibi_for_ms:
            self.words.pop(voter, None)
        else:
            self.words[voter] = Said(word, said_ms, now_ms + alibi_for_ms if alibi_for_ms else 0, heartbeat)
            self.words_until_ms = now_ms + WORDS_TTL_MS
        if not ways:
            return nothing
        jurors = (voter, *jury)
        alibis = sorted(name for name, said in self.words.items() if said.alibi_ms > now_ms and name not in jurors)
        heard = {name: said for name, said in self.words.items() if name in jurors}
        heard = {
            name: said
            for name, said in heard.items()
            if said.word is not Word.VETO
            and said.said_ms >= now_ms - stands_ms
            and (said.word is Word.ABSTAINS or said.about == heartbeat)
        }
        missing = [name for name in jurors if name not in heard]
        if not missing and not alibis and self._agree(list(heard.values()), ways, now_ms - fresh_ms):
            self.words.clear()
            return self._bury(cause, by, now_ms)
        return Undecided(self.subscribers, count, tuple(missing[:100]), tuple(alibis))

    def _agree(self, heard: list[Said], ways: str, fresh_since_ms: int) -> bool:
        words = [said.word for said in heard]
        is_calm = Word.REFUSED not in words
        fast = (
            "f" in ways
            and (Word.REFUSED in words or Word.BOTH in words)
            and not self.subscribers
            and min(said.said_ms for said in heard) >= fresh_since_ms
        )
        slow = "s" in ways and (Word.DEAD in words or Word.BOTH in words) and is_calm
        return fast or slow or ("u" in ways and is_calm)

    def _bury(self, cause: str, by: str, now_ms: int) -> FenceReply:
        self.heartbeat = f"fenced {cause} {now_ms} {by}".encode()
        return FenceReply(True, True, self.heartbeat)
