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
    """HOST:PORT texts as addresses; those that lead nowhere (now) are left out."""
    found: list[Address] = []
    for text in seeds:
        host, _, port = text.rpartition(":")
        if port.isdigit() and (address := await resolve(host.strip("[]"), int(port))) is not None:
            found.append(address)
    return found


async def resolve(host: str, port: int) -> Address | None:
    """A name's first numeric address."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host)), port  # Nothing to look up, and no thread to do it.
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    return (str(found[0][4][0]), port) if found else None


def outbound_address(config: Config) -> str:
    """The address of ours that leads to the first seed, or to the world; loopback when there is none."""
    target = (config.seeds[0].rpartition(":")[0] if config.seeds else "") or "192.0.2.1"
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))  # Connecting a UDP socket sends nothing.
        return str(probe.getsockname()[0])
    return "127.0.0.1"
