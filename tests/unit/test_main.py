"""What a node does before it runs."""

from __future__ import annotations

import os

import pytest

from node import main


def test_a_node_takes_the_clusters_secrets_out_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("RUMOR_API_TOKEN", "RUMOR_REDIS_URL", "RUMOR_GOSSIP_KEYS")
    for name in (*secrets, "RUMOR_URL", "SHOP_KEY"):
        monkeypatch.setenv(name, "x")
    main.forget_secrets()
    assert not [name for name in secrets if name in os.environ]
    assert os.environ["RUMOR_URL"] == os.environ["SHOP_KEY"] == "x"
