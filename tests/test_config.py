"""What the file and the environment may say, and what is answered to anything else."""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from ratelimit import config as config_module
from ratelimit.config import Config, load
from ratelimit.events.webhooks import Receiver
from ratelimit.exceptions import ConfigError
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

[load]
high = 0
low = 0
hold = "30s"
"""
"""Every field with its default."""


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("RATELIMIT_"):
            monkeypatch.delenv(name)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Config]:
    """Load a file of this text, by the name ``r.toml``."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "r.toml"

    def read_text(text: str) -> Config:
        path.write_text(text)
        return load(path.relative_to(tmp_path))

    return read_text


@pytest.fixture
def problems(read: Callable[[str], Config]) -> Callable[[str], list[str]]:
    """Return what is wrong with a file of this text."""

    def find(text: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert str(caught.value) == "\n".join(caught.value.problems)
        for problem in caught.value.problems:
            assert "\n" not in problem
        return caught.value.problems

    return find


# ---- what is in force ---------------------------------------------------------------------------


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
        model = config_module.LimitSection if name == "limits" else section.annotation
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


# ---- the environment ----------------------------------------------------------------------------


def test_a_variable_overrides_the_file(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_LIMITS__DEFAULT__RATE", "7")
    limit = read('[limits.default]\nrate = 5\nwindow = "2s"\n').limits_in_force()[0]
    assert (limit.rate, limit.window) == (7, 2 * 10**9)


def test_every_type_can_be_said_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "AGENT__LISTEN": "tcp://127.0.0.1:1, unix:///run/a",
        "AGENT__MAX_CLIENTS": "64",
        "STORE__URL": "memory://",
        "LIMITS__LOGIN__WINDOW": "1m",
        "LIMITS__LOGIN__BLOCK": '["60s", "61s"]',
        "LIMITS__LOGIN__STRICT": "true",
        "LIMITS__OTHER__BLOCK": "[]",
    }.items():
        monkeypatch.setenv(f"RATELIMIT_{name}", text)
    config = load()
    assert config.agent.listen == (Address("127.0.0.1", 1), Address(path="/run/a"))
    assert config.agent.max_clients == 64
    login, other, _ = sorted(config.limits_in_force()[1:], key=lambda limit: limit.name)
    assert (login.window, login.block, login.strict) == (60 * 10**9, (60, 61), True)
    assert other.block == ()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RATELIMIT_PORT_9190_TCP", "RATELIMIT_URL", "RATELIMIT_NO_EXTENSIONS"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:9190")
    assert load() == Config()


def test_a_dotenv_file_is_not_read(read: Callable[[str], Config], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RATELIMIT_LIMITS__DEFAULT__RATE=1\n")
    assert read("").limits_in_force() == (DEFAULT, UNKNOWN)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("RATELIMIT_STOER__URL", "memory://", "unknown field"),
        ("RATELIMIT_STORE__URLS", "memory://", "unknown field"),
        ("RATELIMIT_AGENT", "{", "must be a table"),
        ("RATELIMIT_AGENT__MAX_CLIENTS", "many", "must be a whole number"),
        ("RATELIMIT_AGENT__MAX_CLIENTS__X", "1", "must be a whole number"),
        ("RATELIMIT_AGENT__LISTEN", "", "must be a list"),
        ("RATELIMIT_AGENT__LISTEN", "here", 'must be "tcp://HOST:PORT" or "unix:///PATH"'),
        ("RATELIMIT_LIMITS__LOGIN", "5", "must be a table"),
        ("RATELIMIT_LIMITS__LOGIN__STRICT", "perhaps", "must be true or false"),
        ("ratelimit_limits__login__rate", "0", "must be greater than or equal to 1"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, what: str
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.problems == [f"environment: {name}: {what}"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("STORE", '{"url": 5}', "url: must be text"),
        (
            "AGENT",
            '{"listen": ["tcp://127.0.0.1:1", 5]}',
            'listen.1: must be "tcp://HOST:PORT" or "unix:///PATH"',
        ),
        ("LIMITS", '{"login": {"rate": 0}}', "login.rate: must be greater than or equal to 1"),
    ],
)
def test_a_wrong_field_in_a_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str
) -> None:
    monkeypatch.setenv(f"RATELIMIT_{name}", text)
    with pytest.raises(ConfigError) as caught:
        load()
    assert caught.value.problems == [f"environment: RATELIMIT_{name}: {said}"]


