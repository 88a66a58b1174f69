"""What is answered to mistakes in the file and in the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ratelimit.config import Config, load
from ratelimit.exceptions import ConfigError
from ratelimit.model import Address, Limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    assert read("").limits_in_force() == (Limit(), Limit("unknown", block=()))


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
        ("OPS__TOKEN_FILE", "~unknown-user/t", "OPS__TOKEN_FILE: ", "an unknown user"),
        ("STORE__STATE_DIR", "~unknown-user/t", "STORE__STATE_DIR: ", "an unknown user"),
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
        (
            "[haproxy]\npeer_sockets = ['edge@tcp://127.0.0.1:1']",
            "haproxy.peer_sockets: needs agent.peers",
        ),
        (
            (
                "[agent]\npeers = ['unix:///a']\npeers_allowed = ['edge-1']\n"
                "[haproxy]\npeer_sockets = ['edge@unix:///b']"
            ),
            "haproxy.peer_sockets: edge is not in agent.peers_allowed",
        ),
        (
            "[haproxy]\npeer_sockets = ['tcp://127.0.0.1:1']",
            'haproxy.peer_sockets.0: must be "NAME@tcp://HOST:PORT" or "NAME@unix:///PATH"',
        ),
        ("[haproxy]\npeer_sockets = ['edge@127.0.0.1:1']", f"haproxy.peer_sockets.0: {LISTEN}"),
        (
            "[haproxy]\npeer_sockets = ['@unix:///a']",
            "haproxy.peer_sockets.0: must have 1 to 255 of the characters A-Z a-z 0-9 _ . : -",
        ),
        (
            "[haproxy]\npeer_sockets = ['edge@unix:///a', 'edge@unix:///b']",
            "haproxy.peer_sockets: names an HAProxy twice",
        ),
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
        (
            "[limits.default]\ncounts = 'bytes_out'\nrate = 100_000_001",
            "limits.default.rate: must be less than or equal to 100000000",
        ),
        (
            "[limits.default]\ncounts = 'errors'\nrate = 10_000_001",
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
