"""What each table may say."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ratelimit.config import Config, load
from ratelimit.events.webhooks import Receiver
from ratelimit.exceptions import ConfigError
from ratelimit.model import Address, Limit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEFAULT = Limit()
UNKNOWN = Limit("unknown", block=())


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
