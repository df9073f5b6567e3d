"""A Redis URL is read in one way, whatever its form; what cannot work is refused in words that hold no secret."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import redis_address
from cluster.config import Config, from_env
from cluster.errors import ConfigError
from cluster.redis_address import EXAMPLE, parse, shown
from cluster.redis_client import connect

WORD = "s3cr3tpiece"


def refused(url: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert caught.value.hint, "a refusal says what to do"
    assert caught.value.__cause__ is None or caught.value.__suppress_context__
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "db"),
    [
        (EXAMPLE, "127.0.0.1", 6379, 0),
        ("redis://h", "h", 6379, 0),
        ("redis://h/", "h", 6379, 0),
        ("redis://h:7000/3", "h", 7000, 3),
        ("redis://h:7000/3/", "h", 7000, 3),
        ("redis://h?db=4", "h", 6379, 4),
        ("redis://h/4?db=4", "h", 6379, 4),
        ("redis://[::1]:7000/2", "::1", 7000, 2),
        ("redis://[fe80::1%eth0]", "fe80::1%eth0", 6379, 0),
        ("REDIS://h", "h", 6379, 0),
        ("valkey://h:7000/3", "h", 7000, 3),
        ("  redis://h:7000/3\n", "h", 7000, 3),
        ("redis://redis_primary.example", "redis_primary.example", 6379, 0),
    ],
)
def test_host_port_and_database_are_those_of_the_url(url: str, host: str, port: int, db: int) -> None:
    address = parse(url)
    assert (address.host, address.port, address.db, address.path, address.is_tls) == (host, port, db, "", False)


@pytest.mark.parametrize(
    ("url", "path", "db"),
    [
        ("unix:///run/redis.sock", "/run/redis.sock", 0),
        ("unix:///run/redis.sock?db=1", "/run/redis.sock", 1),
        ("unix://name:word@/run/a%20b.sock?db=2", "/run/a b.sock", 2),
    ],
)
def test_a_unix_socket_is_a_path_and_a_database(url: str, path: str, db: int) -> None:
    address = parse(url)
    assert (address.path, address.db, address.host) == (path, db, "")


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("", "", ""),
        (":word@", "", "word"),
        ("name:word@", "name", "word"),
        ("name@", "name", ""),
        ("name:wo:rd@", "name", "wo:rd"),
        ("name:wo@rd@", "name", "wo@rd"),
        ("name:p%40%2F%3A%25@", "name", "p@/:%"),
    ],
)
@pytest.mark.parametrize("rest", ["redis://{}h:1/2", "rediss://{}h", "unix://{}/s"])
def test_who_signs_in_is_read_alike_in_every_form(rest: str, userinfo: str, username: str, password: str) -> None:
    address = parse(rest.format(userinfo))
    assert (address.username, address.password) == (username, password)


def test_tls_has_its_parameters() -> None:
    address = parse("rediss://h?ssl_ca_certs=/ca.pem&ssl_cert_reqs=none&ssl_check_hostname=false&ssl_min_version=1.2")
    assert address.is_tls
    assert address.options == {
        "ssl_ca_certs": "/ca.pem",
        "ssl_cert_reqs": "none",
        "ssl_check_hostname": False,
        "ssl_min_version": 771,
    }
    assert parse("valkeys://h").is_tls


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://h/production", "'production'"),
        ("redis://h?db=production", "'production'"),
        ("redis://h/1/2", "'1/2'"),
        ("redis://h/-1", "'-1'"),
        ("redis://h/1.0", "'1.0'"),
        ("redis://h/٣", "'٣'"),
        ("redis://h/99999999999", "'99999999999'"),
        ("redis://h?db=", "''"),
        ("redis://h/1?db=2", "'1' and '2'"),
        ("redis://h?db=1&db=2", "'db' twice"),
        ("unix:///s?db=x", "'x'"),
        ("redis://h:0", "a port that is 0"),
        ("redis://h:65536/0", "a port that is 65536"),
        ("redis://h:1:2", "HOST:PORT"),
        ("redis://h:port", "HOST:PORT"),
        ("redis://h:/0", "HOST:PORT"),
        ("redis://::1:6379/0", "HOST:PORT"),
        ("redis://[::1/0", "HOST:PORT"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:6379/0", "names no host"),
        ("redis://:word@:6379", "names no host"),
        ("redis://h#1", "'#'"),
        ("redis://h?colour=red", "'colour'"),
        ("redis://h?decode_responses=true", "'decode_responses'"),
        ("redis://h?socket_timeout=1", "'socket_timeout'"),
        ("redis://h?ssl_ca_certs=/ca.pem", "without TLS"),
        ("unix:///s?ssl_ca_certs=/ca.pem", "without TLS"),
        ("rediss://h?ssl_cert_reqs=perhaps", "required, optional, none"),
        ("rediss://h?ssl_check_hostname=perhaps", "true or false"),
        ("rediss://h?ssl_min_version=1.1", "1.2 or 1.3"),
        ("unix://s", "absolute path"),
        ("unix:///", "absolute path"),
        ("unix://h/s", "absolute path"),
        ("http://h:6379", "'http://'"),
        ("redis+sentinel://h", "'redis+sentinel://'"),
        ("h:6379", "does not begin with redis://"),
        ("redis:/h", "does not begin with redis://"),
        ("", "is empty"),
        (" \n", "is empty"),
        ('"redis://h:6379/0"', "quotes"),
        ("'redis://h:6379/0'", "quotes"),
        ("redis://h:6379/0 # ours", "white space"),
        ("redis://h\n:6379", "white space"),
    ],
)
def test_what_cannot_work_is_refused_and_named(url: str, named: str) -> None:
    message = refused(url)
    assert "redis_url" in message
    assert named in message


def test_the_configuration_refuses_it_too_and_shows_it_to_nobody() -> None:
    with pytest.raises(ConfigError, match="'production'"):
        from_env({"RUMOR_REDIS_URL": "redis://h/production"})
    config = Config(redis_url=f"redis://:{WORD}@h/0", api_token=WORD)
    assert WORD not in repr(config)
    assert WORD not in repr(parse(config.redis_url))


@pytest.mark.parametrize("reserved", "/?#@:[]%&=+ \"'\\\n\t\x00é")
@pytest.mark.parametrize("form", ["redis://:{}@h:6379/0", "rediss://name:{}@h", "unix://:{}@/s", "redis://:{}", "{}"])
def test_no_piece_of_a_password_is_told_whatever_is_in_it(form: str, reserved: str) -> None:
    if reserved == "@" not in form:
        return  # What stands behind it is the host then.
    url = form.format(f"{WORD}{reserved}{WORD}")
    try:
        address = parse(url)
    except ConfigError as error:
        told = str(error)
    else:
        told = address.shown() + repr(address)
        assert WORD not in address.host
    assert WORD not in told + shown(url)


@given(st.text(max_size=30), st.sampled_from(["redis://:{}@h/0", "unix://n:{}@/s", "redis://h?password={}"]))
def test_a_quoted_password_arrives_as_it_is(password: str, form: str) -> None:
    try:
        quoted = quote(password, safe="")
    except UnicodeEncodeError:
        return
    if quoted or "?" not in form:
        assert parse(form.format(quoted)).password == password


@given(st.text(max_size=60))
def test_whatever_stands_there_is_an_address_or_an_error_of_the_configuration(text: str) -> None:
    for url in (text, f"redis://{text}", f"unix://{text}", f"rediss://h?{text}", f"redis://h/{text}"):
        try:
            connection = connect(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
        except ConfigError:
            continue
        assert connection.db == parse(url).db


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (EXAMPLE, EXAMPLE),
        ("redis://:secret@h:1/2", "redis://h:1/2"),
        ("rediss://user:secret@h:1/2?ssl_cert_reqs=none", "rediss://user@h:1/2"),
        ("redis://h?password=secret&db=1", "redis://h:6379/1"),
        ("redis://u:p@ss@h/0", "redis://u@h:6379/0"),
        ("redis://secret@h/0", "redis://h:6379/0"),
        ("redis://[::1]:6379", "redis://[::1]:6379/0"),
        ("unix://u:secret@/run/r.sock", "unix://u@/run/r.sock?db=0"),
        ("no url", ""),
    ],
)
def test_a_url_is_shown_without_its_secret(url: str, told: str) -> None:
    assert shown(url) == told


def test_a_file_that_is_not_there_is_named_before_anything_connects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ssl_ca_certs.*ca\.pem"):
        connect(f"rediss://h?ssl_ca_certs={tmp_path}/ca.pem")


def test_every_parameter_is_one_that_a_connection_takes() -> None:
    texts = {"ssl_cert_reqs": "none", "ssl_check_hostname": "no", "ssl_min_version": "1.3", "db": "1"}
    for name in redis_address.PARAMETERS:
        if name not in redis_address.FILES:
            connect(f"rediss://h?{name}={texts.get(name, 'x')}").connection_pool.make_connection()  # type: ignore[no-untyped-call]


def test_every_url_that_a_document_shows_is_one_that_a_node_takes() -> None:
    root = Path(__file__).resolve().parents[2]
    pages = [root / "README.md", root / "docker-compose.yml", *(root / "docs").glob("*.md")]
    pages += [path for path in (root / "deploy").rglob("*") if path.is_file()]
    found = {
        url
        for page in pages
        for url in re.findall(r"\b(?:rediss?|valkeys?|unix)://[\w@:/.?=&%\[\]-]+", page.read_text("utf-8", "replace"))
        if "PORT" not in url and not url.rstrip(".,").endswith(("://", "@"))
    }
    assert len(found) > 3
    for url in found:
        parse(url.rstrip(".,"))
