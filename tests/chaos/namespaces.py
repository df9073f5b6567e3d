"""A network of this test's own: one namespace per node, joined by a bridge to Redis and to this process.

Each node has an address and a firewall of its own, so a cut takes exactly the traffic it names: what the node's peers
send and get, or what Redis does, whichever side opened the connection. Nothing outside is touched, and everything is
gone with the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

MARK = f"rc{os.getpid() % 100_000:05d}"  # of our interfaces and namespaces; interface names end at 15 characters


class Network:
    """A bridge, this process at `gateway`, and a namespace for each node.

    The bridge has a namespace too: in ours, the rules of whatever else forwards here (Docker's, say) would apply to it.
    """

    def __init__(self, octet: int) -> None:
        self._prefix = f"10.213.{octet}"
        self.hub = f"{MARK}h"
        self._names: list[str] = []
        self._outside = f"{MARK}g"
        self.gateway = f"{self._prefix}.1"

    def open(self) -> None:
        """Make the bridge and the way to it."""
        outside = self._outside
        run("ip", "-n", self.hub, "link", "add", "hub", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "hub", "up")
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "gateway", "netns", self.hub)
        run("ip", "address", "add", f"{self.gateway}/24", "dev", outside)
        run("ip", "link", "set", outside, "up")
        run("ip", "-n", self.hub, "link", "set", "gateway", "master", "hub", "up")

    def add(self) -> tuple[str, str]:
        """A namespace more: its name and its address."""
        number = len(self._names) + 1
        name, address = f"{MARK}n{number}", f"{self._prefix}.{10 + number}"
        run("ip", "netns", "add", name)
        self._names.append(name)
        run("ip", "-n", self.hub, "link", "add", name, "type", "veth", "peer", "name", "cable", "netns", name)
        run("ip", "-n", self.hub, "link", "set", name, "master", "hub", "up")
        run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "cable")
        run("ip", "-n", name, "link", "set", "cable", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name, address

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

    def close(self) -> None:
        run("ip", "link", "del", self._outside, check=False)  # Otherwise it may outlive the namespace for a moment.
        for name in [*self._names, self.hub]:
            run("ip", "netns", "del", name, check=False)


def run(*words: str, check: bool = True) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is gone after the block. Skips the test where none can be made."""
    missing = [name for name in ("ip", "iptables") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs to be root, with ip and iptables, to make network namespaces (missing: {missing})")
    octet = next((octet for octet in range(10, 250) if not has_route(f"10.213.{octet}.1")), None)
    if octet is None:
        pytest.skip("every network of 10.213.0.0/16 is in use here")
    made = Network(octet)
    done = subprocess.run(["ip", "netns", "add", made.hub], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")
    try:
        made.open()
        yield made
    finally:
        made.close()


def has_route(address: str) -> bool:
    """Whether a more special route than the default one leads there."""
    words = ("ip", "-o", "route", "show", "to", "match", address)
    routes = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return any(not line.startswith("default") for line in routes)
