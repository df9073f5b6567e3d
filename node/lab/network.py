"""A network inside this machine: a namespace for each node, joined by a bridge, with the machine itself at its gateway.

Each node then has an address and a firewall of its own, so a cut takes exactly the traffic it names. The bridge has a
namespace too: in the machine's own, the rules of whatever else forwards there (Docker's, say) would apply to it. The
namespaces have no route to anywhere else, so nothing outside this machine can talk with them. All names begin with the
network's mark, by which anything left over is found again.

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
RANGE = "10.213"  # a private range that few use; a part of it that this machine has a route to is not taken
FIRST_HOST = 10  # number 0 is .10: below are the gateway and room
NUMBER_MAX = 200


class NetworkFailed(RumorError):
    """The network could not be made or changed. What had been made of it can be removed by its mark."""

    code = "network_failed"


class Unable(ConfigError):
    """This user, or this machine, cannot make network namespaces. Nothing was done."""

    code = "unable"


@dataclass(frozen=True)
class Network:
    """One network, also when it does not exist (yet, or any more)."""

    mark: str  # 10 characters: the names of interfaces end at 15
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
        """The words that run a command in a namespace. `ip` becomes the command: the pid stays."""
        return ("ip", "netns", "exec", self.namespace(number))

    def open(self) -> None:
        """Make the bridge and the way to it. Raises NetworkFailed."""
        hub, outside = f"{self.mark}h", f"{self.mark}g"
        run("ip", "netns", "add", hub)
        run("ip", "-n", hub, "link", "add", "hub", "type", "bridge")
        run("ip", "-n", hub, "link", "set", "hub", "up")
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "gateway", "netns", hub)
        run("ip", "address", "add", f"{self.gateway}/24", "dev", outside)
        run("ip", "link", "set", outside, "up")
        run("ip", "-n", hub, "link", "set", "gateway", "master", "hub", "up")

    def add(self, number: int) -> None:
        """Make the namespace of this number, unless it is there. Raises NetworkFailed."""
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
        """Remove whatever there is of it; the names that were there."""
        # Its own end first: it might outlive the namespace at the other end for a moment, and keep the address.
        run("ip", "link", "del", f"{self.mark}g", check=False)
        found = [name for name in namespaces() if name.startswith(self.mark)]
        for name in found:
            run("ip", "netns", "del", name, check=False)
        return found


def choose(kind: str = "ru") -> Network:
    """A network that is not there yet, of addresses that nobody here uses. Raises Unable."""
    refuse_if_unable()
    octets = list(range(10, 250))
    # Not the first free one: of two commands at the same moment both would take it.
    random.SystemRandom().shuffle(octets)
    for octet in octets:
        made = Network(kind + secrets.token_hex(4), f"{RANGE}.{octet}")
        if not has_route(made.gateway):
            return made
    raise Unable(f"This machine has a route to every network of {RANGE}.0.0/16.", "Remove one of them.")


def refuse_if_unable() -> None:
    """Raise Unable, with the reason, where no network namespace can be made."""
    if not sys.platform.startswith("linux"):
        raise Unable(f"Network namespaces are Linux's, and this is {sys.platform}.", "Use docker compose instead.")
    if os.geteuid() != 0:
        raise Unable("Making network namespaces needs root.", "Run it by sudo, or as root.")
    missing = [f"{tool} (package {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise Unable(f"Not found: {', '.join(missing)}.", "Install them.")


def namespaces() -> list[str]:
    """Names of all network namespaces of this machine that have one."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]


def has_route(address: str) -> bool:
    """Whether a more special route than the default one leads there."""
    words = ("ip", "-o", "route", "show", "to", "match", address)
    routes = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return any(not line.startswith("default") for line in routes)


def run(*words: str, check: bool = True) -> None:
    """One command. Raises NetworkFailed with its own words."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode != 0:
        reason = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise NetworkFailed(f"`{' '.join(words)}` failed: {reason}.", "In a container, this needs --privileged.")
