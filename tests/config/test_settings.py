"""What is in force: the file, the environment and the defaults."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from ratelimit.config import Config, load, sections
from ratelimit.model import Address, Limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEFAULT = Limit()
UNKNOWN = Limit("unknown", block=())

CONTRACT = """
[agent]
listen = ["tcp://127.0.0.1:9190"]
trusted = []
trusted_proxies = []
http_listen = []
peers = []
peer_name = "agent"
peers_allowed = []
peers_ca = ""
peers_certificate = ""
max_clients = 1_000_000

[ops]
listen = "127.0.0.1:9191"
token_file = ""
hosts = []
origins = []

[store]
url = "memory://"
sync_interval = "10ms"
prefix = "ratelimit"
state_dir = ""
replicas = 0
shared_clients = 16384
tls_server_name = ""
secret_file = ""
on_outage = "local"

[limits.default]
rate = 100
window = "1s"
block = ["10s", "1m", "10m", "1h"]
forget = "24h"
strict = false
shadow = false
secret = true
ipv4_prefix = 32
ipv6_prefix = 64
headers = false
fuse = 0.2
table = ""
counts = "requests"
open = 0
count_refused = true

[lists]
allow = []
deny = []
allow_files = []
deny_files = []

[haproxy]
sockets = []
maps_dir = ""
peer_sockets = []

[load]
high = 0
low = 0
hold = "30s"
"""
"""Every field with its default."""


def test_without_a_file_there_are_the_defaults() -> None:
    config = load()
    assert config.agent.listen == (Address("127.0.0.1", 9190),)
    assert config.agent.max_clients == 1_000_000
    assert config.limits_in_force() == (DEFAULT, UNKNOWN)


def test_every_field_of_the_contract_has_its_default(read: Callable[[str], Config]) -> None:
    assert read(CONTRACT).model_dump() == read("").model_dump() == load().model_dump()


def test_the_contract_above_leaves_no_field_out() -> None:
    written = tomllib.loads(CONTRACT)
    written["limits"] = written["limits"]["default"]
    for name, section in Config.model_fields.items():
        if name == "webhooks":  # a list of tables, empty by default
            continue
        model = sections.LimitSection if name == "limits" else section.annotation
        assert set(written.pop(name)) == set(model.model_fields)  # type: ignore[union-attr]
    assert not written


def test_a_limit_as_it_is_written(read: Callable[[str], Config]) -> None:
    config = read(
        """
        [limits.login]
        rate = 5
        window = "1m"
        block = ["5m", "2h", "7d"]
        forget = "30d"
        strict = true
        ipv4_prefix = 24
        ipv6_prefix = 128
        """
    )
    assert config.limits_in_force() == (
        DEFAULT,
        Limit("login", 5, 60 * 10**9, (300, 7200, 604_800), 2_592_000, True, 24, 128, fuse=0),
        UNKNOWN,
    )


def test_the_limit_of_unknown_clients_has_no_ladder_of_its_own(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address of a proxy carries many clients."""
    assert read("[limits.unknown]\n").limits_in_force()[1] == UNKNOWN
    limit = read("[limits.unknown]\nrate = 7\nblock = ['1m']\n").limits_in_force()[1]
    assert (limit.rate, limit.block) == (7, (60,))
    monkeypatch.setenv("RATELIMIT_LIMITS__UNKNOWN__RATE", "9")
    limit = read("").limits_in_force()[1]
    assert (limit.name, limit.rate, limit.block) == ("unknown", 9, ())


def test_limits_keep_the_order_of_the_file(read: Callable[[str], Config]) -> None:
    config = read("[limits.b]\n[limits.a]\n[limits.default]\nrate = 1\n")
    assert [limit.name for limit in config.limits_in_force()] == ["default", "b", "a", "unknown"]
    assert config.limits_in_force()[0].rate == 1


def test_a_limit_without_a_ladder(read: Callable[[str], Config]) -> None:
    assert read("[limits.default]\nblock = []\n").limits_in_force()[0].block == ()


def test_a_name_as_haproxy_allows_it(read: Callable[[str], Config]) -> None:
    name = "A-z_0.9:" + "x" * 56
    assert read(f'[limits."{name}"]\n').limits_in_force()[1].name == name


@pytest.mark.parametrize(
    ("window", "nanoseconds"),
    [("100ms", 10**8), ("1500ms", 1_500_000_000), ("24h", 86_400 * 10**9), ("1d", 86_400 * 10**9)],
)
def test_windows(read: Callable[[str], Config], window: str, nanoseconds: int) -> None:
    limit = read(f'[limits.default]\nwindow = "{window}"\n').limits_in_force()[0]
    assert limit.window == nanoseconds


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://0.0.0.0:0", Address("0.0.0.0", 0)),
        ("tcp://[::1]:65535", Address("::1", 65535)),
        ("tcp://[0:0::1]:1", Address("::1", 1)),
        ("tcp://agent-1.example:9190", Address("agent-1.example", 9190)),
        ("unix:///run/ratelimit/spop.sock", Address(path="/run/ratelimit/spop.sock")),
        ("unix:///" + "x" * 106, Address(path="/" + "x" * 106)),
    ],
)
def test_addresses(read: Callable[[str], Config], text: str, address: Address) -> None:
    config = read(f'[agent]\nlisten = ["{text}"]\ntrusted = ["192.0.2.0/24"]\n')
    assert config.agent.listen == (address,)


