"""The configuration: one definition makes flags, variables and the page; what cannot work is refused in words."""

from __future__ import annotations

import base64
import configparser
import dataclasses
import ipaddress
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import config, session
from cluster.config import Config, from_env, from_text, parse_queues, variable
from cluster.errors import ConfigError
from cluster.gossip.keyring import gossip_keys
from node.cli import config_options

ROOT = Path(__file__).resolve().parent.parent.parent
FIELDS = dataclasses.fields(Config)


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.hint, "a refusal says what to do"
    return caught.value.message


def test_the_defaults_work() -> None:
    assert Config().name == "127.0.0.1:5000"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_setting_says_what_it_is_and_survives_its_text(field: dataclasses.Field[Any]) -> None:
    assert field.metadata["help"].endswith((".", "…"))
    assert from_text({field.name: config.as_text(field.default)}) == Config()


@pytest.mark.parametrize("field", [f for f in FIELDS if isinstance(f.default, float)], ids=lambda field: field.name)
def test_a_measure_carries_its_unit(field: dataclasses.Field[Any]) -> None:
    assert re.search(r"_(s|factor)$", field.name)


@pytest.mark.parametrize("name", [name for name in config.POSITIVE if name != "shards"])
def test_what_must_be_positive_is_refused_at_zero_with_its_name(name: str) -> None:
    assert name in refused(lambda: from_text({name: "0"}))


@pytest.mark.parametrize("name", config.NOT_NEGATIVE)
def test_what_may_be_zero_is_refused_below_it(name: str) -> None:
    from_text({name: "0"})
    assert name in refused(lambda: from_text({name: "-1"}))


@pytest.mark.parametrize(("small", "large", "why"), config.ORDERED)
def test_what_must_be_ordered_is_refused_with_both_values_and_the_reason(small: str, large: str, why: str) -> None:
    default = getattr(Config(), large)
    message = refused(lambda: from_text({small: str(default * 2)}))
    assert small in message
    assert large in message
    assert why in message


BREAKING = [  # for each rule of `check`, in order, settings that break it and no rule before it
    *({name: "0"} for name in config.POSITIVE),
    *({name: "-1"} for name in config.NOT_NEGATIVE),
    *({field.name: "1e12"} for field in FIELDS if field.name.endswith("_s")),
    *({small: str(2 * getattr(Config(), large))} for small, large, _ in config.ORDERED),
    {"port": "0"},
    {"shards": "257"},
    {"host": "0.0.0.0", "insecure": "true"},
    {"host": "[::1]"},
    {"advertise_host": "http://n1"},
    {"host": "n" * 60},
    {"node_id": "a/b"},
    {"cluster": ""},
    {"public_url": "localhost:5000"},
    {"seeds": "10.0.0.1"},
    {"trace_url": "https://jaeger.example/trace/"},
    {"log_level": "loud"},
    {"log_format": "xml"},
    {"tls_key": "only-one.pem"},
    {"api_token": "a\tb"},
    {"host": "10.0.0.1"},
    {"host": "10.0.0.1", "api_token": "demo-token", "gossip_key_file": "f"},
]


