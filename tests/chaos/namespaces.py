"""A network for one test: one namespace per node, joined by a bridge to Redis and to this process.

Each node has an address and a firewall of its own, so a cut drops exactly the traffic that it names: with the node's
peers, or with Redis, whichever side opened the connection. Nothing outside changes, and everything ends with the
namespaces.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from node.lab import network as networks
from node.lab.network import NetworkFailed, Unable, run


class Network:
    """Namespaces, and the rules of their firewalls."""

    def __init__(self, network: networks.Network) -> None:
        self._network = network
        self._names: list[str] = []
        self.gateway = network.gateway

    def add(self) -> tuple[str, str]:
        """Make one more namespace; its name and address."""
        number = len(self._names) + 1
        self._network.add(number)
        self._names.append(self._network.namespace(number))
        return self._names[-1], self._network.address(number)

    def rule(self, name: str, *words: str) -> None:
        """Add a rule to a namespace's firewall."""
        run("ip", "netns", "exec", name, "iptables", "-w", *words)

    def drop(self, name: str, address: str, *match: str) -> None:
        """Drop everything to and from this address (with `match`: everything of that kind)."""
        self.rule(name, "-A", "INPUT", "-s", address, *match, "-j", "DROP")
        self.rule(name, "-A", "OUTPUT", "-d", address, *match, "-j", "DROP")

    def heal(self, name: str) -> None:
        """Let everything through again."""
        self.rule(name, "-F")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that ends with the block. Skips the test where none can be made."""
    try:
        chosen = networks.choose("rc")
    except Unable as error:
        pytest.skip(str(error))
    try:
        try:
            chosen.open()
        except NetworkFailed as error:
            pytest.skip(f"no network namespace can be made here: {error.message}")
        yield Network(chosen)
    finally:
        chosen.close()
