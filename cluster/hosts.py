"""Hosts as settings have them: what is one, which is of this machine alone, and how it stands before a port. Pure."""

from __future__ import annotations

import ipaddress
import re

LOOPBACK = re.compile(r"127(\.[0-9]{1,3}){1,3}\Z")  # also in its short forms
HOST_NAME = re.compile(r"[^\s\[\]/@,:]+\Z")  # a name, or an address with dots


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach this address; of names, localhost alone is known to be such."""
    if host.lower() == "localhost" or LOOPBACK.match(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)


def hostport(host: str, port: int) -> str:
    """HOST:PORT as URLs and people have it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_host(text: str) -> bool:
    if ":" not in text:
        return HOST_NAME.match(text) is not None
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
