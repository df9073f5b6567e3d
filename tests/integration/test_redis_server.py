"""The fixture itself: what other tests rely on."""

from __future__ import annotations

import socket

import pytest
from redis import Redis

from tests.integration.conftest import RedisServer


def test_a_restart_keeps_what_was_acknowledged(redis_server: RedisServer) -> None:
    with Redis.from_url(redis_server.url) as client:
        client.set("kept", "1")
    redis_server.restart()
    with Redis.from_url(redis_server.url) as client:
        assert client.get("kept") == b"1"


def test_a_stopped_server_accepts_and_does_not_answer(redis_server: RedisServer) -> None:
    redis_server.stop()
    with socket.create_connection(("127.0.0.1", redis_server.port), timeout=5) as connection:
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(64)
        redis_server.cont()
        connection.settimeout(5)
        assert connection.recv(64).startswith(b"+PONG")
