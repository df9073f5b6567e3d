"""A network of this test's own: one namespace per node, joined by a bridge to Redis and to this process.

Each node has an address and a firewall of its own, so a cut takes exactly the traffic it names: what the node's peers
send and get, or what Redis does, whichever side opened the connection. Nothing outside is touched, and everything is
gone with the namespaces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from node.lab import network as made_by
from node.lab.network import NetworkFailed, Unable, run


class Network:
    """Namespaces, and the rules of their firewalls."""

    def __init__(self, made: made_by.Network) -> None:
        self._made = made
        self._names: list[str] = []
        self.gateway = made.gateway

    def add(self) -> tuple[str, str]:
        """A namespace more: its name and its address."""
        number = len(self._names) + 1
        self._made.add(number)
        self._names.append(self._made.namespace(number))
        return self._names[-1], self._made.address(number)

    def rule(self, name: str, *words: str) -> None:
        """One more rule in a namespace's firewall."""
        run("ip", "netns", "exec", name, "iptables", "-w", *words)

    def drop(self, name: str, address: str, *match: str) -> None:
        """Nothing to or from this address any more (with `match`: nothing of that kind)."""
        self.rule(name, "-A", "INPUT", "-s", address, *match, "-j", "DROP")
        self.rule(name, "-A", "OUTPUT", "-d", address, *match, "-j", "DROP")

    def heal(self, name: str) -> None:
        """Let everything through again."""
        self.rule(name, "-F")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is gone after the block. Skips the test where none can be made."""
    try:
        made = made_by.choose("rc")
    except Unable as error:
        pytest.skip(str(error))
    try:
        try:
            made.open()
        except NetworkFailed as error:
            pytest.skip(f"no network namespace can be made here: {error.message}")
        yield Network(made)
    finally:
        made.close()
