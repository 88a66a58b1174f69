"""Which peers are in the networks of the configuration."""

from __future__ import annotations

import pytest

from ratelimit.agent.trust import Trusted, is_loopback, trusted_network

TRUSTED = Trusted(("192.0.2.0/24", "2001:db8::/32", "fe80::/64", "198.51.100.7"))


@pytest.mark.parametrize(
    "host",
    [
        "192.0.2.0",
        "192.0.2.255",
        "::ffff:192.0.2.9",
        "2001:db8:ffff::1",
        "fe80::1%eth0",
        "198.51.100.7",
    ],
)
def test_a_peer_in_a_network(host: str) -> None:
    assert host in TRUSTED


@pytest.mark.parametrize(
    "host",
    [
        "192.0.3.0",
        "192.0.1.255",
        "::ffff:192.0.3.9",
        "::192.0.2.9",
        "2001:db9::1",
        "fe80:0:0:1::1%eth0",
        "198.51.100.8",
        "127.0.0.1",
        "::1",
        "",
        "unix",
        "192.0.2.1.example",
    ],
)
def test_a_peer_in_none(host: str) -> None:
    assert host not in TRUSTED
    assert host not in Trusted()


def test_loopback() -> None:
    for host in ("127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"):
        assert is_loopback(host)
    for host in ("128.0.0.1", "::2", "::ffff:128.0.0.1", "::127.0.0.1", "localhost", ""):
        assert not is_loopback(host)


def test_a_network_is_written_in_its_shortest_form() -> None:
    assert trusted_network("2001:DB8:0::/32") == "2001:db8::/32"
    assert trusted_network("::ffff:192.0.2.0/120") == "192.0.2.0/24"
    for text in ("192.0.2.1/24", "example.com", "", "192.0.2.0-9", "fe80::1%eth0"):
        with pytest.raises(ValueError, match=r"not an address|bits set|zone"):
            trusted_network(text)
