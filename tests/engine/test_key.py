from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit.engine.key import Key
from ratelimit.engine.layout import ADDRESS, TEXT

MAPPED = 0xFFFF << 32
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def key() -> Key:
    return Key(bytes(range(16)))


def text(data: bytes) -> tuple[int, int]:
    made = key()
    made.text(b"<" + data + b">", 1, len(data))
    return made.kind, made.hi << 64 | made.lo


def expected(data: bytes) -> int | None:
    """What the standard library takes for an address, IPv4 as IPv4-mapped, zones excluded."""
    try:
        found = ipaddress.ip_address(data.decode("ascii"))
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv4Address):
        return MAPPED | int(found)
    return None if found.scope_id is not None else counted(found)


def counted(address: ipaddress.IPv6Address) -> int:
    """What an IPv6 address is counted as: behind NAT64 (RFC 6052), the IPv4 one in it."""
    return MAPPED | int(address) & 0xFFFFFFFF if address in NAT64 else int(address)


# The first, second and last vectors of SipHash-2-4-128's reference, key 00 01 .. 0f.
@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (0, "a3817f04ba25a8e66df67214c7550293"),
        (1, "da87c1d86b99af44347659119b22fc45"),
        (15, "5493e99933b0a8117e08ec0f97cfc3d9"),
    ],
)
def test_strings_are_known_by_their_siphash(size: int, digest: str) -> None:
    made = key()
    made.binary(bytes(range(size)), 0, size)
    assert (made.hi.to_bytes(8, "little") + made.lo.to_bytes(8, "little")).hex() == digest
    assert made.kind == TEXT


def test_the_secret_matters() -> None:
    other = Key(bytes(16))
    other.text(b"client", 0, 6)
    assert other.hi << 64 | other.lo != text(b"client")[1]


def test_packed_addresses() -> None:
    made = key()
    made.ipv4(b"..\xc0\x00\x02\xff", 2)
    assert (made.kind, made.hi, made.lo) == (ADDRESS, 0, MAPPED | 0xC00002FF)
    made.ipv6(b"." + bytes.fromhex("20010db8000000010002000300040005"), 1)
    assert (made.hi, made.lo) == (0x20010DB800000001, 0x0002000300040005)


@given(
    st.one_of(
        st.ip_addresses(v=6),
        st.ip_addresses(network=NAT64),
        st.ip_addresses(network=ipaddress.IPv6Network("64:ff9b::/64")),
    )
)
@example(ipaddress.IPv6Address("64:ff9b::192.0.2.7"))
@example(ipaddress.IPv6Address("64:ff9b::1:c000:207"))
@example(ipaddress.IPv6Address("64:ff9b:1::c000:207"))
@example(ipaddress.IPv6Address("64:ff9a::c000:207"))
def test_an_address_behind_nat64_is_the_ipv4_one(address: ipaddress.IPv6Address) -> None:
    made = key()
    made.ipv6(b"." + address.packed, 1)
    assert made.kind == ADDRESS
    assert made.hi << 64 | made.lo == counted(address)
    assert text(str(address).encode()) == (ADDRESS, counted(address))


PIECES = st.sampled_from(
    ["::", ":", ".", "0", "1", "00", "01", "ffff", "FFff", "12345", "255", "256", "1.2.3.4", "g"]
)


@given(st.lists(PIECES, min_size=1, max_size=16).map("".join).filter(lambda t: 2 <= len(t) <= 45))
@example("::")
@example("1::")
@example("::1.2.3.4")
@example("1:2:3:4:5:6:7::")
@example("1:2:3:4:5:6:7:8::")
@example("::2:3:4:5:6:7:8")
@example("1:2:3:4:5:6:1.2.3.4")
@example("1:2:3:4:5:6:7:1.2.3.4")
@example("fe80::1%eth0")
@example("1.2.3.4::")
def test_text_is_an_address_where_the_standard_library_says_so(written: str) -> None:
    data = written.encode()
    kind, value = text(data)
    if expected(data) is None:
        assert kind == TEXT
    else:
        assert (kind, value) == (ADDRESS, expected(data))


@given(st.ip_addresses())
def test_every_address_as_text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    for data in {str(address), address.exploded, str(address).upper()}:
        assert text(data.encode()) == (ADDRESS, expected(data.encode()))


@given(st.binary(max_size=50))
def test_any_bytes_are_a_key(data: bytes) -> None:
    kind, value = text(data)
    assert kind in (ADDRESS, TEXT)
    assert 0 <= value < 2**128


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_is_its_decimal_string(number: int) -> None:
    made = key()
    made.number(number & 2**64 - 1)
    assert (made.kind, made.hi << 64 | made.lo) == text(str(number).encode())