_UNREADABLE = "invalid value: too long or nested too deeply"


@pytest.mark.parametrize(
    ("name", "text", "start", "end"),
    [
        ("LIMITS__DEFAULT__RATE", "9" * 5000, "LIMITS__DEFAULT__RATE: ", _UNREADABLE),
        ("AGENT__MAX_CLIENTS", "[" * 100_000, "AGENT__MAX_CLIENTS: ", _UNREADABLE),
        ("LIMITS__DEFAULT__STRICT", "[" * 100_000, "LIMITS__DEFAULT__STRICT: ", _UNREADABLE),
        ("LIMITS", "[" * 100_000, "LIMITS: ", "must be a table"),
        ("STORE", '{"url":' * 100_000 + "1" + "}" * 100_000, "STORE: ", "must be a table"),
        ("LIMITS__" + "A__" * 30_000 + "A", "1", "LIMITS__A__A__", "unknown field"),
        ("STORE__URL__" + "A__" * 30_000 + "A", "1", "STORE__URL__A__", "unknown field"),
        ("X__" + "A__" * 30_000 + "A", "1", "X__A__A__", "unknown field"),
        (
            "LIMITS__" + "X" * 100_000 + "__RATE",
            "1",
            "LIMITS__XXXXX",
            "characters A-Z a-z 0-9 _ . : -",
        ),
        ("HAPROXY__SOCKETS", "x" * 100_000, "HAPROXY__SOCKETS: ", 'ratelimit.sock"'),
        ("OPS__LISTEN", "x" * 3000 + ":1", "OPS__LISTEN: ", "253 in total"),
        ("OPS__LISTEN", "a..b:1", "OPS__LISTEN: ", "253 in total"),
        ("OPS__TOKEN_FILE", "~nobody-has-this-name/t", "OPS__TOKEN_FILE: ", "an unknown user"),
        ("STORE__STATE_DIR", "~nobody-has-this-name/t", "STORE__STATE_DIR: ", "an unknown user"),
        ("LISTS__ALLOW_FILES", "x" * 100_000, "LISTS__ALLOW_FILES: xxx", "xxx: File name too long"),
    ],
)
def test_a_variable_that_is_too_long_or_too_deep(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, start: str, end: str
) -> None:
    monkeypatch.setenv(f"RATELIMIT_{name}", text)
    with pytest.raises(ConfigError) as caught:
        load().read_lists()
    (problem,) = caught.value.problems
    assert problem.startswith(f"environment: RATELIMIT_{start}")
    assert problem.endswith(end)
    assert len(problem) <= 500