def test_every_rule_can_be_broken_and_the_first_broken_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [refused(partial(from_text, values)) for values in BREAKING]
    monkeypatch.setattr(config, "check", lambda unchecked: None)
    for place, (values, message) in enumerate(zip(BREAKING, messages, strict=True)):
        rows = [row for rules in config.TABLES for row in rules(from_text({"seeds": "n1:5000"} | values))]
        assert len(rows) == len(BREAKING)
        assert next(n for n, row in enumerate(rows) if row[0]) == place, message
        assert rows[place][1] == message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "0"),
        ("retention_s", "1e300"),
        ("timeout_s", "1e400"),
        ("timeout_s", "nan"),
        ("port", "65536"),
        ("port", "http"),
        ("lease_s", "nan"),
        ("lease_s", "inf"),
        ("lease_s", "30s"),
        ("insecure", "perhaps"),
        ("shards", "257"),
        ("node_id", "a/b"),
        ("node_id", "x" * 64),
        ("node_id", "n1\n"),
        ("cluster", ""),
        ("queues", "default"),
        ("queues", "default:-1"),
        ("queues", "default:\u00b2"),
        ("queues", "default:" + "9" * 5_000),
        ("queues", "de\nfault:1"),
        ("queues", "default:1,default:2"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("tls_cert", "only-one.pem"),
        ("seeds", "10.0.0.1"),
        ("seeds", "10.0.0.1:5000,10.0.0.2:99999"),
        ("seeds", "10.0.0.1:0"),
        ("seeds", "[::1:5000"),
        ("seeds", "10.0.0.1:\u00b2"),
        ("public_url", "localhost:5000"),
        ("public_url", "ftp://localhost"),
        ("public_url", "http://localhost:5000/rumor"),
        ("public_url", "http://user@host"),
        ("public_url", f"http://{'x' * 120}"),
        ("public_url", "http://host\n"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_the_setting_named(name: str, text: str) -> None:
    assert name in refused(lambda: from_text({name: text}))


@pytest.mark.parametrize("seed", ["10.0.0.1:5000", "rumor-nodes.default.svc:5000", "[fd00::1]:5000", "::1:5000"])
def test_a_seed_is_a_host_and_a_port(seed: str) -> None:
    assert from_text({"seeds": seed}).seeds == (seed,)


@pytest.mark.parametrize("url", ["", "http://localhost:5001", "https://rumor-1.example.com", "http://[fd00::1]:5000"])
def test_a_public_url_is_the_place_of_a_node(url: str) -> None:
    assert from_text({"public_url": url}).public_url == url


def test_an_unknown_setting_is_refused() -> None:
    assert "leaes_s" in refused(lambda: from_text({"leaes_s": "1"}))


def test_an_address_that_others_can_reach_needs_a_key_and_a_token() -> None:
    outside = {"host": "0.0.0.0", "node_id": "n1"}
    assert "there is no gossip key" in refused(lambda: from_text(outside | {"api_token": "t"}))
    assert "api_token" in refused(lambda: from_text(outside | {"gossip_key_file": "f"}))
    from_text(outside | {"api_token": "t", "gossip_key_file": "f"})
    from_text(outside | {"insecure": "true"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_node_bound_to_every_address_needs_a_name_of_its_own(host: str) -> None:
    bound = {"host": host, "insecure": "true"}
    message = refused(lambda: from_text(bound))
    assert f"host is {host}" in message
    assert "on every machine" in message
    assert from_text(bound | {"node_id": "n1"}).name == "n1"
    assert from_text(bound | {"advertise_host": "10.0.0.7"}).name == "10.0.0.7:5000"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.0.1", "127.1", "localhost", "LOCALHOST", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"]
)
def test_loopback_needs_neither_key_nor_token(host: str) -> None:
    assert from_text({"host": host}).is_loopback


@pytest.mark.parametrize("host", ["127.evil.example", "127.0.0.1.evil.example", "fe80::1%lo", "::2", "10.127.0.0"])
def test_what_only_looks_like_loopback_needs_both(host: str) -> None:
    assert "no gossip key" in refused(lambda: from_text({"host": host}))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("::1", "0::1:5000"),
        ("::ffff:127.0.0.1", "0::ffff:127.0.0.1:5000"),
        ("fd00::7", "fd00::7:5000"),
        ("fe80::1%eth0", "fe80::1:5000"),
    ],
)
def test_a_node_at_an_ipv6_address_has_a_name_that_every_member_takes(host: str, name: str) -> None:
    built = from_text({"host": host, "insecure": "true"})
    assert built.name == name
    assert session.is_session(session.new(name, 1, Random(1)))
    assert ipaddress.ip_address(name.rpartition(":")[0]) == ipaddress.ip_address(host.partition("%")[0])


@pytest.mark.parametrize(
    "host", ["[::1]", "[::1]:5000", "::1:5000:", "127.0.0.1:5000", "http://n1", "n 1", "n1,n2", "n1\n"]
)
@pytest.mark.parametrize("name", ["host", "advertise_host"])
def test_a_host_that_is_none_is_told_by_its_own_name(host: str, name: str) -> None:
    message = refused(lambda: from_text({name: host, "node_id": "n1", "insecure": "true"}))
    assert message.startswith(f"{name} is {host!r}")


def test_a_host_that_makes_no_name_is_told_so_and_not_a_node_id_that_nobody_gave() -> None:
    message = refused(lambda: from_text({"host": "n" * 60}))
    assert message.startswith("host is 'nnn")
    assert "default node_id" in message


@pytest.mark.parametrize("token", ["demo-token", "change-me"])
def test_the_token_of_an_example_is_for_this_machine_only(token: str) -> None:
    outside = {"host": "10.0.0.1", "gossip_key_file": "f", "api_token": token}
    assert "that of an example" in refused(lambda: from_text(outside))
    from_text(outside | {"insecure": "true"})
    from_text(outside | {"host": "127.0.0.1"})


