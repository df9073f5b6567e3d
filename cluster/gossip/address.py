"""Numeric addresses: where peers reach this node, and where a name leads. In gossip nobody looks names up.

Does not know: who asks.
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

RESOLVED_MAX = 32  # a few are enough to join by; the others are heard of
ELSEWHERE = ("192.0.2.1", "2001:db8::1")  # addresses of documentation: nobody is there, and the way there is out


async def own_host(config: Config) -> str:
    """The numeric address at which peers reach this node; it rides in gossip, where nobody looks names up."""
    host = config.reachable_host
    with contextlib.suppress(ValueError):
        return outbound_address(config) if ipaddress.ip_address(host).is_unspecified else host
    found = await resolve(host, config.port)
    if found is None:
        raise ConfigError(f"{host} cannot be resolved.", "Set advertise_host to an address that peers can reach.")
    return found[0]


async def seed_addresses(seeds: Iterable[str]) -> list[Address]:
    """HOST:PORT texts as addresses; those that lead nowhere (now) are left out. A name may stand for many members."""
    found: dict[Address, None] = {}
    for text in seeds:
        host, _, port = text.rpartition(":")
        if port.isdigit():
            found.update(dict.fromkeys(await resolve_all(host.strip("[]"), int(port))))
    return list(found)


async def resolve(host: str, port: int) -> Address | None:
    """A name's first numeric address."""
    found = await resolve_all(host, port)
    return found[0] if found else None


async def resolve_all(host: str, port: int) -> list[Address]:
    """All that a name stands for, up to RESOLVED_MAX: what a headless service of Kubernetes answers with."""
    with contextlib.suppress(ValueError):
        return [(str(ipaddress.ip_address(host)), port)]  # Nothing to look up, and no thread to do it.
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # not there (now), or no name at all
        return []
    return [(str(address[4][0]), port) for address in found[:RESOLVED_MAX]]


def outbound_address(config: Config) -> str:
    """The address of ours that leads to the first seed, else to the world. Raises ConfigError when there is none.

    Loopback is right only if the seed is there: told to others, it would lead them to themselves.
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