def test_a_flood_of_mistakes_is_cut(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "".join(f"[limits.a{number}]\nrate = 0\n" for number in range(1000))
    *first, last = problems(wrong)
    assert len(first) == 20
    assert last == "r.toml: 980 more errors"
    monkeypatch.setenv("RATELIMIT_AGENT__LISTEN", "," * 100_000)
    *first, last = problems("")
    assert len(first) == 20
    assert last == "r.toml: 99981 more errors"


def test_the_file_is_blamed_for_its_own_mistakes(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_LIMITS__LOGIN__RATE", "5")
    assert problems('[limits.login]\nwindow = "1y"\n')[0].startswith("r.toml: limits.login.window:")


# ---- mistakes -----------------------------------------------------------------------------------

NUMBER = "must be a whole number"
DURATION = 'must be a whole number and a unit, such as "10ms", "1s", "5m" or "24h"'
LISTEN = 'must be "tcp://HOST:PORT" or "unix:///PATH"'
LATER = "not available in this version; leave it at its default"
NAME = "must have 1 to 64 of the characters A-Z a-z 0-9 _ . : -"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rate = 1", "rate: unknown field"),
        ("_env_file = 'x'", "_env_file: unknown field"),
        ("limits = 3", "limits: must be a table"),
        ("agent = []", "agent: must be a table"),
        ("[agent]\nlisten = 'tcp://127.0.0.1:1'", "agent.listen: must be a list"),
        ("[agent]\nlisten = []", "agent.listen: must name at least one"),
        ("[agent]\nlisten = [1]", f"agent.listen.0: {LISTEN}"),
        ("[agent]\nlisten = ['127.0.0.1:1']", f"agent.listen.0: {LISTEN}"),
        ("[agent]\nlisten = ['unix://a']", f"agent.listen.0: {LISTEN}"),
        ("[agent]\nlisten = ['unix:///a/']", "agent.listen.0: not the path of a socket file"),
        (
            f"[agent]\nlisten = ['unix:///{'x' * 107}']",
            "agent.listen.0: the path of a socket must have at most 107 bytes",
        ),
        (
            "[agent]\nlisten = ['tcp://::1:1']",
            "agent.listen.0: must be HOST:PORT, with an IPv6 address in brackets",
        ),
        ("[agent]\nlisten = ['tcp://a:65536']", "agent.listen.0: a port must be at most 65535"),
        ("[agent]\npeers = ['127.0.0.1:1']", f"agent.peers.0: {LISTEN}"),
        ("[agent]\npeers = ['unix:///a', 'unix:///a']", "agent.peers: names a socket twice"),
        (
            "[agent]\npeer_name = 'a b'",
            "agent.peer_name: must have 1 to 255 of the characters A-Z a-z 0-9 _ . : -",
        ),
        (
            "[agent]\npeers_allowed = ['']",
            "agent.peers_allowed.0: must have 1 to 255 of the characters A-Z a-z 0-9 _ . : -",
        ),
        ("[agent]\npeers_ca = '/none'", "agent.peers_ca: /none: No such file or directory"),
        (
            "[agent]\npeers_ca = '/dev/null'",
            "agent.peers_certificate: TLS needs both agent.peers_certificate and agent.peers_ca",
        ),
        (
            "[agent]\npeers_certificate = '/dev/null'",
            "agent.peers_certificate: TLS needs both agent.peers_certificate and agent.peers_ca",
        ),
        (
            "[agent]\npeers = ['tcp://192.0.2.1:9192']",
            (
                "agent.trusted: must name the networks of the HAProxies, because "
                "tcp://192.0.2.1:9192 is not on loopback and every peer can block any client"
            ),
        ),
        (
            "[limits.login]\ntable = 't_login'",
            (
                'limits.login.table: must be the name of a stick table that begins with "rl_", '
                'such as "rl_default"'
            ),
        ),
        (
            "[limits.login]\ncounts = 'hits'",
            (
                "limits.login.counts: must be 'requests', 'errors', 'failures', 'bytes_in' or "
                "'bytes_out'"
            ),
        ),
        ("[limits.login]\nopen = -1", "limits.login.open: must be greater than or equal to 0"),
        (
            "[limits.login]\nstrict = true\nblock = []\ntable = 'rl_default'",
            "limits.login.table: impossible with strict: HAProxy's peers report a hit afterwards",
        ),
        (
            "[limits.login]\nstrict = true\nblock = []\ncounts = 'errors'",
            "limits.login.counts: impossible with strict: HAProxy's peers report a hit afterwards",
        ),
        (
            "[store]\nsync_interval = '0'\n[limits.login]\nopen = 5",
            'limits.login.table: impossible with store.sync_interval = "0"',
        ),
        ("[agent]\nmax_clients = true", f"agent.max_clients: {NUMBER}"),
        ("[agent]\nmax_clients = 7", "agent.max_clients: must be greater than or equal to 8"),
        ("[store]\nshared_clients = 0", "store.shared_clients: must be greater than or equal to 1"),
        ("[limits.default]\nrate = '5'", f"limits.default.rate: {NUMBER}"),
        ("[limits.default]\nrate = 5.0", f"limits.default.rate: {NUMBER}"),
        ("[limits.default]\nrate = 0", "limits.default.rate: must be greater than or equal to 1"),
        (
            "[limits.default]\nrate = 10_000_001",
            "limits.default.rate: must be less than or equal to 10000000",
        ),
        ("[limits.default]\nwindow = 1", f"limits.default.window: {DURATION}"),
        ("[limits.default]\nwindow = '1.5s'", f"limits.default.window: {DURATION}"),
        ("[limits.default]\nwindow = '-1s'", f"limits.default.window: {DURATION}"),
        ("[limits.default]\nwindow = '1 s'", f"limits.default.window: {DURATION}"),
        ("[limits.default]\nwindow = '٣s'", f"limits.default.window: {DURATION}"),
        ("[limits.default]\nwindow = '99ms'", "limits.default.window: must be from 100ms to 1d"),
        ("[limits.default]\nwindow = '25h'", "limits.default.window: must be from 100ms to 1d"),
        ("[limits.default]\nblock = ['500ms']", "limits.default.block.0: must be a multiple of 1s"),
        ("[limits.default]\nblock = ['0']", "limits.default.block.0: must be from 1s to 30d"),
        ("[limits.default]\nblock = ['31d']", "limits.default.block.0: must be from 1s to 30d"),
        (
            "[limits.default]\nblock = ['2s', '2s']",
            "limits.default.block: each block must be longer than the one before it",
        ),
        (
            "[limits.default]\nstrict = true\nwindow = '1m'\nblock = ['59s', '2m']",
            "limits.default.strict: needs blocks of at least the window, 1m, or block = []",
        ),
        ("[limits.default]\nforget = '0'", "limits.default.forget: must be from 1s to 366d"),
        ("[limits.default]\nstrict = 1", "limits.default.strict: must be true or false"),
        (
            "[limits.default]\nipv4_prefix = 33",
            "limits.default.ipv4_prefix: must be less than or equal to 32",
        ),
        (
            "[limits.default]\nipv6_prefix = 0",
            "limits.default.ipv6_prefix: must be greater than or equal to 1",
        ),
        ("[limits.default.more]", "limits.default.more: unknown field"),
        ('[limits.""]', f"limits.'': {NAME}"),
        ('[limits."a b"]', f"limits.'a b': {NAME}"),
        ('[limits."a\\nb"]', f"limits.'a\\nb': {NAME}"),
        (f"[limits.{'x' * 65}]", f"limits.{'x' * 65}: {NAME}"),
        ("[store]\nurl = 1", "store.url: must be text"),
        ("[store]\non_outage = 'open'", "store.on_outage: must be 'local' or 'share'"),
    ],
)
def test_one_mistake_is_one_line(
    problems: Callable[[str], list[str]], text: str, problem: str
) -> None:
    assert problems(text) == [f"r.toml: {problem}"]


