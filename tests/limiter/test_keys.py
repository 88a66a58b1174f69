"""Keys of clients as text: addresses, networks, hashes."""

from __future__ import annotations

import re

import pytest

from ratelimit.engine.layout import ADDRESS, TEXT
from ratelimit.limiter.keys import (
    canonical,
    client_key,
    counted_key,
    first_address,
    has_host_bits,
    hash_key,
    hash_numbers,
    hash_of,
    is_key,
    parse_network,
    wider_keys,
)
from ratelimit.model import Limit
from tests.helpers.strings import HASH


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.0/255.255.255.0", "192.0.2.0/24"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("64:ff9b::192.0.2.1", "192.0.2.1/32"),
        ("64:ff9b::c000:200/120", "192.0.2.0/24"),
        ("64:ff9b::/96", "0.0.0.0/0"),
        ("64:ff9b:1::/48", "64:ff9b:1::/48"),
        ("::/0", "::/0"),
    ],
)
def test_networks_as_they_are_written(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("192.0.2.1/24", "bits set beyond its prefix; is it 192.0.2.0/24?"),
        ("192.0.2.0/33", "not an address or a network"),
        ("fe80::1%eth0", "an address can't have a zone"),
        ("example.com", "not an address or a network"),
        ("", "not an address or a network"),
        ("17", "not an address or a network"),
    ],
)
def test_what_is_no_network(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_network(text)


def test_a_key_is_by_kind() -> None:
    assert client_key(TEXT, 1, 2, 32, 64) == "~00000000000000010000000000000002"
    assert client_key(ADDRESS, 0, 0xFFFF << 32 | 0xC0000207, 32, 64) == "192.0.2.7"
    assert hash_key(1, 2) == client_key(TEXT, 1, 2, 24, 48)


@pytest.mark.parametrize(
    ("key", "first", "counted", "wider"),
    [
        ("192.0.2.7", "192.0.2.7", "192.0.2.0/24", "192.0.2.6/31"),
        ("192.0.0.0/16", "192.0.0.0", "192.0.0.0/16", "192.0.0.0/15"),
        ("2001:db8::7", "2001:db8::7", "2001:db8::/64", "2001:db8::6/127"),
        (HASH, HASH, HASH, None),
    ],
)
def test_a_key_has_a_first_address_a_client_and_wider_networks(
    key: str, first: str, counted: str, wider: str | None
) -> None:
    assert first_address(key) == first
    assert counted_key(key, Limit(ipv4_prefix=24)) == counted
    found = list(wider_keys(key))
    assert found[:1] == ([wider] if wider else [])
    assert not found or found[-1] in ("0.0.0.0/0", "::/0")


@pytest.mark.parametrize(
    ("text", "key", "bits"),
    [
        ("192.0.2.7/24", "192.0.2.0/24", True),
        ("192.0.2.7/32", "192.0.2.7", False),
        ("::ffff:192.0.2.7", "192.0.2.7", False),
        ("2001:DB8:0::/64", "2001:db8::/64", False),
        ("alice", None, False),
    ],
)
def test_an_address_has_one_form(text: str, key: str | None, bits: bool) -> None:
    assert canonical(text) == key
    assert has_host_bits(text) is bits


def test_a_hash_is_found_at_the_end_of_what_is_shown() -> None:
    assert hash_of(f"like{HASH}") == hash_of(HASH) == HASH
    assert hash_of(HASH + "0") is None and hash_of("alice") is None
    numbers = hash_numbers(HASH)
    assert numbers is not None and hash_key(*numbers) == HASH
    assert hash_numbers("192.0.2.7") is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("192.0.2.7", True),
        ("192.0.2.0/24", True),
        ("2001:db8::/64", True),
        (HASH, True),
        (f"like{HASH}", False),
        ("192.0.2.7/24", False),
        ("alice", False),
        ("", False),
    ],
)
def test_a_key_of_the_blocklist_has_its_shortest_form(text: str, valid: bool) -> None:
    assert is_key(text) is valid
