"""Where names lead, and what a node bound to every address tells its peers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from cluster.config import Config
from cluster.errors import ConfigError
from cluster.gossip import address

NAMES = {"rumor-nodes": ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "me.example": ["10.0.0.9"]}


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service that knows only NAMES."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in NAMES:
            raise socket.gaierror("not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (numeric, port)) for numeric in NAMES[host]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)


def bound_to_all(**more: Any) -> Config:
    return Config(host="0.0.0.0", node_id="n1", insecure=True, **more)


@pytest.mark.usefixtures("names")
async def test_a_seed_may_stand_for_many_members() -> None:
    addresses = await address.seed_addresses(["rumor-nodes:5000", "10.0.0.2:5000", "unknown:1", "[::1]:7", "no port"])
    assert addresses == [("10.0.0.1", 5000), ("10.0.0.2", 5000), ("10.0.0.3", 5000), ("::1", 7)]


async def test_a_seed_whose_name_is_none_hides_no_other() -> None:
    assert await address.seed_addresses(["rumor..nodes:5000", f"{'x' * 64}:5000", "10.0.0.2:5000"]) == [
        ("10.0.0.2", 5000)
    ]


@pytest.mark.usefixtures("names")
async def test_the_advertised_host_is_what_peers_are_told() -> None:
    assert await address.own_host(bound_to_all(advertise_host="10.1.1.1")) == "10.1.1.1"
    assert await address.own_host(bound_to_all(advertise_host="me.example")) == "10.0.0.9"
    with pytest.raises(ConfigError, match="cannot be resolved"):
        await address.own_host(bound_to_all(advertise_host="nobody.example"))


async def test_a_seed_on_this_machine_is_reached_by_loopback() -> None:
    assert await address.own_host(bound_to_all(seeds=("127.0.0.1:5000",))) == "127.0.0.1"


async def test_without_any_way_out_the_setting_to_make_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a route, and a seed whose name is not there yet: loopback would mislead the others."""

    class NoWay(socket.socket):
        def connect(self, where: Any) -> None:
            raise OSError("unreachable")

    monkeypatch.setattr(socket, "socket", NoWay)
    with pytest.raises(ConfigError) as caught:
        await address.own_host(bound_to_all(seeds=("unknown.invalid:5000",)))
    assert "0.0.0.0" in str(caught.value)
    assert "advertise_host" in str(caught.value)