@pytest.mark.parametrize(
    "url",
    [
        "memory://",
        "redis://localhost",
        "redis://user:secret@[::1]:6380/3",
        "redis+sentinel://a,b:26380/main",
        "redis+cluster://a:7000,b:7001",
        "unix:///run/redis/redis.sock",
    ],
)
def test_stores(read: Callable[[str], Config], url: str) -> None:
    assert read(f"[store]\nurl = '{url}'\nsync_interval = '0'\n").store.url == url


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("url = 'http://x'", "store.url: must begin with one of memory://, redis://"),
        ("url = 'redis://u:hunter2@h:x'", "store.url: a port must be a number"),
        ("url = 'redis+sentinel://h'", "store.url: must name the service"),
        ("url = 'redis://h?password_file=/no/such'", "store.url: password_file: /no/such: No such"),
        ("sync_interval = '11s'", "store.sync_interval: must be from 1ms to 10s"),
        ("prefix = 'a{b}'", "store.prefix: "),
        ("on_outage = 'shut'", "store.on_outage: must be 'local' or 'share'"),
    ],
)
def test_stores_that_can_not_be(
    problems: Callable[[str], list[str]], text: str, problem: str
) -> None:
    (found,) = problems(f"[store]\n{text}")
    assert found.startswith(f"r.toml: {problem}")
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[agent]\nhttp_listen = ['tcp://127.0.0.1:1']", "agent.http_listen"),
    ],
)
def test_what_is_still_to_come_is_refused(
    problems: Callable[[str], list[str]], text: str, field: str
) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"r.toml: {field}: not available in this version")


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "localhost:1"])
def test_the_api_on_loopback_needs_no_token(read: Callable[[str], Config], listen: str) -> None:
    assert read(f"[ops]\nlisten = '{listen}'").ops.listen.is_loopback


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.com:1"])
def test_the_api_beyond_loopback_needs_a_token(
    read: Callable[[str], Config], problems: Callable[[str], list[str]], listen: str
) -> None:
    assert problems(f"[ops]\nlisten = '{listen}'") == [
        "r.toml: ops.listen: needs ops.token_file unless it is on loopback"
    ]
    config = read(f"[ops]\nlisten = '{listen}'\ntoken_file = 'x'")
    assert not config.ops.listen.is_loopback


