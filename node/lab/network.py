"""A network inside this machine: a namespace for each node, joined by a bridge, with the machine itself at its gateway.

So each node has an address and a firewall of its own, and a cut takes exactly the traffic that it names. The bridge has
a namespace too: in the machine's own namespace, other programs' forwarding rules (Docker's, say) would apply to it. The
namespaces have no route to anywhere else, so nothing outside this machine can reach them. All names begin with the
network's mark: by it a later command finds what an earlier one left behind.

Does not know: what runs in the namespaces.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass

from cluster.errors import ConfigError, RumorError

TOOLS = {"ip": "iproute2", "iptables": "iptables"}  # command -> Debian package
RANGE = "10.213"  # a private range that few use; `choose` leaves out parts to which this machine has a route
FIRST_HOST = 10  # last number of the address of number 0; below it are the gateway and spare addresses
NUMBER_MAX = 200


class NetworkFailed(RumorError):
    """The network could not be made or changed. `close` removes the parts that exist."""

    code = "network_failed"


class Unable(ConfigError):
    """This user cannot make network namespaces on this machine. Nothing was done."""

    code = "unable"


@dataclass(frozen=True)
class Network:
    """One network, whether it exists or not."""

    mark: str  # 10 characters, since the name of an interface has at most 15
    prefix: str  # the first three numbers of its addresses

    @property
    def gateway(self) -> str:
        """This machine's own address in it."""
        return f"{self.prefix}.1"

    def address(self, number: int) -> str:
        return f"{self.prefix}.{FIRST_HOST + number}"

    def namespace(self, number: int) -> str:
        return f"{self.mark}n{number}"

    def inside(self, number: int) -> tuple[str, ...]:
        """The words that run a command in a namespace. `ip` becomes that command, so the pid stays the same."""
        return ("ip", "netns", "exec", self.namespace(number))

    def open(self) -> None:
        """Make the bridge and the link to it. Raises NetworkFailed."""
        hub, outside = f"{self.mark}h", f"{self.mark}g"
        run("ip", "netns", "add", hub)
        run("ip", "-n", hub, "link", "add", "hub", "type", "bridge")
        run("ip", "-n", hub, "link", "set", "hub", "up")
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "gateway", "netns", hub)
        run("ip", "address", "add", f"{self.gateway}/24", "dev", outside)
        run("ip", "link", "set", outside, "up")
        run("ip", "-n", hub, "link", "set", "gateway", "master", "hub", "up")

    def add(self, number: int) -> None:
        """Make the namespace of this number, unless it exists. Raises NetworkFailed."""
        assert 0 <= number <= NUMBER_MAX
        name, hub = self.namespace(number), f"{self.mark}h"
        if name in namespaces():
            return
        run("ip", "netns", "add", name)
        run("ip", "-n", hub, "link", "add", name, "type", "veth", "peer", "name", "cable", "netns", name)
        run("ip", "-n", hub, "link", "set", name, "master", "hub", "up")
        run("ip", "-n", name, "address", "add", f"{self.address(number)}/24", "dev", "cable")
        run("ip", "-n", name, "link", "set", "cable", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")

    def remove(self, number: int) -> None:
        run("ip", "netns", "del", self.namespace(number), check=False)

    def close(self) -> list[str]:
        """Remove every part that exists; the names of the namespaces removed."""
        # This machine's end goes first: it may outlive the namespace at the other end a moment, and keep the address.
        run("ip", "link", "del", f"{self.mark}g", check=False)
        names = [name for name in namespaces() if name.startswith(self.mark)]
        for name in names:
            run("ip", "netns", "del", name, check=False)
        return names


def choose(kind: str = "ru") -> Network:
    """A network that does not exist yet, with addresses that nothing here uses. Raises Unable."""
    refuse_if_unable()
    octets = list(range(10, 250))
    # A random one: two commands at the same moment would both take the first free one.
    random.SystemRandom().shuffle(octets)
    for octet in octets:
        network = Network(kind + secrets.token_hex(4), f"{RANGE}.{octet}")
        if not has_route(network.gateway):
            return network
    raise Unable(f"This machine has a route to every network of {RANGE}.0.0/16.", "Remove one of these routes.")


def refuse_if_unable() -> None:
    """Raise Unable, with the reason, if this user on this machine can make no network namespace."""
    if not sys.platform.startswith("linux"):
        raise Unable(f"Only Linux has network namespaces, and this is {sys.platform}.", "Use docker compose instead.")
    if os.geteuid() != 0:
        raise Unable("Making network namespaces needs root.", "Run it with sudo, or as root.")
    missing = [f"{tool} (package {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise Unable(f"Not found: {', '.join(missing)}.", "Install them.")


def namespaces() -> list[str]:
    """The names of this machine's network namespaces, as far as they have names."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def has_route(address: str) -> bool:
    """Whether a route other than the default one leads there."""
    words = ("ip", "-o", "route", "show", "to", "match", address)
    routes = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return any(not line.startswith("default") for line in routes)


def run(*words: str, check: bool = True) -> None:
    """Run one command. Raises NetworkFailed with the command's own words."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        reason = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise NetworkFailed(f"`{' '.join(words)}` failed: {reason}.", "In a container this needs --privileged.")