def known(text: str) -> bool:
    """Whether a node that others can reach refuses this text as its only gossip key."""
    try:
        gossip_keys(Config(host="10.0.0.1", api_token="a-token", gossip_keys=(text,)))
    except ConfigError as error:
        return "that others know" in error.message
    return False


@pytest.mark.parametrize(
    "key", [bytes(32), b"k" * 32, b"0123456789" * 3 + b"01", bytes(range(32)), bytes(range(64, 0, -2)), b"ab" * 16]
)
def test_a_key_that_was_typed_is_refused_where_others_reach_the_node(key: bytes) -> None:
    assert known(base64.b64encode(key).decode())
    assert gossip_keys(Config(gossip_keys=(base64.b64encode(key).decode(),))) == [key]


@given(st.randoms(use_true_random=True))
def test_a_key_that_was_drawn_is_taken(random: Random) -> None:
    assert not known(base64.b64encode(random.randbytes(32)).decode())


def test_the_keys_and_tokens_of_all_examples_are_known() -> None:
    compose = (ROOT / "docker-compose.yml").read_text("utf-8")
    keys = set(re.findall(r"RUMOR_GOSSIP_KEYS:-([^}]+)", compose))
    assert keys
    assert all(known(key) for key in keys)
    tokens = set(re.findall(r"RUMOR_API_TOKEN:-([^}]+)", compose))
    secret = (ROOT / "deploy/kubernetes/secret.example.yaml").read_text("utf-8")
    tokens |= set(re.findall(r"^  api-token: (.+)$", secret, re.MULTILINE))
    assert tokens == set(config.KNOWN_TOKENS)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    environ = {"RUMOR_LEASE_S": "20", "RUMOR_DRAIN_S": "7", "RUMOR_BASE_PORT": "9", "HOME": "/"}
    built = from_env(environ, {"lease_s": "10"})
    assert (built.lease_s, built.drain_s, built.port) == (10.0, 7.0, 5000)


def test_lists_are_separated_by_commas_and_blanks_do_not_count() -> None:
    assert from_text({"tasks": " a.b , c,, "}).tasks == ("a.b", "c")


def test_secrets_are_marked() -> None:
    assert {field.name for field in FIELDS if field.metadata["secret"]} == {"redis_url", "gossip_keys", "api_token"}


@given(st.dictionaries(st.from_regex(config.QUEUE_NAME, fullmatch=True), st.integers(0, config.SLOTS_MAX)))
@settings(max_examples=50)
def test_queues_survive_their_text(slots: dict[str, int]) -> None:
    assert parse_queues(",".join(f"{name}:{count}" for name, count in slots.items())) == slots


@given(st.text())
@settings(max_examples=200)
def test_no_text_at_all_makes_the_queues_fail_otherwise_than_in_words(text: str) -> None:
    try:
        parse_queues(text)
    except ConfigError as error:
        message = error.message
    else:
        return
    assert repr(text) in message


def test_a_variable_that_nobody_reads_is_named_with_what_it_may_have_meant() -> None:
    ours = dict.fromkeys(("RUMOR_LEASE_S", "RUMOR_URL", "RUMOR_DATA_DIR", "RUMOR_TEST_MARK", "PATH"), "")
    service = dict.fromkeys(("RUMOR_SERVICE_HOST", "RUMOR_PORT_5000_TCP", "RUMOR_PORT_5000_TCP_ADDR"), "")
    assert config.strangers(ours | service) == {}
    hints = config.strangers({"RUMOR_LEAS_S": "3", "RUMOR_XYZZY": ""})
    assert hints["RUMOR_LEAS_S"] == "Did you mean RUMOR_LEASE_S?"
    assert "--help" in hints["RUMOR_XYZZY"]


def test_every_setting_has_its_own_variable() -> None:
    assert len({variable(field.name) for field in FIELDS}) == len(FIELDS)


def test_the_page_of_settings_is_current() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert page == config_options.markdown(), "make it again: rumor config --markdown > docs/configuration.md"


def test_every_requirement_is_pinned() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    required = {
        re.split(r"[\[<>=!~;]", line)[0].strip().lower() for text in lines for line in text.split("\n") if line.strip()
    }
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in pins if "==" in line}
    assert {name.replace("_", "-") for name in required} <= {name.replace("_", "-") for name in pinned}


@pytest.mark.parametrize("token", ["a\n", " a", "a ", "a\tb", "\udcff"])
def test_a_token_that_no_header_can_carry_is_refused_without_showing_it(token: str) -> None:
    message = refused(lambda: Config(api_token=f"{token}s3cret{token}"))
    assert message.startswith("no header can carry the api_token")
    assert "s3cret" not in message
