"""What is nearly an address, and what it was meant as."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.limiter.suggest import meant


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        # Signs for any, and numbers left out.
        ("192.0.2.*", ["192.0.2.0/24"]),
        ("192.0.2.x", ["192.0.2.0/24"]),
        ("192.0.*.*", ["192.0.0.0/16"]),
        ("192.0.*", ["192.0.0.0/16"]),
        ("10.*.*.*", ["10.0.0.0/8"]),
        ("10.*", ["10.0.0.0/8"]),
        ("192.0.2", ["192.0.2.0/24"]),
        ("192.0.2.", ["192.0.2.0/24"]),
        ("192.0", ["192.0.0.0/16"]),
        ("10.", ["10.0.0.0/8"]),
        ("10/8", ["10.0.0.0/8"]),
        ("192.168/16", ["192.168.0.0/16"]),
        ("*.0.2.1", []),
        ("192.*.2.1", []),
        # Ranges and lists.
        ("192.0.2.0-192.0.2.255", ["192.0.2.0/24"]),
        ("192.0.2.1-192.0.2.3", ["192.0.2.1", "192.0.2.2/31"]),
        ("192.0.2.1 - 192.0.2.3", ["192.0.2.1", "192.0.2.2/31"]),
        ("192.0.2.1\u20133", ["192.0.2.1", "192.0.2.2/31"]),
        ("192.0.2.1-192.0.2.99", []),
        ("192.0.2.9-192.0.2.1", []),
        ("192.0.2.1-300", []),
        ("2001:db8::-2001:db8::ffff", ["2001:db8::/112"]),
        ("192.0.2.1,192.0.2.2", ["192.0.2.1", "192.0.2.2"]),
        ("192.0.2.1 2001:db8::/32", ["192.0.2.1", "2001:db8::/32"]),
        # An address within something else.
        ("http://192.0.2.7/login", ["192.0.2.7"]),
        ("https://[2001:db8::7]:8443/", ["2001:db8::7"]),
        ("https://example.com/", []),
        ("http://[", []),
        ("192.0.2.7:443", ["192.0.2.7"]),
        ("[2001:db8::7]:443", ["2001:db8::7"]),
        ("[2001:db8::7]", ["2001:db8::7"]),
        ("fe80::1%eth0", ["fe80::1"]),
        ('"192.0.2.7"', ["192.0.2.7"]),
        (" 192.0.2.7 ", ["192.0.2.7"]),
        ("192.0.2.7\u200b", ["192.0.2.7"]),
        # Digits of other scripts, and zeros in front.
        ("".join(chr(ord(sign) + 0xFEE0) for sign in "192.0.2.7"), ["192.0.2.7"]),
        ("192\u30020\u30022\u30027", ["192.0.2.7"]),
        ("\u0661\u0669\u0662.\u0660.\u0662.\u0667", ["192.0.2.7"]),
        ("192.000.002.007", ["192.0.2.7"]),
        ("010.0.0.1", ["10.0.0.1"]),
        ("192.0.2.07/32", ["192.0.2.7/32"]),
        # Numbers that are too high.
        ("192.0.2.256", []),
        ("192.0.2.0/33", ["192.0.2.0"]),
        ("192.0.2.0/", ["192.0.2.0"]),
        ("2001:db8::/129", ["2001:db8::"]),
        # IPv6.
        ("2001:db8::*", ["2001:db8::/112"]),
        ("2001:db8:*", ["2001:db8::/32"]),
        ("2001:db8:0:7:*", ["2001:db8:0:7::/64"]),
        ("2001:db8:*:*:*:*:*:*", ["2001:db8::/32"]),
        ("2001:db8", ["2001:db8::/32"]),
        ("2001:db8/32", ["2001:db8::/32"]),
        ("2001:db8:0:7", ["2001:db8:0:7::/64"]),
        ("2001:db8:::7", []),
        ("1:2:3:4:5:6:7", []),
        (":::", []),
        # Not near at all: strings that a limit may count.
        ("", None),
        ("17", None),
        ("1234567890", None),
        ("sk_live_4f1c9b07", None),
        ("alice@example.com", None),
        ("example.com", None),
        ("12:34", None),
        ("2024:17", None),
        ("aa:bb:cc:dd:ee:ff", None),
        ("550e8400-e29b-41d4-a716-446655440000", None),
        ("eyJhbGciOiJIUzI1NiJ9.e30.Et9HFtf9R3GEMA0IICOfFMVXY7kkTX1wr4qCyhIf58U", None),
        ("1.3.6.1.4.1", None),
        ("v1.2.3", None),
        # And what is right.
        ("192.0.2.7", None),
        ("192.0.2.7/24", None),
        ("2001:db8::/32", None),
        ("::ffff:192.0.2.7", None),
    ],
)
def test_the_nearest_forms(text: str, forms: list[str] | None) -> None:
    found = meant(text)
    assert (None if found is None else list(found)) == forms


@given(
    st.one_of(
        st.text(max_size=60),
        st.text("0123456789abcdef.:/*-%[] x,", max_size=40),
    )
)
def test_what_is_named_is_valid(text: str) -> None:
    for form in meant(text) or ():
        ip_network(form, strict=False)
