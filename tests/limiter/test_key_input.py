"""Keys as operators enter them."""

from __future__ import annotations

import re

import pytest

from ratelimit.limiter.key_input import MAX_GIVEN, reach, read, too_wide
from ratelimit.model import Limit
from tests.helpers import wire
from tests.helpers.strings import HASH, limiter, strike


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "must not be empty"),
        (" a", "without spaces around"),
        ("a\n", "must be printable"),
        ("a" * (MAX_GIVEN + 1), "at most 4096"),
        ("192.0.2.*", "must be an IPv4 or IPv6 address or network; is it 192.0.2.0/24?"),
        ("192.0.2.1-192.0.2.3", "is it 192.0.2.1 and 192.0.2.2/31?"),
        ("192.0.2.256", "must be an IPv4 or IPv6 address or network"),
    ],
)
def test_what_is_no_key(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)) as error:
        read(limiter(), text)
    assert not text or repr(text) not in str(error.value), "it may be a secret"


def test_what_is_like_an_address_is_a_string_if_a_limit_counts_it() -> None:
    made = limiter()
    with pytest.raises(ValueError, match=r"192\.0\.2\.0/24"):
        read(made, "192.0.2.*")
    assert read(made, "192.0.2.*", force=True).key == made.string_key(b"192.0.2.*")
    block = strike(made, wire.text("192.0.2.*"))
    assert read(made, "192.0.2.*").key == block.key


@pytest.mark.parametrize(
    ("text", "key", "note"),
    [
        ("192.0.2.7", "192.0.2.7", ""),
        ("192.0.2.77/24", "192.0.2.0/24", "192.0.2.77/24 has host bits; the network is"),
        ("64:ff9b::192.0.2.7", "192.0.2.7", "64:ff9b::192.0.2.7 is 192.0.2.7"),
        ("64:ff9b::c000:200/120", "192.0.2.0/24", "64:ff9b::c000:200/120 is 192.0.2.0/24"),
    ],
)
def test_what_was_corrected_is_said(text: str, key: str, note: str) -> None:
    given = read(limiter(), text)
    assert given.key == given.shown(True) == key
    assert given.note.startswith(note) and bool(given.note) == bool(note)


@pytest.mark.parametrize(
    ("key", "wide"),
    [
        ("0.0.0.0/0", "0.0.0.0/0 is 4,294,967,296 addresses; wider than /8 needs force"),
        ("0.0.0.0/7", "0.0.0.0/7 is 33,554,432 addresses; wider than /8 needs force"),
        ("10.0.0.0/8", ""),
        ("::/0", ", and every IPv4 address; wider than /19 needs force"),
        ("2000::/3", "wider than /19 needs force"),
        ("2003::/19", ""),
        (HASH, ""),
    ],
)
def test_a_very_wide_network_is_not_meant_by_itself(key: str, wide: str) -> None:
    told = too_wide(key)
    assert told.endswith(wide) and bool(told) == bool(wide)


@pytest.mark.parametrize(
    ("key", "note"),
    [
        ("192.0.2.7", ""),
        (
            "2001:db8::/64",
            "limit login: 2001:db8::/48 counts as one client, but this block",
        ),
        ("2001:db8::/48", ""),
        ("2001:db8::/32", ""),
        (
            "64:ff9b::/48",
            "clients of 64:ff9b::/96 are counted by their IPv4 address: use that address",
        ),
        (
            "2001:db8::7",
            "limits default, api: 2001:db8::/64 counts as one client, but this block applies",
        ),
        (HASH, "no limit of this node currently counts a client with this key"),
    ],
)
def test_a_block_that_is_not_what_the_limits_count(key: str, note: str) -> None:
    made = limiter(Limit(), Limit(name="api"), Limit(name="login", ipv6_prefix=48))
    told = reach(made, key)
    assert told.startswith(note) and bool(told) == bool(note)
    if key == "2001:db8::7":
        assert "to block the client, block 2001:db8::/64. limit login: 2001:db8::/48 counts" in told


def test_a_string_that_is_counted_needs_no_note() -> None:
    made = limiter()
    block = strike(made, wire.text("alice"))
    assert reach(made, block.key) == ""
