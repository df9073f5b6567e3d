"""A look: one ping and one connect of this node's own to one session, when somebody asks whether it is gone.

A round of gossip finds out whom to doubt, and tells it to all. A look is what a member says of a doubtful session as a
witness: never what it heard, only what it saw, just now. Either the session answers the ping, or its kernel accepts the
connect (the process hangs, or is too slow to answer), or nothing listens at its address any more, or nothing comes.

Does not know: states, suspicions, what follows from a look.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.session import is_newer, node_of
from cluster.swim.events import Action, Address, Looked, Sight, Tcp, TcpConnect

LOOKS_MAX = 1024  # looks under way at a time


@dataclass(slots=True)
class _Look:
    session: str
    address: Address
    ping_nr: int
    ends_s: float  # when silence is the answer
    tcp: Tcp = Tcp.SILENT


class Looks:
    """The looks that are under way. What they see comes out as `Looked`."""

    def __init__(self) -> None:
        self._out: list[TcpConnect | Looked] = []
        self._looks: dict[int, _Look] = {}
        self._nr = 0

    @property
    def due_s(self) -> float:
        """When the next look ends."""
        return min((look.ends_s for look in self._looks.values()), default=float("inf"))

    def begin(self, session: str, address: Address, ping_nr: int, now_s: float, length_s: float) -> None:
        """The ping has left: connect too, and wait for what comes of both."""
        if len(self._looks) >= LOOKS_MAX:
            return  # Without an outcome there is no evidence.
        self._nr += 1
        self._looks[self._nr] = _Look(session, address, ping_nr, now_s + length_s)
        self._out.append(TcpConnect(address, session, length_s, self._nr))

    def connected(self, nr: int, outcome: Tcp) -> None:
        """This look's connect ended. REFUSED alone waits for the ping: a filter may refuse for a living process."""
        look = self._looks.get(nr)
        if look is not None:
            look.tcp = outcome
            if outcome is Tcp.GONE:
                self._end(nr, Sight.REFUSED)

    def answered(self, ping_nr: int, by: str, source: Address) -> None:
        """The session `by`, at `source`, answered this ping. Only one process holds an address."""
        for nr, look in list(self._looks.items()):
            if look.ping_nr == ping_nr:
                if by == look.session:
                    self._end(nr, Sight.ANSWERED)
                elif source == look.address and (
                    node_of(by) != node_of(look.session) or is_newer(by, than=look.session)
                ):
                    self._end(nr, Sight.REFUSED)

    def advance(self, now_s: float) -> None:
        """End the looks whose time is over."""
        for nr, look in list(self._looks.items()):
            if look.ends_s <= now_s:
                match look.tcp:
                    case Tcp.ACCEPTED:
                        self._end(nr, Sight.ACCEPTED)
                    case Tcp.REFUSED | Tcp.GONE:
                        self._end(nr, Sight.REFUSED)
                    case Tcp.SILENT:
                        self._end(nr, Sight.SILENT)

    def clear(self) -> None:
        """End all looks without an outcome: this node was away, and what it waited for may have come and gone."""
        self._looks.clear()

    def take(self, out: list[Action]) -> None:
        """Move the actions that came up into `out`."""
        if self._out:
            out += self._out
            self._out.clear()

    def _end(self, nr: int, sight: Sight) -> None:
        self._out.append(Looked(self._looks.pop(nr).session, sight))
