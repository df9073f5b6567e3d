"""Networks of namespaces: names, addresses, and who cannot make one."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from node.lab import network
from node.lab.network import NUMBER_MAX, Network, Unable

NET = Network("ru12345678", "10.213.7")


def test_names_fit_into_an_interface_and_begin_with_the_mark() -> None:
    names = [NET.namespace(number) for number in (0, 1, NUMBER_MAX)]
    assert all(name.startswith(NET.mark) and len(name) <= 15 for name in names)
    assert len(set(names)) == 3


def test_every_number_has_an_address_of_its_own_beside_the_gateway() -> None:
    addresses = [NET.gateway, *(NET.address(number) for number in range(NUMBER_MAX + 1))]
    assert len(set(addresses)) == len(addresses)
    assert all(int(address.rpartition(".")[2]) < 255 for address in addresses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((sys, "platform", "darwin"), "Only Linux has network namespaces, and this is darwin"),
        ((os, "geteuid", lambda: 1000), "needs root"),
        ((shutil, "which", lambda name: None), "Not found: ip (package iproute2), iptables (package iptables)"),
    ],
)
def test_who_cannot_make_namespaces_is_told_why(
    monkeypatch: pytest.MonkeyPatch, change: tuple[object, str, object], message: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/sbin/{name}")
    network.refuse_if_unable()
    monkeypatch.setattr(*change)
    with pytest.raises(Unable) as caught:
        network.refuse_if_unable()
    assert message in caught.value.message
    assert caught.value.hint
