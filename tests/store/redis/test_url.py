"""The URL of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratelimit.exceptions import ConfigError
from ratelimit.store import Events, MemoryStore, Node, open_store
from ratelimit.store.redis.url import Endpoint, Kind, Login, parse


@pytest.mark.parametrize(
    ("url", "kind", "endpoints"),
    [
        ("redis://localhost", Kind.SINGLE, ["localhost:6379"]),
        ("redis://10.0.0.1:7000", Kind.SINGLE, ["10.0.0.1:7000"]),
        ("rediss://[2001:db8::1]", Kind.SINGLE, ["[2001:db8::1]:6379"]),
        ("redis://u:p@[::1]:7/3", Kind.SINGLE, ["[::1]:7"]),
        ("unix:///run/redis/redis.sock", Kind.SINGLE, ["/run/redis/redis.sock"]),
        ("redis+unix://:p@/run/a%20b@c.sock?db=1", Kind.SINGLE, ["/run/a b@c.sock"]),
        ("redis+sentinel://a,b:1,[::1]/mymaster/2", Kind.SENTINEL,
         ["a:26379", "b:1", "[::1]:26379"]),
        ("redis+cluster://a,b:7001", Kind.CLUSTER, ["a:6379", "b:7001"]),
        ("rediss+cluster://a/0", Kind.CLUSTER, ["a:6379"]),
    ],
)  # fmt: skip
def test_endpoints(url: str, kind: Kind, endpoints: list[str]) -> None:
    target = parse(url)
    assert target.kind is kind
    assert [str(endpoint) for endpoint in target.endpoints] == endpoints
    assert (target.tls is not None) is url.startswith("rediss")


def test_details() -> None:
    target = parse("redis+sentinel://us%40er:p%3A%2F@x@h/my%2Fmaster/5?sentinel_password=%26")
    assert target.login == Login("us@er", "p:/@x")
    assert target.service == "my/master"
    assert target.sentinel == Login("", "&")
    assert target.db == 5
    assert parse("unix:///s?db=7").db == 7
    assert parse("redis://h").endpoints == (Endpoint("h", 6379),)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with one of memory://, redis://"),
        ("memory", "must begin with"),
        ("http://h", "must begin with"),
        ("redis:/h", "must begin with"),
        ("redis://", "must name a host"),
        ("redis://:6379", "must name a host"),
        ("redis://a b", "must name a host"),
        ("redis://a,,b", "must name a host|several"),
        ("redis://a,b", "several servers"),
        ("redis://h:0", "a port must be"),
        ("redis://h:65536", "a port must be"),
        ("redis://h:six", "a port must be"),
        ("redis://::1", "write an IPv6 address as"),
        ("redis://[::1", "write an IPv6 address as"),
        ("redis://[::1]6379", "write an IPv6 address as"),
        ("redis://h/x", "a database must be a number"),
        ("redis://h/-1", "a database must be a number"),
        ("redis://h?db=1", "db: unknown parameter"),
        ("redis://h?cacert=/x", "cacert: unknown parameter; known: password_file"),
        ("redis://h?password_file=", "password_file: must not be empty"),
        ("redis://h?password_file=/nowhere/x", "password_file: /nowhere/x: No such file"),
        ("redis://:hush@h?password_file=/etc/hostname", "both a password and password_file"),
        ("redis://h?password_file=a&password_file=b", "twice"),
        ("redis://h?x", "name=value"),
        ("redis://hush@h", "a user without a password"),
        ("redis://:hush#x@h", "%23"),
        ("unix://run/redis.sock", "an absolute path"),
        ("unix://", "an absolute path"),
        ("redis+sentinel://h", "must name the service"),
        ("redis+sentinel://h/", "must name the service"),
        ("redis+cluster://h/1", "only database 0"),
        ("rediss://h?cacert=/nowhere", "cacert: /nowhere: No such file"),
        ("rediss://h?cacert=/etc/hostname", "cacert: /etc/hostname: not PEM"),
        ("rediss://h?cert=/nowhere", "cert: /nowhere: No such file"),
        ("rediss://h?cert=/etc/hostname&key=/etc/hostname", "not PEM"),
        ("rediss://h?key=/etc/hostname", "key: needs cert"),
    ],
)
def test_what_can_not_be(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(url, prefix="p", state_dir="", events=Events(), node=Node("", "", 0))
    assert str(caught.value).startswith("store.url: ")
    assert "hush" not in str(caught.value)


def test_a_password_file_is_read_at_each_connection(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("one\n")
    login = parse(f"redis://h?password_file={path}").login
    assert login.read_password() == "one"
    path.write_text("two\r\n")
    assert login.read_password() == "two"
    path.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        parse(f"redis://h?password_file={path}")
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        parse(f"redis://h?password_file={path}")


def test_a_password_is_not_shown() -> None:
    assert "hush" not in repr(parse("redis://:hush@h"))


def test_memory(tmp_path: Path) -> None:
    store = open_store(
        "memory://", prefix="p", state_dir=str(tmp_path), events=Events(), node=Node("", "", 0)
    )
    assert isinstance(store, MemoryStore)
    assert store.path.parent == tmp_path
