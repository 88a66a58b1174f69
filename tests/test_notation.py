"""Durations and addresses as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.model import Address
from ratelimit.notation import format_duration, parse_duration, parse_host_port, parse_listen


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("1ms", 1),
        ("007s", 7000),
        ("1m", 60_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
        ("999999999999d", 999_999_999_999 * 86_400_000),
    ],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds * 1_000_000


@pytest.mark.parametrize(
    "text", ["", "1", "s", "1S", "1s ", "1s\n", "1m30s", "1e3s", "+1s", "1us", "1" * 13 + "s"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number and a unit"):
        parse_duration(text)


@given(st.integers(0, 10**12 - 1))
def test_a_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds * 1_000_000)) == milliseconds * 1_000_000


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0"), (1500, "1500ms"), (60_000, "1m"), (90_000, "90s"), (86_400_000, "1d")],
)
def test_durations_are_short(milliseconds: int, text: str) -> None:
    assert format_duration(milliseconds * 1_000_000) == text


@pytest.mark.parametrize("text", ["a:1", "192.0.2.1:0", "[2001:db8::1]:443", "[::ffff:1.2.3.4]:1"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    address = parse_host_port(text)
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":1", "a", "a:", "a:b", "a:-1", "a:1 ", "a:1\n", "a b:1", "a:65536", "a:123456"),
        *("1.2.3:1", "1.2.3.256:1", "::1:1", "[::1]", "[]:1", "[1.2.3.4]:1", "[::g]:1", "a:1/x"),
    ],
)
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"must be HOST:PORT|not an address|a port must be at most"
    ):
        parse_host_port(text)


@pytest.mark.parametrize("text", ["", "tcp:a:1", "TCP://a:1", "http://a:1", "unix://a", "unix:/a"])
def test_what_is_nowhere_to_listen(text: str) -> None:
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        parse_listen(text)


def test_a_path_without_a_file() -> None:
    for path in ("/", "/a/", "/a\0b"):
        with pytest.raises(ValueError, match="not the path of a socket file"):
            parse_listen(f"unix://{path}")


def test_the_longest_path_is_counted_in_bytes() -> None:
    assert parse_listen("unix:///" + "é" * 53) == Address(path="/" + "é" * 53)
    with pytest.raises(ValueError, match="at most 107 bytes"):
        parse_listen("unix:///" + "é" * 53 + "x")
