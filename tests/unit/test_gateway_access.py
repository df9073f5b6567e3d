"""Who may call: the token, pages of other origins, names that are not this node's, and peers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from cluster.config import Config
from cluster.gossip import site
from cluster.load import Meta
from cluster.swim.events import MemberState
from node.gateway import access, app
from node.gateway.routes import CALLERS, ROUTES
from tests.fake_engine import FakeEngine
from tests.fake_engine import peer as fake_peer

TOKEN = "s3cret-töken"


async def ask(
    config: Config, method: str, path: str, headers: Mapping[str, str] | None = None, data: bytes | None = None
) -> tuple[ClientResponse, bytes]:
    async with TestClient[Any, Any](TestServer(app.build(FakeEngine(config)))) as client:
        response = await client.request(method, path, headers=headers, data=data)
        return response, await response.read()


GUARDED = [(route.method, route.path.replace("{id}", "x")) for route in ROUTES if route.for_whom == CALLERS]


@pytest.mark.parametrize(("method", "path"), [*GUARDED, ("GET", "/no/such")])
@pytest.mark.parametrize("value", [None, "", "Bearer", "Bearer wrong", "Basic czNjcmV0", "Bearer s3cret", "Bearer é"])
async def test_without_the_token_nothing_is_answered(method: str, path: str, value: str | None) -> None:
    headers = {} if value is None else {"Authorization": value}
    response, body = await ask(Config(api_token="s3cret-token"), method, path, headers, b"{}")
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert b"unauthorized" in body
    assert b"s3cret-token" not in body


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_with_the_token_a_task_is_accepted_from_anywhere(scheme: str) -> None:
    headers = {"Authorization": f"{scheme} s3cret-token", "Origin": "https://elsewhere.example"}
    response, _ = await ask(Config(api_token="s3cret-token"), "POST", "/tasks", headers, b'{"type": "noop"}')
    assert response.status == 202


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/", "/docs"])
async def test_probes_and_the_page_need_no_token(path: str) -> None:
    response, _ = await ask(Config(api_token="s3cret-token"), "GET", path)
    assert response.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/tasks"), ("POST", "/tasks/batch"), ("DELETE", "/dead")])
async def test_a_page_of_another_origin_cannot_change_anything(
    method: str, path: str, headers: Mapping[str, str]
) -> None:
    response, body = await ask(Config(), method, path, headers, b'{"type": "noop"}')
    assert response.status == 403
    assert b"another origin" in body
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_the_nodes_own_page_may_submit() -> None:
    headers = {"Host": "localhost:5000", "Origin": "http://localhost:5000", "Sec-Fetch-Site": "same-origin"}
    response, _ = await ask(Config(), "POST", "/tasks", headers, b'{"type": "noop"}')
    assert response.status == 202


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_name_that_somebody_points_at_this_machine_is_refused(method: str) -> None:
    headers = {"Host": "evil.example:5000", "Origin": "http://evil.example:5000"}
    response, _ = await ask(Config(), method, "/tasks", headers, b'{"type": "noop"}')
    assert response.status == 403


EVERY = [(route.method, route.path.replace("{id}", "x")) for route in ROUTES]


@pytest.mark.parametrize(("method", "path"), [*EVERY, ("GET", "/no/such"), ("HEAD", "/"), ("OPTIONS", "/tasks")])
async def test_under_a_name_that_somebody_points_here_no_path_answers(method: str, path: str) -> None:
    """For a browser, a page there is of the same origin as this node: it may read, and no header gives it away."""
    headers = {"Host": "evil.example:5000", "Rumor-Watch": "good"}
    response, body = await ask(Config(), method, path, headers, b"sealed")
    assert response.status == 403
    assert method == "HEAD" or b"'evil.example:5000', which is not this node" in body
    assert method == "HEAD" or b"set public_url" in body, "behind a proxy it can be right"


@pytest.mark.parametrize("token", ["", "s3cret-token"])
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://127.0.0.1:5000"}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/gossip"), ("GET", "/gossip/watch")])
async def test_a_token_for_callers_does_not_open_gossip_to_browsers(
    method: str, path: str, headers: Mapping[str, str], token: str
) -> None:
    response, _ = await ask(Config(api_token=token), method, path, {"Rumor-Watch": "good", **headers}, b"sealed table")
    assert response.status == 403


async def raw(config: Config, request: bytes) -> bytes:
    """The first line of the answer to these bytes."""
    async with TestServer(app.build(FakeEngine(config))) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(request)
        line = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        return line


@pytest.mark.parametrize(
    ("request_line", "hosts", "status"),
    [
        (b"GET /cluster HTTP/1.1", [b"127.0.0.1"], b"200"),
        (b"GET /cluster HTTP/1.0", [], b"200"),  # a program; browsers always say for whom they ask
        (b"GET http://127.0.0.1:5000/cluster HTTP/1.1", [b"127.0.0.1:5000"], b"200"),
        (b"GET http://evil.example/cluster HTTP/1.1", [b"127.0.0.1"], b"403"),
        (b"GET http://127.0.0.1@evil.example/cluster HTTP/1.1", [b"127.0.0.1"], b"403"),
        (b"GET http://127.0.0.1/cluster HTTP/1.1", [b"evil.example"], b"403"),
        (b"GET /cluster HTTP/1.1", [b"127.0.0.1", b"evil.example"], b"400"),
        (b"GET /cluster HTTP/1.1", [b"evil.example", b"127.0.0.1"], b"400"),
        (b"GET /cluster HTTP/1.1", [b"evil.example, 127.0.0.1"], b"403"),
    ],
)
async def test_whichever_way_a_request_says_for_whom_it_is(
    request_line: bytes, hosts: list[bytes], status: bytes
) -> None:
    head = b"\r\n".join([request_line, *(b"Host: " + host for host in hosts)])
    assert (await raw(Config(), head + b"\r\n\r\n")).split(b" ")[1] == status


@pytest.mark.parametrize(
    ("origin", "host", "public_url", "may_change"),
    [
        ("http://127.0.0.1:5000", "127.0.0.1:5000", "", True),
        ("http://LOCALHOST:5000", "localhost:5000", "", True),
        ("http://localhost", "localhost:80", "", True),
        ("http://localhost:80", "localhost", "", True),
        ("http://[::1]:5000", "[::1]:5000", "", True),
        ("https://127.0.0.1:5000", "127.0.0.1:5000", "", False),
        ("https://127.0.0.1", "127.0.0.1", "", False),
        ("http://127.0.0.1:5001", "127.0.0.1:5000", "", False),
        ("http://127.0.0.1", "127.0.0.1:5000", "", False),
        ("http://localhost:5000", "127.0.0.1:5000", "", False),
        ("http://[::1]:5000", "127.0.0.1:5000", "", False),
        ("null", "127.0.0.1:5000", "", False),
        ("null", "", "", False),
        ("", "", "", False),
        ("file://", "", "", False),
        ("http://", "", "", False),
        ("http://evil.example@127.0.0.1:5000", "127.0.0.1:5000", "", False),
        ("http://127.0.0.1:5000/", "127.0.0.1:5000", "", False),
        ("http://127.0.0.1:5000 http://evil.example", "127.0.0.1:5000", "", False),
        ("https://rumor.example.com", "rumor.example.com", "https://rumor.example.com", True),
        ("https://rumor.example.com", "127.0.0.1:5000", "https://rumor.example.com", True),  # a proxy that rewrites it
        ("https://rumor.example.com:443", "rumor.example.com", "https://rumor.example.com", True),
        ("http://rumor.example.com", "127.0.0.1:5000", "https://rumor.example.com", False),
        ("http://evil.example", "127.0.0.1:5000", "https://rumor.example.com", False),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
async def test_only_the_nodes_own_origin_may_change_anything(
    origin: str, host: str, public_url: str, may_change: bool, kind: str
) -> None:
    """Own is what this node serves, by scheme, host and port, and its public_url."""
    headers = {"Origin": origin, "Host": host, "Content-Type": kind}
    response, _ = await ask(Config(public_url=public_url), "POST", "/tasks", headers, b'{"type": "noop"}')
    assert response.status == (202 if may_change else 403)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("10.1.2.3", True),
        ("rumor-1", True),
        ("app.localhost", True),
        ("queue.example.com:5000", True),
        ("evil.example.com", False),
        ("127.0.0.1.evil.com", False),
        ("", True),
        ("LocalHost:80", True),
        ("localhost.:5000", True),
        ("127.0.0.1:", True),
        ("[::1]", True),
        ("[fe80::1%25eth0]:5000", True),
        ("0.0.0.0:5000", True),
        ("QUEUE.example.com.", True),
        ("evil.example.com.", False),
        ("evil.example:5000", False),
        ("queue.example.com.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.localhost.example", False),
        ("127.0.0.1@evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("evil.example:80@localhost", False),
        ("x@localhost", False),
        ("[::1]evil.example", False),
        ("[::1", False),
        ("[evil.example]", False),
        ("127.0.0.1:5000:80", False),
        ("127.0.0.1 evil.example", False),
        ("127.0.0.1/evil.example", False),
        ("127.0.0.1\t", False),
    ],
)
def test_a_host_is_this_nodes_when_no_public_dns_answers_for_it(host: str, is_own: bool) -> None:
    assert site.is_own_host(host, {"queue.example.com"}) is is_own


async def test_gossip_is_answered_sealed_or_not_at_all() -> None:
    config = Config(api_token="s3cret-token")
    response, body = await ask(config, "POST", "/gossip", data=b"sealed table")
    assert (response.status, body) == (200, b"sealed answer")
    response, _ = await ask(config, "POST", "/gossip", data=b"a stranger's")
    assert response.status == 403


async def test_a_watch_without_a_good_token_is_refused() -> None:
    response, _ = await ask(Config(), "GET", "/gossip/watch", {"Rumor-Watch": "bad"})
    assert response.status == 403
    response, _ = await ask(Config(), "GET", "/gossip/watch")
    assert response.status == 403


async def test_a_token_that_is_not_ascii_works_and_never_raises() -> None:
    check = access.token_check(TOKEN)
    assert check is not None
    response, _ = await ask(Config(api_token=TOKEN), "GET", "/tasks", {"Authorization": "Bearer other"})
    assert response.status == 401


# ---- pages of other nodes

HERE = [fake_peer("n1", 5001), fake_peer("n2", 5002), replace(fake_peer("n9", 5009), host="10.0.0.9")]
DEAD = replace(fake_peer("n3", 5003), state=MemberState.DEAD)


async def ask_as(
    origin: str, config: Config, method: str = "GET", path: str = "/cluster", **headers: str
) -> ClientResponse:
    async with TestClient[Any, Any](TestServer(app.build(FakeEngine(config, [*HERE, DEAD])))) as client:
        return await client.request(method, path, headers={"Origin": origin, **headers})


@pytest.mark.parametrize(
    ("origin", "may_read"),
    [
        ("http://127.0.0.1:5002", True),
        ("http://localhost:5002", True),
        ("http://[::1]:5002", True),
        ("http://127.0.0.1:5003", True),  # dead: it is its page that goes on here
        ("https://127.0.0.1:5002", False),
        ("http://127.0.0.1:5004", False),
        ("http://127.0.0.1", False),
        ("http://10.0.0.9:5009", False),  # a member, but elsewhere
        ("http://evil.example:5002", False),
        ("http://127.0.0.1.evil.example:5002", False),
        ("http://evil.example/127.0.0.1:5002", False),
        ("http://127.0.0.1:5002.evil.example", False),
        ("http://127.0.0.1:5002@evil.example", False),
        ("null", False),
        ("", False),
        ("http://", False),
        ("http://127.0.0.1:²", False),
        ("file://", False),
    ],
)
async def test_only_the_page_of_a_member_on_this_host_may_read_here(origin: str, may_read: bool) -> None:
    response = await ask_as(origin, Config())
    assert response.status == 200
    assert response.headers.get("Access-Control-Allow-Origin") == (origin if may_read else None)
    response = await ask_as(origin, Config(), "OPTIONS")
    assert response.status == (204 if may_read else 405)
    assert ("Access-Control-Allow-Methods" in response.headers) is may_read


async def test_with_the_token_pages_of_members_elsewhere_may_read_too() -> None:
    config = Config(api_token="s3cret-token")
    origin = "http://10.0.0.9:5009"
    response = await ask_as(origin, config, Authorization="Bearer s3cret-token")
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
    response = await ask_as(origin, config)
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (401, origin), "it asks for the token"
    assert (await ask_as(origin, config, "OPTIONS")).status == 204, "browsers ask without the token"
    assert (await ask_as("http://10.0.0.8:5009", config, "OPTIONS")).status == 401


@pytest.mark.parametrize(("method", "path"), [("POST", "/tasks"), ("DELETE", "/dead"), ("POST", "/dead/replay")])
async def test_the_page_of_another_node_may_not_change_anything(method: str, path: str) -> None:
    response = await ask_as("http://127.0.0.1:5002", Config(), method, path)
    assert response.status == 403
    asked = await ask_as("http://127.0.0.1:5002", Config(), "OPTIONS", path)
    assert asked.headers["Access-Control-Allow-Methods"] == "GET"


async def test_the_page_of_another_node_gets_events(monkeypatch: Any) -> None:
    response = await ask_as("http://127.0.0.1:5002", Config(), path="/events")
    assert response.headers["Access-Control-Allow-Origin"] == "http://127.0.0.1:5002"


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize(("method", "path"), [("POST", "/gossip"), ("GET", "/gossip/watch")])
async def test_no_web_page_gossips(method: str, path: str, headers: Mapping[str, str]) -> None:
    response, _ = await ask(Config(), method, path, {"Rumor-Watch": "good", **headers}, b"sealed table")
    assert response.status == 403


def test_a_page_may_ask_the_hosts_of_all_members_and_no_others() -> None:
    view = FakeEngine(peers=[*HERE, replace(DEAD, host="fd00::1")]).view
    assert access.policy_sources(view) == ["http://127.0.0.1:*", "http://10.0.0.9:*"]
    assert access.policy_sources(FakeEngine(peers=PUBLISHED).view) == ["http://localhost:*", "https://n2.example.com:*"]


# Members of a network of their own, reached by published ports and by a proxy.
PUBLISHED = [
    replace(fake_peer("n1", 5000), host="172.18.0.2", meta=Meta({}, public_url="http://localhost:5001")),
    replace(fake_peer("n2", 5000), host="172.18.0.3", meta=Meta({}, public_url="https://n2.example.com")),
]


@pytest.mark.parametrize(
    ("origin", "has_token", "may_read"),
    [
        ("http://localhost:5001", True, True),
        ("http://127.0.0.1:5001", True, True),
        ("https://n2.example.com", True, True),
        ("https://n2.example.com:443", True, True),
        ("http://172.18.0.3:5000", True, True),  # the page at the address that peers use
        ("http://localhost:5000", True, False),
        ("http://n2.example.com", True, False),
        ("https://n3.example.com", True, False),
        ("http://localhost:5001", False, True),  # this node's own public host
        ("https://n2.example.com", False, False),
    ],
)
def test_the_page_at_a_members_public_url_may_read(origin: str, has_token: bool, may_read: bool) -> None:
    config = Config(api_token="a-token" if has_token else "", public_url="http://localhost:5001")
    assert bool(access.cors_headers(origin, FakeEngine(peers=PUBLISHED).view, config)) is may_read


async def test_a_node_behind_a_proxy_answers_to_its_public_name() -> None:
    named = {"Host": "rumor.example.com"}
    response, _ = await ask(Config(), "GET", "/cluster", named)
    assert response.status == 403
    response, _ = await ask(Config(public_url="https://rumor.example.com"), "GET", "/cluster", named)
    assert response.status == 200