@pytest.mark.parametrize("listen", ["", "9191", "tcp://127.0.0.1:1", "127.0.0.1:65536"])
def test_where_the_api_can_not_listen(problems: Callable[[str], list[str]], listen: str) -> None:
    (problem,) = problems(f"[ops]\nlisten = '{listen}'")
    assert problem.startswith("r.toml: ops.listen: ")


def test_the_api_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", "[::1]:9292")
    assert load().ops.listen == Address("::1", 9292)


def test_the_variables_of_the_commands_are_none_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RATELIMIT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("RATELIMIT_TOKEN", "x")
    assert load() == Config()


def test_load(read: Callable[[str], Config]) -> None:
    load = read("[load]\nhigh = 1000\nlow = 400\nhold = '1m'").load
    assert (load.high, load.low, load.hold) == (1000, 400, 60_000_000_000)
    assert read("[load]\nhigh = 1").load.low == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("high = -1", "load.high: must be greater than or equal to 0"),
        ("low = 1", "load.low: must be less than high"),
        ("high = 5\nlow = 5", "load.low: must be less than high"),
        ("hold = '500ms'", "load.hold: must be a multiple of 1s"),
        ("hold = '0'", "load.hold: must be from 1s to 1d"),
    ],
)
def test_loads_that_can_not_be(
    problems: Callable[[str], list[str]], text: str, problem: str
) -> None:
    assert problems(f"[load]\n{text}") == [f"r.toml: {problem}"]


def test_webhooks(read: Callable[[str], Config], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef\n")
    config = read(
        "[[webhooks]]\nurl = 'https://a.example:8443/x?y=z'\n"
        f"[[webhooks]]\nurl = 'http://127.0.0.1/'\nevents = ['fuse']\nsecret_file = '{secret}'"
    )
    assert config.receivers() == (
        Receiver("https://a.example:8443/x?y=z"),
        Receiver("http://127.0.0.1/", ("fuse",), b"0123456789abcdef"),
    )
    assert "a.example" not in repr(config.webhooks)
    secret.write_text("fedcba9876543210")  # for the next reload
    assert config.receivers()[1].secret == b"fedcba9876543210"
    secret.unlink()
    with pytest.raises(ConfigError, match=r"r\.toml: webhooks\.1\.secret_file: "):
        config.receivers()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("events = ['block']", "webhooks.0.url: is required"),
        ("url = 'ftp://h/'", "webhooks.0.url: must be https://HOST[:PORT]/PATH, or http://"),
        ("url = 'https:///x'", "webhooks.0.url: must be https://HOST[:PORT]/PATH, or http://"),
        ("url = 'https://h:x/'", "webhooks.0.url: must be https://HOST[:PORT]/PATH, or http://"),
        ('url = "https://h/\\r\\nx"', "webhooks.0.url: must be https://HOST[:PORT]/PATH, or http"),
        ("url = 'https://u:hunter2@h/'", "webhooks.0.url: must have no user or password"),
        ("url = 'https://h'\nevents = []", "webhooks.0.events: must name at least one"),
        ("url = 'https://h'\nevents = ['x']", "webhooks.0.events.0: must be 'block', 'unblock', "),
        ("url = 'https://h'\nsecret = 'hunter2'", "webhooks.0.secret: unknown field"),
        ("url = 'https://h'\nsecret_file = '/no'", "webhooks.0.secret_file: /no: No such file"),
        ("url = 'https://h'\nsecret_file = 'short'", "webhooks.0.secret_file: short: must have at"),
    ],
)
def test_webhooks_that_can_not_be(
    problems: Callable[[str], list[str]], tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "short").write_text("hunter2")
    (found,) = problems(f"[[webhooks]]\n{text}")
    assert found.startswith(f"r.toml: {problem}")
    assert "hunter2" not in found


