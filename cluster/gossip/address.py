"""Numeric addresses: the one at which peers reach this node, and those that a name stands for.

Gossip carries numeric addresses alone, so nobody looks up a name there. Does not know: who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.swim.events import Address

RESOLVED_MAX = 32  # addresses taken of one name: a few are enough to join by, and gossip tells of the others
ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # addresses for documentation: nobody is there, and the way there leads out


async def own_host(config: Config) -> str:
    """The numeric address at which peers reach this node. Raises ConfigError when there is none."""
    host = config.reachable_host
    with contextlib.suppress(ValueError):
        return outbound_address(config) if ipaddress.ip_address(host).is_unspecified else host
    address = await resolve(host, config.port)
    if address is None:
        raise ConfigError(f"{host} cannot be resolved.", "Set advertise_host to an address that peers can reach.")
    return address[0]


async def seed_addresses(seeds: Iterable[str]) -> list[Address]:
    """HOST:PORT texts as addresses, without those that lead nowhere now. A name may stand for many members."""
    addresses: dict[Address, None] = {}
    for text in seeds:
        host, _, port = text.rpartition(":")
        if port.isdigit():
            addresses.update(dict.fromkeys(await resolve_all(host.strip("[]"), int(port))))
    return list(addresses)


async def resolve(host: str, port: int) -> Address | None:
    """A name's first numeric address."""
    addresses = await resolve_all(host, port)
    return addresses[0] if addresses else None


async def resolve_all(host: str, port: int) -> list[Address]:
    """All addresses that a name stands for, up to RESOLVED_MAX. A headless service of Kubernetes has many."""
    with contextlib.suppress(ValueError):
        return [(str(ipaddress.ip_address(host)), port)]  # Nothing to look up, and no thread to do it.
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # no such name now, or a text that is no name at all
        return []
    return [(str(answer[4][0]), port) for answer in answers[:RESOLVED_MAX]]


def outbound_address(config: Config) -> str:
    """Our address on the way to the first seed, else to the world. Raises ConfigError when there is none.

    Loopback is right only if the seed is there: any other peer that we told it to would reach itself.
    """
    seed = config.seeds[0].rpartition(":")[0].strip("[]") if config.seeds else ""
    for target in filter(None, (seed, *ELSEWHERE)):
        family = socket.AF_INET6 if ":" in target else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))  # Connecting a UDP socket sends nothing.
            return str(probe.getsockname()[0])
    raise ConfigError(
        f"host is {config.host}, and no address of this machine leads to others.",
        "Set advertise_host to the address at which peers reach it (127.0.0.1 if all are on this machine).",
    )
