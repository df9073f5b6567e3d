"""How far a number that only rises may run ahead of what its owner, or Redis, last said at first hand.

Who holds the gossip key can name any number in anybody's name. Four of them would do harm for ever, since the higher
one wins: an incarnation that the accused cannot exceed, a sequence number after which its datagrams are old, a load
that no later one replaces, an epoch above all that Redis gives out. So a receiver measures each against a value that no
other member can forge: a member's own answer to a ping of ours (its number is a random one that only the process at the
pinged address gets to see), and for epochs the word of Redis. What lies beyond the bound is dropped and counted, and
the member is pinged: if the number was right after all, its answer says so.

Pure. Does not know: what the numbers are for.
"""

from __future__ import annotations

# Refutations that this node may have missed since the member last answered it. Each lie buys at most that many, and an
# incarnation has 48 bits: at 10,000 lies a second they last for eight years.
INCARNATION_AHEAD = 100
SEQ_AHEAD = 2**20  # datagrams that a member may have sent to others since this node heard it: an hour of 300 a second
LOAD_AHEAD = 2**16  # loads of a member since it last answered this node: it makes at most 10 a second
EPOCH_AHEAD = 1_000  # epochs that a failover of Redis may have taken back: a few, one for each election it lost


def is_plausible(number: int, known: int, ahead: int) -> bool:
    """Whether this number may be right, if `known` was right when it was last heard at first hand."""
    return number <= known + ahead