def test_a_limit_names_what_it_takes_of_haproxys_tables(read: Callable[[str], Config]) -> None:
    config = read(
        "[agent]\npeers = ['unix:///run/peers.sock', 'tcp://127.0.0.1:9192']\n"
        "[limits.login]\ntable = 'rl_default'\ncounts = 'errors'\nopen = 20\n"
        "count_refused = false\n"
    )
    assert config.agent.peers == (Address(path="/run/peers.sock"), Address("127.0.0.1", 9192))
    default, login, _ = config.limits_in_force()
    assert (default.count_table, default.counts, default.open) == ("rl_default", "requests", 0)
    assert (login.count_table, login.counts, login.open) == ("rl_default", "errors", 20)
    assert (default.count_refused, login.count_refused) == (True, False)


def test_haproxies_to_connect_to_have_names(read: Callable[[str], Config]) -> None:
    config = read(
        "[agent]\npeers = ['unix:///run/peers.sock']\n"
        "[haproxy]\npeer_sockets = ['edge-1@unix:///run/edge.sock', 'edge-2@tcp://10.0.0.2:9193']\n"
    )
    assert config.haproxy.peer_sockets == (
        ("edge-1", Address(path="/run/edge.sock")),
        ("edge-2", Address("10.0.0.2", 9193)),
    )


def test_strict_limits_go_on_next_to_peers(read: Callable[[str], Config]) -> None:
    config = read(
        "[agent]\npeers = ['unix:///run/peers.sock']\n"
        "[store]\nsync_interval = '0'\n[limits.login]\nstrict = true\n"
    )
    assert config.limits["login"].strict


@pytest.mark.parametrize("listen", ["tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://node-1:1"])
def test_beyond_loopback_the_agent_needs_trusted_peers(
    read: Callable[[str], Config], problems: Callable[[str], list[str]], listen: str
) -> None:
    text = f'[agent]\nlisten = ["unix:///run/a", "{listen}"]\n'
    (problem,) = problems(text)
    assert problem.startswith("r.toml: agent.trusted: must name the networks of the HAProxies")
    assert listen in problem
    config = read(text + 'trusted = ["10.0.0.0/8", "2001:DB8::1", "::ffff:192.0.2.1"]\n')
    assert config.agent.trusted == ("10.0.0.0/8", "2001:db8::1", "192.0.2.1")
    (problem,) = problems(text + 'trusted = ["10.0.0.1/8"]\n')
    assert problem.startswith("r.toml: agent.trusted.0: ")
    assert "is it 10.0.0.0/8?" in problem


@pytest.mark.parametrize("listen", ["tcp://127.9.9.9:1", "tcp://[::1]:1", "unix:///run/a"])
def test_on_loopback_it_needs_none(read: Callable[[str], Config], listen: str) -> None:
    assert read(f'[agent]\nlisten = ["{listen}"]\n').agent.trusted == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tls_server_name = 'redis.example'", "tls_server_name: needs a store.url with TLS"),
        ("url = 'redis://h'\ntls_server_name = 'h'", "tls_server_name: needs a store.url with TLS"),
        ("url = 'rediss://h'\ntls_server_name = 'a b'", "tls_server_name: must be a host name"),
        ("secret_file = '{}/fleet'", "secret_file: needs a store.url that nodes share"),
        ("replicas = 1", "replicas: needs a store.url that nodes share"),
        (
            "url = 'redis://h'\nsecret_file = '{}/short'",
            "secret_file: {}/short: must have at least",
        ),
        ("url = 'redis://h'\nsecret_file = '{}/none'", "secret_file: {}/none: No such file"),
    ],
)
def test_what_a_shared_store_can_not_have(
    problems: Callable[[str], list[str]], tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "fleet").write_text("x" * 32)
    (tmp_path / "short").write_text("x" * 15)
    (found,) = problems(f"[store]\n{text.format(tmp_path)}\n")
    assert found.startswith(f"r.toml: store.{problem.format(tmp_path)}")


@pytest.mark.parametrize("clients", [8, 1_000_000_000])
def test_table_sizes(read: Callable[[str], Config], clients: int) -> None:
    assert read(f"[agent]\nmax_clients = {clients}\n").agent.max_clients == clients


def test_a_limit_of_bytes_may_be_higher(read: Callable[[str], Config]) -> None:
    config = read("[limits.traffic]\nrate = 100_000_000\ncounts = 'bytes_in'\n")
    assert config.limits_in_force()[1] == Limit(
        "traffic", rate=100_000_000, counts="bytes_in", fuse=0.2
    )


UNCAPPED = (
    "limits.login.window: peers.cfg counts in whole seconds: with this window, HAProxy has no cap "
    "of its own (peers mode)"
)
UNTOLD = (
    "limits.default.headers: no effect on allowed requests that HAProxy counts itself (peers mode)"
)
PEERS = "[agent]\npeers = ['unix:///p.sock']\n"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("[limits.default]\nheaders = true\nwindow = '1500ms'\nstrict = true\n", []),
        (PEERS, []),
        (
            f"{PEERS}[limits.default]\nheaders = true\n",
            [UNTOLD],
        ),
        (
            "[limits.login]\nopen = 2\nwindow = '1500ms'\n",
            [UNCAPPED],
        ),
        (f"{PEERS}[limits.default]\ncounts = 'errors'\nwindow = '500ms'\n", []),
        (
            f"{PEERS}[limits.login]\nstrict = true\nblock = []\n",
            ["limits.login.strict: the tables of HAProxy can't feed this limit (peers mode)"],
        ),
        (
            f"{PEERS}[store]\nsync_interval = '0'\n",
            ['store.sync_interval: "0": the tables of HAProxy can\'t feed any limit (peers mode)'],
        ),
    ],
)
def test_what_has_no_effect_in_peers_mode_is_told(
    read: Callable[[str], Config], text: str, warnings: list[str]
) -> None:
    assert read(text).warnings() == [f"r.toml: {warning}" for warning in warnings]