def test_all_mistakes_are_told_at_once(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_AGENT__MAX_CLIENTS", "0")
    monkeypatch.setenv("RATELIMIT_NO__SUCH", "0")
    text = "[more]\n[limits.a]\nrate = 0\nblok = []\n[limits.b]\nstrict = 'no'\n"
    assert sorted(problems(text)) == [
        "environment: RATELIMIT_AGENT__MAX_CLIENTS: must be greater than or equal to 8",
        "environment: RATELIMIT_NO__SUCH: unknown field",
        "r.toml: limits.a.blok: unknown field",
        "r.toml: limits.a.rate: must be greater than or equal to 1",
        "r.toml: limits.b.strict: must be true or false",
        "r.toml: more: unknown field",
    ]


def test_a_secret_is_not_repeated(
    problems: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", "hunter2")
    text = (
        "[store]\nurl = 'redis://:hunter2@a:x'\npassword = 'hunter2'\n[[webhooks]]\nurl = 'hunter2'"
    )
    found = problems(text)
    assert len(found) == 4
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[agent\n", r"not TOML: .*line 1, column 7"),
        ("[agent]\n[agent]\n", r"not TOML: .*line 2, column 7"),
        ("a = " + "[" * 100_000, "not TOML: "),
        ("a = " + "9" * 100_000, "not TOML: "),
    ],
)
def test_what_is_not_toml(problems: Callable[[str], list[str]], text: str, what: str) -> None:
    (problem,) = problems(text)
    assert re.match(f"r.toml: {what}", problem)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"r\.toml: not UTF-8 at byte 5$"):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none: No such file or directory$"):
        load(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"Is a directory$"):
        load(tmp_path)


def test_a_mistake_that_shows_in_use(
    read: Callable[[str], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        return str(read("").wrong("agent.listen", "in use"))

    assert str(load().wrong("agent.listen", "in use")) == "defaults: agent.listen: in use"
    assert told() == "r.toml: agent.listen: in use"
    monkeypatch.setenv("RATELIMIT_AGENT__LISTEN", "tcp://127.0.0.1:1")
    assert told() == "environment: RATELIMIT_AGENT__LISTEN: in use"


def test_sockets_of_haproxy(read: Callable[[str], Config]) -> None:
    config = read("[haproxy]\nsockets = ['/run/a.sock', 'unix:///run/b.sock', 'unix@/run/c.sock']")
    assert config.haproxy.sockets == ("/run/a.sock", "/run/b.sock", "/run/c.sock")


@pytest.mark.parametrize(
    ("sockets", "problem"),
    [
        ("['a.sock']", "haproxy.sockets.0: must be the path of a unix socket"),
        ("['tcp://127.0.0.1:9999']", "haproxy.sockets.0: must be the path of a unix socket"),
        ("['/run/haproxy/']", "haproxy.sockets.0: not the path of a socket file"),
        (
            f"['/{107 * 'x'}']",
            "haproxy.sockets.0: the path of a socket must have at most 107 bytes",
        ),
        ("['/run/a.sock', 'unix:///run/a.sock']", "haproxy.sockets: names a socket twice"),
        (f"{[f'/run/{n}' for n in range(65)]}", "haproxy.sockets: Tuple should have at most 64"),
        ("'/run/a.sock'", "haproxy.sockets: must be a list"),
    ],
)
def test_what_is_no_socket_of_haproxy(
    problems: Callable[[str], list[str]], sockets: str, problem: str
) -> None:
    (found,) = problems(f"[haproxy]\nsockets = {sockets}")
    assert found.startswith(f"r.toml: {problem}")


def test_a_limit_that_is_stricter_than_the_default_must_ask_for_a_fuse(
    read: Callable[[str], Config],
) -> None:
    config = read(
        "[limits.default]\nrate = 100\n"
        "[limits.login]\nrate = 5\nwindow = '1m'\n"
        "[limits.asked]\nrate = 5\nwindow = '1m'\nfuse = 0.5\n"
        "[limits.wide]\nrate = 6000\nwindow = '1m'\n"
        "[limits.never]\nrate = 1000\nfuse = 0\n"
    )
    fuses = {limit.name: limit.fuse for limit in config.limits_in_force()}
    expected = {"default": 0.2, "login": 0, "asked": 0.5, "wide": 0.2, "never": 0, "unknown": 0.2}
    assert fuses == expected
